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
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.quant.block import quantize_as
from experiments.quant.formats import Precision
from experiments.quant.gradient import rounding_gradient
from experiments.quant.hadamard import Rotation, random_signs
from experiments.quant.kernels.dense import refuse_unless_there
from experiments.quant.kernels.noise import mix
from experiments.quant.lmul import lmul
from experiments.quant.operand import Operand, factor_of, has_factor, multiply
from experiments.quant.product import has_wide_product
from experiments.quant.recipe import GEMMS, SLOTS, OperandConfig, RecipeConfig

_NAMES = (*SLOTS, *GEMMS, "weight", "exp_avg", "exp_avg_sq", "dropout")
STREAMS = {name: number for number, name in enumerate(_NAMES, start=1)}
"""Streams of noise: of the operands, of the signs of the GEMMs' rotations, of what an optimizer
stores, and of a model's own dropout.  Their numbers decide what a run draws, so a new one goes to
the end."""
_GRADIENT_OF = {"P1": "grad_input", "P2": "grad_weight"}
_SHARED = -1
"""Stands for the counter and the layer of signs that do not depend on either."""

Watch: TypeAlias = Callable[["QuantizedGemms", str, Operand, Operand], None]
"""Layer, label, the operand as it came, and as it is multiplied."""


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
    """Called with every operand of a quantizing layer; it must not change any of them."""

    def key(self, counter: int, layer: int, stream: int) -> int:
        """Key of one tensor's draws (`experiments.quant.kernels.noise`)."""
        key = 0
        for part in (self.seed, counter, layer, stream):
            key = mix(key ^ part)
        return key


