"""W&B's files are read back as they were logged, whole or torn, one attempt or several."""

import math
import time
from pathlib import Path

import pytest
import wandb

from experiments.mirror.files import is_synced, mark_synced, read_run, row_key, run_files

ROWS = 300
"""Enough for three blocks of 32 KiB, so that records are cut at their ends."""


def logged(folder: Path, steps: range, exit_code: int = 0) -> Path:
    """An attempt that logs these steps; each row's loss is known: 1 / (step + 1)."""
    folder.mkdir(exist_ok=True)
    before = set(run_files(folder))
    settings = wandb.Settings(console="off", silent=True, x_disable_meta=True, disable_git=True)
    run = wandb.init(
        project="p",
        id="r",
        dir=folder,
        mode="offline",
        group="g",
        job_type="train",
        tags=["a", "b"],
        config={"steps": [steps.start, steps.stop]},
        settings=settings,
    )
    for step in steps:
        run.log({"step": step, "loss": 1 / (step + 1), "text": "x" * 100})
    run.finish(exit_code=exit_code)
    wandb.teardown()
    [file] = set(run_files(folder)) - before
    return file


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return logged(tmp_path_factory.mktemp("whole"), range(ROWS))


def test_a_file_holds_what_was_logged(whole: Path) -> None:
    run = read_run(whole)
    assert (run.run_id, run.project, run.group, run.job_type) == ("r", "p", "g", "train")
    assert (run.tags, run.exit_code, run.torn, run.attempts) == (["a", "b"], 0, 0, 1)
    assert run.config["steps"] == [0, ROWS]
    assert [(row["step"], row["loss"]) for row in run.history] == [
        (step, 1 / (step + 1)) for step in range(ROWS)
    ]
    assert 0 < run.seconds < 60


def test_a_file_cut_anywhere_holds_the_rows_before_the_cut(whole: Path, tmp_path: Path) -> None:
    """Every 991 bytes, a prime, so that cuts fall into headers, records and block ends alike."""
    data, history = whole.read_bytes(), read_run(whole).history
    assert len(data) > 3 * 32 * 1024
    torn_file, found = tmp_path / "run-r.wandb", []
    for size in range(0, len(data), 991):
        torn_file.write_bytes(data[:size])
        run = read_run(torn_file)
        assert run.history == history[: len(run.history)]
        assert run.exit_code is None
        assert run.torn < 1000, "at most one record is lost"
        found.append(len(run.history))
    assert found == sorted(found)
    assert found[-1] > ROWS - 5


def test_nothing_behind_a_damaged_byte_is_believed(whole: Path, tmp_path: Path) -> None:
    data = bytearray(whole.read_bytes())
    data[len(data) // 2] ^= 1
    damaged = tmp_path / "run-r.wandb"
    damaged.write_bytes(data)
    run, history = read_run(damaged), read_run(whole).history
    assert ROWS / 3 < len(run.history) < 2 * ROWS / 3
    assert run.history == history[: len(run.history)]
    assert run.torn == pytest.approx(len(data) / 2, abs=1000)


def test_attempts_are_one_run_without_double_rows(tmp_path: Path) -> None:
    """Killed after step 6, resumed from a checkpoint at step 4, killed again, and to the end."""
    folder = tmp_path / "run"
    first = logged(folder, range(7), exit_code=1)
    first.write_bytes(first.read_bytes()[:-30])  # the killed one says nothing of its end
    logged(folder, range(4, 6), exit_code=1)
    time.sleep(1)  # the folders' names count seconds
    last = logged(folder, range(5, 9))
    run = read_run(folder)
    assert [row["step"] for row in run.history] == list(range(9))
    assert [row["loss"] for row in run.history] == [1 / (step + 1) for step in range(9)]
    firsts = read_run(first).history
    assert run.history[4:6] == firsts[4:6], "a row once logged stands: a server has it"
    assert run.config["steps"] == [5, 9]
    assert (run.attempts, run.exit_code) == (3, 0)
    assert run.torn == read_run(first).torn > 0
    assert run_files(folder)[-1] == last


def test_the_row_of_the_validation_loss_is_not_the_training_row_of_its_step() -> None:
    train = {"step": 8, "train/loss": 1.0, "_timestamp": 1.0}
    assert row_key(train) == row_key(train | {"train/loss": 2.0, "_timestamp": 2.0})
    assert row_key(train) != row_key({"step": 8, "validation/loss": 1.0})
    assert row_key(train) != row_key(train | {"step": 9})


def test_a_mark_holds_until_the_file_grows(tmp_path: Path) -> None:
    file = tmp_path / "run-r.wandb"
    file.write_bytes(b"four")
    assert not is_synced(file)
    mark_synced(file, 4)
    assert is_synced(file)
    file.write_bytes(b"more than four")
    assert not is_synced(file)
    (tmp_path / "run-r.wandb.synced").write_text("")  # as `wandb sync` leaves it
    assert is_synced(file)


def test_what_is_not_a_wandb_file_is_refused(tmp_path: Path) -> None:
    other = tmp_path / "run-r.wandb"
    other.write_text("[]" * 100)
    with pytest.raises(ValueError, match="run-r.wandb: not a W&B file"):
        read_run(other)
    with pytest.raises(FileNotFoundError, match="no W&B file below it"):
        read_run(tmp_path)
    other.write_bytes(b"")  # killed before the first byte
    assert read_run(other).attempts == 0
    assert math.isclose(read_run(other).seconds, 0.0)
