"""QuantLinear: a linear layer whose three GEMMs take quantized operands.

The only place where a matrix product is quantized.  Every operand is first laid out with the
GEMM's summed axis last, then rotated if the recipe says so, then quantized along that axis, then
cast to the compute dtype and multiplied.  Operands that the recipe leaves out go in as they are.

A backward operand may be what the forward product multiplied.  Where that was rotated, so is the
gradient that comes out, which is then rotated back (Quartet 2505.14669, Algorithm 1).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.quant.block import quantize
from experiments.quant.eden import ms_eden
from experiments.quant.formats import Precision
from experiments.quant.gradient import rounding_gradient
from experiments.quant.hadamard import random_signs, rotate, unrotate
from experiments.quant.kernels.noise import mix, uniform
from experiments.quant.lmul import lmul
from experiments.quant.recipe import GemmConfig, OperandConfig, RecipeConfig
from experiments.quant.rounding import few_bits

_SIGNS_STREAM = {"output": 7, "grad_input": 8, "grad_weight": 9}  # 1..6 are the operands
_LEFT = {"output": "P1", "grad_input": "P3", "grad_weight": "P5"}
_SHARED = -1
"""Stands for the counter and the layer of signs that do not depend on either."""

Watch: TypeAlias = Callable[["QuantLinear", str, Tensor, int, Tensor | None, Tensor], None]
"""Layer, label, values, block length and signs of their rotation, and what they were rounded to."""


@dataclass
class NoiseClock:
    """Tells every layer which forward pass this is, so that noise is a pure function of position.

    Draws depend on (seed, counter, layer, stream) and on nothing else: a resumed run sees the
    noise it would have seen, and two recipes can be compared on common random numbers.
    """

    seed: int
    counter: int = 0
    quantizing: bool = True
    """False: this pass is in high precision, whatever the recipe."""
    watch: Watch | None = None
    """Told of every operand that is rounded; it must change none of what it is told."""

    def key(self, counter: int, layer: int, stream: int) -> int:
        """Of one tensor's draws (`experiments.quant.kernels.noise`)."""
        key = 0
        for part in (self.seed, counter, layer, stream):
            key = mix(key ^ part)
        return key


class QuantLinear(nn.Linear):
    """y = x W^T + b with the operands of its three GEMMs quantized as a recipe says.

    Args:
        in_features: Size of the last axis of the input.
        out_features: Size of the last axis of the output.
        recipe: Which operands, which rounding, which rotation.  None quantized: `nn.Linear`,
            bit for bit.
        precision: To what they are quantized that the recipe gives no format of their own.
        clock: Where noise and random signs come from.
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
        self.recipe = recipe
        self.precisions = recipe.precisions(precision)
        self.clock = clock
        self.layer = layer
        self.kept = not recipe.quantized
        """Whether this layer stays in high precision; the model keeps those its recipe names."""

    def forward(self, input: Tensor) -> Tensor:
        """[..., in_features] to [..., out_features]."""
        if self.kept or not self.clock.quantizing:
            return F.linear(input, self.weight, self.bias)
        output: Tensor = _QuantizedGemms.apply(input, self.weight, self)  # type: ignore[no-untyped-call]
        return output if self.bias is None else output + self.bias

    def operands(
        self,
        gemm_name: str,
        left: tuple[str, OperandConfig | None, Tensor],
        right: tuple[str, OperandConfig | None, Tensor],
        counter: int,
    ) -> tuple[Tensor, Tensor]:
        """Both operands of one GEMM as they are multiplied, summed axis last, in float32.

        Args:
            gemm_name: output, grad_input or grad_weight.
            left: Label (P1..P6), how it is quantized or None, and the values, [rows, K].
            right: The same for the other operand, [columns, K].
            counter: The clock's count when the layer ran forward.
        """
        if left[1] is None and right[1] is None:
            return left[2], right[2]
        gemm: GemmConfig = self.recipe.gemms()[gemm_name]
        signs = self.signs(gemm_name, left[2], counter)
        prepared = []
        for label, operand, values in (left, right):
            values = values.float()
            if operand is None or operand.rounding == "none":
                values = rotate(values, gemm.hadamard, signs) if gemm.hadamard else values
            else:
                key = self.clock.key(counter, self.layer, int(label[1]))
                rounded = self._rounded(label, operand, values, key, gemm.hadamard, signs)
                if self.clock.watch is not None:
                    self.clock.watch(self, label, values, gemm.hadamard, signs, rounded)
                values = rounded
            prepared.append(values)
        return prepared[0], prepared[1]

    def product(self, gemm_name: str, left: Tensor, right: Tensor, dtype: torch.dtype) -> Tensor:
        """[rows, K] times [columns, K] transposed, as the recipe multiplies, in `dtype`."""
        if self.recipe.gemms()[gemm_name].product == "lmul":
            return lmul(left, right, self.precisions[_LEFT[gemm_name]].element.mantissa, dtype)
        return left.to(dtype) @ right.to(dtype).t()

    def _rounded(
        self,
        label: str,
        operand: OperandConfig,
        values: Tensor,
        key: int,
        hadamard: int,
        signs: Tensor | None,
    ) -> Tensor:
        precision, rounding = self.precisions[label], operand.rounding
        if rounding == "ms_eden":
            return ms_eden(rotate(values, hadamard, signs) if hadamard else values, key)
        if operand.random_bits is not None:
            noise = few_bits(uniform(key, values.shape, values.device), operand.random_bits)
            return quantize(values, precision, noise, hadamard=hadamard, signs=signs)
        if rounding == "stochastic":
            return quantize(values, precision, key, hadamard=hadamard, signs=signs)
        return quantize(values, precision, rounding=rounding, hadamard=hadamard, signs=signs)

    def signs(self, gemm_name: str, operand: Tensor, counter: int) -> Tensor | None:
        """Of the rotation of a GEMM's operands, [K], K the last axis of `operand`; None: all +1."""
        gemm = self.recipe.gemms()[gemm_name]
        if not gemm.hadamard or gemm.signs == "fixed":
            return None
        stream, size, device = _SIGNS_STREAM[gemm_name], operand.shape[-1], operand.device
        if gemm.signs == "shared":
            key = self.clock.key(_SHARED, _SHARED, stream)
            return _repeated_signs(key, gemm.hadamard, size, device)
        return random_signs(self.clock.key(counter, self.layer, stream), size, device)

    def through_rounding(
        self, gradient: Tensor, label: str, values: Tensor | None, counter: int, rotated: bool
    ) -> Tensor:
        """From the gradient of what the forward product multiplied to that of the tensor itself.

        Args:
            gradient: [rows, in_features].
            label: P1 or P2.
            values: The tensor, of the same shape; None where its rounding passes all straight
                through.
            counter: The clock's count when the layer ran forward.
            rotated: Whether the gradient is of the rotated values.
        """
        gemm, operand = self.recipe.output, self.recipe.slots()[label]
        signs = self.signs("output", gradient, counter)
        if operand is not None and operand.gradient != "straight_through":
            assert values is not None
            if gemm.hadamard and not rotated:
                gradient = rotate(gradient.float(), gemm.hadamard, signs)
                rotated = True
            precision = self.precisions[label]
            factor = rounding_gradient(
                values.float(), precision, operand.gradient, gemm.hadamard, signs
            )
            gradient = gradient.mul_(factor)
        if rotated and gemm.hadamard:
            gradient = unrotate(gradient.float(), gemm.hadamard, signs)
        return gradient


