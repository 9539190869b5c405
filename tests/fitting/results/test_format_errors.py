"""Tables that only name their formats: names of several columns, errors, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from experiments.quant.normal_error import error_of
from experiments.quant.recipe import SLOTS
from fitting.files.own_json import ResultsError
from fitting.results.format_errors import ERRORS, FORMATS, MEASURED, measured_errors
from fitting.results.record import COLUMNS
from fitting.results.table import load
from fitting.seeds.noise import noise_floor
from tests.support.records import RECORD

ROWS = pd.DataFrame(
    {
        "N": [1e8, 1e8, 1e8],
        "D": [1e10, 1e10, 1e10],
        "loss": [3.0, 3.1, 3.2],
        "E": [8, 2, 1],
        "M": [23, 1, 1],
        "shared": ["none1", "block32", "row48.5"],
        "scheme": [None, "mxfp4", "NVFP4 stochastic"],
        "group": [1.0, 32.0, 16.0],
    }
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    ROWS.to_csv(tmp_path / "rows.csv", index=False)
    return tmp_path / "rows.csv"


def test_errors_are_columns_of_a_record() -> None:
    assert set(ERRORS) <= set(COLUMNS)
    assert list(ERRORS) == [slot.error for slot in SLOTS.values()]
    assert FORMATS["format_weight"] == "err_weight"
    assert FORMATS["format_grad_weight_input"] == "err_grad_weight_input"


@pytest.mark.parametrize(
    ("given", "names"),
    [
        ("scheme", ["none", "mxfp4", "NVFP4 stochastic"]),
        ("mxfp4", ["mxfp4"] * 3),
        ("bf16", ["bf16"] * 3),
        ("E{E}M{M}-{shared}-fp32", ["none", "E2M1-block32-fp32", "E1M1-row48.5-fp32"]),
        ("scheme: mxfp4=INT4, NVFP4 stochastic = none", ["none", "INT4", "none"]),
        ("E2M1-block{group}", ["E2M1-block1", "E2M1-block32", "E2M1-block16"]),
    ],
)
def test_a_column_a_name_or_a_text_with_columns(path: Path, given: str, names: list[str]) -> None:
    table = load(path, {"params": "N", "tokens": "D", "format_weight": given})
    expected = [error_of(name) for name in names]
    assert table["err_weight"].tolist() == pytest.approx(expected, rel=1e-11)
    assert "err_input" not in table


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("E{E}M{mant}", r"format_weight=E\{E\}M\{mant\}: no such column 'mant'; the table has N"),
        ("scheme: RTN=mxfp4", "'RTN' is not in column 'scheme', which has NVFP4 stochastic, mx"),
        ("mxpf4", "columns.format_weight=mxpf4: .*did you mean mxfp4"),
        ("E2M1-{shared}", "format 'E2M1-none1'|precision 'e2m1-none1'"),
    ],
)
def test_what_names_no_format_is_refused(path: Path, given: str, said: str) -> None:
    with pytest.raises(ResultsError, match=said):
        load(path, {"format_weight": given})


@pytest.mark.parametrize(("ours", "error"), FORMATS.items())
def test_an_error_and_the_format_it_would_follow_from_are_not_both_given(
    path: Path, ours: str, error: str
) -> None:
    with pytest.raises(ResultsError, match=f"columns.{ours}=mxfp4 and columns.{error}=N: both"):
        load(path, {ours: "mxfp4", error: "N"})


def test_errors_as_measured_are_those_of_the_diagnostics() -> None:
    record = replace(
        RECORD,
        operands="P1 P2 P3",
        diagnostics={"P1": {"qsnr": {"mean": 20.0}}, "P2": {"qsnr": {"mean": 17.0}}},
    )
    found = measured_errors(record)
    assert list(found) == list(MEASURED)
    values = list(found.values())
    assert values[:2] == pytest.approx([0.01, 10**-1.7])
    assert np.isnan(values[2]), "quantized, but not measured"
    assert values[3:6] == [0.0] * 3


def test_errors_that_differ_in_their_last_bit_do_not_part_repeats(tmp_path: Path) -> None:
    """As records of two versions have them: one cell with two seeds, not two with one."""
    error = error_of("mxfp4")
    rows = [(s, 1e6, 1e8, 3.0 + s / 100, error * (1 + s * 2**-52), error) for s in (0, 1)]
    names = ["seed", "params", "tokens", "loss", "err_input", "err_weight"]
    pd.DataFrame(rows, columns=names).to_csv(tmp_path / "t.csv", index=False)
    table = load(tmp_path / "t.csv")
    assert table["err_input"].nunique() == 1
    assert table["err_input"].iloc[0] == pytest.approx(error, rel=1e-11)
    assert noise_floor(table).dof == 1
