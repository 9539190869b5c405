"""The terminal: every conclusion, marked, and nothing cut off."""

from __future__ import annotations

from pathlib import Path

import pytest

from fitting.command.describe import describe
from fitting.command.show import MOST_ROWS, show
from fitting.fit.bootstrap import bootstrap
from fitting.fit.fit_file import FIT, saved_fit
from fitting.fit.search import fit
from fitting.laws.published import SUN_2025
from fitting.laws.synthetic import make_table, sun_design
from fitting.page.conclusions import views


def test_every_conclusion_is_printed_with_its_marks(capsys: pytest.CaptureFixture[str]) -> None:
    table = make_table("floating_point", SUN_2025, sun_design(), 2e-3, 0)
    fitted = fit(table, "floating_point", starts=4)
    told = describe(fitted, bootstrap(table, fitted, 40), table)
    report = saved_fit(told, Path(FIT))
    show(report, Path("somewhere"))
    printed = capsys.readouterr().out
    for view in views(report):
        assert view.title in printed
        for _, cells in view.rows[:MOST_ROWS]:
            assert all(cell in printed for cell in cells)
        more = len(view.rows) - MOST_ROWS
        assert (f"{more} more rows are in somewhere/fit.json" in printed) == (more > 0)
    lines = [line.split() for line in printed.splitlines()]
    [sixteen] = [line for line in lines if line[:2] == ["16", "E8M7"] and "%," not in line][:1]
    assert sixteen[-1] == "extrapolated", "no run has 16 bits"
    assert "holds for operands  P2 P4 P6" in printed
    for warning in report.warnings:
        assert warning in " ".join(printed.split())
