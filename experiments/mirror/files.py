"""W&B's files on disk: `run-<id>.wandb`, read without a server and without changing them.

Such a file is a LevelDB log (blocks of 32 KiB, a checksum per piece) of protobuf records.  Each
attempt at a run writes its own.  That of a killed attempt may end anywhere, and `wandb sync` gives
up there.  `read_run` takes what is intact and makes one run of all attempts.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fitting.entry.errors import one_line
from fitting.files.atomic import write_atomic

_FILE_HEADER = struct.pack("<4sHB", b":W&B", 0xBEE1, 0)
_BLOCK_BYTES = 32 * 1024
_PIECE_HEADER = struct.Struct("<IHB")  # CRC-32 of kind and data, length of the data, kind
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4
_MOST_COLUMNS = 100_000
"""Columns of a history: W&B accepts no more, and no run here has more."""
_LATEST = 1e11
"""Seconds since 1970 beyond which a number is not a time of day."""

Row = dict[str, Any]
"""One row of the history; columns that begin with _ are W&B's own."""


@dataclass
class WandbRun:
    """One run as W&B sees it."""

    run_id: str = ""
    group: str = ""
    job_type: str = ""
    project: str = ""
    tags: list[str] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    history: list[Row] = field(default_factory=list)
    exit_code: int | None = None
    """The last attempt's exit code; None: it was killed before it could record one."""
    host: str = ""
    attempts: int = 0
    """Attempts that logged a row."""
    seconds: float = 0.0
    """Seconds from the start of each attempt to its last row, summed."""
    torn: int = 0
    """Bytes after the last whole record of a file, over all files."""


def run_files(folder: Path) -> list[Path]:
    """The W&B files of one run, one per attempt, by the second in which they were begun.

    Args:
        folder: The folder given to `wandb.init(dir=...)`; the files are
            `wandb/[offline-]run-<time>-<id>/run-<id>.wandb` below it.
    """
    found = [path for path in folder.glob("wandb/*run-*-*/run-*.wandb") if inside(path, folder)]
    return sorted(found, key=lambda path: path.parent.name.removeprefix("offline-"))


def inside(path: Path, folder: Path) -> bool:
    """Whether a path is a plain file inside the folder, not a link that leads out of it."""
    try:
        return path.is_file() and path.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError):  # a ring of links
        return False


def row_key(row: Row) -> tuple[float, frozenset[str]]:
    """The identity of a row as a point of a curve: its step and its columns.

    A resumed run repeats the steps after its checkpoint, to the same bits.
    """
    return row["step"], frozenset(name for name in row if not name.startswith("_"))


def read_run(path: Path, run_id: str = "") -> WandbRun:
    """Read the intact part of a W&B file, or of those in a run's folder, one per attempt.

    Rows are in the order of their `step`; if several attempts wrote a row, the first stands, as on
    a server, which has it already.  Everything else is the last attempt's.

    Args:
        path: The file or folder.
        run_id: The run that they must belong to; "": the one in their names.

    Raises:
        FileNotFoundError: No such file, or none below the folder.
        ValueError: It is not a W&B file, or not of this run, or nothing that could be a curve; one
            line that begins with its path.
    """
    files = run_files(path) if path.is_dir() else [path]
    if not files:
        raise FileNotFoundError(f"{path}: no W&B file below it")
    found = WandbRun()
    rows: dict[Any, Row] = {}
    attempts = [_read_attempt(file, run_id or file.stem.removeprefix("run-")) for file in files]
    for attempt in sorted(attempts, key=lambda attempt: attempt.started):
        found.torn += attempt.torn
        if attempt.run is None:
            continue
        found.run_id, found.project = attempt.run.run_id, attempt.run.project
        found.group, found.job_type = attempt.run.run_group, attempt.run.job_type
        found.tags, found.host = list(attempt.run.tags), attempt.run.host
        found.config |= attempt.config
        found.exit_code = attempt.exit_code
        for row in attempt.history:
            rows.setdefault(row_key(row) if "step" in row else len(rows), row)
        if attempt.history:
            found.attempts += 1
            last = attempt.history[-1].get("_timestamp", attempt.started)
            found.seconds += max(0.0, last - attempt.started) if attempt.started else 0.0
    found.history = list(rows.values())
    if all("step" in row for row in found.history):
        # Stable: the row of the validation loss stays behind the last training row.
        found.history.sort(key=lambda row: row["step"])
    return found


def mark_synced(file: Path, size: int) -> None:
    """Note beside a file, as `wandb sync` does, that its first `size` bytes are on the server."""
    write_atomic(f"{size}\n", _marker(file))


