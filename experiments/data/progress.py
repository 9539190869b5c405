"""How far an import is and when it will be done, on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from experiments.data.readers.documents import Advance

SECONDS = 10.0
"""Between two lines in a log, and before the first."""


def say(key: str, taken: str, left_out: Mapping[str, int] | None = None) -> None:
    """Tell the user what an import took; once, when it is made."""
    rest = ", ".join(f"{count:,} {kind}" for kind, count in (left_out or {}).items() if count)
    print(f"{key}: read {taken}" + (f"; left out {rest}" if rest else ""), file=sys.stderr)


@contextmanager
def progress(label: str, total: int) -> Iterator[Advance]:
    """Show how many of `total` bytes were read: a bar on a terminal, else a line now and then."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield Lines(label, total).advance
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as bar:
        task = bar.add_task(label, total=total)
        yield lambda size: bar.update(task, advance=size)


class Lines:
    """Progress in a log.

    Args:
        label: The beginning of each line.
        total: Bytes to read.
        seconds: Between two lines.
    """

    def __init__(self, label: str, total: int, seconds: float = SECONDS) -> None:
        self._label, self._total, self._seconds = label, max(total, 1), seconds
        self._done, self._start = 0, time.monotonic()
        self._said = self._start

    def advance(self, size: int) -> None:
        """So many bytes more."""
        self._done = min(self._done + size, self._total)
        now = time.monotonic()
        if now - self._said < self._seconds or not self._done:
            return
        self._said = now
        rate = self._done / (now - self._start)
        left = round((self._total - self._done) / rate)
        print(
            f"{self._label} {self._done / 1e6:,.0f} of {self._total / 1e6:,.0f} MB "
            f"({self._done / self._total:.0%}), {rate / 1e6:,.1f} MB/s, "
            f"about {left // 3600:d}:{left // 60 % 60:02d}:{left % 60:02d} left",
            file=sys.stderr,
            flush=True,
        )
