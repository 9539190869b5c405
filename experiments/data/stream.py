"""Tokens on disk as one sequence."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from experiments.data.shards import Shard


class TokenStream:
    """The shards of one part of a corpus as one sequence of tokens; nothing is read until asked.

    Args:
        folder: The corpus folder.
        shards: The part's shards, in order.
        dtype: Type of the tokens on disk, "uint16" or "uint32".
    """

    def __init__(self, folder: Path, shards: tuple[Shard, ...], dtype: str) -> None:
        kind = np.dtype(dtype).newbyteorder("<")
        self._shards = [
            np.memmap(folder / s.file, kind, "r", s.start * kind.itemsize, (s.tokens,))
            for s in shards
            if s.tokens
        ]
        self._ends = np.cumsum([len(shard) for shard in self._shards])

    def __len__(self) -> int:
        """Tokens."""
        return int(self._ends[-1]) if len(self._ends) else 0

    def read(self, start: int, count: int) -> np.ndarray:
        """Tokens [start, start + count), [count]; across shards if necessary."""
        shard = int(np.searchsorted(self._ends, start, side="right"))
        pieces = []
        while count:
            offset = start - (int(self._ends[shard - 1]) if shard else 0)
            pieces.append(self._shards[shard][offset : offset + count])
            start, count, shard = start + len(pieces[-1]), count - len(pieces[-1]), shard + 1
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
