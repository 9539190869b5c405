"""Element and scale formats: the few independent facts, everything else derived.  No torch.

A `FloatFormat` has `exponent` and `mantissa` stored bits and one sign bit.  Its bias is
2^(exponent-1) - 1, subnormals are kept.  The specials policy says what the all-ones codes hold:

    none   numbers: nothing is reserved (Sun et al. 2501.02423, QPyTorch).  E4M3 max 480.
    ocp    as OCP OFP8 and MX v1.0: E4M3 gives up one code for NaN (max 448), E5M2 the whole top
           binade for infinities and NaNs (max 57344), smaller formats nothing.
    ieee   the whole top binade is reserved.  E4M3 max 240.

With `exponent` 0 there is no exponent field: sign-magnitude fixed point, k * 2^-mantissa.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from enum import StrEnum

MAX_EXPONENT_BITS = 8
MAX_MANTISSA_BITS = 10
SPECIALS = ("none", "ocp", "ieee")


class FormatError(ValueError):
    """A format that does not exist, with what would be right."""


@dataclass(frozen=True)
class FloatFormat:
    """A sign bit, `exponent` and `mantissa` stored bits, and what the special codes hold.

    >>> FloatFormat(2, 1).grid()
    [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
    >>> FloatFormat(4, 3).max, FloatFormat(4, 3, "ocp").max, FloatFormat(4, 3, "ieee").max
    (480.0, 448.0, 240.0)
    """

    exponent: int
    mantissa: int
    specials: str = "none"

    def __post_init__(self) -> None:
        """Refuse what the quantizers cannot represent exactly in float32."""
        if not 0 <= self.exponent <= MAX_EXPONENT_BITS:
            raise FormatError(f"exponent={self.exponent}: must be 0..{MAX_EXPONENT_BITS} bits")
        if not 0 <= self.mantissa <= MAX_MANTISSA_BITS:
            raise FormatError(f"mantissa={self.mantissa}: must be 0..{MAX_MANTISSA_BITS} bits")
        if self.exponent + self.mantissa == 0:
            raise FormatError("exponent=0 with mantissa=0: the only number of E0M0 is zero")
        if self.specials not in SPECIALS:
            raise FormatError(f"specials={self.specials!r}: must be one of {', '.join(SPECIALS)}")
        if self._top_binade_reserved and self.exponent < 2:
            raise FormatError(f"specials=ieee needs exponent>=2, got exponent={self.exponent}")

    @classmethod
    def parse(cls, name: str) -> FloatFormat:
        """Read "E4M3" (nothing reserved), "E4M3-ocp", "E4M3-ieee", in any case.

        Raises:
            FormatError: Not of that form, or out of range.

        >>> FloatFormat.parse("e4m3-ocp").max
        448.0
        """
        match = re.fullmatch(r"e(\d+)m(\d+)(?:-(\w+))?", name.strip().lower())
        if not match:
            raise FormatError(f"format {name!r}: write it as E4M3, E4M3-ocp or E4M3-ieee")
        return cls(int(match[1]), int(match[2]), match[3] or "none")

    def __str__(self) -> str:
        """E4M3, with the specials policy where something is reserved."""
        suffix = "" if self.specials == "none" else f"-{self.specials}"
        return f"E{self.exponent}M{self.mantissa}{suffix}"

    @property
    def bits(self) -> int:
        """Sign, exponent and mantissa bits together."""
        return 1 + self.exponent + self.mantissa

    @property
    def bias(self) -> int:
        """Subtracted from the stored exponent; meaningless (0) without an exponent field."""
        return (1 << (self.exponent - 1)) - 1 if self.exponent else 0

    @property
    def emin(self) -> int:
        """Exponent of the smallest normal number, which the subnormals share."""
        return 1 - self.bias if self.exponent else 0

    @property
    def step(self) -> float:
        """Smallest positive number: the spacing of the subnormals."""
        return 2.0 ** (self.emin - self.mantissa)

    @property
    def max(self) -> float:
        """Largest finite number."""
        if not self.exponent:
            return 1.0 - 2.0**-self.mantissa
        top = (1 << self.exponent) - 1 - self.bias
        if self._top_binade_reserved:
            return math.ldexp(2.0 - 2.0**-self.mantissa, top - 1)
        reserved = 1 if self._top_code_reserved else 0
        return math.ldexp(2.0 - (1 + reserved) * 2.0**-self.mantissa, top)

    @property
    def emax(self) -> int:
        """floor(log2(max)): exponent of the largest power of two in the format."""
        if not self.exponent:
            return -1
        return (1 << self.exponent) - 1 - self.bias - (1 if self._top_binade_reserved else 0)

    @property
    def _top_binade_reserved(self) -> bool:
        return self.specials == "ieee" or (
            self.specials == "ocp" and (self.exponent, self.mantissa) == (5, 2)
        )

    @property
    def _top_code_reserved(self) -> bool:
        return self.specials == "ocp" and (self.exponent, self.mantissa) == (4, 3)

    def grid(self) -> list[float]:
        """All non-negative finite numbers, ascending; position is the code without the sign."""
        values = []
        for code in range(2 ** (self.exponent + self.mantissa)):
            stored_exponent, fraction = divmod(code, 2**self.mantissa)
            if stored_exponent == 0:
                value = fraction * self.step
            else:
                value = (2**self.mantissa + fraction) * self.step * 2.0 ** (stored_exponent - 1)
            if value <= self.max:
                values.append(value)
        return values


class ScaleFormat(StrEnum):
    """What a block's scale is stored in, and the rule that picks it.

    FP32: amax / element max, in float32.
    E8M0: a power of two, 2^(floor(log2 amax) - emax) (OCP MX v1.0, section 6.3): it may clip
    amax by almost a factor of two, and never wastes a binade.
    """

    FP32 = "fp32"
    E8M0 = "e8m0"

    @property
    def bits(self) -> int:
        """Stored bits of one scale."""
        return 32 if self is ScaleFormat.FP32 else 8


@dataclass(frozen=True)
class Precision:
    """To what a tensor is quantized: an element format and the scales that fit data to it.

    `granularity` says who shares a scale: "block" (`block_size` consecutive values of the summed
    axis), "row" (the whole summed axis) or "tensor".
    """

    element: FloatFormat
    granularity: str = "block"
    block_size: int = 32
    scale: ScaleFormat = ScaleFormat.FP32

    GRANULARITIES = ("block", "row", "tensor")

    def __post_init__(self) -> None:
        """Refuse an unknown granularity or an empty block."""
        if self.granularity not in self.GRANULARITIES:
            raise FormatError(
                f"granularity={self.granularity!r}: must be one of {', '.join(self.GRANULARITIES)}"
            )
        if self.granularity == "block" and self.block_size < 1:
            raise FormatError(f"block_size={self.block_size}: must be 1 or more")

    def sharing(self, rows: int, columns: int) -> int:
        """How many elements of a [rows, columns] operand share one scale."""
        return {"block": self.block_size, "row": columns, "tensor": rows * columns}[
            self.granularity
        ]

    def bits_per_element(self, rows: int, columns: int) -> float:
        """Storage of one element of a [rows, columns] operand, its share of the scale included.

        >>> mxfp4 = Precision(FloatFormat(2, 1), "block", 32, ScaleFormat.E8M0)
        >>> mxfp4.bits_per_element(64, 64)
        4.25
        """
        return self.element.bits + self.scale.bits / self.sharing(rows, columns)
