"""Where each rule for scales puts a block's largest value: the field's constants, without torch.

`experiments.quant.scale` computes scales with them, `experiments.quant.normal_error` what error
they leave.
"""

from __future__ import annotations

from dataclasses import dataclass

from experiments.quant.formats import ElementFormat, FloatFormat, ScaleFormat

MAX_SCALED_EXPONENT = 64
E2M1 = FloatFormat(2, 1)
E4M3 = FloatFormat(4, 3, "ocp")
UE5M3 = FloatFormat(5, 3, "ieee")
_UE5M3_TOP = 448.0
"""The largest block scale, 137 times below UE5M3's 61440 (2609.02846)."""
_E4M3_HEADROOM = 16 / 17
"""E4M3 rounds a scale down by at most 1/17 of it (1.0625 to 1), so amax then still fits."""
_GAUSSIAN_CLIP = 2.92247856
"""Standard deviations at which clipping E2M1 errs least on Gaussian data (2505.14669)."""


@dataclass(frozen=True)
class TwoLevel:
    """A block scale in few bits, in units of an FP32 scale of the whole tensor."""

    reached: float
    """The element on which a block's amax falls."""
    stored: FloatFormat
    """Format of the block scales."""
    top: float
    """The value to which the tensor's amax is mapped: `reached` times the largest block scale."""


FOUR_OVER_SIX = (TwoLevel(6.0, E4M3, 6.0 * 256.0), TwoLevel(4.0, E4M3, 6.0 * 256.0))
"""The two scales of E4M3_4_6.  With 256, the one for 4, 1.5 times as large, still fits E4M3."""
_EDEN_REACHED = 6 * 16 / 17 / 0.93
MS_EDEN = TwoLevel(_EDEN_REACHED, E4M3, _EDEN_REACHED * 256.0)
"""Amax falls slightly beyond 6, since clipping a little lowers the squared error; the correction
may raise the largest block scale by up to 448 / 256 (2601.22813)."""


def two_level_rule(element: ElementFormat, scale: ScaleFormat) -> TwoLevel:
    """The constants of a two-level rule; of E4M3_4_6, those of the scale for the largest number.

    >>> two_level_rule(FloatFormat(2, 1), ScaleFormat.E4M3).top
    2688.0
    """
    largest = reach(element)[0]
    if scale is ScaleFormat.E4M3_4_6:
        return FOUR_OVER_SIX[0]
    if scale is ScaleFormat.E4M3_16_17:
        reached = largest * _E4M3_HEADROOM
        return TwoLevel(reached, E4M3, reached * E4M3.max)
    if scale is ScaleFormat.UE5M3:
        return TwoLevel(largest, UE5M3, largest * _UE5M3_TOP)
    return TwoLevel(largest, E4M3, largest * E4M3.max)


def reach(element: ElementFormat) -> tuple[float, int]:
    """Largest number and its exponent, as scales use them.

    The top of an E8 format lies beyond float32.  Moving a block down by a power of two changes
    nothing but the subnormals, which lie below float32 there.
    """
    shift = max(0, element.emax - MAX_SCALED_EXPONENT)
    return element.max * 2.0**-shift, element.emax - shift


def quest_clip(element: ElementFormat) -> float:
    """The scale that QUEST asks for if a block's root mean square is 1."""
    return _GAUSSIAN_CLIP / element.max
