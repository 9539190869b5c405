"""Recipe: which of the six operands of a linear layer are quantized, and how.  Data, no torch.

A linear layer is three GEMMs, named by what they compute, of two operands each.  The labels
P1..P6 are those of Sun et al. (2501.02423, section 3):

    output       Y  = X W^T     P1 input         P2 weight     summed over in_features
    grad_input   dX = dY W      P3 grad_output   P4 weight     summed over out_features
    grad_weight  dW = dY^T X    P5 grad_output   P6 input      summed over rows (batch x sequence)

To what an operand is quantized is the run's `Precision`, so that a sweep is a product, unless the
recipe names a format of the operand's own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from experiments.quant.formats import (
    PRECISIONS,
    FloatFormat,
    Precision,
    ScaleFormat,
)
from experiments.quant.modes import Estimator, Rounding
from experiments.quant.slots import AttentionConfig, OperandConfig, has_gradient

__all__ = [
    "FORWARD_OF",
    "GEMMS",
    "LONGEST_WORD",
    "PRODUCTS",
    "SHORTEST_WORD",
    "SIGNS",
    "SLOTS",
    "AttentionConfig",
    "GemmConfig",
    "GradInputConfig",
    "GradWeightConfig",
    "OperandConfig",
    "OutputConfig",
    "Override",
    "RecipeConfig",
    "Slot",
    "WordLengthConfig",
    "is_part",
]

SIGNS = ("fixed", "random", "shared")
PRODUCTS = ("exact", "lmul")
SHORTEST_WORD, LONGEST_WORD = 2, 11
"""Bits of a fixed-point number, its sign included."""


class Slot(NamedTuple):
    """The place of an operand in a recipe."""

    gemm: str
    part: str

    @property
    def error(self) -> str:
        """The column of a run's record with the error of the operand's format."""
        return f"err_{self.part}" if self.gemm == "output" else f"err_{self.gemm}_{self.part}"

    def key(self, *more: str) -> str:
        """The key of the operand, or of one of its values."""
        return ".".join(("recipe", *self, *more))


SLOTS = {
    "P1": Slot("output", "input"),
    "P2": Slot("output", "weight"),
    "P3": Slot("grad_input", "grad_output"),
    "P4": Slot("grad_input", "weight"),
    "P5": Slot("grad_weight", "grad_output"),
    "P6": Slot("grad_weight", "input"),
}
GEMMS = {"output": ("P1", "P2"), "grad_input": ("P3", "P4"), "grad_weight": ("P5", "P6")}
"""The operands of each GEMM, left and right."""
FORWARD_OF = {"P4": "P2", "P6": "P1"}
"""The operands of the backward products that the forward product multiplies, too."""


@dataclass
class OutputConfig:
    """Y = X W^T.  An operand that is null stays in high precision."""

    input: OperandConfig | None = None
    weight: OperandConfig | None = None
    hadamard: int = 0
    """Block length of a rotation of both operands along the summed axis; 0 for none."""
    signs: str = "fixed"
    """fixed (all +1), random (drawn anew at every use) or shared (drawn once: one block's signs
    for every use in every layer)."""
    product: str = "exact"
    """exact, or lmul: by addition of mantissas (`experiments.quant.lmul`)."""


@dataclass
class GradInputConfig:
    """dX = dY W."""

    grad_output: OperandConfig | None = None
    weight: OperandConfig | None = None
    hadamard: int = 0
    signs: str = "fixed"
    row_hadamard: int = 0
    """Block length of a rotation of grad_output along its rows (batch x sequence), undone on the
    product: the "left" case of 2501.02625."""
    product: str = "exact"


@dataclass
class GradWeightConfig:
    """dW = dY^T X."""

    grad_output: OperandConfig | None = None
    input: OperandConfig | None = None
    hadamard: int = 0
    signs: str = "fixed"
    product: str = "exact"


@dataclass
class WordLengthConfig:
    """How fixed-point word lengths move during training (`experiments.quant.word_length`)."""

    lookback: int = 0
    """Most steps between two decisions of a layer; 0: word lengths do not change."""
    bins: int = 30
    """Divergence of the histograms by which a word length may not differ."""


GemmConfig = OutputConfig | GradInputConfig | GradWeightConfig


@dataclass
class RecipeConfig:
    """Where and how linear layers and attention are quantized, and which of them are."""

    name: str = "none"
    output: OutputConfig = field(default_factory=OutputConfig)
    grad_input: GradInputConfig = field(default_factory=GradInputConfig)
    grad_weight: GradWeightConfig = field(default_factory=GradWeightConfig)
    attention: AttentionConfig = field(default_factory=AttentionConfig)
    keep_first: int = 0
    """Blocks at the input that stay in high precision."""
    keep_last: int = 0
    """Blocks at the output that stay in high precision."""
    keep: list[str] = field(default_factory=list)
    """Layers that stay in high precision, by consecutive parts of their name: attention.qkv, mlp,
    blocks.3."""
    high_precision_share: float = 0.0
    """Last share of the training steps, and the validation after them, without quantization."""
    word_length: WordLengthConfig = field(default_factory=WordLengthConfig)
    overrides: dict[str, Any] = field(default_factory=dict)
    """By full name, pattern ("re:...") or "_default", what holds for layers instead: an `Override`,
    or None for high precision (`experiments.quant.overrides`)."""

    def slots(self) -> dict[str, OperandConfig | None]:
        """The six operands by their label in the literature."""
        return {
            "P1": self.output.input,
            "P2": self.output.weight,
            "P3": self.grad_input.grad_output,
            "P4": self.grad_input.weight,
            "P5": self.grad_weight.grad_output,
            "P6": self.grad_weight.input,
        }

    @property
    def quantized(self) -> tuple[str, ...]:
        """Labels of linear layers' quantized operands, e.g. ("P2", "P4", "P6")."""
        return tuple(label for label, operand in self.slots().items() if operand is not None)

    @property
    def quantizes(self) -> bool:
        """Whether any operand is quantized, of linear layers or of attention."""
        return self.attends or any(each.quantized for each in self.recipes())

    @property
    def attends(self) -> bool:
        """Whether it, or an override, quantizes any operand of attention."""
        return any(each.attention.quantized for each in self.recipes())

    def overridden(self) -> dict[str, Override]:
        """The overrides that are not high precision."""
        return {n: how for n, how in self.overrides.items() if isinstance(how, Override)}

    def recipes(self) -> list[RecipeConfig]:
        """This recipe and those of its overrides."""
        return [self, *(override.recipe for override in self.overridden().values())]

    def rounded(self) -> Iterator[tuple[str, str, OperandConfig]]:
        """Label, key and slot of each operand that is rounded, not merely taken over rounded."""
        slots = self.slots()
        for label, key in self.keys().items():
            operand = slots[label]
            if operand is not None and not operand.taken_over:
                yield label, key, operand

    def roundings(self) -> dict[str, Rounding]:
        """Roundings of these operands, by label.

        Raises:
            Refusal: A name that no rounding has; `problems` says so first.
        """
        return {label: Rounding.parse(operand.rounding) for label, _, operand in self.rounded()}

    def estimators(self) -> dict[str, Estimator]:
        """Gradient estimators, by label, except for straight-through ones.

        Raises:
            Refusal: A name that no estimator has; `problems` says so first.
        """
        found = {label: Estimator.parse(slot.gradient) for label, _, slot in self.rounded()}
        return {label: each for label, each in found.items() if not each.straight_through}

    def keys(self) -> dict[str, str]:
        """The quantized operands' keys by label, e.g. {"P2": "recipe.output.weight"}."""
        return {label: SLOTS[label].key() for label in self.quantized}

    @property
    def uses_run_precision(self) -> bool:
        """Whether any operand uses the run's precision."""
        of_attention = self.attention.operands().values()
        own = [operand for _, _, operand in self.rounded()]
        return any(not operand.precision for operand in (*own, *of_attention)) or any(
            not override.precision and override.recipe.uses_run_precision
            for override in self.overridden().values()
        )

    def precisions(self, run: Precision) -> dict[str, Precision]:
        """Formats of the quantized operands, by label.

        Raises:
            FormatError: A name that no format has; `problems` says so first.
        """
        found = {label: operand.format_of(run) for label, _, operand in self.rounded()}
        for label in set(self.quantized) - set(found):
            found[label] = found[FORWARD_OF[label]]
        return found

    def gemms(self) -> dict[str, GemmConfig]:
        """The three GEMMs by name."""
        return {
            "output": self.output,
            "grad_input": self.grad_input,
            "grad_weight": self.grad_weight,
        }

    def keeps(self, layer: str, block: int | None, blocks: int) -> bool:
        """Whether a layer stays in high precision.

        Args:
            layer: Its name.
            block: The number of the block that it is in; None outside of them.
            blocks: Blocks of the model.

        >>> recipe = RecipeConfig(keep_last=1, keep=["mlp.down"])
        >>> layers = {"blocks.1.mlp.up": 1, "blocks.1.mlp.down": 1, "blocks.3.mlp.up": 3}
        >>> [recipe.keeps(name, block, 4) for name, block in layers.items()]
        [False, True, True]
        """
        at_an_end = block is not None and (
            block < self.keep_first or block >= blocks - self.keep_last
        )
        return at_an_end or any(is_part(part, layer) for part in self.keep)

    def problems(self) -> list[str]:
        """Errors of this recipe, each as "key=value: what would be right"."""
        found = []
        for gemm_name, gemm in self.gemms().items():
            key = f"recipe.{gemm_name}"
            sizes = {"hadamard": gemm.hadamard}
            if isinstance(gemm, GradInputConfig):
                sizes["row_hadamard"] = gemm.row_hadamard
            for name, size in sizes.items():
                if size < 0 or size & (size - 1):
                    found.append(f"{key}.{name}={size}: must be 0 (none) or a power of two")
            if gemm.signs not in SIGNS:
                found.append(f"{key}.signs={gemm.signs}: must be one of {', '.join(SIGNS)}")
            if gemm.product not in PRODUCTS:
                found.append(f"{key}.product={gemm.product}: must be one of {', '.join(PRODUCTS)}")
            elif gemm.product == "lmul":
                found += [
                    f"{key}.product=lmul: needs {'.'.join(SLOTS[label])} to be quantized"
                    for label in GEMMS[gemm_name]
                    if self.slots()[label] is None
                ]
            for label in GEMMS[gemm_name]:
                operand = self.slots()[label]
                if operand is not None:
                    found += self._operand_problems(label, operand)
        found += self.attention.problems()
        for name, override in self.overridden().items():
            inner = override.recipe.problems()
            if override.recipe.overrides:
                inner.append("recipe.overrides: an override has none of its own")
            if override.recipe.high_precision_share or override.recipe.word_length.lookback:
                inner.append("high_precision_share and word_length are those of the run's recipe")
            found += [f"recipe.overrides[{name}]: {problem}" for problem in inner]
        if self.overridden() and self.word_length.lookback:
            found.append(
                f"recipe.word_length.lookback={self.word_length.lookback}: moves the word lengths "
                "of all layers alike; leave out recipe.overrides"
            )
        for name in ("keep_first", "keep_last"):
            if getattr(self, name) < 0:
                found.append(f"recipe.{name}={getattr(self, name)}: must be 0 or more blocks")
        share = self.high_precision_share
        if not 0 <= share < 1:
            found.append(f"recipe.high_precision_share={share}: must be from 0 to below 1")
        lookback, bins = self.word_length.lookback, self.word_length.bins
        if lookback < 0:
            found.append(f"recipe.word_length.lookback={lookback}: must be 0 (none) or more steps")
        if bins < 2:
            found.append(f"recipe.word_length.bins={bins}: must be 2 or more")
        return found

    def _operand_problems(self, label: str, operand: OperandConfig) -> list[str]:
        of_forward = FORWARD_OF.get(label)
        right = "" if of_forward else "only grad_input.weight and grad_weight.input can be true"
        if of_forward and self.slots()[of_forward] is None:
            right = f"needs {'.'.join(SLOTS[of_forward])} to be quantized"
        return operand.problems(SLOTS[label].key(), right, label in GEMMS["output"])

    def format_problems(self, run: Precision) -> list[str]:
        """Formats that cannot do what the recipe asks, each as "key=value: what would be right".

        Args:
            run: The run's precision.
        """
        found = []
        precisions, roundings = self.precisions(run), self.roundings()
        for label, key, operand in self.rounded():
            precision, rounding = precisions[label], roundings[label]
            if rounding.moves_scales and precision != PRECISIONS["nvfp4"]:
                found.append(f"{key}.rounding={rounding}: needs precision nvfp4, not {precision}")
            if label in self.estimators() and not has_gradient(precision):
                found.append(
                    f"{key}.gradient={operand.gradient}: needs one scale rule along the summed "
                    f"axis, which {precision} does not have"
                )
        found += self.attention.format_problems(run)
        for name, gemm in self.gemms().items():
            if gemm.product == "lmul":
                left, right = (precisions[label] for label in GEMMS[name])
                found += _lmul_problems(f"recipe.{name}.product=lmul", left, right)
        for pattern, override in self.overridden().items():
            target = Precision.parse(override.precision) if override.precision else run
            found += [
                f"recipe.overrides[{pattern}]: {problem}"
                for problem in override.recipe.format_problems(target)
            ]
        lookback, weight = self.word_length.lookback, precisions.get("P2")
        if lookback and not (weight and weight.fixed_point):
            found.append(
                f"recipe.word_length.lookback={lookback}: needs output.weight in fixed point, "
                f"E0M1 to E0M{LONGEST_WORD - 1}, not {weight or 'high precision'}"
            )
        return found


@dataclass
class Override:
    """What holds for some layers instead of the run's recipe."""

    recipe: RecipeConfig
    precision: str = ""
    """The format of operands to which it gives none; "" is the run's."""


def is_part(part: str, layer: str) -> bool:
    """Whether a name of `RecipeConfig.keep` is a layer's, or whole parts of it.

    >>> [is_part("mlp", name) for name in ("blocks.1.mlp.down", "blocks.1.mlp2.down")]
    [True, False]
    """
    return f".{part}." in f".{layer}."


def _lmul_problems(key: str, left: Precision, right: Precision) -> list[str]:
    """L-Mul adds the mantissas of the elements, and a scale must not change those."""
    found = []
    for precision in dict.fromkeys((left, right)):
        element = precision.element
        if not (isinstance(element, FloatFormat) and element.exponent and element.mantissa):
            found.append(f"{key}: needs elements with exponent and mantissa bits, not {precision}")
        if not precision.scale.power_of_two or precision.scale is ScaleFormat.E8M0_4_3:
            found.append(f"{key}: needs scales that are powers of two, not {precision}")
    if left.element.mantissa != right.element.mantissa:
        found.append(f"{key}: needs as many mantissa bits left and right, not {left} and {right}")
    return found
