"""Rounding to the grid of a format: the plain definition that every faster way must equal.

Takes values already divided by their scale.  Works on the float32 bit pattern: masking the
mantissa away leaves the power of two below |x|, exactly, where a float log2 is off by one just
below a power of two.

The edges are the same for every rounding.  Beyond the largest number a finite value saturates to
it, NaN and the infinities become NaN (an overflow must stay visible; where a format has a code for
them, casts elsewhere use it), and a zero, also one that was rounded to, keeps its sign.

microxcaling's "nearest" is nearest_away here, its "even" nearest_even, "floor" toward_zero and
"dither" stochastic, but for the float32 next below a power of two, whose binade its float32
logarithm gets wrong; for values that its addition of 1/2 pushes over a tie, such as the one below
0.25 in E2M1; and for infinities, which it keeps.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from experiments.quant.formats import ElementFormat, FloatFormat, IntFormat
from experiments.quant.kernels.dense import of_one_process
from experiments.quant.modes import NOISE_BITS, Direction

_EXPONENT_MASK = 0x7F800000


@of_one_process
def ulp(x: Tensor, element: ElementFormat) -> Tensor:
    """Spacing of the grid of `element` at `x`: 2^(max(floor(log2 |x|), emin) - mantissa)."""
    if isinstance(element, IntFormat) or element.exponent == 0:
        # An infinity has no neighbours in any format; in the others its own power makes it NaN.
        return torch.where(x.isfinite(), element.step, torch.nan)
    power = (x.view(torch.int32) & _EXPONENT_MASK).view(torch.float32)
    return power.clamp_(min=2.0**element.emin).mul_(2.0**-element.mantissa)


@of_one_process
def round_to(x: Tensor, element: ElementFormat, rounding: Direction) -> Tensor:
    """Round to the grid of `element` in one direction; `round_stochastic` takes noise.

    Args:
        x: Float32, any shape; NaN and infinities become NaN, beyond max saturates.
        element: The target format.
        rounding: nearest_even, nearest_away (ties away from zero: QPyTorch, microxcaling's
            "nearest"), toward_zero, up (toward +infinity) or down.

    Returns:
        Float32 of the same shape.  The sign of zero is kept.

    Raises:
        Refusal: No such direction.

    >>> x = torch.tensor([0.25, -0.25, 2.5, -2.4])
    >>> [round_to(x, FloatFormat(2, 1), r).tolist() for r in (Direction.NEAREST_AWAY, Direction.UP)]
    [[0.5, -0.5, 3.0, -2.0], [0.5, -0.0, 3.0, -2.0]]
    """
    rounding = Direction.parse(rounding)
    if rounding is Direction.NEAREST_EVEN:
        return round_nearest_even(x, element)
    spacing = ulp(x, element)
    steps = x.abs().div_(spacing)
    lower = steps.floor()
    remainder = steps.sub_(lower)  # exact
    if rounding is Direction.NEAREST_AWAY:
        lower.add_(remainder >= 0.5)
    elif rounding is not Direction.TOWARD_ZERO:
        outward = x > 0 if rounding is Direction.UP else x < 0
        # Not `remainder > 0`: of the smallest floats the quotient itself rounds to zero.
        lower.add_(outward & (lower * spacing != x.abs()))
    return _saturate(torch.copysign(lower.mul_(spacing), x), element)


@of_one_process
def round_nearest_even(x: Tensor, element: ElementFormat) -> Tensor:
    """The nearest number of `element`; of two equally near ones that with the even code.

    Args:
        x: Float32, any shape; NaN and infinities become NaN, beyond max saturates.
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


@of_one_process
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
    # The comparison is exact; floor(steps + noise) would not be, since the sum is rounded.
    lower.add_(noise < steps.sub_(lower))
    return _saturate(torch.copysign(lower.mul_(spacing), x), element)


@of_one_process
def few_bits(noise: Tensor, bits: int) -> Tensor:
    """Noise with which `round_stochastic` uses only `bits` random bits per value, as hardware does.

    With r the top `bits` bits of a draw and f the distance to the lower neighbour in steps, it
    rounds up where f >= (2r + 1) / 2^(bits+1).  The probability of that is f rounded to a multiple
    of 2^-bits, half up: values nearer than 2^-(bits+1) steps to a number are rounded to it, always,
    and the bias is at most 2^-(bits+1) steps.

    Args:
        noise: Uniform draws from [0, 1), multiples of 2^-24, any shape.
        bits: 1 to 23.

    Returns:
        Float32 of the same shape.

    Raises:
        ValueError: Another number of bits.

    Source:
        "Fast stochastic rounding" of 2609.02846: up iff f + (2r' + 1) / 512 >= 1, r' of 8 bits;
        here r = 255 - r'.

    >>> half = torch.full((4,), 1.25)  # half way from 1 to 1.5
    >>> round_stochastic(half, FloatFormat(2, 1), few_bits(torch.tensor([0.0, 0.4, 0.5, 0.9]), 1))
    tensor([1.5000, 1.5000, 1.0000, 1.0000])
    """
    if not 1 <= bits < NOISE_BITS:
        raise ValueError(f"bits={bits}: must be 1..{NOISE_BITS - 1}")
    threshold = (noise * 2.0**bits).floor_().mul_(2.0).add_(1.0).mul_(2.0 ** -(bits + 1))
    # `round_stochastic` asks whether noise < f; the float before the threshold makes that >=.
    return threshold.nextafter(torch.zeros_like(threshold))


def bounds(element: ElementFormat) -> tuple[float, float]:
    """Lowest and largest number of the format that float32 has, too.

    >>> bounds(FloatFormat(8, 7)) == bounds(FloatFormat(8, 7, "ieee"))
    True
    """
    if element.max <= torch.finfo(torch.float32).max:
        return element.lowest, element.max
    top = math.ldexp(2.0 - 2.0**-element.mantissa, 127)  # E8: float32's last binade, all of it
    return -top, top


def _saturate(x: Tensor, element: ElementFormat) -> Tensor:
    """Clamp to the format's range, as far as float32 has it."""
    return x.clamp_(*bounds(element))
