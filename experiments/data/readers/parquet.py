"""Parquet: a row is a document."""

from __future__ import annotations

from collections.abc import Iterator

from experiments.data.readers.columns import check_column, damaged, documents
from experiments.data.readers.documents import Advance, Source, Text, library

_ROWS = 256
"""Rows at a time: a text of the web has some kilobytes."""
_BUFFER = 1 << 20


def read_parquet(source: Source, advance: Advance) -> Iterator[Text]:
    """The documents of a file, named after their rows, which count from 0.

    Raises:
        DataError: No such column, one without text, nulls, or a file that is cut off or damaged.
    """
    arrow = library("pyarrow", source.key, f"{source.file.name}: Parquet")
    parquet = library("pyarrow.parquet", source.key, f"{source.file.name}: Parquet")
    size, row = source.file.stat().st_size, 0
    try:
        # Neither whole columns nor whole row groups in memory: pages, through a small buffer.
        opened = parquet.ParquetFile(source.file, buffer_size=_BUFFER, pre_buffer=False)
        with opened as file:
            check_column(file.schema_arrow, source)
            rows = file.metadata.num_rows
            batches = file.iter_batches(_ROWS, columns=[source.column], use_threads=False)
            for batch in batches:
                yield from documents(batch.column(0), row, source)
                row += batch.num_rows
                advance(size * row // rows - size * (row - batch.num_rows) // rows)
    except (arrow.ArrowException, OSError) as error:
        raise damaged(source, "Parquet", error, row) from error
