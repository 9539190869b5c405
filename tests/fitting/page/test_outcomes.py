"""What was run: cost and reasons by outcome, and the grid of the design."""

from __future__ import annotations

from typing import Any

import pandas as pd

from fitting.figures.style import INK
from fitting.page import outcomes as coverage


def a_run(status: str, reason: str = "", **more: Any) -> dict[str, Any]:
    run = {
        "status": status, "reason": reason, "format": "E2M1", "params": 1e5, "tokens": 1e6,
        "wall_seconds": 1800.0, "flops": 6e11,
    }  # fmt: skip
    return run | more


TABLE = pd.DataFrame(
    [
        a_run("finished"), a_run("finished"), a_run("diverged", "loss is NaN at step 9"),
        a_run("failed", "killed"), a_run("failed", "out of memory", format="E1M1", tokens=2e6),
        a_run("failed", "out of memory"),
    ]
)  # fmt: skip


def test_outcomes_have_their_reasons_and_what_they_cost() -> None:
    view = coverage.outcomes(TABLE)
    assert view is not None
    assert [cells for _, cells in view.rows] == [
        ["finished", "2", "60 min", "1.2×10¹²", "–", "–"],
        ["diverged", "1", "30 min", "6×10¹¹", "loss is NaN at step 9", "E2M1"],
        ["failed", "2", "60 min", "1.2×10¹²", "out of memory", "E1M1, E2M1"],
        ["failed", "1", "30 min", "6×10¹¹", "killed", "E2M1"],
        ["all", "6", "3.0 h", "3.6×10¹²", "", ""],
    ]
    assert view.data["device_hours"].sum() == 3.0


def test_where_all_finished_no_reason_is_asked_for() -> None:
    view = coverage.outcomes(TABLE.iloc[:2])
    assert view is not None
    assert [cells for _, cells in view.rows] == [
        ["finished", "2", "60 min", "1.2×10¹²"], ["all", "2", "60 min", "1.2×10¹²"],
    ]  # fmt: skip


def test_a_foreign_table_has_no_cost_and_an_empty_one_no_outcome() -> None:
    view = coverage.outcomes(TABLE.iloc[:3][["status", "format"]])
    assert view is not None
    assert view.rows[0][1] == ["finished", "2", "–", "–", "–", "–"]
    assert coverage.outcomes(TABLE.iloc[:2][["status", "format"]]) is None
    assert coverage.outcomes(TABLE.iloc[:0]) is None


def test_a_column_without_reasons_is_read_as_numbers_and_means_none() -> None:
    view = coverage.outcomes(TABLE.iloc[[2]].assign(reason=float("nan")))
    assert view is not None
    assert view.rows[0][1][-2:] == ["–", "E2M1"]


def test_many_reasons_are_left_to_the_file() -> None:
    table = pd.DataFrame([a_run("failed", f"reason {i}") for i in range(20)])
    view = coverage.outcomes(table)
    assert view is not None
    assert len(view.rows) == coverage.MOST_REASONS + 1
    assert len(view.data) == 20
    assert "The CSV file also has 8 rarer reasons." in view.note
    assert view.rows[-1][1][:2] == ["all", "20"], "the sum is over all of them"


def test_the_grid_counts_runs_and_says_what_was_lost() -> None:
    (panel,) = coverage.grid(TABLE, ["E1M1", "E2M1"])
    words = "E2M1&#10;100k parameters and 1M tokens&#10;2 finished, 1 diverged, 2 failed&#10;"
    assert f'data-tip="{words}killed&#10;loss is NaN at step 9"' in panel.svg
    assert ">2/5<" in panel.svg
    assert ">0/1<" in panel.svg
    assert panel.svg.count("data-tip=") == 2
    assert INK not in panel.svg


def test_a_grid_of_too_many_columns_is_not_drawn() -> None:
    runs = [a_run("finished", tokens=1e6 + i) for i in range(coverage.MOST_COLUMNS + 1)]
    assert coverage.grid(pd.DataFrame(runs), ["E2M1"]) == []
    assert len(coverage.grid(pd.DataFrame(runs[1:]), ["E2M1"])) == 1
