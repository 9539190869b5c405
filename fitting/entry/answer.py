"""The start and the end of a command: its failures become a line and an exit code, in one place.

Every console script runs inside `answer`.  A wrong request becomes a line that names the key, and
exit code 2; a failure of the machine or the data becomes a line too; a bug becomes a line that asks
for a report and says where the traceback is.  Nothing is imported here that would delay help:
exceptions of other packages are recognised by the names of their classes.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO, cast

from fitting.entry.errors import Failure, Refusal, of_the_system, one_line
from fitting.entry.interrupts import interruptible, leave_at_once_when_asked_again

WRONG_REQUEST, FAILED, INTERRUPTED, BROKEN_PIPE, TERMINATED = 2, 1, 130, 141, 143
FULL_ERROR = "HYDRA_FULL_ERROR"
"""Environment variable that lets every exception through, with its traceback."""


Told = Callable[[BaseException], str | None]
"""Explains an exception of a package to the user in one line; None for one it does not know."""

_FAULTS_OF_THE_PLACE = (
    *(errno.ENOENT, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG),
    *(errno.EROFS, errno.EEXIST, errno.ELOOP, errno.EINVAL),
)
"""Errors of the system that another path, or other permissions, would fix."""
_READERS = (
    *("hydra.errors.HydraException", "omegaconf.errors.OmegaConfBaseException"),
    *("yaml.error.YAMLError", "pandas.errors.ParserError", "pandas.errors.EmptyDataError"),
    *("pyarrow.lib.ArrowException", "json.decoder.JSONDecodeError"),
    *("lightning.fabric.utilities.exceptions.MisconfigurationException",),
)
"""Exceptions of packages that read what users wrote: the request is wrong, not the program."""
_MACHINERY = ("ray.exceptions.RayError", "torch.OutOfMemoryError", "torch.cuda.OutOfMemoryError")
"""Exceptions of packages for failures of a machine or a cluster."""


def answer(name: str, command: Callable[[], int | None], told: Told | None = None) -> None:
    """Run a command to its end, whatever that is.

    SIGTERM ends it as Ctrl-C does.  A second signal ends the process at once, even while Python
    cleans up after us: the handler for it stays in place until then.

    Args:
        name: What the user typed, e.g. lowbit-fit.
        command: Its work; returns the exit code (None for 0) or raises SystemExit.
        told: Asked first to explain an exception that is not one of our own.

    Raises:
        SystemExit: Always, except on success: 1 failed or a bug, 2 a wrong request, 130 Ctrl-C,
            143 terminated, or the code that `command` returned.
    """
    traceback_wanted = FULL_ERROR in os.environ
    with _printable(), _warnings_said(name), interruptible():
        try:
            code = command()
            sys.stdout.flush()
        except KeyboardInterrupt as error:
            terminated = "SIGTERM" in error.args
            code = TERMINATED if terminated else INTERRUPTED
            leave_at_once_when_asked_again(code, lambda: _say(name, "ended at once"))
            what = "terminated" if terminated else "interrupted"
            _say(name, f"{what}; the same command goes on from here")
            raise SystemExit(code) from None
        except BrokenPipeError:  # `lowbit-fit ... | head`: the reader is gone
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise SystemExit(BROKEN_PIPE) from None
        except Exception as error:
            if traceback_wanted:
                raise
            lines, code = _understood(error, told) or ([_report(error)], FAILED)
            for line in lines:
                _say(name, line)
            raise SystemExit(code) from None
    if code:
        raise SystemExit(code)


def _understood(error: Exception, told: Told | None) -> tuple[list[str], int] | None:
    """Lines and exit code for an expected failure; None for a bug."""
    if isinstance(error, Refusal):
        lines = str(error).splitlines() if error.several else [one_line(error)]
        return lines or [type(error).__name__], WRONG_REQUEST
    if isinstance(error, Failure):
        return [one_line(error) or type(error).__name__], FAILED
    if said := told(error) if told else None:
        return said.splitlines(), WRONG_REQUEST
    if isinstance(error, OSError):
        return [of_the_system(error)], (
            WRONG_REQUEST if error.errno in _FAULTS_OF_THE_PLACE else FAILED
        )
    if isinstance(error, MemoryError) or _is_one_of(error, _MACHINERY):
        why = one_line(error) or "there is no more memory"
        return [f"{type(error).__name__}: {why}"], FAILED
    if isinstance(error, UnicodeError):
        return [f"a file or a word is not UTF-8 text ({one_line(error)})"], WRONG_REQUEST
    if _is_one_of(error, _READERS):
        return [one_line(error)], WRONG_REQUEST
    return None


def _is_one_of(error: BaseException, names: tuple[str, ...]) -> bool:
    return any(f"{kind.__module__}.{kind.__qualname__}" in names for kind in type(error).__mro__)


def _report(error: Exception) -> str:
    """A line that asks the user to report a bug, after its traceback was saved."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{Path(last.filename).name}:{last.lineno}"
    what = f"a bug of lowbit-scaling, please report it: {type(error).__name__}"
    if text := one_line(error):
        what += f": {text if len(text) <= 200 else text[:200] + ' ...'}"
    full = "".join(traceback.format_exception(error))
    words = f"command: {sys.argv}\nPython {sys.version}\n\n"
    try:
        handle, path = tempfile.mkstemp(prefix="lowbit-bug-", suffix=".txt")
        with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(words + full)
    except OSError:
        sys.stderr.write(full)
        return f"{what} ({where}; the traceback is above)"
    return f"{what} ({where}; the traceback is in {path})"


def _say(name: str, line: str) -> None:
    with contextlib.suppress(OSError, ValueError):  # perhaps nobody is reading
        sys.stderr.write(f"{name}: {line}\n")
        sys.stderr.flush()


@contextlib.contextmanager
def _warnings_said(name: str) -> Iterator[None]:
    """Show a warning to the user as a sentence, not as a line of our source."""
    shown = warnings.showwarning
    warnings.showwarning = lambda message, *_, **__: _say(name, one_line(message))
    try:
        yield
    finally:
        warnings.showwarning = shown


@contextlib.contextmanager
def _printable() -> Iterator[None]:
    """Print characters that a terminal's encoding lacks as "?", instead of ending the command."""
    changed: list[tuple[TextIO, str]] = []
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure") and stream.errors == "strict":
            changed.append((stream, stream.errors))
            cast("_Reconfigurable", stream).reconfigure(errors="replace")
    try:
        yield
    finally:
        for stream, errors in changed:
            with contextlib.suppress(OSError, ValueError):
                cast("_Reconfigurable", stream).reconfigure(errors=errors)


class _Reconfigurable(TextIO):
    """A text stream that can be told how to handle characters that it cannot encode."""

    def reconfigure(self, *, errors: str) -> None:
        """Same as that of `io.TextIOWrapper`."""
