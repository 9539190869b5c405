"""Adapters with a few trained numbers per layer instead of two small matrices.

    paca   All entries of r columns of the weight, drawn at random: partial connections
           (2503.01905).  Left out: the memory that its backward pass saves.
    shira  r (in + out) entries of the weight, drawn at random: sparse high-rank (2406.13175, its
           SHiRA-Rand).  Left out: its masks by gradients, magnitudes and structure.
    qwha   r (in + out) coefficients of a Walsh-Hadamard transform of what is added to the weight
           (2509.17428).  Left out: its budget for each row, and bases quantized by GPTQ and MagR.

The first two change the weight itself, so what was trained is quantized with it, and nothing is
left to merge.  The third adds beside the layer, in high precision, as LoRA does.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from experiments.finetune.config import AdapterConfig
from experiments.finetune.rounded import weight_error
from experiments.quant.hadamard import rotate
from experiments.quant.linear import QuantLinear


class SparseAdapter(nn.Module, ABC):
    """A frozen linear layer, and the numbers that are trained for it.

    Args:
        base_layer: The layer, [in] to [out].
        index: Places of these numbers in the flattened [out, in], int64 [count].
        values: What they begin with, [count].
    """

    index: Tensor

    def __init__(self, base_layer: QuantLinear, index: Tensor, values: Tensor) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.values = nn.Parameter(values)
        self.register_buffer("index", index)

    def matrix(self) -> Tensor:
        """The numbers in their places, zeros elsewhere, [out, in]."""
        weight = self.base_layer.weight
        flat = torch.zeros(weight.numel(), dtype=self.values.dtype, device=weight.device)
        return flat.index_put((self.index,), self.values).view_as(weight)

    @abstractmethod
    def delta(self) -> Tensor:
        """What is added to the weight, [out, in]."""


class ChangedWeight(SparseAdapter):
    """Numbers that are added to entries of the weight before it is quantized."""

    def delta(self) -> Tensor:
        """What is added to the weight, [out, in]."""
        return self.matrix()

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] to [..., out]."""
        changed = {"weight": self.base_layer.weight + self.delta()}
        output: Tensor = functional_call(self.base_layer, changed, (x,))
        return output


class HadamardCoefficients(SparseAdapter):
    """Coefficients of a transform along the input, multiplied beside the layer."""

    @property
    def size(self) -> int:
        """Block length of the transform: the largest power of two that divides the input's."""
        into = self.base_layer.in_features
        return into & -into

    def delta(self) -> Tensor:
        """What is added to the weight, [out, in]."""
        return rotate(self.matrix(), self.size)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] to [..., out]."""
        output: Tensor = self.base_layer(x)
        beside = F.linear(rotate(x.to(self.values.dtype), self.size), self.matrix())
        return (output + beside).to(output.dtype)


def sparse(layer: QuantLinear, adapter: AdapterConfig, generator: torch.Generator) -> SparseAdapter:
    """A layer with the adapter that a configuration names.

    Args:
        layer: The frozen layer.
        adapter: paca, shira or qwha.
        generator: Draws the places.
    """
    out, into = layer.weight.shape
    if adapter.name == "paca":
        columns = torch.randperm(into, generator=generator)[: adapter.r]
        index = (torch.arange(out)[:, None] * into + columns).flatten()
        return ChangedWeight(layer, index, torch.zeros(len(index)))
    count = adapter.r * (into + out)
    if adapter.name == "shira":
        index = torch.randperm(into * out, generator=generator)[:count]
        return ChangedWeight(layer, index, torch.zeros(len(index)))
    made = HadamardCoefficients(layer, torch.zeros(0, dtype=torch.int64), torch.zeros(0))
    if adapter.init == "error" and (error := weight_error(layer, layer.weight)) is not None:
        wanted = rotate(error.contiguous(), made.size).flatten()  # its own inverse
        index = wanted.abs().topk(min(count, wanted.numel())).indices
        return HadamardCoefficients(layer, index, wanted[index].clone())
    index = torch.randperm(into * out, generator=generator)[:count]
    return HadamardCoefficients(layer, index, torch.zeros(len(index)))
