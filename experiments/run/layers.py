"""Which layers of a run's model are in which precision: for its plan and its record."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

from experiments.config.schema import TrainConfig
from experiments.engine.report import Layer, Reported
from experiments.finetune.config import AdapterConfig
from experiments.models.build import shape_of
from experiments.models.shape import Matrix
from experiments.quant.recipe import SLOTS
from experiments.quant.slots import ATTENTION


def layers_of(config: TrainConfig) -> Reported:
    """The matrices that a recipe quantizes or keeps, those of like blocks in one line.

    Other matrices (embeddings, the output head, routers) are in high precision and not listed,
    unless an override quantizes them; attention is, if the recipe asks for any.
    """
    recipe, shape, run = config.recipe, shape_of(config.model), config.precision.build()
    adapter, adapted = config.adapter, config.adapter.matrices(shape)
    treated, lines = shape.treated(recipe), _Lines()
    asked = {n: m for n, m in shape.others.items() if treated[n].recipe is not None}
    for name, matrix in {**shape.matrices, **asked}.items():
        how = treated[matrix.layer or name]
        formats = how.recipe.precisions(how.format_of(run)) if how.recipe is not None else {}
        operands = tuple(str(formats.get(s, "")) if s in matrix.labels else "" for s in SLOTS)
        why = "recipe none" if how.recipe is None and not recipe.quantizes else how.why
        kind = f"{matrix.in_features} to {matrix.out_features}"
        kind += f", {matrix.copies} experts" if matrix.copies > 1 else ""
        params = matrix.in_features * matrix.out_features * matrix.copies
        line = Layer("", kind, 0, operands if formats else (), "" if formats else why)
        lines.add(name, matrix.block, line, params)
        if name in adapted:
            count = adapter.parameters(matrix.in_features, matrix.out_features)
            beside = f"{name} + {adapter.name}"
            lines.add(beside, matrix.block, _adapter(matrix, adapter), count)
    for name, how in shape.attended(recipe).items():
        line = Layer("", "attention", 0, (), how.why, ATTENTION)
        if how.recipe is not None:
            of_attention = how.recipe.attention.precisions(how.format_of(run))
            operands = tuple(str(of_attention.get(label, "")) for label in ATTENTION)
            line = Layer("", "attention", 0, operands, "", ATTENTION)
        lines.add(name, shape.attention[name], line, 0)
    return Reported(list(lines.joined()))


class _Lines:
    """Lines of a report, of which like ones of several blocks become one."""

    def __init__(self) -> None:
        self._blocks: dict[tuple[str, Layer], list[int]] = {}
        self._params: Counter[tuple[str, Layer]] = Counter()

    def add(self, name: str, block: int | None, line: Layer, params: int) -> None:
        """Add a line; its name and number of parameters are those given here."""
        numbered = rf"(^|\.){block}(?=\.)"
        pattern = name if block is None else re.sub(numbered, r"\1*", name, count=1)
        key = pattern, line
        self._blocks.setdefault(key, []).extend([] if block is None else [block])
        self._params[key] += params

    def joined(self) -> Iterator[Layer]:
        """The lines, with ranges of blocks in their names."""
        for (pattern, line), blocks in self._blocks.items():
            name = pattern.replace("*", _ranges(blocks), 1) if blocks else pattern
            yield replace(line, name=name, params=self._params[pattern, line])


def _adapter(matrix: Matrix, adapter: AdapterConfig) -> Layer:
    """The line of an adapter."""
    kind = f"{matrix.in_features} to {matrix.out_features}, r {adapter.r}"
    if not adapter.precision:
        return Layer("", kind, 0, (), f"adapter {adapter.name}")
    return Layer("", kind, 0, ("", adapter.precision, "", "", "", ""), "")


def _ranges(numbers: Sequence[int]) -> str:
    """Numbers in rising order as ranges.

    >>> _ranges([0]), _ranges([0, 1, 2, 5])
    ('0', '[0-2,5]')
    """
    ends: list[list[int]] = []
    for number in numbers:
        if ends and number == ends[-1][1] + 1:
            ends[-1][1] = number
        else:
            ends.append([number, number])
    parts = [f"{low}" if low == high else f"{low}-{high}" for low, high in ends]
    return parts[0] if len(numbers) == 1 else f"[{','.join(parts)}]"
