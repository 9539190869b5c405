"""Documents sorted on disk, so that memory does not grow with the corpus.

Documents arrive in any order and leave in that of their keys: each goes to the end of one of some
files by the first bits of its key; then the files are read one by one, each in the order of its
keys.  In memory is the list of one file's documents, and of no document more than a block.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO, NamedTuple, TextIO

import numpy as np

BLOCK = 1 << 22
"""Bytes read at a time."""
FULL = 1 << 26
"""Bytes that a file should have at most."""
MOST_FILES = 128
"""Each is opened twice, and a process may usually open 1,024."""


class Sorted(NamedTuple):
    """A document as it leaves: `blocks` are its tokens, to be read before the next one's."""

    key: int
    name: str
    tokens: int
    blocks: Iterator[bytes]


class DocumentSorter:
    """The documents of a corpus, on disk, by key.

    Args:
        folder: Existing folder for the files, which are gone once they were read.
        dtype: Type of the tokens on disk, "uint16" or "uint32".
        key: A document's name -> its place, uniform in [0, 2^64).
        expected: Bytes of all tokens, roughly.
    """

    def __init__(
        self, folder: Path, dtype: str, key: Callable[[str], int], expected: int = 0
    ) -> None:
        self._dtype, self._key = np.dtype(dtype).newbyteorder("<"), key
        self._count = max(1, min(MOST_FILES, -(-expected // FULL)))
        self._paths = [folder / f"unsorted-{number:03d}" for number in range(self._count)]
        self._data: list[BinaryIO] = []
        self._lists: list[TextIO] = []
        self._ends = [0] * self._count
        self._open: tuple[int, int, int] | None = None
        self._files = ExitStack()

    def __enter__(self) -> DocumentSorter:
        """Open the files."""
        for path in self._paths:
            self._data.append(self._files.enter_context(open(path, "wb")))
            listed = open(path.with_suffix(".list"), "w", encoding="utf-8")
            self._lists.append(self._files.enter_context(listed))
        return self

    def __exit__(self, *_: object) -> None:
        """Close them."""
        self._files.close()

    def add(self, name: str, tokens: np.ndarray, last: bool = True) -> int:
        """Append to the document `name`; its next tokens come with the next call until `last`.

        Returns:
            The document's key.
        """
        if self._open is None:
            key = self._key(name)
            self._open = (key, key * self._count >> 64, self._ends[key * self._count >> 64])
        key, number, start = self._open
        self._data[number].write(tokens.astype(self._dtype, copy=False).tobytes())
        self._ends[number] += len(tokens)
        if last:
            entry = [key, start, self._ends[number] - start, name]
            self._lists[number].write(json.dumps(entry) + "\n")
            self._open = None
        return key

    def in_order(self) -> Iterator[Sorted]:
        """All documents, once; those with equal keys as they came."""
        self._files.close()
        for path in self._paths:
            listing = path.with_suffix(".list")
            with open(listing, encoding="utf-8") as lines:
                documents = sorted(map(json.loads, lines), key=lambda document: document[0])
            with open(path, "rb", buffering=0) as data:
                for key, start, length, name in documents:
                    yield Sorted(key, name, length, self._blocks(data.fileno(), start, length))
            path.unlink()
            listing.unlink()

    def _blocks(self, data: int, start: int, length: int) -> Iterator[bytes]:
        item = self._dtype.itemsize
        place, end = start * item, (start + length) * item
        while place < end:
            block = os.pread(data, min(BLOCK, end - place), place)
            if not block:
                raise OSError(f"a file of unsorted documents ends at {place} of {end} bytes")
            place += len(block)
            yield block
