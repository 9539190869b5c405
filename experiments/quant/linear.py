"""QuantLinear: a linear layer whose three GEMMs take quantized operands.

The only place where a matrix product is quantized.  Every operand is first laid out with the
GEMM's summed axis last, then rotated if the recipe says so, then quantized along that axis, then
cast to the compute dtype and multiplied.  Operands that the recipe leaves out go in as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.quant.block import quantize
from experiments.quant.formats import Precision
from experiments.quant.hadamard import rotate
from experiments.quant.kernels.noise import mix, uniform
from experiments.quant.recipe import GemmConfig, OperandConfig, RecipeConfig

_SIGNS_STREAM = {"output": 7, "grad_input": 8, "grad_weight": 9}  # 1..6 are the operands


@dataclass
class NoiseClock:
    """Tells every layer which forward pass this is, so that noise is a pure function of position.

    Draws depend on (seed, counter, layer, stream) and on nothing else: a resumed run sees the
    noise it would have seen, and two recipes can be compared on common random numbers.
    """

    seed: int
    counter: int = 0

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
        precision: To what they are quantized.
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
        self.precision = precision
        self.clock = clock
        self.layer = layer

    def forward(self, input: Tensor) -> Tensor:
        """[..., in_features] to [..., out_features]."""
        if not self.recipe.quantized:
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
        gemm: GemmConfig = self.recipe.gemms()[gemm_name]
        if left[1] is None and right[1] is None:
            return left[2], right[2]
        signs = None
        if gemm.hadamard and gemm.signs == "random":
            stream = _SIGNS_STREAM[gemm_name]
            key = self.clock.key(counter, self.layer, stream)
            draws = uniform(key, left[2].shape[-1:], left[2].device)
            signs = torch.where(draws < 0.5, -1.0, 1.0)

        prepared = []
        for label, operand, values in (left, right):
            values = values.float()
            if operand is None:
                values = rotate(values, gemm.hadamard, signs) if gemm.hadamard else values
            elif operand.rounding == "stochastic":
                key = self.clock.key(counter, self.layer, int(label[1]))
                values = quantize(values, self.precision, key, hadamard=gemm.hadamard, signs=signs)
            else:
                values = quantize(
                    values,
                    self.precision,
                    rounding=operand.rounding,
                    hadamard=gemm.hadamard,
                    signs=signs,
                )
            prepared.append(values)
        return prepared[0], prepared[1]


class _QuantizedGemms(torch.autograd.Function):
    """The three GEMMs of a linear layer; gradients pass the rounding straight through."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, layer: QuantLinear) -> Tensor:
        device = input.device.type
        compute_dtype = (
            torch.get_autocast_dtype(device)
            if torch.is_autocast_enabled(device)
            else torch.promote_types(input.dtype, weight.dtype)
        )
        ctx.save_for_backward(input, weight)
        ctx.layer, ctx.counter, ctx.compute_dtype = layer, layer.clock.counter, compute_dtype
        gemm = layer.recipe.output
        # [rows, in] @ [out, in]^T -> [rows, out]
        left, right = layer.operands(
            "output",
            ("P1", gemm.input, input.flatten(0, -2)),
            ("P2", gemm.weight, weight),
            ctx.counter,
        )
        output = left.to(compute_dtype) @ right.to(compute_dtype).t()
        return output.view(*input.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        input, weight = ctx.saved_tensors
        layer: QuantLinear = ctx.layer
        grad_output = grad_outputs[0].flatten(0, -2)
        grad_input = grad_weight = None
        if ctx.needs_input_grad[0]:
            into_input = layer.recipe.grad_input
            # [rows, out] @ [in, out]^T -> [rows, in]
            left, right = layer.operands(
                "grad_input",
                ("P3", into_input.grad_output, grad_output),
                ("P4", into_input.weight, weight.t()),
                ctx.counter,
            )
            grad_input = left.to(ctx.compute_dtype) @ right.to(ctx.compute_dtype).t()
            grad_input = grad_input.reshape(input.shape).to(input.dtype)
        if ctx.needs_input_grad[1]:
            into_weight = layer.recipe.grad_weight
            # [out, rows] @ [in, rows]^T -> [out, in]
            left, right = layer.operands(
                "grad_weight",
                ("P5", into_weight.grad_output, grad_output.t()),
                ("P6", into_weight.input, input.flatten(0, -2).t()),
                ctx.counter,
            )
            grad_weight = left.to(ctx.compute_dtype) @ right.to(ctx.compute_dtype).t()
            grad_weight = grad_weight.to(weight.dtype)
        return grad_input, grad_weight, None
