"""What a running run has reported so far, for whoever watches it."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

METRICS = "metrics.jsonl"
"""The loss curve in a run's folder: one JSON object a line, with `step`, `tokens`, `train/loss`."""


def last_row(folder: Path) -> dict[str, Any]:
    """The last whole row of a run's loss curve; empty if there is none."""
    path = folder / METRICS
    if not path.is_file():
        return {}
    with open(path, "rb") as file:
        file.seek(0, os.SEEK_END)
        file.seek(max(0, file.tell() - 1024))
        lines = file.read().splitlines()
    for line in reversed(lines):
        with contextlib.suppress(ValueError, TypeError):
            row: dict[str, Any] = json.loads(line)
            if "tokens" in row:
                return row
    return {}


def duration(seconds: float) -> str:
    """Readable time.

    >>> duration(7), duration(95), duration(7300)
    ('7 s', '1 min 35 s', '2 h 1 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
