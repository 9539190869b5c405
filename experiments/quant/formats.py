"""Element and scale formats: the few independent facts, everything else derived.  No torch.

Everything a name can say is read by `parse_element` and `Precision.parse`.

A `FloatFormat` has `exponent` and `mantissa` stored bits and one sign bit.  Its bias is
2^(exponent-1) - 1, subnormals are kept.  The specials policy says what the all-ones codes hold:

    none   numbers: nothing is reserved (Sun et al. 2501.02423, QPyTorch).  E4M3 max 480.
    ocp    as OCP OFP8 and MX v1.0: E4M3 gives up one code for NaN (max 448), E5M2 the whole top
           binade for infinities and NaNs (max 57344), smaller formats nothing.
    ieee   the whole top binade is reserved.  E4M3 max 240.

With `exponent` 0 there is no exponent field: sign-magnitude fixed point, k * 2^-mantissa.
"""

from __future__ import annotations

import difflib
import math
import re
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property

from fitting.entry.errors import Refusal

MAX_EXPONENT_BITS = 8
MAX_MANTISSA_BITS = 10
BFLOAT16_DIGITS = 8
"""Significant bits of bfloat16, the implicit one included."""
SPECIALS = ("none", "ocp", "ieee")


class FormatError(Refusal):
    """An error for a format that does not exist, with what would be right."""


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
    def significant_bits(self) -> int:
        """Digits that hold every number's significand: the mantissa's, and the implicit one."""
        return self.mantissa + (1 if self.exponent else 0)

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
    def lowest(self) -> float:
        """Most negative finite number."""
        return -self.max

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


@dataclass(frozen=True)
class IntFormat:
    """Two's complement integers of `bits` bits; `symmetric` leaves out the lowest one.

    >>> IntFormat(4).max, IntFormat(4).lowest, IntFormat(4, symmetric=False).lowest
    (7.0, -7.0, -8.0)
    """

    bits: int
    symmetric: bool = True

    def __post_init__(self) -> None:
        """Refuse widths that nobody uses."""
        if not 2 <= self.bits <= 8:
            raise FormatError(f"int bits={self.bits}: must be 2..8")

    @classmethod
    def parse(cls, name: str) -> IntFormat:
        """Read "INT4" (symmetric) or "INT4-asymmetric", in any case."""
        match = re.fullmatch(r"int(\d+)(-asymmetric)?", name.strip().lower())
        if not match:
            raise FormatError(f"format {name!r}: write it as INT8 or INT8-asymmetric")
        return cls(int(match[1]), symmetric=match[2] is None)

    def __str__(self) -> str:
        """INT4 or INT4-asymmetric."""
        return f"INT{self.bits}" + ("" if self.symmetric else "-asymmetric")

    @property
    def exponent(self) -> int:
        """No exponent field."""
        return 0

    @property
    def mantissa(self) -> int:
        """All bits but the sign."""
        return self.bits - 1

    @property
    def significant_bits(self) -> int:
        """Digits that hold every number; the lowest of an asymmetric one is a power of two."""
        return self.bits - 1

    @property
    def step(self) -> float:
        """Spacing of the integers."""
        return 1.0

    @property
    def max(self) -> float:
        """Largest integer, 2^(bits-1) - 1: what scales are computed with."""
        return float((1 << (self.bits - 1)) - 1)

    @property
    def lowest(self) -> float:
        """Most negative integer."""
        return -self.max if self.symmetric else -self.max - 1

    @property
    def emax(self) -> int:
        """floor(log2(max))."""
        return self.bits - 2

    def grid(self) -> list[float]:
        """The non-negative integers."""
        return [float(k) for k in range(int(self.max) + 1)]


ElementFormat = FloatFormat | IntFormat


def parse_element(name: str) -> ElementFormat:
    """Read any element format's name: "E2M1", "E4M3-ocp", "INT8", "fp8_e4m3", "bf16", "fp16".

    Raises:
        FormatError: No such format.

    >>> str(parse_element("fp8_e5m2")), str(parse_element("int4")), parse_element("bf16").max
    ('E5M2-ocp', 'INT4', 3.3895313892515355e+38)
    """
    short = name.strip().lower()
    if short in _ELEMENT_NAMES:
        return _ELEMENT_NAMES[short]
    if re.match(r"e\d", short):
        return FloatFormat.parse(short)
    if short.startswith("int"):
        return IntFormat.parse(short)
    raise FormatError(
        f"format {name!r}: write it as E4M3, E4M3-ocp, INT8, INT8-asymmetric, bf16, fp8_e4m3, ..."
    )


_ELEMENT_NAMES: dict[str, ElementFormat] = {
    "fp8_e4m3": FloatFormat(4, 3, "ocp"),
    "fp8_e5m2": FloatFormat(5, 2, "ocp"),
    "fp6_e3m2": FloatFormat(3, 2),
    "fp6_e2m3": FloatFormat(2, 3),
    "fp4_e2m1": FloatFormat(2, 1),
    "bf16": FloatFormat(8, 7, "ieee"),
    "bfloat16": FloatFormat(8, 7, "ieee"),
    "fp16": FloatFormat(5, 10, "ieee"),
    "float16": FloatFormat(5, 10, "ieee"),
}


