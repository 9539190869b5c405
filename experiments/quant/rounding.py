"""Round to the grid of a format: the plain definition that every faster way must equal.

Takes values already divided by their scale.  Works on the float32 bit pattern: masking the
mantissa away leaves the power of two below |x|, exactly, where a float log2 is off by one just
below a power of two.
"""

from __future__ import annotations

import torch
from torch import Tensor

from experiments.quant.formats import FloatFormat

_EXPONENT_MASK = 0x7F800000


def ulp(x: Tensor, element: FloatFormat) -> Tensor:
    """Spacing of the grid of `element` at `x`: 2^(max(floor(log2 |x|), emin) - mantissa)."""
    power = (x.view(torch.int32) & _EXPONENT_MASK).view(torch.float32)
    return power.clamp_(min=2.0**element.emin).mul_(2.0**-element.mantissa)


def round_nearest_even(x: Tensor, element: FloatFormat) -> Tensor:
    """The nearest number of `element`; of two equally near ones that with the even code.

    Args:
        x: Finite values, float32, any shape.  NaN stays NaN; beyond the largest number saturates.
        element: The target format.

    Returns:
        Float32 of the same shape.  The sign of zero is kept.

    Source:
        IEEE 754-2019, 4.3.1.  Where there is no mantissa the neighbours 2^k and 2^(k+1) differ by
        one code, so the even *code* decides, as in OCP MX v1.0 and gfloat, not the even multiple.

    >>> round_nearest_even(torch.tensor([0.25, 0.75, 2.5, 5.0, -7.0]), FloatFormat(2, 1))
    tensor([ 0.,  1.,  2.,  4., -6.])
    """
    spacing = ulp(x, element)
    rounded = (x / spacing).round_().mul_(spacing)
    if element.mantissa == 0 and element.exponent > 0:
        # torch.round sends every tie 1.5 * 2^k up; the lower neighbour is right if its code is
        # even, and the code of 2^k is k - emin + 1.
        magnitude = x.abs()
        code = torch.log2(spacing) - element.emin + 1  # log2 of an exact power of two is exact
        tie_to_lower = (magnitude == 1.5 * spacing) & (code % 2 == 0)
        rounded = torch.where(tie_to_lower, torch.copysign(spacing, x), rounded)
    limit = _largest(element)
    return rounded.clamp_(-limit, limit)


def round_stochastic(x: Tensor, element: FloatFormat, noise: Tensor) -> Tensor:
    """One of the two neighbours of x, the upper with probability (x - lower) / (upper - lower).

    Args:
        x: As for `round_nearest_even`.
        element: The target format.
        noise: Uniform draws from [0, 1), the shape of `x`; a small one rounds up.

    Returns:
        Float32 of the same shape; its mean over draws is `x`, saturation aside.

    >>> x = torch.full((4,), 1.2)
    >>> round_stochastic(x, FloatFormat(2, 1), torch.tensor([0.0, 0.39, 0.41, 0.99]))
    tensor([1.5000, 1.5000, 1.0000, 1.0000])
    """
    spacing = ulp(x, element)
    # Round the magnitude, so that the outcome for -x mirrors that for x, and keep the sign.
    steps = x.abs().div_(spacing)
    lower = steps.floor()
    # The comparison is exact; floor(steps + noise) would not be, for the sum is rounded.
    lower.add_(noise < steps.sub_(lower))
    return torch.copysign(lower.mul_(spacing).clamp_(max=_largest(element)), x)


def _largest(element: FloatFormat) -> float:
    """The format's largest number, or float32's where the format reaches further."""
    return min(element.max, torch.finfo(torch.float32).max)
