"""QuantLinear: a linear layer whose three GEMMs take quantized operands.

The only place where a matrix product is quantized.  Every operand is first laid out with the
GEMM's summed axis last, then rotated if the recipe says so, then quantized along that axis, then
multiplied as it is: a 16-bit compute dtype rounds no quantized value again
(`experiments.quant.operand`), only the product.  Operands that the recipe leaves out are cast to
the compute dtype, as in any layer.

A backward operand may be what the forward product multiplied.  Where that was rotated, so is the
gradient that comes out, which is then rotated back (Quartet 2505.14669, Algorithm 1).

Axes that a block, a tile or a rotation does not divide are filled up with zeros, which changes no
sum and no largest value.  Quantization is in float32: a float64 tensor is rounded to float32 before
it is rounded to its format, and then multiplied in float64.
"""

from __future__ import annotations

import math
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
from experiments.quant.kernels.dense import refuse_unless_there
from experiments.quant.kernels.noise import mix, uniform
from experiments.quant.lmul import lmul
from experiments.quant.operand import Operand, factor_of, has_factor, multiply
from experiments.quant.product import has_wide_product
from experiments.quant.recipe import GemmConfig, OperandConfig, RecipeConfig
from experiments.quant.rounding import few_bits

_SIGNS_STREAM = {"output": 7, "grad_input": 8, "grad_weight": 9}  # 1..6 are the operands
_LABELS = {"output": ("P1", "P2"), "grad_input": ("P3", "P4"), "grad_weight": ("P5", "P6")}
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
        self.given: frozenset[str] = frozenset()
        """Those of P1 and P2 that come quantized, as where a trained model is scored so: they are
        multiplied as they are, whatever the compute dtype."""
        self.steps = self._steps()
        """Multiples to which rows, in_features and out_features are filled up with zeros."""

    def forward(self, input: Tensor) -> Tensor:
        """[..., in_features] to [..., out_features]."""
        if not torch.compiler.is_dynamo_compiling():
            refuse_unless_there("QuantLinear", input)
            refuse_unless_there("QuantLinear", self.weight)
        if input.numel() == 0 or input.is_meta:  # nothing to quantize
            return F.linear(input, self.weight, self.bias)
        dtype = self._compute_dtype(input)
        high = self.kept or not self.clock.quantizing
        if high and not (self.given and dtype.itemsize == 2):
            return F.linear(input, self.weight, self.bias)
        if high:
            left = Operand(input.reshape(-1, self.in_features), "P1" in self.given)
            product = multiply(left, Operand(self.weight, "P2" in self.given), dtype)
            output = product.reshape(*input.shape[:-1], self.out_features)
        else:
            output = _QuantizedGemms.apply(input, self.weight, self, dtype)  # type: ignore[no-untyped-call]
        return output if self.bias is None else output + self.bias.to(output.dtype)

    def _compute_dtype(self, input: Tensor) -> torch.dtype:
        """As `nn.Linear` has it: autocast's, or the tensors' own."""
        device = input.device.type
        if torch.is_autocast_enabled(device):
            return torch.get_autocast_dtype(device)
        return torch.promote_types(input.dtype, self.weight.dtype)

    def operands(
        self,
        gemm_name: str,
        left: tuple[str, OperandConfig | None, Operand],
        right: tuple[str, OperandConfig | None, Operand],
        counter: int,
        dtype: torch.dtype = torch.float32,
    ) -> tuple[Operand, Operand]:
        """Both operands of one GEMM, summed axis last.

        Args:
            gemm_name: output, grad_input or grad_weight.
            left: Label (P1..P6), how it is quantized or None, and the values, [rows, K].
            right: The same for the other operand, [columns, K].
            counter: The clock's count when the layer ran forward.
            dtype: In which they are going to be multiplied.
        """
        if left[1] is None and right[1] is None:
            return left[2], right[2]
        gemm: GemmConfig = self.recipe.gemms()[gemm_name]
        signs = self.signs(gemm_name, left[2].values, counter)
        prepared = []
        for label, operand, given in (left, right):
            if operand is None or operand.rounding == "none":
                ready = given
                if gemm.hadamard:  # rotated, they are numbers of no format
                    ready = Operand(rotate(_float(given.values), gemm.hadamard, signs))
            else:
                values = given.values.float()
                key = self.clock.key(counter, self.layer, int(label[1]))
                ready = self._rounded(label, operand, values, key, gemm.hadamard, signs, dtype)
                if self.clock.watch is not None:
                    self.clock.watch(self, label, values, gemm.hadamard, signs, ready.values)
            prepared.append(ready)
        return prepared[0], prepared[1]

    def product(self, gemm_name: str, left: Operand, right: Operand, dtype: torch.dtype) -> Tensor:
        """[rows, K] times [columns, K] transposed, as the recipe multiplies, in `dtype`."""
        if self.recipe.gemms()[gemm_name].product == "lmul":
            mantissa = self.precisions[_LABELS[gemm_name][0]].element.mantissa
            return lmul(left.values, right.values, mantissa, dtype)
        return multiply(left, right, dtype)

    def _rounded(
        self,
        label: str,
        operand: OperandConfig,
        values: Tensor,
        key: int,
        hadamard: int,
        signs: Tensor | None,
        dtype: torch.dtype,
    ) -> Operand:
        precision, rounding = self.precisions[label], operand.rounding
        factor: Tensor | float | None = None
        narrow = dtype is torch.bfloat16 and has_wide_product(values.device)
        if (narrow and has_factor(precision)) or rounding == "ms_eden":
            if hadamard:  # the factor goes by the rotated values
                values, hadamard = rotate(values, hadamard, signs), 0
            factor = factor_of(values, precision, rounding) if narrow else None
        if rounding == "ms_eden":
            rounded = ms_eden(values, key)
        elif operand.random_bits is not None:
            noise = few_bits(uniform(key, values.shape, values.device), operand.random_bits)
            rounded = quantize(values, precision, noise, hadamard=hadamard, signs=signs)
        elif rounding == "stochastic":
            rounded = quantize(values, precision, key, hadamard=hadamard, signs=signs)
        else:
            rounded = quantize(values, precision, rounding=rounding, hadamard=hadamard, signs=signs)
        return Operand(rounded, True, factor)

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
            gradient: [rows, in_features]; of the weight [out_features, in_features].
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
                gradient = rotate(_float(gradient), gemm.hadamard, signs)
                rotated = True
            precision = self.precisions[label]
            factor = rounding_gradient(
                values.float(), precision, operand.gradient, gemm.hadamard, signs
            )
            gradient = gradient.mul_(factor)
        if rotated and gemm.hadamard:
            gradient = unrotate(_float(gradient), gemm.hadamard, signs)
        return gradient

    def _steps(self) -> tuple[int, int, int]:
        """What must divide the rows, the in_features and the out_features, zeros filled up."""
        gemms, slots = self.recipe.gemms(), self.recipe.slots()
        summed, tiles = {}, [1]
        for name, labels in _LABELS.items():
            used = [label for label in labels if slots[label] is not None]
            sizes = [gemms[name].hadamard or 1] if used else [1]
            for label in used:
                precision = self.precisions[label]
                if precision.granularity == "tile":
                    tiles.append(precision.block_size)
                elif precision.granularity == "block":
                    sizes.append(precision.block_size)
            summed[name] = math.lcm(*sizes)
        tile = math.lcm(*tiles)
        rows = math.lcm(summed["grad_weight"], self.recipe.grad_input.row_hadamard or 1, tile)
        return rows, math.lcm(summed["output"], tile), math.lcm(summed["grad_input"], tile)


