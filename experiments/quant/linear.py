"""QuantLinear: a linear layer whose three GEMMs take quantized operands.

What is quantized, and along which axis: `experiments.quant.gemms`; how a gradient comes out of it:
`experiments.quant.passes`; the same in a compiled graph: `experiments.quant.compiled`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.quant.compiled import compiled_products, handle_of
from experiments.quant.formats import Precision
from experiments.quant.gemms import STREAMS, Gemms, NoiseClock
from experiments.quant.kernels.dense import refuse_unless_there
from experiments.quant.operand import Operand, multiply
from experiments.quant.passes import QuantizedProducts
from experiments.quant.recipe import RecipeConfig

__all__ = ["STREAMS", "NoiseClock", "QuantLinear", "QuantizedGemms", "compute_dtype"]


class QuantizedGemms(Gemms):
    """The three GEMMs of a layer with a weight matrix, as a recipe says; mixed into the layer."""

    weight: Any
    """A parameter of the layer."""

    def quantized_as(
        self, recipe: RecipeConfig, precision: Precision, clock: NoiseClock, layer: int
    ) -> None:
        """Set what is quantized, and how; arguments as there."""
        super().quantized_as(recipe, precision, clock, layer)
        self.handle = handle_of(self)
        """What compiled graphs know this layer by."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take the state of another layer, of which this is a copy, but not its handle."""
        getattr(super(), "__setstate__", self.__dict__.update)(state)
        self.handle = handle_of(self)

    def parts(self) -> Iterator[tuple[str, QuantizedGemms]]:
        """What of this layer is watched, each with the name of its weight in the layer."""
        yield "weight", self

    def matrices(self) -> list[Tensor]:
        """The weight as the matrices [out, in] that its products take: one, or one per group."""
        return [self.weight]

    def of_matrices(self, matrices: list[Tensor]) -> Tensor:
        """What `matrices` gives, as a weight."""
        [weight] = matrices
        return weight

    def transform(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Y = x W^T + b: [..., in] and [out, in] to [..., out]."""
        if not torch.compiler.is_dynamo_compiling():
            refuse_unless_there(type(self).__name__, input)
            refuse_unless_there(type(self).__name__, weight)
        if input.numel() == 0 or input.is_meta:  # nothing to quantize
            return F.linear(input, weight, bias)
        dtype = compute_dtype(input, weight)
        high = self.kept or not self.clock.quantizing
        if high and not (self.given and dtype.itemsize == 2):
            return F.linear(input, weight, bias)
        if high:
            left = Operand(input.reshape(-1, weight.shape[1]), "P1" in self.given)
            product = multiply(left, Operand(weight, "P2" in self.given), dtype)
            output = product.reshape(*input.shape[:-1], weight.shape[0])
        elif torch.compiler.is_compiling():
            rows = input.reshape(-1, input.shape[-1])
            how = self.handle, None, bool(self.estimators), dtype
            output = compiled_products(rows, weight[None], *how)
            output = output.reshape(*input.shape[:-1], weight.shape[0])
        else:
            output = QuantizedProducts.apply(input, weight, self, dtype)  # type: ignore[no-untyped-call]
        return output if bias is None else output + bias.to(output.dtype)


class QuantLinear(QuantizedGemms, nn.Linear):
    """y = x W^T + b with the operands of its three GEMMs quantized as a recipe says.

    Args:
        in_features: Size of the last axis of the input.
        out_features: Size of the last axis of the output.
        recipe: Which operands, which rounding, which rotation.  None quantized: `nn.Linear`,
            bit for bit.
        precision: Format of operands to which the recipe gives no format of their own.
        clock: The source of noise and random signs.
        layer: Number of this layer in the model, part of the noise's address.
        bias: Whether to add a (never quantized) bias.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        recipe: RecipeConfig,
        precision: Precision,
        clock: NoiseClock,
        layer: int = 0,
        bias: bool = False,
    ) -> None:
        super().__init__(in_features, out_features, bias=bias)
        self.quantized_as(recipe, precision, clock, layer)

    def forward(self, input: Tensor) -> Tensor:
        """[..., in_features] to [..., out_features]."""
        return self.transform(input, self.weight, self.bias)


def compute_dtype(input: Tensor, weight: Tensor) -> torch.dtype:
    """The dtype of `nn.Linear`: autocast's, or the tensors' own."""
    device = input.device.type
    if torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return torch.promote_types(input.dtype, weight.dtype)
