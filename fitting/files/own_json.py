"""Small JSON files of our own, never trusted: damage is answered with a path and a remedy.

A machine that loses power leaves files empty, zeroed or cut short, and people copy and edit them.
Python's own reader takes NaN for a number and the last of two equal keys for the only one; this one
does not.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path
from typing import Any, TypeAlias

from fitting.entry.errors import Refusal, one_line

Json: TypeAlias = Any
"""What a JSON file holds: an object, a list, a text, a number, a truth value or None."""
JsonObject: TypeAlias = dict[str, Json]


class ResultsError(Refusal):
    """A results table that cannot be used, with what would be right."""


class DamagedError(ResultsError):
    """A file of our own that cannot be read; one line with its path and the remedy."""

    def __init__(self, path: Path, why: str, remedy: str) -> None:
        super().__init__(f"{path}: damaged ({one_line(why)[:200]}); {remedy}")


def read_object(path: Path, remedy: str) -> JsonObject:
    """The object in a JSON file of our own.

    Args:
        path: The file.
        remedy: What its owner is to do if it is damaged.

    Raises:
        FileNotFoundError: There is none.
        DamagedError: It is no regular file, cannot be read, or is no strict JSON object.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # reading a pipe would wait forever
            raise DamagedError(path, "not a regular file", remedy)
        data = strict(path.read_bytes().decode("utf-8"))
    except FileNotFoundError as error:
        if not path.is_symlink():
            raise
        raise DamagedError(path, "a link to nothing", remedy) from error
    except NotADirectoryError as error:  # beneath a file there is nothing
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path)) from error
    except DamagedError:
        raise
    except OSError as error:
        raise DamagedError(path, error.strerror or str(error), remedy) from error
    except (ValueError, RecursionError) as error:
        raise DamagedError(path, str(error), remedy) from error
    if not isinstance(data, dict):
        raise DamagedError(path, f"holds a {type(data).__name__}, not an object", remedy)
    return data


def strict(text: str) -> Json:
    """The value of a JSON text that every reader would read alike.

    Raises:
        ValueError: It is not such a text: a key twice, NaN or infinity, half a surrogate pair.
        RecursionError: It is nested too deep.
    """
    if not text.strip("\0 \t\r\n"):
        raise ValueError("empty" if not text else "nothing but zeros or blanks")
    data = json.loads(text, object_pairs_hook=_once, parse_constant=_no_number)
    json.dumps(data, ensure_ascii=False, allow_nan=False).encode()  # 1e999 is an infinity too
    return data


def _once(pairs: list[tuple[str, Json]]) -> JsonObject:
    found: JsonObject = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"key {key!r} is there twice")
        found[key] = value
    return found


def _no_number(name: str) -> Json:
    raise ValueError(f"{name} is not JSON")


def read_json(path: Path) -> JsonObject | None:
    """The object in a JSON file; None where there is no file."""
    try:
        return read_object(path, "delete it and run the command that writes it again")
    except FileNotFoundError:
        return None
