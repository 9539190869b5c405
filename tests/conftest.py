"""Shared by all tests: configurations as the command line makes them, and a quiet machine."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

os.environ["RAY_AUTH_MODE"] = "disabled"  # no token file in the home of whoever runs the tests
# Or its workers wait for whatever else computes.
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112
os.environ["WANDB_SILENT"] = "true"
for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "HYDRA_FULL_ERROR"):
    os.environ.pop(name, None)

from experiments.config.schema import TrainConfig
from experiments.configure import configure
from experiments.mirror import tracking
from tests.support.wandb_server import KEY, WandbServer


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that start Ray come first: they take longest, and the small ones fill what is left."""
    longest = {item.path for item in items if item.get_closest_marker("ray")}
    items.sort(key=lambda item: item.path not in longest)


@pytest.fixture(autouse=True)
def _wandb_of_its_own() -> Iterator[None]:
    """No test finds W&B's process of another one, with the settings that held there."""
    yield
    if "wandb" in sys.modules:
        tracking.shut_down()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbServer]:
    """A W&B server on the loopback device, to which W&B turns with the right key."""
    with WandbServer() as running:
        monkeypatch.setenv("WANDB_BASE_URL", running.url)
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        yield running


@pytest.fixture
def composed(tmp_path: Path) -> Callable[..., TrainConfig]:
    """`composed("recipe=sun", ...)`: the configuration that lowbit-train would run, in tmp_path."""

    def make(*overrides: str) -> TrainConfig:
        return configure(f"runs={tmp_path / 'runs'}", *overrides)

    return make


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """A folder of text to train on: 40 documents of English-like lines, 60 kB."""
    folder = tmp_path / "text"
    folder.mkdir()
    words = "the run of a model in few bits costs some loss and saves much time on chip".split()
    for number in range(40):
        lines = (
            " ".join(words[(number * 7 + line * 3 + k * k) % len(words)] for k in range(12))
            for line in range(30)
        )
        (folder / f"{number:02d}.txt").write_text("\n".join(lines) + "\n")
    return folder
