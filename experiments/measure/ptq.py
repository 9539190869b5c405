"""Post-training quantization (PTQ): the loss of a trained model when its weights lose bits.

After validation the trained weights are rounded to each of some formats, to nearest and along the
axis that the forward product sums, and the same validation stream is scored again.  Everything
else of the forward pass is as it was: a recipe that quantizes weights forward rounds them a second
time, so the curves of the literature (Kumar et al. 2411.04330) are those of recipe=none.  Layers
that the recipe keeps stay in high precision.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from experiments.quant.block import quantize
from experiments.quant.formats import FormatError, Precision
from experiments.quant.linear import QuantizedGemms

OPERANDS = ("weights", "weights_and_inputs")


@dataclass
class PtqConfig:
    """Formats for the trained model; part of a run's identity if there are any."""

    formats: list[str] = field(default_factory=list)
    """Names that `Precision.parse` reads: [int2_row, int4_row, mxfp4, E4M3-ocp-row, ...]."""
    operands: str = "weights"
    """weights, or weights_and_inputs of every quantized layer."""

    def precisions(self) -> dict[str, Precision]:
        """The formats by the name that all their spellings share, e.g. E2M1-block32-e8m0.

        Raises:
            FormatError: A name that no format has; `problems` says so first.
        """
        return {str(precision): precision for precision in map(Precision.parse, self.formats)}

    def problems(self, axes: dict[str, int]) -> list[str]:
        """Errors, each as "key=value: what would be right".

        Args:
            axes: Sizes that blocks must divide, by key: those of the summed axes, for tiles also
                of the others.
        """
        found = []
        if self.operands not in OPERANDS:
            right = f"must be one of {', '.join(OPERANDS)}"
            found.append(f"ptq.operands={self.operands}: {right}")
        seen: set[Precision] = set()
        for name in self.formats:
            try:
                precision = Precision.parse(name)
            except FormatError as error:
                found.append(f"ptq.formats={name}: {error}")
                continue
            if precision in seen:
                found.append(f"ptq.formats={name}: {precision} is there already")
            seen.add(precision)
            block = precision.divisor
            for axis, size in axes.items():
                if size % block and (precision.tile or axis.startswith("model.")):
                    found.append(
                        f"ptq.formats={name}: its block size {block} must divide {axis}={size}"
                    )
        return found


@contextlib.contextmanager
def quantized(
    layers: Iterable[QuantizedGemms], precision: Precision, operands: str
) -> Iterator[None]:
    """Quantize the weights, or weights and inputs, of layers; weights come back bit for bit.

    Args:
        layers: The layers to quantize; of a convolution with groups each group is a matrix, with
            scales of its own, as it is in training.
        precision: The format, rounded to nearest even.
        operands: One of `OPERANDS`.  An input of several sequences is one tensor: a scale of the
            whole tensor is shared by all that are scored together.
    """
    chosen = list(layers)
    saved = [layer.weight.detach().clone() for layer in chosen]
    hooks = []
    given = frozenset(("P1", "P2") if operands == "weights_and_inputs" else ("P2",))

    def quantize_input(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Tensor]:
        return (quantize(inputs[0].float(), precision),)

    try:
        with torch.no_grad():
            for layer in chosen:
                rounded = [quantize(matrix, precision) for matrix in layer.matrices()]
                layer.weight.copy_(layer.of_matrices(rounded))
                layer.given = given
        if operands == "weights_and_inputs":
            modules = (layer for layer in chosen if isinstance(layer, nn.Module))
            hooks = [module.register_forward_pre_hook(quantize_input) for module in modules]
        yield
    finally:
        with torch.no_grad():
            for layer, weight in zip(chosen, saved, strict=True):
                layer.weight.copy_(weight)
                layer.given = frozenset()
        for hook in hooks:
            hook.remove()
