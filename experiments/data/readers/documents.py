"""Documents as readers give them, and what all readers share."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from experiments.data.shards import DataError

PIECE = 1 << 22
"""Characters of a document from which on it comes in pieces."""
_TRIES = 1000

Advance = Callable[[int], None]
"""Called with the number of bytes of a file that were read since the last call."""


class Text(NamedTuple):
    """The text of a document, or the next piece of it."""

    document: str
    text: str
    last: bool = True


@dataclass(frozen=True)
class Source:
    """A file to read."""

    file: Path
    name: str
    """Its name within what the user gave: documents are named after it."""
    key: str
    """The option as the user wrote it; errors start with it."""
    column: str = "text"
    """Key or column of the text, in files that have such."""

    def error(self, problem: str) -> DataError:
        """The error of this file; `problem` comes after its name."""
        return DataError(f"{self.key}: {self.file} {problem}")


Reader = Callable[[Source, Advance], Iterator[Text]]


def pieces(document: str, text: str) -> Iterator[Text]:
    """A document as it is, or if it is long, in pieces that end between words; none if empty."""
    while len(text) > PIECE:
        cut = cut_before(text, PIECE)
        yield Text(document, text[:cut], False)
        text = text[cut:]
    if text:
        yield Text(document, text)


def cut_before(text: str, end: int) -> int:
    """Where to cut so that few tokenizers would put a token across.

    The last line break in the first `end` characters with a letter or digit before it; else the
    last line break, the last blank, or `end` itself.
    """
    at = text.rfind("\n", 1, end)
    for _ in range(_TRIES):
        if at <= 0 or text[at - 1].isalnum():
            break
        at = text.rfind("\n", 1, at)
    for candidate in (at, text.rfind("\n", 1, end), text.rfind(" ", 1, end)):
        if candidate > 0:
            return candidate
    return end


def library(name: str, key: str, what: str) -> Any:
    """An optional library, imported.

    Args:
        name: The module.
        key: The option as the user wrote it.
        what: What needs it.

    Raises:
        DataError: It is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        raise DataError(
            f"{key}: {what} needs {package}; pip install 'lowbit-scaling[data]'"
        ) from error