class _QuantizedGemms(torch.autograd.Function):
    """The three GEMMs of a linear layer and the gradients' way through the rounding."""

    @staticmethod
    def forward(
        ctx: Any, input: Tensor, weight: Tensor, layer: QuantLinear, dtype: torch.dtype
    ) -> Tensor:
        ctx.layer, ctx.counter, ctx.compute_dtype = layer, layer.clock.counter, dtype
        ctx.shape, ctx.dtypes, ctx.steps = input.shape, (input.dtype, weight.dtype), layer.steps
        recipe = layer.recipe
        rows, matrix = input.reshape(-1, input.shape[-1]), weight
        by_rows, by_in, by_out = ctx.steps
        # [rows, in] @ [out, in]^T -> [rows, out]
        left, right = layer.operands(
            "output",
            (
                "P1",
                recipe.output.input,
                Operand(_filled(rows, by_rows, by_in), "P1" in layer.given),
            ),
            (
                "P2",
                recipe.output.weight,
                Operand(_filled(matrix, by_out, by_in), "P2" in layer.given),
            ),
            ctx.counter,
            dtype,
        )
        input_grad, weight_grad = ctx.needs_input_grad[:2]
        keeps_left = weight_grad and _of_forward(recipe.grad_weight.input)
        keeps_right = input_grad and _of_forward(recipe.grad_input.weight)
        keeps_rows = (weight_grad and not keeps_left) or (
            input_grad and _estimates(recipe.output.input)
        )
        keeps_matrix = (input_grad and not keeps_right) or (
            weight_grad and _estimates(recipe.output.weight)
        )
        ctx.save_for_backward(
            rows if keeps_rows else None,
            matrix if keeps_matrix else None,
            left.values if keeps_left else None,
            right.values if keeps_right else None,
        )
        # Of a factor per row there is nothing left once the product sums over the other axis.
        ctx.factors = left.shared_factor, right.shared_factor
        output = layer.product("output", left, right, dtype)
        output = output[: rows.shape[0], : weight.shape[0]]
        return output.reshape(*input.shape[:-1], weight.shape[0])

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            # Not `once_differentiable`, which drops a term where the input is reached another way.
            raise RuntimeError(
                "create_graph=True: a quantized layer has no second derivatives, for a rounding's "
                "gradient is an estimate; set clock.quantizing=False, or quantize fewer layers"
            )
        rows, weight, forward_rows, forward_weight = ctx.saved_tensors
        layer: QuantLinear = ctx.layer
        by_rows, by_in, by_out = ctx.steps
        given = grad_outputs[0].reshape(-1, grad_outputs[0].shape[-1])
        count, in_features, out_features = given.shape[0], ctx.shape[-1], given.shape[-1]
        grad_output = _filled(given, by_rows, by_out)
        rows = None if rows is None else _filled(rows, by_rows, by_in)
        weight = None if weight is None else _filled(weight, by_out, by_in)
        grad_input = grad_weight = None
        if ctx.needs_input_grad[0]:
            into_input = layer.recipe.grad_input
            reused = forward_weight is not None
            right = _turned(weight, forward_weight, ctx.factors[1])
            # [rows, out] @ [in, out]^T -> [rows, in]
            left, right = layer.operands(
                "grad_input",
                (
                    "P3",
                    into_input.grad_output,
                    Operand(_rotate_rows(grad_output, into_input.row_hadamard)),
                ),
                ("P4", into_input.weight, right),
                ctx.counter,
                ctx.compute_dtype,
            )
            grad_input = layer.product("grad_input", left, right, ctx.compute_dtype)
            grad_input = _rotate_rows(grad_input, into_input.row_hadamard)
            grad_input = layer.through_rounding(grad_input, "P1", rows, ctx.counter, reused)
            grad_input = grad_input[:count, :in_features]
            grad_input = grad_input.reshape(ctx.shape).to(ctx.dtypes[0])
        if ctx.needs_input_grad[1]:
            into_weight = layer.recipe.grad_weight
            reused = forward_rows is not None
            # [out, rows] @ [in, rows]^T -> [out, in]
            left, right = layer.operands(
                "grad_weight",
                ("P5", into_weight.grad_output, Operand(grad_output.t())),
                ("P6", into_weight.input, _turned(rows, forward_rows, ctx.factors[0])),
                ctx.counter,
                ctx.compute_dtype,
            )
            grad_weight = layer.product("grad_weight", left, right, ctx.compute_dtype)
            grad_weight = layer.through_rounding(grad_weight, "P2", weight, ctx.counter, reused)
            grad_weight = grad_weight[:out_features, :in_features].to(ctx.dtypes[1])
        return grad_input, grad_weight, None, None


def _turned(
    tensor: Tensor | None, rounded: Tensor | None, factor: Tensor | float | None
) -> Operand:
    """The transpose of what the forward product multiplied, or else of the tensor itself."""
    if rounded is not None:
        return Operand(rounded.t(), True, factor)
    assert tensor is not None
    return Operand(tensor.t())


def _filled(x: Tensor, by_rows: int, by_columns: int) -> Tensor:
    """[rows, columns] with zeros behind, so that both are multiples; x itself if they are."""
    rows, columns = -x.shape[0] % by_rows, -x.shape[1] % by_columns
    return F.pad(x, (0, columns, 0, rows)) if rows or columns else x


def _float(x: Tensor) -> Tensor:
    """In float32, or float64 where it is."""
    return x if x.dtype is torch.float64 else x.float()


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
    return rotate(_float(x).t().contiguous(), size).t() if size else x
