"""Facts shared by the compiled and the GPU kernels: which precisions they take, and constants."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import lru_cache

from torch import Tensor

from experiments.quant.formats import ElementFormat, FloatFormat, Precision, ScaleFormat
from experiments.quant.kernels.noise import mix
from experiments.quant.modes import Direction
from experiments.quant.scale import largest_factor, most_scale, nearest_bounds, saturation
from experiments.quant.scale_rules import E4M3, FOUR_OVER_SIX, reach, two_level_rule

_OTHER_REACHED = FOUR_OVER_SIX[1].reached

TOO_MANY = 2**32
"""Values and draws are counted in 32 bits."""


def takes(
    precision: Precision, hadamard: int, scales: Collection[ScaleFormat], rotations: Collection[int]
) -> bool:
    """Whether kernels do what `precision` says after a rotation in the same pass.

    Args:
        precision: The format to which they round; with 8 exponent bits, under two rules only.
        hadamard: Block length of the rotation; 0 for none.  Tiles fuse with none, blocks where one
            length divides the other.
        scales: The rules that the kernels know.
        rotations: The block lengths that they know.
    """
    size, scale = precision.divisor, precision.scale
    return (
        scale in scales
        and (precision.element.exponent < 8 or scale in (ScaleFormat.FP32, ScaleFormat.E8M0))
        and (
            not hadamard
            or (
                hadamard in rotations
                and not precision.tile
                and max(size, hadamard) % min(size, hadamard) == 0
            )
        )
    )


def mode(noise: Tensor | int | None, rounding: Direction) -> tuple[str, Tensor | None, int]:
    """How a kernel rounds: "noise", "key" or a direction; its draws, and the mixed key.

    Raises:
        Refusal: No such direction.
    """
    if noise is None:
        return Direction.parse(rounding), None, 0
    if isinstance(noise, int):
        return "key", None, mix(noise)
    return "noise", noise.float().contiguous(), 0


@dataclass(frozen=True)
class Grid:
    """Numbers to round to."""

    mantissa: int
    emin_bits: int  # float32 bits of 2^emin
    step: float  # 2^(emin - mantissa)
    lowest: float
    limit: float
    wide: bool  # 8 exponent bits: float32's own

    @classmethod
    def of(cls, element: ElementFormat, scaled: bool) -> Grid:
        """The numbers of a format, as far as float32 reaches or as far as scales use them."""
        emin = element.emin if isinstance(element, FloatFormat) else element.mantissa
        lowest, limit = saturation(element, scaled)
        return cls(
            mantissa=element.mantissa,
            emin_bits=(emin + 127) << 23,
            step=element.step,
            lowest=lowest,
            limit=limit,
            wide=element.exponent == 8,
        )


@dataclass(frozen=True)
class Rule:
    """From a group's largest magnitude to its scale."""

    name: str  # ScaleFormat's, or "none"
    two_level: bool
    exact_inverse: bool  # of every scale
    reached: float  # the value of the largest magnitude
    emax: int
    top: float  # two levels: what the tensor's is mapped to
    most: float  # the largest scale
    bounds: tuple[float, float]  # E8M0_NEAREST: max / sqrt(2) and max * sqrt(2)
    other: tuple[float, float] = (_OTHER_REACHED, largest_factor(_OTHER_REACHED))
    """E4M3_4_6: `reached` and `most` of the other scale."""


@lru_cache(maxsize=256)
def constants(element: ElementFormat, scale: ScaleFormat | None) -> tuple[Rule, Grid, Grid]:
    """Facts of the scales, the elements, and the block's scale where there are two levels."""
    (reached, emax), stored, top = reach(element), E4M3, 1.0
    if scale is None:
        rule = Rule("none", False, True, reached, emax, top, 1.0, (1.0, 1.0))
        return rule, Grid.of(element, False), Grid.of(stored, False)
    if scale.two_level:
        parts = two_level_rule(element, scale)
        reached, stored, top = parts.reached, parts.stored, parts.top
    exact_inverse = scale.power_of_two and scale is not ScaleFormat.E8M0_4_3
    most, bounds = most_scale(element, scale), nearest_bounds(element)
    rule = Rule(scale.value, scale.two_level, exact_inverse, reached, emax, top, most, bounds)
    return rule, Grid.of(element, True), Grid.of(stored, False)
