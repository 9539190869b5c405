"""The numbered blocks of a model, read from its layers' names."""

from __future__ import annotations

from collections.abc import Iterable


def block_numbers(names: Iterable[str]) -> tuple[dict[str, int | None], int]:
    """The number of the block that each layer is in, and how many blocks there are.

    A model's blocks are the numbered modules, the outermost number of a name, that most of its
    layers are in.

    >>> block_numbers(["layers.0.mlp.up", "layers.1.mlp.up", "proj"])
    ({'layers.0.mlp.up': 0, 'layers.1.mlp.up': 1, 'proj': None}, 2)
    """
    placed: dict[str, tuple[str, int]] = {}
    names = list(names)
    for name in names:
        parts = name.split(".")
        for place, part in enumerate(parts[:-1]):
            if part.isdecimal():
                placed[name] = ".".join(parts[:place]), int(part)
                break
    counts: dict[str, int] = {}
    for prefix, _ in placed.values():
        counts[prefix] = counts.get(prefix, 0) + 1
    chosen = max(counts, key=lambda prefix: counts[prefix], default="")
    numbers = {n: placed[n][1] if n in placed and placed[n][0] == chosen else None for n in names}
    return numbers, max((n for n in numbers.values() if n is not None), default=-1) + 1
