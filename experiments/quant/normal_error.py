"""The error of rounding normal data, computed rather than sampled.  No torch.

A scale follows from its block's largest magnitude t, whose distribution is known, and given t the
other values are normal and cut at t.  Between two thresholds of a rounding every value becomes the
same number, so the squared error is a sum of moments of the normal distribution: exact up to the
integral over t.  A rotation leaves normal data normal and so changes nothing here; what it does to
the tensors of a model has to be measured (`experiments.measure`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr, ndtri

from experiments.quant.formats import (
    ElementFormat,
    FormatError,
    IntFormat,
    Precision,
    ScaleFormat,
)
from experiments.quant.modes import NEAREST, Direction, Rounding
from experiments.quant.recipe import FORWARD_OF, RecipeConfig
from experiments.quant.scale_rules import (
    E2M1,
    FOUR_OVER_SIX,
    MS_EDEN,
    TwoLevel,
    quest_clip,
    reach,
    two_level_rule,
)

Array: TypeAlias = npt.NDArray[np.float64]

TENSOR = 2**20
"""Values of a tensor whose largest sets the FP32 scale above two-level ones."""
_NODES = 64
"""Points of the integral over the largest magnitude."""
_PHASES = 32
"""Places of sigma within an octave, over which power-of-two scales are averaged."""
_SAMPLED = 2**17
"""Values of the sample where a scale does not follow from the largest magnitude alone."""
LOSSLESS = ("none", "bf16", "bfloat16", "fp16", "float16", "fp32", "float32")
"""Names of formats whose error is called zero: training in them is the reference."""
_BY_THE_BLOCK = (ScaleFormat.QUEST, ScaleFormat.QUEST_FLOOR, ScaleFormat.E4M3_4_6)
"""Rules for E2M1 under which a scale depends on all values of its block."""


@lru_cache(maxsize=4096)
def normal_error(
    precision: Precision, rounding: Rounding = NEAREST, sharing: float | None = None
) -> float:
    """Relative squared error E[(x - Q(x))^2] / E[x^2] of independent normal values.

    Power-of-two scales are averaged over an octave of the data's sigma.

    Args:
        precision: Element, what shares a scale, and scale.
        rounding: The rounding of the elements; its noise counts as error.
        sharing: How many values share a scale; needed for a row or a tensor.

    Raises:
        FormatError: `sharing` is missing.

    >>> f"{normal_error(Precision.parse('mxfp4')):.4f} {normal_error(Precision.parse('nvfp4')):.4f}"
    '0.0133 0.0090'
    """
    if sharing is None:
        if not precision.in_blocks:
            raise FormatError(
                f"precision {precision}: its error depends on how many values share a scale; "
                f"write {precision.granularity}1024 for 1024"
            )
        sharing = precision.sharing(1, 1)
    if rounding.moves_scales or precision.scale in _BY_THE_BLOCK:
        return _sampled(precision, rounding, int(sharing))
    quantiles, weights = np.polynomial.legendre.leggauss(_NODES)
    # Of the largest of B magnitudes: P(|x| < t)^B = q.
    amax = -ndtri(-np.expm1(np.log((quantiles + 1) / 2) / sharing) / 2)
    phases = 2.0 ** ((np.arange(_PHASES) + 0.5) / _PHASES)
    if not precision.scale.power_of_two:
        phases = np.ones(1)
    t = np.tile(amax, len(phases))
    sigma = np.repeat(phases, _NODES)
    scale = _scale(t * sigma, precision) / sigma
    errors = [
        _error(t, scale, _numbers(precision.element, sign), rounding, sign, sharing)
        for sign in (1, -1)
    ]
    return float(np.mean(errors, axis=0).reshape(-1, _NODES).mean(axis=0) @ weights / 2)


def error_of(name: str) -> float:
    """`normal_error` of a format's name, which may end in a rounding: "mxfp4 stochastic".

    Besides what `Precision.parse` reads, there are 0 for "none" and the formats of computation
    (bf16, fp16, fp32), and "row1024" or "tensor4096" for the number of values that share a scale.

    Raises:
        FormatError: No such name.

    >>> error_of("bf16"), f"{error_of('int4_row256 stochastic'):.3f}"
    (0.0, '0.032')
    """
    short = name.strip().lower()
    if short in LOSSLESS or re.match(r"e8m(7|23)-none", short):
        return 0.0
    short, _, how = short.partition(" ")
    shared = re.fullmatch(r"(.+[-_](?:row|tensor))([\d.]+)(.*)", short)
    sharing = float(shared[2]) if shared else None
    precision = Precision.parse(shared[1] + shared[3] if shared else short)
    try:
        rounding = Rounding.parse(how.strip()) if how else NEAREST
    except ValueError as error:
        raise FormatError(f"format {name!r}: its rounding {error}") from error
    return normal_error(precision, rounding, sharing)


def recipe_errors(
    recipe: RecipeConfig, precision: Precision, sharing: Mapping[str, float]
) -> dict[str, float]:
    """The errors of a recipe's six operands (P1..P6) on normal data; 0 where not quantized.

    An operand that takes over what the forward product rounded has that one's error.  Rounding it
    again adds its own, unless both formats have the same elements and power-of-two scales: then
    what was rounded once is nearly always a number of the second format.

    Args:
        recipe: The recipe.
        precision: The format, if the recipe has no formats of its own.
        sharing: By label, how many values of the operand share a scale.
    """
    precisions, roundings = recipe.precisions(precision), recipe.roundings()
    found: dict[str, float] = {}
    for label, operand in recipe.slots().items():
        error = 0.0
        if label in roundings:
            error = normal_error(precisions[label], roundings[label], sharing[label])
        if operand is not None and operand.forward:
            first = FORWARD_OF[label]
            if operand.taken_over or _numbers_of_both(precisions[first], precisions[label]):
                error = 0.0
            error += found[first]
        found[label] = error
    return found


def _numbers_of_both(first: Precision, second: Precision) -> bool:
    """Whether numbers of the first format are, but for the smallest, numbers of the second."""
    whole = all(
        each.scale.power_of_two and each.scale is not ScaleFormat.E8M0_4_3
        for each in (first, second)
    )
    return whole and first.element == second.element


def _numbers(element: ElementFormat, sign: int) -> Array:
    """Magnitudes of the element's numbers of a sign, ascending from zero."""
    numbers = element.grid()
    if sign < 0 and isinstance(element, IntFormat) and not element.symmetric:
        numbers = [*numbers, -element.lowest]
    return np.array(numbers)


