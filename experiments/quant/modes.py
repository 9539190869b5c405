"""Modes of rounding a value, and of passing a gradient back through the rounding.  No torch.

Configurations and records spell both as strings, which `Rounding.parse` and `Estimator.parse` read;
everything else takes the values.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache

from fitting.entry.errors import Refusal

NOISE_BITS = 24
"""Random bits of one draw (`experiments.quant.kernels.noise`)."""


class Direction(StrEnum):
    """The neighbour in a format that a value becomes if nothing is drawn."""

    NEAREST_EVEN = "nearest_even"
    NEAREST_AWAY = "nearest_away"
    TOWARD_ZERO = "toward_zero"
    UP = "up"
    DOWN = "down"

    @classmethod
    def parse(cls, name: str) -> Direction:
        """Read the name of a direction.

        Raises:
            Refusal: No such direction.
        """
        if name not in DIRECTIONS:
            raise Refusal(f"rounding={name}: must be one of {', '.join(DIRECTIONS)}")
        return name if isinstance(name, cls) else cls(name)


DIRECTIONS = tuple(Direction)


@dataclass(frozen=True)
class Rounding:
    """How a tensor is rounded.

    In a direction; or, with `random_bits` in each draw, to either neighbour by chance; or, if it
    `moves_scales`, to nearest under scales that are rounded by chance (`experiments.quant.eden`).
    """

    direction: Direction = Direction.NEAREST_EVEN
    random_bits: int = 0
    moves_scales: bool = False

    @classmethod
    @lru_cache(maxsize=64)
    def parse(cls, name: str) -> Rounding:
        """Read a direction, "stochastic", "stochastic_8" (with 8 random bits) or "ms_eden".

        Raises:
            Refusal: No such rounding; lists those there are, without the name.

        >>> [Rounding.parse(name).random_bits for name in ("up", "stochastic", "stochastic_8")]
        [0, 24, 8]
        """
        if name in DIRECTIONS:
            return cls(Direction(name))
        if name == "ms_eden":
            return cls(moves_scales=True)
        if name == "stochastic":
            return cls(random_bits=NOISE_BITS)
        bits = re.fullmatch(r"stochastic_(\d+)", name)
        if bits and 1 <= int(bits[1]) < NOISE_BITS:
            return cls(random_bits=int(bits[1]))
        few = f"stochastic_<1 to {NOISE_BITS - 1} bits>"
        raise Refusal(f"must be one of {', '.join(DIRECTIONS)}, stochastic, {few}, ms_eden")

    def __str__(self) -> str:
        """The name; `parse` reads it back."""
        if self.moves_scales:
            return "ms_eden"
        if self.random_bits:
            return "stochastic" + (f"_{self.random_bits}" if self.few_bits else "")
        return str(self.direction)

    @property
    def draws(self) -> bool:
        """Whether two roundings of the same tensor differ."""
        return self.moves_scales or self.random_bits > 0

    @property
    def few_bits(self) -> bool:
        """Whether it leaves random bits of a draw unused."""
        return 0 < self.random_bits < NOISE_BITS


NEAREST = Rounding()


@dataclass(frozen=True)
class Estimator:
    """The factor of a gradient on its way back through a rounding.

    1 (straight through); or, `masked`, 0 for values that were clipped; or the slope of a smooth
    staircase, the steeper in its middle the larger `steepness` (`experiments.quant.gradient`).
    """

    masked: bool = False
    steepness: float | None = None

    @classmethod
    @lru_cache(maxsize=64)
    def parse(cls, name: str) -> Estimator:
        """Read "straight_through", "masked", or "dge_5" (of steepness 5).

        Raises:
            Refusal: No such estimator; lists those there are, without the name.

        >>> Estimator.parse("dge_5")
        Estimator(masked=False, steepness=5.0)
        """
        if name in ("straight_through", "masked"):
            return cls(masked=name == "masked")
        steepness = re.fullmatch(r"dge_(\d+(?:\.\d+)?)", name)
        if steepness and float(steepness[1]) >= 1:
            return cls(steepness=float(steepness[1]))
        raise Refusal("must be one of straight_through, masked, dge_<k> with k of 1 or more")

    @property
    def straight_through(self) -> bool:
        """Whether the factor is 1 everywhere."""
        return not self.masked and self.steepness is None
