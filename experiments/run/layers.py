"""Which layers of a run's model are in which precision: for its plan and its record."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence

from experiments.config.schema import TrainConfig
from experiments.engine.report import Layer, Reported
from experiments.finetune.config import AdapterConfig
from experiments.models.build import shape_of
from experiments.models.shape import Shape
from experiments.quant.recipe import SLOTS
from experiments.quant.slots import ATTENTION


def layers_of(config: TrainConfig) -> Reported:
    """The matrices that a recipe quantizes or keeps, those of like blocks in one line.

    Other matrices (embeddings, the output head, routers) are in high precision and not listed.
    """
    recipe, shape, adapter = config.recipe, shape_of(config.model), config.adapter
    quantized = recipe.quantized
    formats = recipe.precisions(config.precision.build()) if quantized else {}
    operands = tuple(str(formats.get(label, "")) for label in SLOTS)
    kept = shape.kept(recipe)
    alike: dict[tuple[str, str, bool, bool], list[int]] = {}
    params: Counter[tuple[str, str, bool, bool]] = Counter()
    for name, matrix in shape.matrices.items():
        pattern = _pattern(name, matrix.block)
        kind = f"{matrix.in_features} to {matrix.out_features}"
        kind += f", {matrix.copies} experts" if matrix.copies > 1 else ""
        adapted = adapter.there and matrix.adapts and adapter.targets(name)
        key = pattern, kind, (matrix.layer or name) in kept, adapted
        alike.setdefault(key, []).extend([] if matrix.block is None else [matrix.block])
        params[key] += matrix.in_features * matrix.out_features * matrix.copies
    found = []
    for key, blocks in alike.items():
        pattern, kind, is_kept, adapted = key
        why = "recipe none" if not quantized else "recipe.keep" if is_kept else ""
        name = pattern.replace("*", _ranges(blocks), 1) if blocks else pattern
        found.append(Layer(name, kind, params[key], () if why else operands, why))
        if adapted:
            found.append(_adapter(name, kind, len(blocks) or 1, adapter))
    return Reported([*found, *_attention(config, shape)])


def _attention(config: TrainConfig, shape: Shape) -> Iterator[Layer]:
    """The attention of a recipe that asks for it."""
    recipe = config.recipe
    if not recipe.attention.quantized:
        return
    formats = recipe.attention.precisions(config.precision.build())
    operands = tuple(str(formats.get(label, "")) for label in ATTENTION)
    quantized = set(shape.attended(recipe))
    alike: dict[tuple[str, bool], list[int]] = {}
    for name, block in shape.attention.items():
        key = _pattern(name, block), name not in quantized
        alike.setdefault(key, []).extend([] if block is None else [block])
    for (pattern, is_kept), blocks in alike.items():
        name = pattern.replace("*", _ranges(blocks), 1) if blocks else pattern
        why = "recipe.keep" if is_kept else ""
        yield Layer(name, "attention", 0, () if why else operands, why, ATTENTION)


def _pattern(name: str, block: int | None) -> str:
    """A layer's name with * in place of its block's number."""
    return name if block is None else re.sub(rf"(^|\.){block}(?=\.)", r"\1*", name, count=1)


def _adapter(name: str, kind: str, count: int, adapter: AdapterConfig) -> Layer:
    """The adapters beside layers, in one line."""
    into, _, out = kind.partition(" to ")
    operands = ("", adapter.precision, "", "", "", "")
    return Layer(
        f"{name} + {adapter.name}",
        f"{into} to {adapter.r} to {out}",
        count * adapter.parameters(int(into), int(out)),
        operands if adapter.precision else (),
        "" if adapter.precision else "adapter.precision",
    )


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