def _scale(amax: Array, precision: Precision) -> Array:
    """The scale of blocks with these largest magnitudes, as `experiments.quant.scale` has it."""
    element, rule = precision.element, precision.scale
    largest, emax = reach(element)
    if rule is ScaleFormat.FP32:
        return amax / largest
    if rule.two_level:
        parts = two_level_rule(element, rule)
        of_tensor = -ndtri(-math.expm1(math.log(0.5) / TENSOR) / 2)
        return _in_few_bits(amax, of_tensor, parts)
    exponent = np.floor(np.log2(amax)) - emax
    if rule is ScaleFormat.E8M0_4_3:
        exponent += math.log2(4 / 3)
    elif rule is ScaleFormat.E8M0_CEIL:
        exponent = np.ceil(np.log2(amax / largest))
    elif rule is ScaleFormat.E8M0_NEAREST:
        exponent = np.round(np.log2(amax / largest))
    scale: Array = np.exp2(exponent)
    return scale


def _nearest(x: Array, numbers: Array) -> Array:
    """Each value's nearest of ascending numbers."""
    nearest: Array = numbers[np.searchsorted((numbers[1:] + numbers[:-1]) / 2, x)]
    return nearest


def _error(
    t: Array, scale: Array, numbers: Array, rounding: Rounding, sign: int, sharing: float
) -> Array:
    """Mean squared error of the values of blocks with largest magnitude t, [nodes]."""
    g, own = numbers[None] * scale[:, None], t[:, None]
    above = np.concatenate([g[:, 1:], g[:, -1:]], axis=1)
    nearest = rounding.direction in (Direction.NEAREST_EVEN, Direction.NEAREST_AWAY)
    # Where each cell begins; beyond the largest number everything becomes it.
    begins = g.copy()
    if nearest and not rounding.draws:
        begins[:, 1:] = (g[:, 1:] + g[:, :-1]) / 2
    low = np.minimum(begins, own)
    mass, first, second = _moments(low, np.concatenate([low[:, 1:], own], axis=1))
    if rounding.draws:
        error = (g + above) * first - second - g * above * mass
        error[:, -1] = (second - 2 * g * first + g**2 * mass)[:, -1]
        of_own = (own - g) * (above - own)
        of_own[:, -1] = ((own - g) ** 2)[:, -1]
    else:
        up = rounding.direction is (Direction.UP if sign > 0 else Direction.DOWN)
        becomes = above if up else g
        error = second - 2 * becomes * first + becomes**2 * mass
        of_own = (own - becomes) ** 2
    others = error.sum(axis=1) / (ndtr(t) - 0.5)
    # The largest value lies on a number where its scale says so, whatever float64 makes of it.
    cell = (begins <= own * (1 + 1e-9)).sum(axis=1, keepdims=True) - 1
    largest = np.take_along_axis(of_own, cell, axis=1)[:, 0]
    result: Array = (others * (sharing - 1) + largest) / sharing
    return result


