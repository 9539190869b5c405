"""How commands end: one line and an exit code for each kind of failure, and where a bug is kept."""

import errno
import io
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fitting.entry.answer import answer
from fitting.entry.errors import Failure, Refusal
from tests.support.processes import PATIENCE


@pytest.fixture(autouse=True)
def _signals_as_before() -> Iterator[None]:
    """A command that was interrupted leaves its handlers to the end of its process."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def _raising(error: BaseException):  # type: ignore[no-untyped-def]
    def command() -> None:
        raise error

    return command


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (Refusal("key=1: must be 2"), 2, "key=1: must be 2"),
        (Failure("the server\ndid not answer"), 1, "the server did not answer"),
        (
            FileNotFoundError(errno.ENOENT, "No such file or directory", "a.csv"),
            2,
            "a.csv: No such file or directory",
        ),
        (
            OSError(errno.ENOSPC, "No space left on device", "runs/x"),
            1,
            "runs/x: No space left on device",
        ),
        (OSError(errno.ENAMETOOLONG, "File name too long", "n" * 9), 2, "nnnnnnnnn: File name too"),
        (MemoryError(), 1, "MemoryError: there is no more memory"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"), 2, "not UTF-8 text"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (KeyboardInterrupt("SIGTERM"), 143, "terminated"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_expected_failures_are_one_line(
    error: BaseException, code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        answer("lowbit-x", _raising(error))
    shown = capsys.readouterr().err
    assert end.value.code == code
    assert shown.count("\n") == 1
    assert shown.startswith("lowbit-x: ")
    assert said in shown


def test_a_bug_is_a_line_that_says_where_its_traceback_lies(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(SystemExit) as end:
        answer("lowbit-x", lambda: {}["gone"])  # type: ignore[var-annotated]
    shown = capsys.readouterr().err
    assert end.value.code == 1
    assert shown.count("\n") == 1
    found = re.search(r"please report it: KeyError: 'gone' .*traceback is in (\S+)\)", shown)
    assert found
    kept = Path(found[1]).read_text()
    assert "Traceback (most recent call last)" in kept
    assert "KeyError: 'gone'" in kept


def test_the_traceback_itself_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(KeyError):
        answer("lowbit-x", lambda: {}["gone"])  # type: ignore[var-annotated]


def test_what_a_terminal_cannot_show_does_not_end_a_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    answer("lowbit-x", lambda: print("2 × 3"))
    stream.flush()
    assert stream.buffer.getvalue() == b"2 ? 3\n"  # type: ignore[attr-defined]
    assert stream.errors == "strict"


def test_classes_of_other_packages_are_the_ones_that_are_named() -> None:
    """A package that renames a class would turn a user's mistake into a bug."""
    import importlib

    from fitting.entry.answer import _MACHINERY, _READERS

    for name in (*_READERS, *_MACHINERY):
        module, _, kind = name.rpartition(".")
        found = getattr(importlib.import_module(module), kind)
        assert issubclass(found, BaseException)
        assert f"{found.__module__}.{found.__qualname__}" in (*_READERS, *_MACHINERY), name


def test_importing_it_costs_nothing() -> None:
    import subprocess

    heavy = "print(sorted({'torch','pandas','numpy','hydra','yaml'} & set(sys.modules)))"
    program = f"import sys, fitting.entry.answer; {heavy}"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "[]\n"
    assert os.environ.get("HYDRA_FULL_ERROR") is None


LOADS_A_LIBRARY = """
import builtins, os, signal, sys
import numpy
from fitting.entry.answer import answer

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it for what is behind &
python_import, asked = builtins.__import__, []

def as_numpy_is_asked_for_from_c(name, *more, **options):
    if name == "numpy._core._multiarray_umath" and "scipy.optimize" in sys.modules and not asked:
        asked.append(name)
        os.kill(os.getpid(), signal.{number})
    return python_import(name, *more, **options)

def command():
    builtins.__import__ = as_numpy_is_asked_for_from_c
    import scipy.optimize
    while asked:
        pass

answer("lowbit-fit", command)
"""


@pytest.mark.parametrize(
    ("number", "code", "word"),
    [("SIGINT", 130, "interrupted"), ("SIGTERM", 143, "terminated")],
)
def test_a_signal_while_a_library_is_loaded_is_heard_when_it_is(
    number: str, code: int, word: str
) -> None:
    """Numpy prints what is raised there and raises an ImportError instead: a bug report, once."""
    program = LOADS_A_LIBRARY.replace("{number}", number)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.returncode == code, done.stderr
    assert done.stderr == f"lowbit-fit: {word}; the same command goes on from here\n"
