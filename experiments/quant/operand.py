"""Operands of a GEMM, kept so that none is rounded a second time.

A value of a format is element x scale of its block.  A 16-bit compute dtype holds element x block
scale if both together have few enough digits, but not a scale in FP32, nor 4/3: cast to it, nearly
every value moves.  Two ways keep the values as they were quantized:

- A GEMM of 16-bit numbers takes element x block scale only, and the part that all of a tensor or a
  row shares (the FP32 scale of two-level formats, of tensors and of rows, or 4/3) is applied to the
  product: a `factor`.  This needs a GEMM that stores float32, or the sums would be rounded twice.
- A float32 GEMM takes the values as they are.  This is the only way for an FP32 scale per block or
  tile and for elements of too many digits, and the faster one on a CPU.

Either way the sums are in float32 and are rounded to the compute dtype once.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from experiments.quant.formats import BFLOAT16_DIGITS, Precision, ScaleFormat
from experiments.quant.hadamard import Rotation
from experiments.quant.kernels.dense import of_one_process
from experiments.quant.layout import to_blocks
from experiments.quant.modes import Rounding
from experiments.quant.product import has_wide_product, wide_product
from experiments.quant.scale import block_scale, two_level
from experiments.quant.scale_rules import MS_EDEN, two_level_rule

_SCALE_DIGITS = 4
"""Significant bits of a block scale in E4M3 or UE5M3."""


@dataclass(frozen=True)
class Operand:
    """One side of a GEMM, its summed axis last."""

    values: Tensor
    """[rows, K], not yet in the compute dtype."""
    quantized: bool = False
    """Whether they are a format's numbers, which the GEMM must take as they are; others are cast
    to the compute dtype, as in any layer that computes in it."""
    factor: Tensor | float | None = None
    """The factor, a scalar or [rows, 1], by which `values` are divided to be numbers of bfloat16;
    None if there is no such factor, or no use for it."""
    along: Rotation | None = None
    """The rotation of the summed axis."""
    across: Rotation | None = None
    """The earlier rotation of the other axis."""

    def t(self) -> Operand:
        """The transpose, for a GEMM that sums over the other axis."""
        values, factor = self.values.t(), self.shared_factor
        return Operand(values, self.quantized, factor, self.across, self.along)

    def rotated(self, rotation: Rotation | None) -> Operand:
        """The operand rotated along the summed axis, no longer in a format; itself for None."""
        if rotation is None:
            return self
        return Operand(rotation.along(self.values), along=rotation, across=self.across)

    def restored(self) -> Tensor:
        """The values with both rotations undone."""
        values = self.values if self.along is None else self.along.undone_along(self.values)
        return values if self.across is None else self.across.undone_across(values)

    @property
    def shared_factor(self) -> Tensor | float | None:
        """The factor if all rows share it: then it is also that of the transpose."""
        one = isinstance(self.factor, float) or (
            self.factor is not None and self.factor.numel() == 1
        )
        return self.factor if one else None

    def narrow(self) -> Tensor | None:
        """The values over the factor, exact in bfloat16; None if it cannot hold them."""
        if not self.quantized:
            return self.values.to(torch.bfloat16)
        if self.factor is None:
            return None
        if _is_one(self.factor):
            return self.values.to(torch.bfloat16)
        # A quotient is off by some float32 roundings; the nearest bfloat16 is the number itself.
        return (self.values / self.factor).to(torch.bfloat16)


def has_factor(precision: Precision) -> bool:
    """Whether element x block scale fits bfloat16, the rest shared by all of a row or a tensor.

    >>> [has_factor(Precision.parse(name)) for name in ("nvfp4", "int8_row", "e2m1", "E4M10-row")]
    [True, True, False, False]
    """
    digits = precision.element.significant_bits
    if precision.scale.two_level:
        return digits + _SCALE_DIGITS <= BFLOAT16_DIGITS
    shared = precision.scale.power_of_two or not precision.in_blocks
    return digits <= BFLOAT16_DIGITS and shared


@of_one_process
def factor_of(x: Tensor, precision: Precision, rounding: Rounding) -> Tensor | float | None:
    """The divisor of `quantize_as(x, precision, rounding)` whose quotient bfloat16 holds.

    Holds while block scales are normal float32 numbers, for tensors whose largest value is above
    about 2^-110.

    Args:
        x: [rows, K], float32, as it is quantized, so after a rotation.
        precision: The format.
        rounding: The rounding; one that moves scales has a tensor scale of its own.

    Returns:
        A scalar, or [rows, 1]; 1.0 if there is nothing to take out; None if `has_factor` says that
        there is no such factor.
    """
    if not has_factor(precision):
        return None
    if precision.scale is ScaleFormat.E8M0_4_3:
        return 4 / 3
    if precision.scale.power_of_two:
        return 1.0
    if precision.scale.two_level:
        amax = x.abs().amax()
        ordinary = two_level_rule(precision.element, precision.scale)
        return two_level(amax, amax, MS_EDEN if rounding.moves_scales else ordinary)[1]
    return block_scale(to_blocks(x, precision), precision.element, precision.scale)


def multiply(left: Operand, right: Operand, dtype: torch.dtype) -> Tensor:
    """[rows, K] times [columns, K] transposed, in `dtype`, rounded to it once.

    Args:
        left: [rows, K].
        right: [columns, K].
        dtype: The compute dtype.  In float32 and float64 values are multiplied as they are.
    """
    device = left.values.device
    with torch.autocast(device.type, enabled=False):  # it would cast the values to its dtype
        if dtype not in (torch.bfloat16, torch.float16):
            return left.values.to(dtype) @ right.values.to(dtype).t()
        if dtype is torch.bfloat16 and has_wide_product(device):
            narrow, other = left.narrow(), right.narrow()
            if narrow is not None and other is not None:
                product = wide_product(narrow, other)
                return _scaled(product, left.factor, right.factor).to(dtype)
        values, others = (_as_multiplied(each, dtype).float() for each in (left, right))
        return (values @ others.t()).to(dtype)


def _as_multiplied(operand: Operand, dtype: torch.dtype) -> Tensor:
    return operand.values if operand.quantized else operand.values.to(dtype)


def _scaled(product: Tensor, left: Tensor | float | None, right: Tensor | float | None) -> Tensor:
    """The product of values times both factors; a factor per row of `right` is one per column."""
    if isinstance(right, Tensor):
        right = right.t() if right.ndim == 2 else right
    for factor in (left, right):
        if factor is not None and not _is_one(factor):
            product = product * factor
    return product


def _is_one(factor: Tensor | float) -> bool:
    return isinstance(factor, float) and factor == 1.0
