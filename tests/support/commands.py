"""Commands as tests give them: in this process, in a shell's script, and with a worker killed."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from experiments.command import main as commands
from experiments.sweep.work import LOG
from tests.support.command_shell import COMMANDS
from tests.support.places import ROOT
from tests.support.processes import PATIENCE


def lowbit_train(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """The command in this process; its exit code."""
    monkeypatch.setattr(sys, "argv", ["lowbit-train", *arguments])
    try:
        commands.train()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def in_a_shell(script: str) -> list[str]:
    """The words that run a script in which our commands, and `python`, are those of this source.

    Bash takes a dash in a function's name; a POSIX shell does not.
    """
    here = f"import sys; sys.path.insert(0, {str(ROOT)!r}); "
    functions = [f"python() {{ '{sys.executable}' \"$@\"; }}\n"]
    for name, (module, function) in COMMANDS.items():
        program = f"{here}from {module} import {function}; {function}()"
        functions.append(f'{name}() {{ \'{sys.executable}\' -c "{program}" "$@"; }}\n')
    return ["bash", "-ec", "".join(functions) + script]


@contextlib.contextmanager
def killing_the_worker(study: Path) -> Iterator[list[int]]:
    """Scope in which the worker of a study's only run is killed once, after its first checkpoint.

    Yields:
        The numbers of the processes that were killed, filled as it happens.
    """
    killed: list[int] = []

    def kill_once() -> None:
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            if list(study.glob("*/checkpoints/*.ckpt")):
                [log] = study.glob(f"*/{LOG}")
                match = re.search(r"process (\d+)", log.read_text())
                assert match
                killed.append(int(match[1]))
                os.kill(killed[0], signal.SIGKILL)
                return
            time.sleep(0.005)

    killer = threading.Thread(target=kill_once, daemon=True)
    killer.start()
    yield killed
    killer.join()
