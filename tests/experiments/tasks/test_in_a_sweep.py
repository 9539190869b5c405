"""Tasks in Ray: a worker is killed, another goes on, and the bits are those of a whole run."""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from experiments.command import main as commands
from experiments.sweep.work import LOG
from fitting.results.table import load
from tests.support.image_folder import write_folder
from tests.support.places import ROOT

pytest.importorskip("PIL", reason="needs the extra vision")
TASKS = {
    "classification": (
        *("task=classification", "data=images", "data.path=mine", "data.image.size=8"),
        *("data.image.channels=1", "model=convnet", "model.config.classes=3"),
    ),
    "custom": (
        *("task=custom", "task.factory=tests.support.own_task:Line", "model=module"),
        "model.factory=tests.support.own_task:net",
    ),
}


def lowbit_train(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["lowbit-train", *arguments])
    try:
        commands.train()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_a_killed_worker_is_replaced_and_the_result_has_the_same_bits(
    task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_folder(tmp_path / "mine")
    monkeypatch.setenv("LOWBIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # workers import the user's task, too
    monkeypatch.chdir(tmp_path)
    common = [
        *TASKS[task], "recipe=stochastic", "precision=INT8-row", "batch_size=12", "tokens=4800",
        "tracking=none", "tracking.log_every=4", "optim.lr=1e-2",
    ]  # fmt: skip
    assert lowbit_train(monkeypatch, *common, "study.name=whole") == 0
    folder = tmp_path / "runs" / "killed"
    killed: list[int] = []

    def kill_once() -> None:
        deadline = time.monotonic() + 600
        while time.monotonic() < deadline:
            if list(folder.glob("*/checkpoints/*.ckpt")):
                [log] = folder.glob(f"*/{LOG}")
                match = re.search(r"process (\d+)", log.read_text())
                assert match
                killed.append(int(match[1]))
                os.kill(killed[0], signal.SIGKILL)
                return
            time.sleep(0.005)

    killer = threading.Thread(target=kill_once, daemon=True)
    killer.start()
    assert (
        lowbit_train(monkeypatch, *common, "-m", "study.name=killed", "checkpoint_seconds=0") == 0
    )
    killer.join()
    whole, again = load(tmp_path / "runs" / "whole"), load(folder)
    assert killed
    assert again["attempts"].tolist() == [2]
    for column in ("run_id", "loss", "weights_sha256"):
        assert again[column].tolist() == whole[column].tolist()
