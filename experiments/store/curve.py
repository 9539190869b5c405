"""The reports of a running run so far, for display."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

METRICS = "metrics.jsonl"
"""The loss curve in a run's folder: one JSON object per line: `step`, `tokens`, `train/loss`.

Rows of diagnostics and of the validation loss have other columns than `train/loss`.
"""
_CHUNK = 1024


def last_row(folder: Path) -> dict[str, Any]:
    """The last whole row with a training loss of a run's loss curve; empty if there is none."""
    path = folder / METRICS
    if not path.is_file():
        return {}
    with open(path, "rb") as file:
        end, length = file.seek(0, os.SEEK_END), _CHUNK
        while True:  # a row of diagnostics has tens of kilobytes
            file.seek(max(0, end - length))
            for line in reversed(file.read().splitlines()):
                with contextlib.suppress(ValueError, RecursionError):
                    row = json.loads(line)
                    if isinstance(row, dict) and type(row.get("train/loss")) in (int, float):
                        return row
            if length >= end:
                return {}
            length *= 16


def duration(seconds: float) -> str:
    """A duration in words.

    >>> duration(7), duration(95), duration(7300)
    ('7 s', '1 min 35 s', '2 h 1 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
