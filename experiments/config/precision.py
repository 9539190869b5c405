"""The precision of the operands in the configuration, and the error that a wrong one raises."""

from __future__ import annotations

from dataclasses import dataclass

from experiments.quant.formats import (
    PRECISIONS,
    ElementFormat,
    FloatFormat,
    FormatError,
    IntFormat,
    Precision,
    ScaleFormat,
)
from fitting.entry.errors import Refusal

PRECISION_KINDS = ("float", "int", "int_asymmetric")
PRESETS = (
    *PRECISIONS,
    # Nothing reserved, an FP32 scale per 32 values (Sun et al. 2501.02423).
    *"e1m0 e1m1 e1m2 e1m3 e2m0 e2m1 e2m2 e2m3 e3m0 e3m1 e3m2 e4m3 e5m2".split(),
    *"int2_row int3_row int4_row int8_row int8_tensor".split(),
)
"""Names that help lists.  `precision=` takes every name that `Precision.parse` reads."""


class ConfigError(Refusal):
    """A request that cannot be run as asked: one line per problem."""

    several = True


@dataclass
class PrecisionConfig:
    """The format to which the operands are quantized."""

    kind: str = "float"
    """float, int (symmetric) or int_asymmetric; INT8 has exponent 0 and mantissa 7."""
    exponent: int = 2
    mantissa: int = 1
    specials: str = "none"
    granularity: str = "block"
    block_size: int = 32
    scale: str = "fp32"

    @classmethod
    def parse(cls, name: str) -> PrecisionConfig:
        """The configuration of a format by its name; raises as `Precision.parse` does.

        >>> PrecisionConfig.parse("E3M2-block16-e8m0").block_size
        16
        """
        precision = Precision.parse(name)
        element, kind, specials = precision.element, "float", "none"
        if isinstance(element, FloatFormat):
            specials = element.specials
        else:
            kind = "int" if element.symmetric else "int_asymmetric"
        return cls(
            kind,
            element.exponent,
            element.mantissa,
            specials,
            precision.granularity,
            precision.block_size,
            precision.scale.value,
        )

    def build(self) -> Precision:
        """The precision itself.

        Raises:
            ConfigError: A value that no format has.
        """
        try:
            if self.scale not in list(ScaleFormat):
                raise FormatError(
                    f"scale={self.scale}: must be one of {', '.join(s.value for s in ScaleFormat)}"
                )
            scale = ScaleFormat(self.scale)
            return Precision(self._element(), self.granularity, self.block_size, scale)
        except FormatError as error:
            raise ConfigError(f"precision.{error}") from error

    def _element(self) -> ElementFormat:
        if self.kind == "float":
            return FloatFormat(self.exponent, self.mantissa, self.specials)
        if self.kind not in PRECISION_KINDS:
            raise FormatError(f"kind={self.kind}: must be one of {', '.join(PRECISION_KINDS)}")
        if self.exponent != 0:
            raise FormatError(f"exponent={self.exponent}: must be 0 for kind={self.kind}")
        if not 1 <= self.mantissa <= 7:
            raise FormatError(
                f"mantissa={self.mantissa}: must be 1..7 (INT2..INT8) for kind={self.kind}"
            )
        if self.specials != "none":
            raise FormatError(f"specials={self.specials}: must be none for kind={self.kind}")
        return IntFormat(1 + self.mantissa, symmetric=self.kind == "int")

    @property
    def label(self) -> str:
        """Short and readable, e.g. E2M1-block32-e8m0."""
        return str(self.build())
