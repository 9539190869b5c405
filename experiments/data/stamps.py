"""What this machine has found out about files, so that gigabytes are not read for every run.

A stamp holds for a file with its inode, size and time of change; one that was written to since, or
that replaced another, is read again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import platform
from collections.abc import Callable, Mapping
from pathlib import Path

from experiments.data.shards import cache_folder
from fitting.files.atomic import write_atomic
from fitting.files.own_json import DamagedError, read_object

Stamps = dict[str, list[int | str]]
"""File, or part of one -> inode, size, time of change in nanoseconds, and what was found."""
PLACE = 3
"""The first items of a stamp, which say whether it holds."""


def stamps_path(kind: str, what: object) -> Path:
    """One file per machine and `what`: two machines may share a cache but see different files."""
    said = json.dumps([platform.node(), what])
    return cache_folder() / kind / f"{hashlib.sha256(said.encode()).hexdigest()[:16]}.json"


def remembered(
    path: Path,
    files: Mapping[str, Path],
    find: Callable[[str], list[int | str]],
    kinds: tuple[type, ...],
    anew: bool = False,
) -> Stamps:
    """What is known of each file, found out again where it may have changed.

    Args:
        path: The file of stamps.
        files: Name of a stamp -> its file.
        find: Name -> what is to be known.
        kinds: Types of that.
        anew: Find everything, whatever the stamps say.
    """
    known = {} if anew else _read(path, kinds)
    found: Stamps = {}
    for name, file in files.items():
        stat = file.stat()
        place = [stat.st_ino, stat.st_size, stat.st_mtime_ns]
        stamp = known.get(name, [])
        found[name] = stamp if stamp[:PLACE] == place else [*place, *find(name)]
    if found != known:
        with contextlib.suppress(OSError):  # a cache that only others may write: read every time
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(json.dumps(found) + "\n", path)
    return found


def _read(path: Path, kinds: tuple[type, ...]) -> Stamps:
    """The stamps; empty if they cannot be read."""
    try:
        known = read_object(path, "")
    except (OSError, DamagedError):
        return {}
    types = [*[int] * PLACE, *kinds]
    whole = all(isinstance(s, list) and list(map(type, s)) == types for s in known.values())
    return known if whole else {}