class ScaleFormat(StrEnum):
    """The format of a block's scale, and the rule that picks it (`experiments.quant.scale`).

    FP32            amax / max.
    E8M0            2^(floor(log2 amax) - emax), the rule of OCP MX v1.0: clips by up to a binade.
    E8M0_LOG2       the same with a float32 logarithm, as microxcaling: twice that where amax is the
                    float just below a power of two.
    E8M0_CEIL       the smallest power of two that clips nothing (2510.25602, NVIDIA's MXFP4).
    E8M0_NEAREST    2^round(log2(amax / max)).
    E8M0_4_3        4/3 of E8M0, for E2M1: rounding up to 4/3 clips nothing (2502.20586).
    QUEST           a power of two near the scale with the least squared error on Gaussian data,
                    from the block's root mean square (2505.14669); QUEST_FLOOR, as its repository.
    E4M3            two levels: FP32 for the tensor, E4M3 for the block (NVFP4, 2509.25149).
    E4M3_4_6        of that scale and one 1.5 times as large, the one with less error (2601.22813).
    E4M3_16_17      amax at 16/17 of max, so that a block scale rounded down to E4M3 clips nothing
                    and stochastic rounding stays unbiased (2601.22813).
    UE5M3           two levels with 5 exponent and 3 mantissa bits, amax mapped to 448 (2609.02846).
    """

    FP32 = "fp32"
    E8M0 = "e8m0"
    E8M0_LOG2 = "e8m0_log2"
    E8M0_CEIL = "e8m0_ceil"
    E8M0_NEAREST = "e8m0_nearest"
    E8M0_4_3 = "e8m0_4_3"
    QUEST = "quest"
    QUEST_FLOOR = "quest_floor"
    E4M3 = "e4m3"
    E4M3_4_6 = "e4m3_4_6"
    E4M3_16_17 = "e4m3_16_17"
    UE5M3 = "ue5m3"

    @property
    def bits(self) -> int:
        """Stored bits of one block's scale."""
        return 32 if self is ScaleFormat.FP32 else 8

    @property
    def power_of_two(self) -> bool:
        """Whether scales lie a factor of two apart."""
        return self is not ScaleFormat.FP32 and not self.two_level

    @property
    def two_level(self) -> bool:
        """Whether there is an FP32 scale of the whole tensor on top."""
        return self in (
            ScaleFormat.E4M3,
            ScaleFormat.E4M3_4_6,
            ScaleFormat.E4M3_16_17,
            ScaleFormat.UE5M3,
        )


