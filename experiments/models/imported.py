"""Code that a configuration names by its import path, and the hash that it is known by.

Names come from what the user types, never from a record or a checkpoint.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import inspect
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

from fitting.entry.errors import Refusal, of_the_system, one_line


class ImportedError(Refusal):
    """Code cannot be had as asked, with what would be right."""


def imported(key: str, path: str) -> Callable[..., Any]:
    """The function, or class, at an import path.

    Args:
        key: The key of the configuration; errors start with it.
        path: package.module:function.

    Raises:
        ImportedError: There is none.
    """
    place, _, name = path.partition(":")
    if not place or not name:
        raise ImportedError(f"{key}={path}: must be package.module:function")
    try:
        found = getattr(importlib.import_module(place), name)
    except (ImportError, AttributeError) as error:
        raise ImportedError(
            f"{key}={path}: {one_line(error)}; give package.module:function of something that "
            "Python can import here"
        ) from None
    except (Exception, SystemExit) as error:  # the module's own code
        raise ImportedError(
            f"{key}={path}: importing {place} raises {type(error).__name__}: {one_line(error)}"
        ) from error
    if not callable(found):
        raise ImportedError(f"{key}={path}: is no function")
    made: Callable[..., Any] = found
    return made


def file_of(key: str, path: str) -> Path:
    """The file that says what a function is; raises as `imported`, or if there is none."""
    try:
        return Path(inspect.getsourcefile(imported(key, path)) or "")
    except TypeError:
        raise ImportedError(
            f"{key}={path}: has no file that says what it is; give a function"
        ) from None


def code_digest(key: str, path: str) -> bytes:
    """The SHA-256 of a function's file; of an installed package, with the version beside it.

    Such a package is more than the file, and its version says what it is.

    Raises:
        ImportedError: There is no such function, or its file cannot be read.
    """
    file = file_of(key, path)
    try:
        held = hash_of(file)
    except OSError as error:
        raise ImportedError(f"{key}={path}: {of_the_system(error)}") from None
    if version := installed_version(path):
        return hashlib.sha256(held + version.encode()).digest()
    return held


def installed_version(path: str) -> str:
    """The version of the package of that name that was installed; "" for any other code."""
    package = path.partition(":")[0].partition(".")[0]
    try:
        installed = metadata.distribution(package)
    except metadata.PackageNotFoundError:
        return ""
    there = str(installed.locate_file(package))  # where an editable one is not
    places = getattr(sys.modules.get(package), "__path__", ())
    return installed.version if there in places else ""


def hash_of(path: Path) -> bytes:
    """Hash of a file, read once for all runs of a sweep unless it was written again."""
    there = path.stat()
    return _hash_of(path, there.st_mtime_ns, there.st_ino, there.st_size)


@functools.cache
def _hash_of(path: Path, *_: int) -> bytes:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
