"""Verification of shards against their manifest: once per machine, not once per run.

A stamp in the cache says which file was verified: its inode, size and time of change, with the hash
that was found.  A file that was written to since, or that replaced another, is read again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
from pathlib import Path

import numpy as np

from experiments.data.shards import DataError, Manifest, Shard, cache_folder, file_sha256
from fitting.files.atomic import write_atomic
from fitting.files.own_json import DamagedError, read_object

Stamps = dict[str, list[int | str]]
"""File -> inode, size, time of change in nanoseconds, SHA-256, largest token."""


def verify(folder: Path, manifest: Manifest, key: str, remedy: str, anew: bool = False) -> None:
    """Make sure that every shard matches its manifest and holds ids of its vocabulary only.

    Args:
        folder: The corpus folder.
        manifest: Its manifest.
        key: The option as the user wrote it; errors start with it.
        remedy: What to do about a damaged shard; errors end with it.
        anew: Read all of them, whatever the stamps say.

    Raises:
        DataError: A shard with other bytes, or with a token beyond the vocabulary.
    """
    shards = manifest.train + manifest.val
    path = _stamp_path(folder, shards)
    known = {} if anew else _read(path)
    found: Stamps = {}
    for shard in shards:
        file = folder / shard.file
        stat = file.stat()
        place = [stat.st_ino, stat.st_size, stat.st_mtime_ns]
        stamp = known.get(str(file), [])
        if stamp[:3] != place:
            stamp = [*place, file_sha256(file), _largest(file, manifest.dtype)]
        sha256, largest = stamp[3], int(stamp[4])
        if sha256 != shard.sha256:
            raise DataError(
                f"{key}: {file} has sha256 {str(sha256)[:12]} where {shard.sha256[:12]} was "
                f"written; {remedy}".rstrip("; ")
            )
        if largest >= manifest.vocab_size:
            raise DataError(
                f"{key}: {file} holds the token {largest:,}, beyond the vocabulary of "
                f"{manifest.vocab_size:,} that its manifest states; correct one of them"
            )
        found[str(file)] = stamp
    if found != known:
        with contextlib.suppress(OSError):  # a cache that only others may write: read every time
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(json.dumps(found) + "\n", path)


def _stamp_path(folder: Path, shards: tuple[Shard, ...]) -> Path:
    """One file per corpus and machine: two machines may share a cache but see different files."""
    what = json.dumps([platform.node(), os.fspath(folder.absolute()), [s.file for s in shards]])
    return cache_folder() / "verified" / f"{hashlib.sha256(what.encode()).hexdigest()[:16]}.json"


def _read(path: Path) -> Stamps:
    """The files verified before; empty if the stamp cannot be read."""
    try:
        known = read_object(path, "")
    except (OSError, DamagedError):
        return {}
    whole = all(
        isinstance(stamp, list) and list(map(type, stamp)) == [int, int, int, str, int]
        for stamp in known.values()
    )
    return known if whole else {}


def _largest(file: Path, dtype: str) -> int:
    if not file.stat().st_size:
        return -1
    return int(np.memmap(file, np.dtype(dtype).newbyteorder("<"), "r").max())
