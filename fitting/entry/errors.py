"""Errors for people: wrong requests and failed work, each in one line."""

from __future__ import annotations

import errno
import os


class Refusal(ValueError):
    """A request that cannot be met as asked: the key, the value and what would be right."""

    several = False
    """Whether each line is a problem of its own."""


class UsageError(Refusal):
    """An option that makes no sense as typed."""


class Failure(Exception):
    """Correctly requested work that could not be done, in one line."""


_REMEDIES = {
    errno.ENOSPC: "make room (df -h and df -i show where there is none) and repeat the command",
    errno.EDQUOT: "make room in your quota and repeat the command",
    errno.EIO: "the disk or its connection fails: see dmesg, and use another disk",
    errno.EROFS: "name a folder that can be written to",
    errno.EACCES: "name a folder that you may use, or get permission for this one",
    errno.EPERM: "name a folder that you may use, or get permission for this one",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENFILE: "the machine has too many files open",
    errno.EFBIG: "raise the limit of a file's size (ulimit -f)",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EAGAIN: "raise the limit of processes (ulimit -u), or run fewer at a time",
}
"""The remedy for an error of the system."""


def of_the_system(error: OSError) -> str:
    """The file, the reason and the remedy: `FILE: No space left on device; make room ...`."""
    why = error.strerror or one_line(error) or type(error).__name__
    if remedy := _REMEDIES.get(error.errno or 0):
        why += f"; {remedy}"
    names = [
        os.fsdecode(n) for n in (error.filename, error.filename2) if isinstance(n, str | bytes)
    ]
    return f"{' -> '.join(names)}: {why}" if names else why


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or else the name of its class."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def one_line(text: object) -> str:
    r"""A text or an error's message, without line breaks or terminal control characters.

    >>> one_line("a \n b"), one_line("\x1b[2J")
    ('a b', '?[2J')
    """
    said = " ".join(str(text).split())
    return said if said.isprintable() else "".join(c if c.isprintable() else "?" for c in said)