class QuantizedGemms:
    """The three GEMMs of a layer with a weight matrix, as a recipe says; mixed into the layer."""

    def quantized_as(
        self, recipe: RecipeConfig, precision: Precision, clock: NoiseClock, layer: int
    ) -> None:
        """Set what is quantized, and how.

        Args:
            recipe: Which operands, which rounding, which rotation.
            precision: Format of operands to which the recipe gives no format of their own.
            clock: The source of noise and random signs.
            layer: Number of this layer in the model, part of the noise's address.
        """
        self.recipe = recipe
        self.precision = precision
        self.precisions = recipe.precisions(precision)
        """Formats of the quantized operands, by label."""
        self.roundings = recipe.roundings()
        """Roundings of the operands that are rounded here and not taken over, by label."""
        self.estimators = recipe.estimators()
        """Gradient estimators for the rounding of P1 and P2, if not straight through."""
        self.clock = clock
        self.layer = layer
        self.kept = not recipe.quantized
        """Whether this layer stays in high precision; the model keeps those its recipe names."""
        self.given: frozenset[str] = frozenset()
        """Those of P1 and P2 that arrive quantized, as when a trained model is scored in another
        format: they are multiplied as they are, whatever the compute dtype."""
        self.steps = self._steps()
        """Multiples to which rows, in_features and out_features are filled up with zeros."""

    def parts(self) -> Iterator[tuple[str, QuantizedGemms]]:
        """What of this layer is watched, each with the name of its weight in the layer."""
        yield "weight", self

    def transform(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Y = x W^T + b: [..., in] and [out, in] to [..., out]."""
        if not torch.compiler.is_dynamo_compiling():
            refuse_unless_there(type(self).__name__, input)
            refuse_unless_there(type(self).__name__, weight)
        if input.numel() == 0 or input.is_meta:  # nothing to quantize
            return F.linear(input, weight, bias)
        dtype = _compute_dtype(input, weight)
        high = self.kept or not self.clock.quantizing
        if high and not (self.given and dtype.itemsize == 2):
            return F.linear(input, weight, bias)
        if high:
            left = Operand(input.reshape(-1, weight.shape[1]), "P1" in self.given)
            product = multiply(left, Operand(weight, "P2" in self.given), dtype)
            output = product.reshape(*input.shape[:-1], weight.shape[0])
        else:
            output = _QuantizedGemms.apply(input, weight, self, dtype)  # type: ignore[no-untyped-call]
        return output if bias is None else output + bias.to(output.dtype)

    def operands(
        self,
        gemm_name: str,
        left: Operand,
        right: Operand,
        counter: int,
        dtype: torch.dtype = torch.float32,
    ) -> tuple[Operand, Operand]:
        """Both operands of one GEMM as it multiplies them.

        Args:
            gemm_name: output, grad_input or grad_weight.
            left: The first of its operands in `recipe.GEMMS`, [rows, K].
            right: The second, [columns, K].
            counter: The clock's count when the layer ran forward.
            dtype: The dtype in which they will be multiplied.
        """
        labels, rotation = GEMMS[gemm_name], None
        if labels[0] in self.precisions or labels[1] in self.precisions:
            rotation = self.rotation(gemm_name, left.values.shape[1], left.values.device, counter)
        return (
            self._prepared(labels[0], left, rotation, counter, dtype),
            self._prepared(labels[1], right, rotation, counter, dtype),
        )

    def product(self, gemm_name: str, left: Operand, right: Operand, dtype: torch.dtype) -> Tensor:
        """[rows, K] times [columns, K] transposed, as the recipe multiplies, in `dtype`."""
        if self.recipe.gemms()[gemm_name].product == "lmul":
            mantissa = self.precisions[GEMMS[gemm_name][0]].element.mantissa
            return lmul(left.values, right.values, mantissa, dtype)
        return multiply(left, right, dtype)

    def _prepared(
        self,
        label: str,
        given: Operand,
        rotation: Rotation | None,
        counter: int,
        dtype: torch.dtype,
    ) -> Operand:
        rounding = self.roundings.get(label)
        if rounding is None:
            ready = given.rotated(rotation)
        else:
            values, precision, pending = given.values.float(), self.precisions[label], rotation
            factor: Tensor | float | None = None
            narrow = dtype is torch.bfloat16 and has_wide_product(values.device)
            if narrow and has_factor(precision):
                if pending is not None:  # the factor goes by the rotated values
                    values, pending = pending.along(values), None
                factor = factor_of(values, precision, rounding)
            size, signs = (pending.size, pending.signs) if pending is not None else (0, None)
            key = self.clock.key(counter, self.layer, STREAMS[label]) if rounding.draws else None
            rounded = quantize_as(values, precision, rounding, key, size, signs)
            ready = Operand(rounded, True, factor, rotation, given.across)
        if self.clock.watch is not None:
            self.clock.watch(self, label, given, ready)
        return ready

    def rotation(
        self, gemm_name: str, size: int, device: torch.device, counter: int
    ) -> Rotation | None:
        """Rotation of the operands of a GEMM that sums over `size` values; None if there is none.

        Args:
            gemm_name: As for `operands`.
            size: The length of the summed axis.
            device: Where the operands are.
            counter: As for `operands`.
        """
        gemm = self.recipe.gemms()[gemm_name]
        if not gemm.hadamard:
            return None
        if gemm.signs == "fixed":
            return Rotation(gemm.hadamard)
        stream = STREAMS[gemm_name]
        if gemm.signs == "shared":
            key = self.clock.key(_SHARED, _SHARED, stream)
            signs = _repeated_signs(key, gemm.hadamard, size, device)
        else:
            signs = random_signs(self.clock.key(counter, self.layer, stream), size, device)
        return Rotation(gemm.hadamard, signs)

    def gradient(
        self,
        label: str,
        left: Operand,
        right: Operand,
        values: Tensor | None,
        rotation: Rotation | None,
        counter: int,
        dtype: torch.dtype,
    ) -> Tensor:
        """Gradient of the input or the weight, from both operands of the GEMM that computes it.

        Args:
            label: P1 for the input's, P2 for the weight's.
            left: As for `operands`.
            right: As there; where its other axis is rotated, so is the product's.
            values: The tensor whose gradient it is; None if its rounding is straight through.
            rotation: The rotation of that tensor in the forward product.
            counter: As for `operands`.
            dtype: As there.
        """
        gemm_name = _GRADIENT_OF[label]
        left, right = self.operands(gemm_name, left, right, counter, dtype)
        gradient = self.product(gemm_name, left, right, dtype)
        if left.across is not None:
            gradient = left.across.undone_across(gradient)
        rotated = right.across
        if (estimator := self.estimators.get(label)) is not None:
            assert values is not None
            size, signs = 0, None
            if rotation is not None:
                size, signs = rotation.size, rotation.signs
                gradient = rotation.along(gradient) if rotated is None else gradient
                rotated = rotation
            precision = self.precisions[label]
            factor = rounding_gradient(values.float(), precision, estimator, size, signs)
            gradient = gradient.mul_(factor)
        return gradient if rotated is None else rotated.undone_along(gradient)

    def _steps(self) -> tuple[int, int, int]:
        """The divisors of the rows, in_features and out_features after filling up with zeros."""
        gemms, summed = self.recipe.gemms(), {}
        for name, labels in GEMMS.items():
            used = [self.precisions[label] for label in labels if label in self.precisions]
            rotated = gemms[name].hadamard if used else 0
            summed[name] = math.lcm(rotated or 1, *(precision.divisor for precision in used))
        tile = math.lcm(*(precision.tile or 1 for precision in self.precisions.values()))
        rows = math.lcm(summed["grad_weight"], self.recipe.grad_input.row_hadamard or 1, tile)
        return rows, math.lcm(summed["output"], tile), math.lcm(summed["grad_input"], tile)


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


def _compute_dtype(input: Tensor, weight: Tensor) -> torch.dtype:
    """The dtype of `nn.Linear`: autocast's, or the tensors' own."""
    device = input.device.type
    if torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return torch.promote_types(input.dtype, weight.dtype)


class _QuantizedGemms(torch.autograd.Function):
    """The three GEMMs of a linear layer and the gradients' way through the rounding."""

    @staticmethod
    def forward(
        ctx: Any, input: Tensor, weight: Tensor, layer: QuantizedGemms, dtype: torch.dtype
    ) -> Tensor:
        ctx.layer, ctx.counter, ctx.compute_dtype = layer, layer.clock.counter, dtype
        ctx.shape, ctx.dtypes, ctx.steps = input.shape, (input.dtype, weight.dtype), layer.steps
        recipe = layer.recipe
        rows, matrix = input.reshape(-1, input.shape[-1]), weight
        by_rows, by_in, by_out = ctx.steps
        # [rows, in] @ [out, in]^T -> [rows, out]
        left, right = layer.operands(
            "output",
            Operand(_filled(rows, by_rows, by_in), "P1" in layer.given),
            Operand(_filled(matrix, by_out, by_in), "P2" in layer.given),
            ctx.counter,
            dtype,
        )
        input_grad, weight_grad = ctx.needs_input_grad[:2]
        keeps_left = weight_grad and _of_forward(recipe.grad_weight.input)
        keeps_right = input_grad and _of_forward(recipe.grad_input.weight)
        estimators = layer.estimators
        keeps_rows = (weight_grad and not keeps_left) or (input_grad and "P1" in estimators)
        keeps_matrix = (input_grad and not keeps_right) or (weight_grad and "P2" in estimators)
        ctx.save_for_backward(
            rows if keeps_rows else None,
            matrix if keeps_matrix else None,
            left.values if keeps_left else None,
            right.values if keeps_right else None,
        )
        # A factor per row has no meaning once the product sums over the other axis.
        ctx.factors = left.shared_factor, right.shared_factor
        output = layer.product("output", left, right, dtype)
        output = output[: rows.shape[0], : weight.shape[0]]
        return output.reshape(*input.shape[:-1], weight.shape[0])

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            # Not `once_differentiable`, which drops a term where the input is reached another way.
            raise RuntimeError(
                "create_graph=True: a quantized layer has no second derivatives, as a rounding's "
                "gradient is an estimate; set clock.quantizing=False, or quantize fewer layers"
            )
        rows, weight, forward_rows, forward_weight = ctx.saved_tensors
        layer: QuantizedGemms = ctx.layer
        by_rows, by_in, by_out = ctx.steps
        given = grad_outputs[0].reshape(-1, grad_outputs[0].shape[-1])
        count, in_features, out_features = given.shape[0], ctx.shape[-1], given.shape[-1]
        grad_output = _filled(given, by_rows, by_out)
        rows = None if rows is None else _filled(rows, by_rows, by_in)
        weight = None if weight is None else _filled(weight, by_out, by_in)
        rotation = layer.rotation(
            "output", in_features + -in_features % by_in, given.device, ctx.counter
        )
        common = rotation, ctx.counter, ctx.compute_dtype
        grad_input = grad_weight = None
        if ctx.needs_input_grad[0]:
            left = Operand(grad_output)
            if row_hadamard := layer.recipe.grad_input.row_hadamard:
                by_rows_too = Rotation(row_hadamard)
                left = Operand(by_rows_too.across(grad_output), across=by_rows_too)
            # [rows, out] @ [in, out]^T -> [rows, in]
            right = _turned(weight, forward_weight, ctx.factors[1], rotation)
            grad_input = layer.gradient("P1", left, right, rows, *common)[:count, :in_features]
            grad_input = grad_input.reshape(ctx.shape).to(ctx.dtypes[0])
        if ctx.needs_input_grad[1]:
            # [out, rows] @ [in, rows]^T -> [out, in]
            left = Operand(grad_output.t())
            right = _turned(rows, forward_rows, ctx.factors[0], rotation)
            grad_weight = layer.gradient("P2", left, right, weight, *common)
            grad_weight = grad_weight[:out_features, :in_features].to(ctx.dtypes[1])
        return grad_input, grad_weight, None, None


def _turned(
    tensor: Tensor | None,
    rounded: Tensor | None,
    factor: Tensor | float | None,
    rotation: Rotation | None,
) -> Operand:
    """The transpose of the operand that the forward product multiplied, or of the tensor itself."""
    if rounded is not None:
        return Operand(rounded, True, factor, along=rotation).t()
    assert tensor is not None
    return Operand(tensor.t())


def _filled(x: Tensor, by_rows: int, by_columns: int) -> Tensor:
    """[rows, columns] padded with zeros so that both are multiples; x itself if they are."""
    rows, columns = -x.shape[0] % by_rows, -x.shape[1] % by_columns
    return F.pad(x, (0, columns, 0, rows)) if rows or columns else x


@lru_cache(maxsize=64)
def _repeated_signs(key: int, block: int, size: int, device: torch.device) -> Tensor:
    """Signs that are the same for every block, throughout a run."""
    return random_signs(key, block, device).repeat(size // block)


def _of_forward(operand: OperandConfig | None) -> bool:
    return operand is not None and operand.forward
