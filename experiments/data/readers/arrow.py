"""Arrow files and the folders of the library datasets: a row is a document.

`Dataset.save_to_disk` writes a folder with `state.json`, which lists files of Arrow's streaming
format; `DatasetDict.save_to_disk` writes one such folder for each split, and `dataset_dict.json`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from experiments.data.readers.columns import check_column, damaged, documents
from experiments.data.readers.documents import Advance, Source, Text, library
from experiments.data.shards import DataError
from fitting.files.own_json import DamagedError, read_object

STATE = "state.json"
SPLITS = "dataset_dict.json"
_FILE_FORMAT = b"ARROW1"
_END = b"\xff\xff\xff\xff\0\0\0\0"
"""The end of a stream; without it, one that is cut between two batches looks whole."""


def is_dataset(folder: Path) -> bool:
    """Whether a folder was written by `save_to_disk`."""
    return (folder / STATE).is_file() or (folder / SPLITS).is_file()


def dataset_files(folder: Path, key: str) -> list[Path]:
    """The Arrow files of a dataset, in order.

    Raises:
        DataError: It has several splits, its lists cannot be read, or a file is missing.
    """
    try:
        if (folder / SPLITS).is_file():
            splits = [str(split) for split in read_object(folder / SPLITS, "")["splits"]]
            if len(splits) != 1:
                raise DataError(
                    f"{key}: holds the splits {', '.join(splits) or 'none'}; give one of them, "
                    f"e.g. data.path={folder / (splits or ['train'])[0]}"
                )
            folder = folder / splits[0]
        listed = read_object(folder / STATE, "")["_data_files"]
        files = [folder / entry["filename"] for entry in listed]
    except (OSError, DamagedError, KeyError, TypeError) as error:
        raise DataError(f"{key}: {folder} is no whole folder of datasets ({error!r})") from error
    if not files:
        raise DataError(f"{key}: {folder / STATE} lists no files: the dataset is empty")
    for file in files:
        if file.parent != folder or not file.is_file():
            raise DataError(f"{key}: {folder / STATE} lists {file.name}, which is not there")
    return files


def read_arrow(source: Source, advance: Advance) -> Iterator[Text]:
    """The documents of an Arrow file or stream, named after their rows, which count from 0.

    Raises:
        DataError: No such column, one without text, nulls, or a file that is cut off or damaged.
    """
    arrow = library("pyarrow", source.key, f"{source.file.name}: Arrow")
    row = 0
    try:
        with arrow.OSFile(os.fspath(source.file), "rb") as file:  # not mapped: memory stays bounded
            for batch in _batches(library("pyarrow.ipc", source.key, "Arrow"), file, source):
                check_column(batch.schema, source)
                yield from documents(batch.column(source.column), row, source)
                row += batch.num_rows
                advance(batch.nbytes)
    except (arrow.ArrowException, OSError) as error:
        raise damaged(source, "Arrow", error, row) from error


def _batches(ipc: Any, file: Any, source: Source) -> Iterator[Any]:
    if file.read(len(_FILE_FORMAT)) == _FILE_FORMAT:
        opened = ipc.open_file(file)
        for number in range(opened.num_record_batches):
            yield opened.get_batch(number)
        return
    with open(source.file, "rb") as raw:
        raw.seek(max(0, source.file.stat().st_size - len(_END)))
        if raw.read() != _END:
            raise source.error("is cut off: it is an Arrow stream without its end")
    file.seek(0)
    yield from ipc.open_stream(file)