class _QuantizedGemms(torch.autograd.Function):
    """The three GEMMs of a linear layer and the gradients' way through the rounding."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, layer: QuantLinear) -> Tensor:
        device = input.device.type
        compute_dtype = (
            torch.get_autocast_dtype(device)
            if torch.is_autocast_enabled(device)
            else torch.promote_types(input.dtype, weight.dtype)
        )
        ctx.layer, ctx.counter, ctx.compute_dtype = layer, layer.clock.counter, compute_dtype
        recipe = layer.recipe
        # [rows, in] @ [out, in]^T -> [rows, out]
        left, right = layer.operands(
            "output",
            ("P1", recipe.output.input, input.flatten(0, -2)),
            ("P2", recipe.output.weight, weight),
            ctx.counter,
        )
        ctx.shape, ctx.dtype = input.shape, input.dtype
        input_is_needed = not _of_forward(recipe.grad_weight.input) or _estimates(
            recipe.output.input
        )
        ctx.save_for_backward(
            input.flatten(0, -2) if input_is_needed else None,
            weight,
            left if _of_forward(recipe.grad_weight.input) else None,
            right if _of_forward(recipe.grad_input.weight) else None,
        )
        output = layer.product("output", left, right, compute_dtype)
        return output.view(*input.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        rows, weight, forward_rows, forward_weight = ctx.saved_tensors
        layer: QuantLinear = ctx.layer
        grad_output = grad_outputs[0].flatten(0, -2)
        grad_input = grad_weight = None
        if ctx.needs_input_grad[0]:
            into_input = layer.recipe.grad_input
            reused = forward_weight is not None
            right = forward_weight if reused else weight
            # [rows, out] @ [in, out]^T -> [rows, in]
            left, right = layer.operands(
                "grad_input",
                ("P3", into_input.grad_output, _rotate_rows(grad_output, into_input.row_hadamard)),
                ("P4", into_input.weight, right.t()),
                ctx.counter,
            )
            grad_input = layer.product("grad_input", left, right, ctx.compute_dtype)
            grad_input = _rotate_rows(grad_input, into_input.row_hadamard)
            grad_input = layer.through_rounding(grad_input, "P1", rows, ctx.counter, reused)
            grad_input = grad_input.reshape(ctx.shape).to(ctx.dtype)
        if ctx.needs_input_grad[1]:
            into_weight = layer.recipe.grad_weight
            reused = forward_rows is not None
            right = forward_rows if reused else rows
            # [out, rows] @ [in, rows]^T -> [out, in]
            left, right = layer.operands(
                "grad_weight",
                ("P5", into_weight.grad_output, grad_output.t()),
                ("P6", into_weight.input, right.t()),
                ctx.counter,
            )
            grad_weight = layer.product("grad_weight", left, right, ctx.compute_dtype)
            grad_weight = layer.through_rounding(grad_weight, "P2", weight, ctx.counter, reused)
            grad_weight = grad_weight.to(weight.dtype)
        return grad_input, grad_weight, None


@lru_cache(maxsize=64)
def _repeated_signs(key: int, block: int, size: int, device: torch.device) -> Tensor:
    """The same for every block, all through a run."""
    return random_signs(key, block, device).repeat(size // block)


def _of_forward(operand: OperandConfig | None) -> bool:
    return operand is not None and operand.forward


def _estimates(operand: OperandConfig | None) -> bool:
    return operand is not None and operand.gradient != "straight_through"


def _rotate_rows(x: Tensor, size: int) -> Tensor:
    """[rows, columns] rotated along the rows; twice is not at all."""
    return rotate(x.float().t().contiguous(), size).t() if size else x
