"""W&B files whose checksums are right and whose content is not: what strangers may send.

The honest part is written by W&B itself; its records are then taken apart, changed and put together
again by its own rules: a log of LevelDB's with blocks of 32 KiB.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2

HEADER, BLOCK, PIECE = struct.pack("<4sHB", b":W&B", 0xBEE1, 0), 32 * 1024, 7
Record: Any = wandb_internal_pb2.Record  # type: ignore[attr-defined]


def piece(kind: int, data: bytes) -> bytes:
    """A piece with its right checksum."""
    return struct.pack("<IHB", zlib.crc32(data, zlib.crc32(bytes([kind]))), len(data), kind) + data


def log_of(records: Sequence[bytes]) -> bytes:
    """A file of records, cut at the ends of blocks as LevelDB does."""
    out = bytearray(HEADER)
    for record in records:
        first = True
        while True:
            left = BLOCK - len(out) % BLOCK
            if left < PIECE:
                out += bytes(left)
                left = BLOCK
            part, record = record[: left - PIECE], record[left - PIECE :]
            kind = (1 if first else 4) if not record else (2 if first else 3)
            out += piece(kind, part)
            first = False
            if not record:
                break
    return bytes(out)


def records_of(data: bytes) -> list[Any]:
    """The records of a whole file."""
    found, parts, position = [], b"", len(HEADER)
    while position + PIECE <= len(data):
        left = BLOCK - position % BLOCK
        if left < PIECE:
            position += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, position)
        position += PIECE
        parts += data[position : position + length]
        position += length
        if kind in (1, 4):
            found.append(Record.FromString(parts))
            parts = b""
    return found


def row(**values: str) -> Any:
    """A record of a row of the history; values as the JSON that is written."""
    record = Record()
    for name, value in values.items():
        record.history.item.add(nested_key=[name], value_json=value)
    return record


Change = Callable[[list[Any]], list[Any] | bytes]
"""What is done to a file's records: others, or the whole file."""


def _run(change: Callable[[Any], object]) -> Change:
    def changed(records: list[Any]) -> list[Any]:
        for record in records:
            if record.WhichOneof("record_type") == "run":
                change(record.run)
        return records

    return changed


def _without(kind: str) -> Change:
    return lambda records: [r for r in records if r.WhichOneof("record_type") != kind]


def _with(*more: Any) -> Change:
    return lambda records: [*records[:-1], *more, records[-1]]


def _config(name: str, value: str) -> Change:
    return _run(lambda run: run.config.update.add(key=name, value_json=value))


def _wide(columns: int) -> Any:
    return row(step="99", **{f"k{number}": "1" for number in range(columns)})


def _encoded(*more: bytes) -> Change:
    return lambda records: log_of([*(r.SerializeToString() for r in records), *more])


REFUSED: dict[str, Change] = {
    "another run's id": _run(lambda run: setattr(run, "run_id", "c")),
    "an id that is a path": _run(lambda run: setattr(run, "run_id", "../c")),
    "an id with the words of W&B's refusal": _run(
        lambda run: setattr(run, "run_id", "No API key, error 401\x1b[2J\nno answer")
    ),
    "an absurd id": _run(lambda run: setattr(run, "run_id", "x" * 10**6)),
    "no run record": _without("run"),
    "begun in the far future": _run(lambda run: setattr(run.start_time, "seconds", 2**62)),
    "begun before all time": _run(lambda run: setattr(run.start_time, "seconds", -(2**62))),
    "a value that is not JSON": _with(row(step="99", loss="{")),
    "an empty value": _with(row(step="99", loss="")),
    "a value nested too deep": _with(row(step="99", loss="[" * 10**5 + "]" * 10**5)),
    "half a character": _with(row(step="99", loss='"\\ud800"')),
    "a number of too many digits": _with(row(step="99", loss="9" * 10**5)),
    "a step that is NaN": _with(row(step="NaN")),
    "a step that is text": _with(row(step='"many"')),
    "a step below 0": _with(row(step="-1")),
    "a step beyond all numbers": _with(row(step="9" * 400)),
    "a time of day that is infinite": _with(row(step="99", _timestamp="Infinity")),
    "a time of day that is huge": _with(row(step="99", _timestamp="1e300")),
    "a time of day that is a list": _with(row(step="99", _timestamp="[1]")),
    "a row of a million columns": _with(_wide(10**6)),
    "more columns in many rows": _with(
        *(row(step="99", **{f"{n}.{k}": "1" for k in range(1000)}) for n in range(150))
    ),
    "a config that is not JSON": _config("E", "'"),
    "a size beyond the file": _encoded(b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\x7f"),
    "a field of another type": _encoded(b"\x12\x05hello"),
    "no protobuf": _encoded(b"\xff" * 100),
    "a group without an end": _encoded(b"\x0b" * 1000),
    "a middle without a beginning": lambda records: HEADER + piece(3, b"abc"),
    "an end without a beginning": lambda records: HEADER + piece(4, b"abc"),
    "two beginnings": lambda records: HEADER + piece(2, b"abc") + piece(2, b"abc"),
    "a kind that there is not": lambda records: HEADER + piece(9, b"abc"),
    "a piece over the end of its block": lambda records: HEADER + piece(1, bytes(BLOCK)),
}
"""What makes a file none of its run."""

PUSHED: dict[str, Change] = {
    "no exit": _without("exit"),
    "NaN and infinities": _with(row(step="99", loss="NaN"), row(step="100", loss="-Infinity")),
    "text where numbers were": _with(row(step="99", loss='"\\u001b[2Jno"', tokens="[[]]")),
    "objects": _with(row(step="99", loss='{"_type": "image-file", "path": "/etc/passwd"}')),
    "a row without a column": _with(Record(history={})),
    "a name that clears the terminal": _with(row(**{"step": "99", "\x1b[2J": "1"})),
    "a config of every type": lambda records: _config("E", '["\\u001b[2J"]')(
        _config("D", "1e999")(_config("model", "null")(_config("_wandb", "3")(records)))
    ),
    "an absurd host": _run(lambda run: setattr(run, "host", "\x1b[2J" * 10**5)),
    "records that W&B has no name for": _encoded(b"", b"\xfa\xff\xff\x07\x01x"),
    "an exit that is negative": _with(Record(exit={"exit_code": -(2**31)})),
}
"""What is strange and can still be told, or is left to W&B: arrives, or fails alone."""


def change(file: Path, how: Change) -> None:
    """Change a file that W&B wrote."""
    made = how(records_of(file.read_bytes()))
    if not isinstance(made, bytes):
        made = log_of([record.SerializeToString() for record in made])
    file.write_bytes(made)
