"""Shrinkage by split, recipe and scale: means over the runs in which it was measured."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from fitting.page.tables import shrinkage
from fitting.results.format_errors import SHRINKAGE, measured_errors
from fitting.seeds.shrinkage import shrinkage_by
from tests.support.records import RECORD


def runs() -> pd.DataFrame:
    """Two splits and rotations; a run without measurements, one unquantized, one that failed."""
    rows = [
        (2, 1, "unrotated", "fp32", "block", -0.02, "finished"),
        (2, 1, "unrotated", "fp32", "block", -0.04, "finished"),
        (2, 1, "unrotated", "fp32", "block", np.nan, "finished"),
        (2, 1, "random", "fp32", "block", -0.06, "finished"),
        (1, 2, "random", "fp32", "block", -0.01, "finished"),
        (1, 2, "random", "fp32", "block", -0.90, "diverged"),
        (8, 23, "none", "fp32", "none", 0.0, "finished"),
    ]
    names = ["exponent", "mantissa", "recipe", "scale", "granularity", "less", "status"]
    table = pd.DataFrame(rows, columns=names).assign(loss=2.0)
    for place, name in enumerate(SHRINKAGE):
        table[name] = table["less"] * (place + 1)
    return table.drop(columns="less")


def test_means_are_of_the_runs_that_were_measured() -> None:
    found = shrinkage_by(runs())
    assert found["runs"].tolist() == [1, 1, 2]
    assert found["recipe"].tolist() == ["random", "random", "unrotated"]
    assert found[SHRINKAGE[0]].tolist() == pytest.approx([-0.01, -0.06, -0.03])
    assert found[SHRINKAGE[5]].tolist() == pytest.approx([-0.06, -0.36, -0.18])


def test_a_table_shows_each_operand_and_dashes_where_nothing_was_measured() -> None:
    table = runs()
    table[SHRINKAGE[2]] = np.nan
    view = shrinkage(shrinkage_by(table))
    assert view.rows[0][1] == [
        *("E1M2", "random", "fp32", "−1 %", "−2 %", "–", "−4 %", "−5 %", "−6 %", "1")
    ]
    assert len(view.header) == len(view.rows[0][1])


def test_tables_without_it_have_no_such_table() -> None:
    assert shrinkage_by(runs().drop(columns=SHRINKAGE[0])).empty
    nothing = runs()
    nothing[list(SHRINKAGE)] = np.nan
    assert shrinkage_by(nothing).empty


def test_the_record_says_what_was_measured() -> None:
    record = replace(
        RECORD,
        operands="P1 P2",
        diagnostics={"P1": {"qsnr": {"mean": 20.0}, "shrinkage": {"mean": -0.02}}},
    )
    found = measured_errors(record)
    assert found["shrinkage_input"] == -0.02
    assert np.isnan(found["shrinkage_weight"]), "quantized, but not measured"
    assert found["shrinkage_grad_weight_input"] == 0.0
