"""Commands as a shell runs them, without waiting for their imports: each in a fork of one process.

That process has imported what the eight commands import and has done nothing else.  A fork of it
has descriptors, an environment, a working folder and an end of its own, so that what a command
prints, writes and leaves behind is what a user would find.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from tests.support.places import ROOT

COMMANDS = {
    "lowbit-train": ("experiments.command.main", "train"),
    "lowbit-status": ("experiments.store.status", "main"),
    "lowbit-error": ("experiments.errors.command", "error"),
    "lowbit-export": ("experiments.export.command", "main"),
    "lowbit-sync": ("experiments.mirror.sync", "main"),
    "lowbit-dashboard": ("experiments.mirror.dashboard", "main"),
    "lowbit-fit": ("fitting.command.main", "fit"),
    "lowbit-report": ("fitting.command.main", "report"),
}
_LATE = (
    *(
        "experiments.command.train",
        "experiments.train",
        "experiments.errors.recipes",
        "experiments.mirror.panels",
    ),
    "experiments.export.folder",
    *("experiments.measure.error", "experiments.sweep.launch", "wandb"),
    *(
        "fitting.command.show",
        "fitting.command.describe",
        "fitting.command.expected",
        "fitting.page.report",
        "fitting.page.compare",
    ),
)
"""What the commands import once they know that they need it."""
_KILLED = 128 + signal.SIGKILL


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    """As a shell has it: 128 + n for one that signal n ended, so 137 for one that was not over."""
    out: str
    err: str


class Shell:
    """Runs commands one after another.

    Args:
        folder: Where they run.
        environment: Theirs; what the tests' own has beside it is kept.
    """

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        program = "from tests.support.command_shell import serve; serve()"
        root = ROOT
        self._process = subprocess.Popen(
            [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(root)!r}); {program}"],
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        )

    def __call__(self, name: str, words: Sequence[str], seconds: float = 60.0) -> Ended:
        """What `name WORD ...` does; it is killed after some time."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([name, list(words), seconds]) + "\n")
        self._process.stdin.flush()
        return Ended(**json.loads(self._process.stdout.readline()))

    def __enter__(self) -> Self:
        """It has begun already."""
        return self

    def __exit__(self, *_: object) -> None:
        """End it."""
        self._process.communicate()


def serve() -> None:
    """What the process does: a line of JSON in, a fork, a line of JSON out."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for module in (*(module for module, _ in COMMANDS.values()), *_LATE):
        importlib.import_module(module)
    from experiments.configure import configure

    configure()  # the grammar's tables are kept from here on
    for line in sys.stdin:
        name, words, seconds = json.loads(line)
        answers.write(json.dumps(_in_a_fork(name, words, seconds)) + "\n")
        answers.flush()


def _in_a_fork(name: str, words: list[str], seconds: float) -> dict[str, Any]:
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child = os.fork()
        if child == 0:
            os.setpgid(0, 0)
            _become(name, words, out.fileno(), err.fileno())
        deadline = time.monotonic() + seconds
        while not (ended := os.waitpid(child, os.WNOHANG))[0]:
            if time.monotonic() > deadline:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(child, signal.SIGKILL)
            time.sleep(0.002)
        code = os.waitstatus_to_exitcode(ended[1])
        return {
            "code": code if code >= 0 else 128 - code,
            "out": _all_of(out),
            "err": _all_of(err),
        }


def _all_of(file: Any) -> str:
    file.seek(0)
    return str(file.read().decode("utf-8", "backslashreplace"))


def _become(name: str, words: list[str], out: int, err: int) -> None:
    """The command, to the end of its process."""
    code = 1
    try:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(out, 1)
        os.dup2(err, 2)
        sys.argv = [name, *words]
        module, function = COMMANDS[name]
        getattr(importlib.import_module(module), function)()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def contents(folder: Path) -> dict[str, tuple[int, int, int]]:
    """Every file and folder below one: its mode, its size, when it was changed."""
    return dict(_contents(folder, ""))


def _contents(folder: Path, prefix: str) -> Iterator[tuple[str, tuple[int, int, int]]]:
    for entry in os.scandir(folder):
        about = entry.stat(follow_symlinks=False)
        yield prefix + entry.name, (about.st_mode, about.st_size, about.st_mtime_ns)
        if entry.is_dir(follow_symlinks=False):
            yield from _contents(Path(entry.path), f"{prefix}{entry.name}/")
