"""Which run's weights another one starts from, and what is trained beside them, as plain values."""

from __future__ import annotations

from dataclasses import dataclass, field

from experiments.models.shape import Matrix, Shape
from experiments.quant.formats import FormatError, Precision

ADAPTERS = ("none", "lora", "paca", "shira", "qwha")
LOW_RANK = ("lora",)
"""Those of two small matrices."""
IN_THE_WEIGHT = ("paca", "shira")
"""Those that change the weight before it is quantized."""
INITS = ("zero", "error")
SIGN = "sign"
"""Name of the format of one bit: the sign, times the mean magnitude."""


@dataclass
class BaseConfig:
    """The run that `init_from` names, filled in from its record: what is to know of it."""

    label: str = ""
    """Its recipe, format, tokens, and a hash of all that its result depends on, but for the seed:
    bases that differ in their seeds alone have one label."""
    bits: float = 0.0
    """Bits of its quantized operands' elements, scales included."""
    tokens: int = 0
    """Tokens it was trained on."""
    sha256: str = ""
    """Hash of its weights."""


@dataclass
class AdapterConfig:
    """What is trained while the weights of the base are frozen; named as in `peft`."""

    name: str = "none"
    """One of `ADAPTERS`; none: all weights are trained."""
    r: int = 8
    """Rank; of paca the columns, of shira and qwha the numbers per row and column."""
    lora_alpha: float = 8.0
    """What LoRA adds is multiplied by lora_alpha / r."""
    use_rslora: bool = False
    """Multiplied by lora_alpha / sqrt(r) instead (2312.03732)."""
    target_modules: list[str] = field(default_factory=list)
    """Ends of the names of the layers that get one; none: all that a recipe may quantize."""
    init: str = "zero"
    """zero: at the start nothing is added; error: what comes nearest to the error that the recipe
    makes in the weight."""
    precision: str = ""
    """Format to which LoRA's two matrices are rounded in the forward pass: a name that
    `Precision.parse` reads, or sign; "": high precision."""

    @property
    def there(self) -> bool:
        """Whether there is one."""
        return self.name != "none"

    @property
    def scaling(self) -> float:
        """The factor of what an adapter adds."""
        return self.lora_alpha / (self.r**0.5 if self.use_rslora else self.r)

    def suits(self, matrix: Matrix) -> bool:
        """Whether a matrix is of a kind that can get one."""
        return matrix.adapts if self.name in LOW_RANK else matrix.linear

    def matrices(self, shape: Shape) -> dict[str, Matrix]:
        """The matrices of a model that get one, by name."""
        ends = self.target_modules
        return {
            name: matrix
            for name, matrix in shape.matrices.items()
            if self.there
            and self.suits(matrix)
            and (not ends or any(ends_in(name, end) for end in ends))
        }

    def parameters(self, into: int, out: int) -> int:
        """Trained numbers beside a layer."""
        if self.name == "paca":
            return self.r * out
        count = self.r * (into + out)
        return count if self.name in LOW_RANK else min(count, into * out)

    def problems(self) -> list[str]:
        """Errors, each as "key=value: what would be right"."""
        found = []
        if self.name not in ADAPTERS:
            found.append(f"adapter.name={self.name}: must be one of {', '.join(ADAPTERS)}")
        if self.init not in INITS:
            found.append(f"adapter.init={self.init}: must be one of {', '.join(INITS)}")
        elif self.init == "error" and self.name in IN_THE_WEIGHT:
            found.append(
                f"adapter.init={self.init}: {self.name} is in the weight and quantized with it, so "
                "it cannot add what that loses; use zero"
            )
        default = AdapterConfig(self.name)
        for key in ("lora_alpha", "use_rslora", "precision"):
            value = getattr(self, key)
            if self.there and self.name not in LOW_RANK and value != getattr(default, key):
                found.append(f"adapter.{key}={value}: has no effect on {self.name}; it is LoRA's")
        if self.precision not in ("", SIGN):
            try:
                precision = Precision.parse(self.precision)
            except FormatError as error:
                found.append(f"adapter.precision={self.precision}: {error}; or {SIGN}, of one bit")
            else:
                if precision.tile:
                    found.append(
                        f"adapter.precision={self.precision}: tiles do not suit matrices of "
                        "adapter.r rows; give blocks, row or tensor"
                    )
        return found


def ends_in(name: str, end: str) -> bool:
    """Whether a layer's full name ends in whole parts, as `peft` reads target_modules.

    >>> [ends_in(name, "mlp.down") for name in ("blocks.1.mlp.down", "blocks.1.mlp2.down")]
    [True, False]
    """
    return f".{name}".endswith(f".{end}")
