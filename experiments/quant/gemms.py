"""The three GEMMs of a layer: how each operand is laid out, rotated, quantized and multiplied.

The only place where a matrix product is quantized.  Every operand is first laid out with the
GEMM's summed axis last, then rotated if the recipe says so, then quantized along that axis, then
multiplied as it is: a 16-bit compute dtype rounds no quantized value again
(`experiments.quant.operand`), only the product.  Operands that the recipe leaves out are cast to
the compute dtype, as in any layer.

Quantization is in float32: a float64 tensor is rounded to float32 before it is rounded to its
format, and then multiplied in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from experiments.quant.block import quantize_as
from experiments.quant.formats import Precision
from experiments.quant.gradient import rounding_gradient
from experiments.quant.hadamard import Rotation, random_signs
from experiments.quant.kernels.noise import mix
from experiments.quant.lmul import lmul
from experiments.quant.operand import Operand, factor_of, has_factor, multiply
from experiments.quant.product import has_wide_product
from experiments.quant.recipe import GEMMS, SLOTS, RecipeConfig
from experiments.quant.slots import ATTENTION

_NAMES = (*SLOTS, *GEMMS, "weight", "exp_avg", "exp_avg_sq", "dropout", *ATTENTION)
STREAMS = {name: number for number, name in enumerate(_NAMES, start=1)}
"""Streams of noise: of the operands, of the signs of the GEMMs' rotations, of what an optimizer
stores, of a model's own dropout, of attention's operands.  Their numbers decide what a run draws,
so a new one goes to the end."""
_GRADIENT_OF = {"P1": "grad_input", "P2": "grad_weight"}
_SHARED = -1
"""Stands for the counter and the layer of signs that do not depend on either."""

Watch: TypeAlias = Callable[[Any, str, Operand, Operand], None]
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


class Gemms:
    """The operands and products of a layer with a weight matrix, as a recipe says."""

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

    def forward_operand(self, label: str, x: Tensor, counter: int, dtype: torch.dtype) -> Operand:
        """Operand P1 or P2 as the forward product has it, from the input's rows or the weight."""
        by_rows, by_in, by_out = self.steps
        x = filled(x, by_rows if label == "P1" else by_out, by_in)
        rotation = None
        if "P1" in self.precisions or "P2" in self.precisions:
            rotation = self.rotation("output", x.shape[1], x.device, counter)
        return self._prepared(label, Operand(x, label in self.given), rotation, counter, dtype)

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


def filled(x: Tensor, by_rows: int, by_columns: int) -> Tensor:
    """[rows, columns] padded with zeros so that both are multiples; x itself if they are."""
    rows, columns = -x.shape[0] % by_rows, -x.shape[1] % by_columns
    return F.pad(x, (0, columns, 0, rows)) if rows or columns else x


@lru_cache(maxsize=64)
def _repeated_signs(key: int, block: int, size: int, device: torch.device) -> Tensor:
    """Signs that are the same for every block, throughout a run."""
    return random_signs(key, block, device).repeat(size // block)
