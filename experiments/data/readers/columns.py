"""Columns of text, as Parquet and Arrow files have them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from experiments.data.readers.documents import Source, Text, pieces
from fitting.entry.errors import first_line

_MOST_COLUMNS = 8


def check_column(schema: Any, source: Source) -> None:
    """Refuse a file without the column, or with one that holds no text.

    Raises:
        DataError: As it says.
    """
    names = list(schema.names)
    if source.column not in names:
        there = ", ".join(names[:_MOST_COLUMNS]) + ", ..." * (len(names) > _MOST_COLUMNS)
        raise source.error(
            f"has no column {source.column}; there are {there or 'none'}: set data.text_column"
        )
    kind = schema.field(source.column).type
    value = str(getattr(kind, "value_type", kind) if str(kind).startswith("dictionary") else kind)
    if value not in ("string", "large_string", "string_view"):
        raise source.error(f"holds {value} in the column {source.column}, not text")


def documents(column: Any, first: int, source: Source) -> Iterator[Text]:
    """The texts of one column of a batch, whose first row is number `first`, from 0.

    Raises:
        DataError: A null, or a text that is not UTF-8.
    """
    if column.null_count:
        row = first + column.is_null().to_pylist().index(True)
        raise source.error(f"holds no text in row {row:,} (from 0): {source.column} is null")
    for number, value in enumerate(column, start=first):
        try:
            text = value.as_py()
        except UnicodeDecodeError as error:
            what = f"is not UTF-8 in row {number:,} (from 0), column {source.column}"
            raise source.error(f"{what}: {error.reason}") from error
        yield from pieces(f"{source.name}:{number}", text)


def damaged(source: Source, kind: str, error: Exception, row: int = 0) -> Exception:
    """The error of a file that cannot be read on."""
    after = f" after row {row - 1:,} (from 0)" if row else ""
    return source.error(f"is not a whole {kind} file, or damaged{after} ({first_line(error)})")
