"""A run of seconds, and how it is stopped in the middle."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from experiments.config.schema import TrainConfig
from experiments.configure import configure
from experiments.models.config import ModelConfig
from experiments.run.recorder import Progress
from experiments.store.curve import METRICS

Compose = Callable[..., TrainConfig]
STEPS = 24
SMALL = [
    "model=ladder/a",
    "data=tokens",
    "data.seq_len=64",
    "batch_size=4",
    f"tokens={STEPS * 4 * 64}",
    "tracking=none",
    "tracking.log_every=4",
]


def ladder(rung: str) -> ModelConfig:
    """The sizes of `model=ladder/RUNG`."""
    return configure(f"model=ladder/{rung}", "recipe=none").model


@pytest.fixture
def small(composed: Compose, text: Path) -> Compose:
    return lambda *overrides: composed(*SMALL, f"data.path={text}", *overrides)


def rows(folder: Path) -> list[dict[str, float]]:
    """The loss curve without what a clock wrote."""
    lines = [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]
    return [{k: v for k, v in row.items() if "per_second" not in k} for row in lines]


class Stop:
    """After some step one signal, or an error."""

    def __init__(
        self, step: int, error: type[Exception] | None = None, number: int = signal.SIGINT
    ) -> None:
        self.step, self.error, self.number = step, error, number

    def __call__(self, progress: Progress) -> None:
        if progress.step >= self.step:
            if self.error:
                raise self.error("stopped here")
            number, self.number = self.number, 0  # 0 is no signal
            os.kill(os.getpid(), number)
