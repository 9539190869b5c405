"""Commands as processes of their own: they hear signals, are waited for, do not outlive a test."""

import contextlib
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

PATIENCE = 1200.0
"""Seconds; a busy machine is no failure."""


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

    try:
        yield start
    finally:
        for process in started:
            if process.poll() is None:
                process.kill()
            process.wait()
            for stream in (process.stdout, process.stderr):
                if stream is not None:
                    stream.close()


def wait_for(event: Callable[[], object], process: subprocess.Popen[str] | None = None) -> None:
    """Until something can be seen; the process must live to show it."""
    deadline = time.monotonic() + PATIENCE
    while not event():
        assert time.monotonic() < deadline
        if process is not None and process.poll() is not None:
            raise AssertionError(f"it ended: {process.communicate()}")
        time.sleep(0.02)
