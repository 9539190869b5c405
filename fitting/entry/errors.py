"""Errors for people: a request that is wrong, work that failed, and either in one line."""

from __future__ import annotations

import errno
import os


class Refusal(ValueError):
    """A request that cannot be done as asked, with the key, the value and what would be right."""

    several = False
    """Whether each line is a problem of its own."""


class UsageError(Refusal):
    """An option that cannot be meant as typed."""


class Failure(Exception):
    """Work that was asked for rightly and could not be done, in one line."""


_REMEDIES = {
    errno.ENOSPC: "make room (df -h and df -i show where none is left) and repeat the command",
    errno.EDQUOT: "make room in your quota and repeat the command",
    errno.EIO: "the disk, or what connects it, fails: see what dmesg says, and use another",
    errno.EROFS: "name a folder that can be written to",
    errno.EACCES: "name a folder that you may use, or get the right to this one",
    errno.EPERM: "name a folder that you may use, or get the right to this one",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENFILE: "the machine has too many files open",
    errno.EFBIG: "raise the limit of a file's size (ulimit -f)",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EAGAIN: "raise the limit of processes (ulimit -u), or run fewer at a time",
}
"""What mends an error of the system."""


def of_the_system(error: OSError) -> str:
    """The file before the reason, as `FILE: No space left on device`, and what to do."""
    why = error.strerror or one_line(error) or type(error).__name__
    if remedy := _REMEDIES.get(error.errno or 0):
        why += f"; {remedy}"
    names = [
        os.fsdecode(n) for n in (error.filename, error.filename2) if isinstance(n, str | bytes)
    ]
    return f"{' -> '.join(names)}: {why}" if names else why


def first_line(error: BaseException) -> str:
    """What an error says first, or else what it is."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def one_line(text: object) -> str:
    r"""A text, or what an error says, without line breaks, nor what a terminal would obey.

    >>> one_line("a \n b"), one_line("\x1b[2J")
    ('a b', '?[2J')
    """
    said = " ".join(str(text).split())
    return said if said.isprintable() else "".join(c if c.isprintable() else "?" for c in said)