def is_synced(file: Path) -> bool:
    """Whether a file was marked, by us or by `wandb sync`, and has not grown since."""
    if not _marker(file).is_file():
        return False
    marked = _marker(file).read_bytes().decode(errors="replace").strip()
    return marked in ("", str(file.stat().st_size))  # wandb sync's own marker is empty


def _marker(file: Path) -> Path:
    return file.with_name(f"{file.name}.synced")


def _values(items: Iterable[Any]) -> Row:
    """Names and values; NaN and infinities are numbers here, half a character is not text.

    Raises:
        ValueError: Not JSON, or text that no file could hold.
    """
    found = {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items}
    json.dumps(found, ensure_ascii=False).encode()
    return found


@dataclass
class _Attempt:
    """The content of one file."""

    run: Any = None
    """Its run record; None: the attempt was killed before it was written."""
    started: float = 0.0
    """Seconds since 1970."""
    config: Row = field(default_factory=dict)
    history: list[Row] = field(default_factory=list)
    exit_code: int | None = None
    torn: int = 0


def _read_attempt(path: Path, run_id: str) -> _Attempt:
    """Read one file of a run.

    Raises:
        ValueError: As for `read_run`.
    """
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
    from wandb.proto import wandb_internal_pb2  # takes its time to import

    data = path.read_bytes()
    if data[: len(_FILE_HEADER)] != _FILE_HEADER[: len(data)]:
        raise ValueError(f"{path}: not a W&B file")
    found, whole = _Attempt(), min(len(data), len(_FILE_HEADER))
    columns: set[str] = set()
    try:
        for encoded, end in _scan(data):
            record = wandb_internal_pb2.Record.FromString(encoded)  # type: ignore[attr-defined]
            _take(found, record, run_id, columns)
            whole = end
        if found.run is None and found.history:
            raise ValueError("rows of a run that it does not name")
    except (DecodeError, ValueError, RecursionError, OverflowError) as error:
        raise ValueError(
            f"{path}: not a W&B file of this run (byte {whole}: {one_line(error)[:120]}); "
            "delete it: the run's curve is in its metrics.jsonl, too"
        ) from error
    found.torn = len(data) - whole
    return found


def _take(found: _Attempt, record: Any, run_id: str, columns: set[str]) -> None:
    """Add the content of one record.

    Args:
        found: What is known of the attempt.
        record: The next one.
        run_id: The run to which the file has to belong.
        columns: Names in the rows so far.
    """
    match record.WhichOneof("record_type"):
        case "run":
            if record.run.run_id != run_id:
                raise ValueError(f"it is of run {record.run.run_id[:60]!r}")
            started = record.run.start_time.ToNanoseconds() / 1e9
            _demand("start_time", started, 0.0, _LATEST)
            found.run, found.started = record.run, started
            found.config |= _values(record.run.config.update)
        case "config":
            found.config |= _values(record.config.update)
        case "history":
            if len(record.history.item) > _MOST_COLUMNS:
                raise ValueError(f"a row of {len(record.history.item)} columns")
            row = _values(record.history.item)
            columns.update(row)
            if len(columns) > _MOST_COLUMNS:
                raise ValueError(f"rows of more than {_MOST_COLUMNS} columns")
            _demand("step", row.get("step", 0), 0, 2**53)
            _demand("_timestamp", row.get("_timestamp", 0), 0, _LATEST)
            found.history.append(row)
        case "exit":
            found.exit_code = record.exit.exit_code


def _demand(name: str, value: Any, least: float, most: float) -> None:
    if type(value) not in (int, float) or not least <= value <= most:  # NaN is not in any range
        raise ValueError(f"{name} is {str(value)[:40]!r}, no number from {least:g} to {most:g}")


def _scan(data: bytes) -> Iterator[tuple[bytes, int]]:
    """The whole records, each with the place where it ends.

    Raises:
        ValueError: Whole pieces do not form a record.
    """
    position = len(_FILE_HEADER)
    parts: list[bytes] = []
    while position + _PIECE_HEADER.size <= len(data):
        left = _BLOCK_BYTES - position % _BLOCK_BYTES - _PIECE_HEADER.size
        if left < 0:
            position += left + _PIECE_HEADER.size
            continue
        checksum, length, kind = _PIECE_HEADER.unpack_from(data, position)
        position += _PIECE_HEADER.size
        piece = data[position : position + length]
        if len(piece) < length or checksum != zlib.crc32(piece, zlib.crc32(bytes([kind]))):
            return
        begins = kind in (_FULL, _FIRST)
        if not _FULL <= kind <= _LAST or begins == bool(parts) or length > left:
            raise ValueError("pieces that make no record")
        position += length
        parts.append(piece)
        if kind in (_FULL, _LAST):
            yield b"".join(parts), position
            parts = []
