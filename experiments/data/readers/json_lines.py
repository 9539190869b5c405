"""JSON lines: an object with a text a line, plain or packed."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

from experiments.data.readers.compressed import BrokenError, blocks
from experiments.data.readers.documents import Advance, Source, Text, pieces
from experiments.data.shards import DataError

_KINDS = {dict: "an object", list: "a list", bool: "true or false", type(None): "null"}
_MOST_KEYS = 8


def read_json_lines(source: Source, advance: Advance) -> Iterator[Text]:
    """The documents of a file, named after their lines, which count from 1; empty lines are none.

    Raises:
        DataError: A line without a text, or not in UTF-8; a packed file that is cut off.
    """
    number = 0
    try:
        for number, line in enumerate(_lines(blocks(source, advance)), start=1):
            text = _text(line, number, source)
            yield from pieces(f"{source.name}:{number}", text)
    except BrokenError as error:
        raise source.error(f"{error}, after line {number}") from error


def _lines(content: Iterable[bytes]) -> Iterator[bytes]:
    """Lines, which end where those of Python's text files do: at a return, too."""
    held: list[bytes] = []
    for block in content:
        first, *rest = block.split(b"\n")
        held.append(first)
        for line in rest:
            yield from _parts(b"".join(held))
            held = [line]
    if last := b"".join(held):
        yield from _parts(last)


def _parts(line: bytes) -> list[bytes]:
    return line.removesuffix(b"\r").split(b"\r") if b"\r" in line else [line]


def _text(line: bytes, number: int, source: Source) -> str:
    column = source.column
    try:
        decoded = line.decode()
    except UnicodeDecodeError as error:
        what = f"is not UTF-8 in line {number} (its byte {error.start:,}: {error.reason})"
        raise source.error(what) from error
    if not decoded.strip():
        return ""
    try:
        value = json.loads(decoded)
    except (ValueError, RecursionError) as error:
        why = f"no JSON: {error}"
    else:
        text = value.get(column) if isinstance(value, dict) else None
        if isinstance(text, str):
            return text
        why = _why(value, column)
    wanted = f'{{"{column}": "..."}}'
    raise DataError(f"{source.key}: line {number} of {source.file} is not {wanted} ({why})")


def _why(value: Any, column: str) -> str:
    if not isinstance(value, dict):
        return f"it is {_kind(value)}"
    if column in value:
        nested = "; nested text must be a key of its own" if isinstance(value[column], dict) else ""
        return f"{column} holds {_kind(value[column])}{nested}"
    keys = ", ".join(list(value)[:_MOST_KEYS])
    return f"it has the keys {keys}; choose with data.text_column" if keys else "it has no keys"


def _kind(value: Any) -> str:
    return _KINDS.get(type(value), "a text" if isinstance(value, str) else "a number")
