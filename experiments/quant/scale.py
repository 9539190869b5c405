"""A block's scale from its values, by every rule that the field uses: value = scale * element.

All rules take blocks along the last axis and return float32 scales with that axis of size 1.  A
block of zeros gets a scale that keeps it zero; a block with a NaN or an infinity gets NaN, so the
whole block becomes NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from experiments.quant.formats import ElementFormat, ScaleFormat
from experiments.quant.kernels.dense import of_one_process
from experiments.quant.rounding import bounds, round_nearest_even
from experiments.quant.scale_rules import (
    FOUR_OVER_SIX,
    TwoLevel,
    quest_clip,
    reach,
    two_level_rule,
)

_SMALLEST_NORMAL = 2.0**-126
CLIPPED_BEYOND = 1 + 2.0**-20
"""Factor of scale times the largest element: what lies nearer had its scale rounded, no more."""


@of_one_process
def block_scale(blocks: Tensor, element: ElementFormat, scale: ScaleFormat) -> Tensor:
    """The scale of each block.

    Args:
        blocks: [..., K], float32, K values share a scale; for two-level scales all of them share
            the tensor's.
        element: Format of the elements.
        scale: The rule (see `ScaleFormat`).

    Returns:
        [..., 1], float32.

    >>> from experiments.quant.formats import FloatFormat
    >>> block_scale(torch.tensor([[8.0, 24.0]]), FloatFormat(2, 1), ScaleFormat.FP32)
    tensor([[4.]])
    """
    amax = blocks.abs().amax(dim=-1, keepdim=True)
    if scale is ScaleFormat.FP32:
        result = divided(amax, reach(element)[0]).clamp_(min=_SMALLEST_NORMAL)
    elif scale.two_level:
        stored, tensor_scale = two_level(amax, amax.amax(), two_level_rule(element, scale))
        result = stored * tensor_scale
    elif scale in (ScaleFormat.QUEST, ScaleFormat.QUEST_FLOOR):
        result = _quest(blocks, amax, element, nearest=scale is ScaleFormat.QUEST)
    else:
        result = _E8M0_RULES[scale](amax, element)
    result = result.clamp(max=most_scale(element, scale))
    return torch.where(amax.isfinite(), result, torch.nan)


@of_one_process
def four_over_six_scale(blocks: Tensor) -> Tensor:
    """The other scale of E4M3_4_6: the block's amax falls on 4 of E2M1's grid instead of on 6.

    The step between 4 and 6 is the grid's widest; a block whose large values lie there may be
    better off without it (2601.22813).  Shapes as for `block_scale`.
    """
    amax = blocks.abs().amax(dim=-1, keepdim=True)
    stored, tensor_scale = two_level(amax, amax.amax(), FOUR_OVER_SIX[1])
    return (stored * tensor_scale).clamp(max=largest_factor(FOUR_OVER_SIX[1].reached))


@of_one_process
def divided(x: Tensor, by: float) -> Tensor:
    """The quotients, correctly rounded on every device.

    On a GPU PyTorch multiplies by the reciprocal of a Python number, which is another last bit; by
    a tensor that lies there it divides.
    """
    return x / torch.full((), by, dtype=x.dtype, device=x.device)


@lru_cache(maxsize=256)
def largest_factor(reached: float) -> float:
    """The largest float32 whose product with `reached`, rounded to float32, is finite."""
    limit = torch.finfo(torch.float32).max
    factor = torch.tensor(min(limit / reached, limit), dtype=torch.float32)
    while not (factor * reached).isfinite():
        factor = factor.nextafter(torch.zeros(()))
    return float(factor)


@lru_cache(maxsize=256)
def most_scale(element: ElementFormat, scale: ScaleFormat) -> float:
    """The largest scale: with a larger one the format's largest number would be infinite.

    It cuts off only what rounding up adds to scales of data in float32's last binades.
    """
    most = largest_factor(max(reach(element)[0], -element.lowest if element.exponent < 8 else 0.0))
    return (
        2.0 ** min(math.frexp(most)[1] - 1, 127)
        if scale.power_of_two and scale is not ScaleFormat.E8M0_4_3
        else most
    )


def saturation(element: ElementFormat, scaled: bool) -> tuple[float, float]:
    """Lowest and largest number of a result: under a scale, of the part that `reach` uses."""
    if scaled and element.exponent == 8:
        largest = reach(element)[0]
        return -largest, largest
    return bounds(element)


@of_one_process
def power_of_two(exponent: Tensor) -> Tensor:
    """2^exponent, the exponent cut to E8M0's -127..127; exact."""
    # By its bits: torch.ldexp calls pow for each, which took half of a scale's time.
    whole = exponent.clamp(-127, 127).int()
    bits = torch.where(whole > -127, (whole + 127) << 23, 1 << 22)
    return bits.view(torch.float32)


def _floor_exponent(amax: Tensor, element: ElementFormat) -> Tensor:
    # frexp gives amax = m * 2^e with m in [0.5, 1), so floor(log2 amax) = e - 1, exactly.
    return torch.frexp(amax).exponent - 1 - reach(element)[1]


