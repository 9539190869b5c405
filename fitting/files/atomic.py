"""Files that appear whole or not at all, whatever else is writing and whenever power fails."""

from __future__ import annotations

import contextlib
import hashlib
import os
import uuid
from pathlib import Path


def create_exclusive(content: str, target: Path) -> bool:
    """Create a file so that readers see nothing or all of it, and nobody overwrites it.

    Returns:
        True if this call created it, False if it was already there (and was left alone).

    Raises:
        OSError: It cannot be written, e.g. for lack of space; nothing is left behind.
    """
    temporary = _written_aside(content.encode(), target)
    try:
        os.link(temporary, target)  # fails if the target exists: the file system decides races
        created = True
    except FileExistsError:
        # A network file system may do the work and lose the answer; then ours is the second link.
        created = temporary.stat().st_nlink == 2
    finally:
        temporary.unlink()
    _sync_folder(target.parent)
    return created


def write_atomic(content: str | bytes, target: Path) -> None:
    """Replace `target` by `content` so that readers see the old file or the new one.

    Raises:
        OSError: It cannot be written, e.g. for lack of space; the old file stays.
    """
    temporary = _written_aside(content.encode() if isinstance(content, str) else content, target)
    try:
        os.replace(temporary, target)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(target.parent)


def _written_aside(content: bytes, target: Path) -> Path:
    """A file beside `target` with this content, on the disk, not just in its cache."""
    # Not the process id: two machines may share the folder and have the same.
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        # The error of a full disk names no file, and the name of the temporary one helps nobody.
        raise OSError(error.errno, error.strerror, str(target)) from error
    return temporary


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of(path: Path) -> str:
    """A file's SHA-256 in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
