"""What becomes of a layer: a run's recipe, or one of its own.  Data, no torch.

Overrides are full names of layers, or patterns that begin with "re:" and match a whole name, or
"_default".  A full name goes before patterns, these in their order, these before "_default".
An override goes before what the run's recipe keeps; what the recipe of an override keeps holds for
the layers of that override.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TypeVar

from experiments.quant.formats import Precision
from experiments.quant.recipe import Override, RecipeConfig

REGULAR = "re:"
"""What a pattern among the overrides begins with."""
DEFAULT = "_default"
"""What holds for layers that no name and no pattern meets."""
_How = TypeVar("_How")


@dataclass(frozen=True)
class Treatment:
    """How a layer is quantized."""

    recipe: RecipeConfig | None
    """None: it stays in high precision."""
    precision: str = ""
    """The format of operands to which the recipe gives none; "" is the run's."""
    why: str = ""
    """Why it stays in high precision, or which override says so; "": the run's recipe."""

    @property
    def own(self) -> bool:
        """Whether it is quantized by an override."""
        return self.recipe is not None and bool(self.why)

    def format_of(self, run: Precision) -> Precision:
        """The format of operands to which the recipe gives none."""
        return Precision.parse(self.precision) if self.precision else run


def select(name: str, named: Mapping[str, _How]) -> tuple[_How | None, str]:
    """What the overrides say of a layer, and which does; (None, "") if none does.

    >>> named = {"re:.*down": 1, "blocks.0.mlp.down": 2, "_default": 3}
    >>> [select(name, named)[0] for name in ("blocks.0.mlp.down", "blocks.1.mlp.down", "head")]
    [2, 1, 3]
    """
    if name in named:
        return named[name], f"override {name}"
    for pattern, how in named.items():
        if pattern.startswith(REGULAR) and re.fullmatch(pattern[len(REGULAR) :], name):
            return how, f"override {pattern}"
    if DEFAULT in named:
        return named[DEFAULT], f"override {DEFAULT}"
    return None, ""


def unmet(named: Collection[str], layers: Collection[str]) -> dict[str, str]:
    """Names and patterns that meet no layer, for which they were meant, and what is wrong."""
    found = {}
    for pattern in named:
        if pattern == DEFAULT or pattern in layers:
            continue
        try:
            expression = re.compile(pattern.removeprefix(REGULAR))
        except re.error as error:
            found[pattern] = f"is no pattern ({error})"
            continue
        if not pattern.startswith(REGULAR) or not any(map(expression.fullmatch, layers)):
            found[pattern] = "meets no layer"
    return found


def treatment(
    recipe: RecipeConfig, layer: str, block: int | None, blocks: int, left_out: str = ""
) -> Treatment:
    """How a recipe and its overrides treat a layer.

    Args:
        recipe: The run's, its overrides resolved.
        layer: The layer's name.
        block: The number of the block that it is in; None outside of them.
        blocks: Blocks of the model.
        left_out: What the layer is, if it is quantized by a name or a pattern only.
    """
    how, by = select(layer, recipe.overrides)
    if by and not (left_out and by.endswith(DEFAULT)):
        if how is None:
            return Treatment(None, why=by)
        assert isinstance(how, Override)
        if how.recipe.keeps(layer, block, blocks):
            return Treatment(None, why="recipe.keep")
        return Treatment(how.recipe, how.precision, by)
    if left_out:
        return Treatment(None, why=left_out)
    if recipe.keeps(layer, block, blocks):
        return Treatment(None, why="recipe.keep")
    return Treatment(recipe)