def _e8m0_floor(amax: Tensor, element: ElementFormat) -> Tensor:
    return power_of_two(_floor_exponent(amax, element))


def _e8m0_log2(amax: Tensor, element: ElementFormat) -> Tensor:
    # The nearest float32 to log2(amax), whatever library computes it: it is k for the largest
    # float below 2^k, unless |k| is small.
    exponent = amax.double().log2().float().floor().nan_to_num(0.0, 0.0, -127.0)
    return power_of_two(exponent - reach(element)[1])


def _e8m0_ceil(amax: Tensor, element: ElementFormat) -> Tensor:
    # max * 2^floor lies in amax's binade: either it covers amax or the next power of two does.
    exponent = _floor_exponent(amax, element)
    covered = torch.ldexp(torch.full_like(amax, reach(element)[0]), exponent) >= amax
    return power_of_two(torch.where(covered, exponent, exponent + 1))


def _e8m0_nearest(amax: Tensor, element: ElementFormat) -> Tensor:
    # log2(amax / max) lies within 1 below the floor rule's exponent and 1 above; sqrt(2) parts.
    exponent = _floor_exponent(amax, element)
    lower, upper = nearest_bounds(element)
    scaled = torch.ldexp(amax, -exponent)
    return power_of_two(exponent + (scaled >= upper).int() - (scaled < lower).int())


@lru_cache(maxsize=256)
def nearest_bounds(element: ElementFormat) -> tuple[float, float]:
    """The smallest float32 above max / sqrt(2) and above max * sqrt(2), max as `reach` has it.

    E8M0_NEAREST compares amax with them, which is exact; of amax / max the last bit is rounded, and
    one significand would be on the wrong side.
    """
    largest = reach(element)[0]
    return _float32_above(largest * 0.5**0.5), _float32_above(largest * 2**0.5)


def _float32_above(bound: float) -> float:
    near = torch.tensor(bound, dtype=torch.float32)
    return float(near if float(near) > bound else near.nextafter(torch.tensor(torch.inf)))


def _e8m0_4_3(amax: Tensor, element: ElementFormat) -> Tensor:
    return divided(_e8m0_floor(amax, element), 0.75)


_E8M0_RULES: dict[ScaleFormat, Callable[[Tensor, ElementFormat], Tensor]] = {
    ScaleFormat.E8M0: _e8m0_floor,
    ScaleFormat.E8M0_LOG2: _e8m0_log2,
    ScaleFormat.E8M0_CEIL: _e8m0_ceil,
    ScaleFormat.E8M0_NEAREST: _e8m0_nearest,
    ScaleFormat.E8M0_4_3: _e8m0_4_3,
}


def _quest(blocks: Tensor, amax: Tensor, element: ElementFormat, nearest: bool) -> Tensor:
    unit = unit_exponent(amax)
    squares = (blocks * power_of_two(-unit)).square()
    rms = divided(pairwise_sum(squares), blocks.shape[-1]).sqrt()
    # wanted = m * 2^e with m in [0.5, 1), so log2(wanted) is nearer to e from m = sqrt(1/2) on:
    # above the float32 next to that, which lies below it.
    significand, exponent = torch.frexp(rms * quest_clip(element))
    exponent = exponent - 1 + (nearest & (significand > 0.5**0.5)).int() + unit
    return power_of_two(torch.where(amax > 0, exponent, -127))


@of_one_process
def unit_exponent(amax: Tensor) -> Tensor:
    """Exponent of a power of two near amax: in such units no square leaves float32."""
    return torch.frexp(amax).exponent.clamp(-126, 126)


@of_one_process
def pairwise_sum(values: Tensor) -> Tensor:
    """[..., K] to [..., 1], in a fixed order, so that every backend has the same bits.

    Neighbours are added until one value is left; zeros fill up to a power of two.
    """
    size = 1 << (values.shape[-1] - 1).bit_length()
    values = torch.nn.functional.pad(values, (0, size - values.shape[-1]))
    while values.shape[-1] > 1:
        values = values[..., ::2] + values[..., 1::2]
    return values


@of_one_process
def two_level(amax: Tensor, tensor_amax: Tensor, rule: TwoLevel) -> tuple[Tensor, Tensor]:
    """Block scales amax / reached in few bits, in units of an FP32 tensor scale tensor_amax / top.

    A block scale that would round to zero is the smallest one instead: no division by zero.

    Args:
        amax: Largest magnitude of each block, any shape.
        tensor_amax: Largest magnitude of the tensor, a scalar.
        rule: `reached`, `top` and the format of the block scales.

    Returns:
        The block scales, of the shape of `amax`, and the tensor's, NaN where `tensor_amax` is not
        finite; a block's scale is the product.
    """
    tensor_scale = divided(tensor_amax, rule.top).clamp(min=_SMALLEST_NORMAL)
    tensor_scale = torch.where(tensor_amax.isfinite(), tensor_scale, torch.nan)
    wanted = (divided(amax, rule.reached) / tensor_scale).clamp(max=rule.stored.max)  # of inf, too
    return round_nearest_even(wanted, rule.stored).clamp_(min=rule.stored.step), tensor_scale
