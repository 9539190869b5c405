"""Tasks in Ray: a worker is killed, another goes on, and the bits are those of a whole run."""

from __future__ import annotations

from pathlib import Path

import pytest

from fitting.results.table import load
from tests.support.commands import killing_the_worker, lowbit_train
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
    with killing_the_worker(folder) as killed:
        again = [*common, "-m", "study.name=killed", "checkpoint_seconds=0"]
        assert lowbit_train(monkeypatch, *again) == 0
    whole, killed_run = load(tmp_path / "runs" / "whole"), load(folder)
    assert killed
    assert killed_run["attempts"].tolist() == [2]
    for column in ("run_id", "loss", "weights_sha256"):
        assert killed_run[column].tolist() == whole[column].tolist()
