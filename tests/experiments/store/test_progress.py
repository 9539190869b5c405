"""One model of progress: shares and time left by work, and damaged rows that say nothing."""

from typing import Any

import pytest

from experiments.store.progress import SPEED, Progress, RunState

ROW = {"tokens": 250, "train/loss": 3.25, SPEED: 10.0}


def test_a_run_stands_where_its_row_says() -> None:
    run = RunState("a", "running")
    run.follow(ROW, 1000)
    assert (run.share, run.rate, run.text) == (0.25, 0.01, "loss 3.2500  10 tokens/s")
    run.follow({"tokens": 2000, "validation/loss": 3.0}, 1000)
    assert (run.share, run.rate, run.text) == (1.0, 0.0, "loss 3.2500  10 tokens/s")


@pytest.mark.parametrize(
    "row", [{}, {"tokens": "x"}, ROW | {SPEED: -1.0}, ROW | {SPEED: "nan"}, ROW | {"tokens": -1}]
)
def test_a_damaged_row_says_nothing(row: dict[str, Any]) -> None:
    run = RunState("a", "running", text="starting")
    run.follow(row, 1000)
    run.follow(ROW, 0)
    assert (run.share, run.rate, run.text) == (0.0, 0.0, "starting")


def test_all_together_by_work() -> None:
    """Left are 3/4 of 4 and all of 2, of 10 in all; the speed is 4 / 100 a second."""
    progress = Progress(
        [
            RunState("a", "finished", 3.0),
            RunState("b", "failed", 1.0),
            RunState("c", "running", 4.0, 0.25, 0.01),
            RunState("d", "waiting", 2.0, rate=1.0),
        ]
    )
    assert progress.share == pytest.approx(0.5)
    assert progress.eta == pytest.approx(5 / 0.04)
    assert not progress.done
    expected = (
        "1 of 4 runs done, 1 running, 1 failed, 1 waiting; 50% of the work, about 2 min 5 s left"
    )
    assert str(progress) == expected
    assert (
        str(Progress([RunState("a", "diverged")]))
        == "1 of 1 runs done, 1 diverged; 100% of the work"
    )
    assert Progress().share == 1.0
