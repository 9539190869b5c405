"""Commands as processes of their own, which hear signals and do not outlive a test."""

import contextlib
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def processes(
    folder: Path, **options: Any
) -> Iterator[Callable[[Sequence[str]], subprocess.Popen[str]]]:
    """Start commands in `folder`, each alone in its group; those alive at the end are killed.

    Args:
        folder: Where they work.
        options: More for `subprocess.Popen`.
    """
    started: list[subprocess.Popen[str]] = []

    def start(command: Sequence[str]) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            command,
            cwd=folder,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
            # A job in the background of a script is born deaf to Ctrl-C; this one must hear it.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            **options,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()