def _moments(low: Array, high: Array) -> tuple[Array, Array, Array]:
    """Integrals of 1, x and x^2 times the normal density."""
    at_low, at_high = (np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi) for x in (low, high))
    mass = ndtr(-low) - ndtr(-high)
    return mass, at_low - at_high, mass + low * at_low - high * at_high


@lru_cache(maxsize=64)
def _sampled(precision: Precision, rounding: Rounding, sharing: int) -> float:
    """The error of a fixed sample: for scales that take more than the largest magnitude."""
    blocks = np.random.default_rng(0).standard_normal((max(_SAMPLED // sharing, 1), sharing))
    squares = (blocks**2).sum(axis=1, keepdims=True)
    if rounding.moves_scales:
        errors = _of_moved_scales(blocks, squares)
    elif precision.scale is ScaleFormat.E4M3_4_6:
        scales = [_block_scale(blocks, rule) for rule in FOUR_OVER_SIX]
        # The scale with which a block errs less, its draws included, is taken.
        noise = np.random.default_rng(1).random(blocks.shape)
        errors = np.minimum(
            *(_errors(blocks / scale, rounding, noise) * scale**2 for scale in scales)
        )
    else:
        sigma = 2.0 ** ((np.arange(len(blocks)) + 0.5) / len(blocks))[:, None]
        wanted = np.log2(np.sqrt(squares / sharing) * sigma * quest_clip(E2M1))
        whole = np.round if precision.scale is ScaleFormat.QUEST else np.floor
        scale = 2.0 ** whole(wanted) / sigma
        errors = _errors(blocks / scale, rounding) * scale**2
    return float(errors.sum() / squares.sum())


def _block_scale(blocks: Array, rule: TwoLevel) -> Array:
    """The scale of each block of one tensor, [blocks, 1]."""
    amax = np.abs(blocks).max(axis=1, keepdims=True)
    return _in_few_bits(amax, amax.max(), rule)


def _in_few_bits(amax: Array, of_tensor: float, rule: TwoLevel) -> Array:
    """The two-level scales of blocks with these largest magnitudes."""
    tensor = of_tensor / rule.top
    wanted = np.minimum(amax / rule.reached / tensor, rule.stored.max)
    return _nearest(wanted, np.array(rule.stored.grid())[1:]) * tensor


def _errors(x: Array, rounding: Rounding, noise: Array | None = None) -> Array:
    """Squared error of rounding each block to E2M1, [blocks, 1]; without noise, its expectation."""
    numbers = np.array(E2M1.grid())
    magnitude = np.minimum(np.abs(x), numbers[-1])
    low, high = _neighbours(magnitude, numbers)
    if not rounding.draws:
        error = np.minimum(magnitude - low, high - magnitude) ** 2
    elif noise is None:
        error = (magnitude - low) * (high - magnitude)
    else:
        up = noise * (high - low) < magnitude - low
        error = np.where(up, high - magnitude, magnitude - low) ** 2
    clipped = (np.abs(x) - magnitude) ** 2
    total: Array = (error + clipped).sum(axis=1, keepdims=True)
    return total


def _neighbours(x: Array, numbers: Array) -> tuple[Array, Array]:
    """The number below and the number above each value."""
    below = np.clip(np.searchsorted(numbers, x, "right") - 1, 0, len(numbers) - 2)
    return numbers[below], numbers[below + 1]


def _of_moved_scales(blocks: Array, squares: Array) -> Array:
    """Squared error of MS-EDEN (`experiments.quant.eden`), [blocks, 1]."""
    scale = _block_scale(blocks, MS_EDEN)
    tensor = np.abs(blocks).max() / MS_EDEN.top
    elements = np.copysign(_nearest(np.abs(blocks / scale), np.array(E2M1.grid())), blocks)
    along = (blocks * elements).sum(axis=1, keepdims=True)
    corrected = squares / along  # the scale under which the block is right along itself
    low, high = _neighbours(corrected / tensor, np.array(MS_EDEN.stored.grid()))
    drawn = (corrected - low * tensor) * (high * tensor - corrected)
    errors = (blocks - elements * corrected) ** 2 + elements**2 * drawn
    total: Array = errors.sum(axis=1, keepdims=True)
    return total
