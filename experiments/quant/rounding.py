"""Round to the grid of a format: the plain definition that every faster way must equal.

Takes values already divided by their scale.  Works on the float32 bit pattern: masking the
mantissa away leaves the power of two below |x|, exactly, where a float log2 is off by one just
below a power of two.
"""

from __future__ import annotations

import torch
from torch import Tensor

from experiments.quant.formats import ElementFormat, FloatFormat, IntFormat

_EXPONENT_MASK = 0x7F800000


ROUNDINGS = ("nearest_even", "nearest_away", "toward_zero", "up", "down")
"""The deterministic ones; `round_stochastic` takes noise."""


def ulp(x: Tensor, element: ElementFormat) -> Tensor:
    """Spacing of the grid of `element` at `x`: 2^(max(floor(log2 |x|), emin) - mantissa)."""
    if isinstance(element, IntFormat) or element.exponent == 0:
        return torch.full_like(x, element.step)
    power = (x.view(torch.int32) & _EXPONENT_MASK).view(torch.float32)
    return power.clamp_(min=2.0**element.emin).mul_(2.0**-element.mantissa)


def round_to(x: Tensor, element: ElementFormat, rounding: str) -> Tensor:
    """Round to the grid of `element` by one of `ROUNDINGS`; NaN stays NaN, beyond max saturates.

    Args:
        x: Finite values, float32, any shape.
        element: The target format.
        rounding: nearest_even, nearest_away (ties away from zero: QPyTorch, microxcaling's
            "nearest"), toward_zero, up (toward +infinity) or down.

    Returns:
        Float32 of the same shape.  The sign of zero is kept.

    Raises:
        ValueError: No such rounding.

    >>> x = torch.tensor([0.25, -0.25, 2.5, -2.4])
    >>> {r: round_to(x, FloatFormat(2, 1), r).tolist() for r in ("nearest_away", "up")}
    {'nearest_away': [0.5, -0.5, 3.0, -2.0], 'up': [0.5, -0.0, 3.0, -2.0]}
    """
    if rounding == "nearest_even":
        return round_nearest_even(x, element)
    spacing = ulp(x, element)
    steps = x.abs().div_(spacing)
    lower = steps.floor()
    remainder = steps.sub_(lower)  # exact
    if rounding == "nearest_away":
        lower.add_(remainder >= 0.5)
    elif rounding in ("up", "down"):
        outward = x > 0 if rounding == "up" else x < 0
        # Not `remainder > 0`: of the smallest floats the quotient itself rounds to zero.
        lower.add_(outward & (lower * spacing != x.abs()))
    elif rounding != "toward_zero":
        raise ValueError(f"rounding={rounding}: must be one of {', '.join(ROUNDINGS)}")
    return _saturate(torch.copysign(lower.mul_(spacing), x), element)


def round_nearest_even(x: Tensor, element: ElementFormat) -> Tensor:
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
    if isinstance(element, FloatFormat) and element.mantissa == 0:
        # torch.round sends every tie 1.5 * 2^k up; the lower neighbour is right if its code is
        # even, and the code of 2^k is k - emin + 1.
        magnitude = x.abs()
        code = torch.log2(spacing) - element.emin + 1  # log2 of an exact power of two is exact
        tie_to_lower = (magnitude == 1.5 * spacing) & (code % 2 == 0)
        rounded = torch.where(tie_to_lower, torch.copysign(spacing, x), rounded)
    return _saturate(rounded, element)


def round_stochastic(x: Tensor, element: ElementFormat, noise: Tensor) -> Tensor:
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
    return _saturate(torch.copysign(lower.mul_(spacing), x), element)


def _saturate(x: Tensor, element: ElementFormat) -> Tensor:
    """Clamp to the format's range, or to float32's where the format reaches further."""
    reach = torch.finfo(torch.float32)
    return x.clamp_(max(element.lowest, reach.min), min(element.max, reach.max))
