"""Where the windows of a stream lie: across documents, or each within one.

A window is T inputs and the T targets after them: T + 1 tokens.  Across documents, window w begins
at token wT, so that every token but the first is a target once.  Within documents, the windows of a
document of n tokens, its end counted, begin at its tokens 0, T, 2T, ...; (n - 1) // T of them fit,
and the rest of it, fewer than T targets, is left out.  No model then sees two documents at once,
whatever it does with positions and attention, and every window has as many targets as any other: a
loss is the mean over equally many, and T tokens a sequence are counted because T are trained on.
Filling short windows up would need a mask in the loss of every model, and compute for nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from experiments.data.shards import DataError, Manifest, Shard, starts_file, token_blocks

ACROSS, WITHIN = "across_documents", "within_documents"
WINDOWS = (ACROSS, WITHIN)


class Windows:
    """The first tokens of all windows of a stream.

    Args:
        seq_len: Targets in a window, T.
        tokens: Tokens in the stream.
        starts: First tokens of its documents, ascending from 0; None: windows run across them.
    """

    def __init__(self, seq_len: int, tokens: int, starts: np.ndarray | None = None) -> None:
        self._seq_len, self._starts = seq_len, starts
        if starts is None:
            self._count = max(0, (tokens - 1) // seq_len)
        else:
            lengths = np.diff(starts, append=tokens)
            self._ends = np.cumsum(np.maximum(lengths - 1, 0) // seq_len)
            self._count = int(self._ends[-1]) if len(starts) else 0

    def __len__(self) -> int:
        """Windows."""
        return self._count

    def start(self, window: int) -> int:
        """The first token of a window."""
        if self._starts is None:
            return window * self._seq_len
        document = int(np.searchsorted(self._ends, window, side="right"))
        before = int(self._ends[document - 1]) if document else 0
        return int(self._starts[document]) + (window - before) * self._seq_len


def document_starts(folder: Path, manifest: Manifest, part: str, key: str) -> np.ndarray:
    """The first tokens of a part's documents, int64, ascending from 0.

    A part that was cut without regard to documents begins with the rest of one.

    Args:
        folder: The corpus folder.
        manifest: Its manifest.
        part: "train" or "val".
        key: The option as the user wrote it; errors start with it.

    Raises:
        DataError: It is not known where documents end, or the list of them is damaged.
    """
    shards: tuple[Shard, ...] = getattr(manifest, part)
    tokens = sum(shard.tokens for shard in shards)
    end = 0 if manifest.tokenizer == "bytes" else manifest.eos
    if manifest.starts:
        path = starts_file(folder, part)
        raw = path.read_bytes() if path.exists() else b""
        if hashlib.sha256(raw).hexdigest() != manifest.starts.get(part):
            raise DataError(f"{key}: {path} is not the list of documents that was written")
        starts = np.frombuffer(raw, "<u8").astype(np.int64)
    elif end is not None:
        starts = np.concatenate([np.zeros(0, np.int64), *_after(folder, shards, manifest, end)])
        if not len(starts):
            raise DataError(
                f"{key}: no document ends in the {part} part, which has no token {end:,}"
            )
    else:
        raise DataError(
            f"data.windows={WITHIN}: where the documents of {key} end is not known; set data.eos "
            "to the token that ends them"
        )
    return np.union1d(starts[starts < tokens], np.zeros(min(tokens, 1), np.int64))


def _after(
    folder: Path, shards: tuple[Shard, ...], manifest: Manifest, end: int
) -> Iterator[np.ndarray]:
    """The places behind every token `end`."""
    place = 0
    for shard in shards:
        file = folder / shard.file
        for block in token_blocks(file, manifest.dtype, shard.start, shard.tokens):
            yield np.flatnonzero(block == end) + place + 1
            place += len(block)