@dataclass(frozen=True)
class Precision:
    """The target of quantization: an element format and the scales that fit data to it.

    `granularity` says what shares a scale: "block" (`block_size` consecutive values of the summed
    axis), "tile" (`block_size` x `block_size` of the last two axes), "row" (the whole summed axis)
    or "tensor".
    """

    element: ElementFormat
    granularity: str = "block"
    block_size: int = 32
    scale: ScaleFormat = ScaleFormat.FP32

    GRANULARITIES = ("block", "tile", "row", "tensor")

    def __post_init__(self) -> None:
        """Refuse an unknown granularity or an empty block."""
        if self.granularity not in self.GRANULARITIES:
            raise FormatError(
                f"granularity={self.granularity!r}: must be one of {', '.join(self.GRANULARITIES)}"
            )
        if self.in_blocks and self.block_size < 1:
            raise FormatError(f"block_size={self.block_size}: must be 1 or more")
        if self.scale in _E2M1_ONLY and self.element != FloatFormat(2, 1):
            raise FormatError(f"scale={self.scale.value}: is defined for E2M1, not {self.element}")

    @classmethod
    def parse(cls, name: str) -> Precision:
        """Read a published format's name, or one that spells the parts out, in any case.

        The first are the keys of `PRECISIONS`: mxfp4, nvfp4, mxint8, ...  The second are an
        element format, then what shares a scale (block32, tile16, row, tensor), then the scale, as
        `str` writes them; a missing part is block32, fp32.

        Raises:
            FormatError: No such name.

        >>> Precision.parse("nvfp4").bits_per_element(1, 1024)
        4.53125
        >>> [str(Precision.parse(name)) for name in ("mxfp4", "int8_row", "E3M2-tile16-e8m0_ceil")]
        ['E2M1-block32-e8m0', 'INT8-row-fp32', 'E3M2-tile16-e8m0_ceil']
        """
        short = name.strip().lower()
        if short in PRECISIONS:
            return PRECISIONS[short]
        scales = "|".join(sorted(ScaleFormat, key=len, reverse=True))
        parts = re.fullmatch(
            rf"(.+?)(?:[-_](?:(block|tile)(\d+)|(row|tensor)))?(?:[-_]({scales}))?", short
        )
        try:
            if not parts:
                raise FormatError("nothing is not a name")
            element, blocks, size, whole, scale = parts.groups()
            return cls(
                parse_element(element),
                blocks or whole or "block",
                int(size or cls.block_size),
                ScaleFormat(scale or cls.scale),
            )
        except FormatError as error:
            near = difflib.get_close_matches(short, PRECISIONS, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise FormatError(f"precision {name!r}: {error}{hint}") from error

    def __str__(self) -> str:
        """Element, what shares a scale, scale: E2M1-block32-e8m0; `parse` reads it back."""
        size = self.block_size if self.in_blocks else ""
        return f"{self.element}-{self.granularity}{size}-{self.scale}"

    @property
    def fixed_point(self) -> bool:
        """Sign and magnitude without exponent, E0My."""
        return isinstance(self.element, FloatFormat) and self.element.exponent == 0

    @cached_property
    def in_blocks(self) -> bool:
        """Whether `block_size` says what shares a scale."""
        return self.granularity in ("block", "tile")

    @cached_property
    def tile(self) -> int:
        """Rows and columns of a tile; 0 where scales are not shared by tiles."""
        return self.block_size if self.granularity == "tile" else 0

    @cached_property
    def divisor(self) -> int:
        """The divisor of the summed axis and, for tiles, of the axis before it."""
        return self.block_size if self.in_blocks else 1

    def sharing(self, rows: int, columns: int) -> int:
        """How many elements of a [rows, columns] operand share one scale."""
        if self.granularity == "block":
            return self.block_size
        if self.granularity == "tile":
            return self.block_size**2
        return columns if self.granularity == "row" else rows * columns

    def bits_per_element(self, rows: int, columns: int) -> float:
        """Storage of one element of a [rows, columns] operand, its share of the scale included.

        >>> mxfp4 = Precision(FloatFormat(2, 1), "block", 32, ScaleFormat.E8M0)
        >>> mxfp4.bits_per_element(64, 64)
        4.25
        """
        tensor_scale = 32 / (rows * columns) if self.scale.two_level else 0.0
        return self.element.bits + self.scale.bits / self.sharing(rows, columns) + tensor_scale


_E2M1_ONLY = (
    ScaleFormat.E8M0_4_3,
    ScaleFormat.QUEST,
    ScaleFormat.QUEST_FLOOR,
    ScaleFormat.E4M3_4_6,
)

_OCP_E4M3, _OCP_E5M2, _E2M1 = FloatFormat(4, 3, "ocp"), FloatFormat(5, 2, "ocp"), FloatFormat(2, 1)

PRECISIONS: dict[str, Precision] = {
    "fp8_e4m3": Precision(_OCP_E4M3, "tensor"),
    "fp8_e5m2": Precision(_OCP_E5M2, "tensor"),
    "mxfp8_e4m3": Precision(_OCP_E4M3, "block", 32, ScaleFormat.E8M0),
    "mxfp8_e5m2": Precision(_OCP_E5M2, "block", 32, ScaleFormat.E8M0),
    "mxfp6_e3m2": Precision(FloatFormat(3, 2), "block", 32, ScaleFormat.E8M0),
    "mxfp6_e2m3": Precision(FloatFormat(2, 3), "block", 32, ScaleFormat.E8M0),
    "mxfp4": Precision(_E2M1, "block", 32, ScaleFormat.E8M0),
    "mxfp4_ceil": Precision(_E2M1, "block", 32, ScaleFormat.E8M0_CEIL),
    "mxfp4_4_3": Precision(_E2M1, "block", 32, ScaleFormat.E8M0_4_3),
    "mxfp4_quest": Precision(_E2M1, "block", 32, ScaleFormat.QUEST),
    "nvfp4": Precision(_E2M1, "block", 16, ScaleFormat.E4M3),
    "nvfp4_4_6": Precision(_E2M1, "block", 16, ScaleFormat.E4M3_4_6),
    "nvfp4_16_17": Precision(_E2M1, "block", 16, ScaleFormat.E4M3_16_17),
    "nvfp4_tile": Precision(_E2M1, "tile", 16, ScaleFormat.E4M3),
    "nvfp4_ue5m3": Precision(_E2M1, "block", 16, ScaleFormat.UE5M3),
    "mxint8": Precision(IntFormat(8), "block", 32, ScaleFormat.E8M0_CEIL),
    "mxint6": Precision(IntFormat(6), "block", 32, ScaleFormat.E8M0_CEIL),
    "mxint4": Precision(IntFormat(4), "block", 32, ScaleFormat.E8M0_CEIL),
    "nvint4": Precision(IntFormat(4), "block", 16, ScaleFormat.E4M3),
}
"""Published formats by name; the integer ones with the clipping-free scales of 2510.25602."""
