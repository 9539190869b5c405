"""A recipe as a configuration of another library, or the reasons why it has none.

Nothing is replaced: a part that changes what is computed and that the library cannot say refuses
the whole; what it leaves to the caller, such as which layers stay in high precision, is a remark.
Read in TransformerEngine 2.20.2, ModelOpt 0.47.0 and torchao 0.18.0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from experiments.quant.formats import Precision
from experiments.quant.recipe import FORWARD_OF, GEMMS, SLOTS, RecipeConfig

NEAREST = "nearest_even"


@dataclass(frozen=True)
class Operand:
    """One of the six, with its format."""

    precision: Precision
    rounding: str
    forward: bool
    taken_over: bool


@dataclass
class Written:
    """The outcome for one library."""

    text: str = ""
    """A Python program that makes the configuration; "" if it cannot be written."""
    reasons: list[str] = field(default_factory=list)
    """Parts of the recipe that the library cannot express."""
    remarks: list[str] = field(default_factory=list)
    """What the configuration leaves to the caller."""


class Asked:
    """A recipe's operands, and what is asked of them."""

    def __init__(self, recipe: RecipeConfig, run: Precision) -> None:
        self.recipe, self.reasons = recipe, list[str]()
        formats = recipe.precisions(run)
        self.operands = {
            label: Operand(formats[label], slot.rounding, slot.forward, slot.taken_over)
            for label, slot in recipe.slots().items()
            if slot is not None
        }

    def refuse(self, label: str, what: str) -> None:
        """Note that an operand cannot be expressed."""
        self.reasons.append(f"{label} ({SLOTS[label].key()}): {what}")

    def nearest(self, *labels: str) -> None:
        """Ask for rounding to nearest, ties to even."""
        for label in labels:
            found = self.operands.get(label)
            if found and not found.taken_over and found.rounding != NEAREST:
                self.refuse(label, f"it rounds to nearest even, this recipe {found.rounding}")

    def as_rounded_once(self, *labels: str) -> None:
        """Ask that backward copies be what a library that rounds once or twice multiplies.

        One scale per tensor or tile gives the same values along either axis, so that rounding once
        and rounding twice are the same; others must be rounded anew from high precision.
        """
        for label in labels:
            found, ahead = self.operands.get(label), self.operands.get(FORWARD_OF[label])
            if not found:
                continue
            along_either = found.precision.granularity in ("tensor", "tile")
            if found.taken_over and along_either:
                continue
            if found.forward:
                self.refuse(label, "it rounds the high-precision tensor, not the forward operand")
            elif ahead and found.precision != ahead.precision and along_either:
                self.refuse(label, f"its format is that of the forward operand, {ahead.precision}")

    def straight_through(self) -> None:
        """Ask that gradients pass all roundings."""
        for label in self.recipe.estimators():
            slot = self.recipe.slots()[label]
            assert slot is not None
            self.refuse(label, f"gradients pass straight through, in this recipe {slot.gradient}")

    def unrotated(self, *gemms: str) -> None:
        """Ask that GEMMs have no rotation."""
        for name in gemms:
            gemm = self.recipe.gemms()[name]
            rows = getattr(gemm, "row_hadamard", 0)
            if gemm.hadamard or rows:
                labels = " and ".join(GEMMS[name])
                size = f"blocks of {gemm.hadamard}" if gemm.hadamard else f"{rows} rows"
                self.reasons.append(
                    f"{labels} (recipe.{name}): it does not rotate them, this recipe does, {size}"
                )


def general(recipe: RecipeConfig) -> list[str]:
    """Reasons that hold for every library."""
    found = [
        f"recipe.{name}.product={gemm.product}: products are exact"
        for name, gemm in recipe.gemms().items()
        if gemm.product != "exact"
    ]
    if recipe.attends:
        found.append("recipe.attention: only linear layers are written")
    if recipe.overrides:
        found.append("recipe.overrides: one recipe is written, for all layers")
    if recipe.word_length.lookback:
        found.append("recipe.word_length.lookback: word lengths are fixed")
    if not recipe.quantized:
        found.append("nothing is quantized, so there is nothing to write")
    return found


def left_to_the_caller(recipe: RecipeConfig, how: str) -> list[str]:
    """Remarks that hold for every library.

    Args:
        recipe: The recipe.
        how: What to do with layers that stay in high precision.
    """
    found = []
    kept = {"keep_first": recipe.keep_first, "keep_last": recipe.keep_last, "keep": recipe.keep}
    for name, value in kept.items():
        if value:
            text = ", ".join(value) if isinstance(value, list) else value
            found.append(f"recipe.{name}={text}: stays in high precision; {how}")
    if share := recipe.high_precision_share:
        found.append(f"recipe.high_precision_share={share:g}: switch quantization off by then")
    return found


Writer = Callable[[RecipeConfig, Precision], Written]


def program(title: str, lines: list[str], remarks: list[str]) -> str:
    """The text of a file: its remarks as comments, then the configuration."""
    head = [f"# {title}", *(f"# Not in here: {remark}" for remark in remarks)]
    return "\n".join([*head, "", *lines]) + "\n"
