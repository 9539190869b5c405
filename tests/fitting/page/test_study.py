"""What is read of a study, and the one line that says why something cannot be."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from fitting.files.own_json import ResultsError
from fitting.page.study import fitted_runs, load_study, used_runs

LOSSES = pd.DataFrame(
    {
        "run_id": ["a", "b", "c"], "params": [1e6, 1e6, 1e8], "tokens": [1e8, 1e8, 1e10],
        "loss": [3.0, 3.1, 2.5], "exponent": [8, 2, 2], "mantissa": [7, 1, 1],
        "block_size": [1.0, 32.0, 32.0], "seed": [0, 0, 0], "model": ["small", "small", "large"],
        "recipe": ["none", "nearest", "nearest"], "granularity": ["none", "block", "block"],
        "scale": ["none", "e8m0", "e8m0"],
    }
)  # fmt: skip
"""`none` and E2M1 at one size, E2M1 alone at another."""


def a_fit(**changes: Any) -> dict[str, Any]:
    """What the page needs of a fit.json; constants at which `LOSSES`' predictions are round."""
    fit: dict[str, Any] = {
        "law": "chinchilla",
        "objective": {"name": "huber", "delta": 1e-3, "value": 1e-4},
        "parameters": {"A": 1e3, "alpha": 0.5, "B": 1e4, "beta": 0.5, "E": 1.5},
        "rows": {"used": 2, "excluded": {}}, "starts": {"tried": 1, "agreeing": 1},
        "status": "converged", "warnings": [],
    }  # fmt: skip
    return {**fit, **changes}


def write(folder: Path, table: pd.DataFrame, fit: dict[str, Any] | None = None) -> Path:
    table.to_csv(folder / "losses.csv", index=False)
    if fit is not None:
        (folder / "fit.json").write_text(json.dumps(fit))
    return folder / "losses.csv"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "fit.json: damaged (Expecting"),
        ("[]", "fit.json: damaged (holds a list, not an object)"),
        ("{}", "lacks law, objective"),
        (json.dumps(a_fit(law="chinchila")), "law=chinchila is not one of"),
        (json.dumps(a_fit(parameters={"E": 1.0})), "parameters E, but law=chinchilla has"),
    ],
)
def test_a_broken_fit_is_one_clear_line(text: str, said: str, tmp_path: Path) -> None:
    results = write(tmp_path, LOSSES)
    (tmp_path / "fit.json").write_text(text)
    with pytest.raises(ResultsError, match=re.escape(said)) as caught:
        load_study(results, tmp_path)
    assert "\n" not in str(caught.value)


def test_a_table_without_losses_names_the_column(tmp_path: Path) -> None:
    results = write(tmp_path, LOSSES.rename(columns={"loss": "perplexity"}))
    with pytest.raises(ResultsError, match="the report needs column loss"):
        load_study(results, tmp_path)
    with pytest.raises(ResultsError, match="no such file or folder"):
        load_study(tmp_path / "nowhere", tmp_path)


def test_predictions_are_the_law_at_the_runs_that_the_fit_used(tmp_path: Path) -> None:
    """1e3 / 1e6**0.5 = 1 and 1e4 / 1e8**0.5 = 1; a hundred times more of both is a tenth each."""
    study = load_study(write(tmp_path, LOSSES, a_fit(run_ids=["b", "c"])), tmp_path)
    rows = fitted_runs(study)
    assert rows is not None
    assert list(rows["run_id"]) == ["b", "c"]
    np.testing.assert_allclose(rows["predicted"], [3.5, 1.7], rtol=1e-12)


def test_a_fit_that_names_no_runs_is_shown_on_all_and_no_fit_on_none(tmp_path: Path) -> None:
    results = write(tmp_path, LOSSES.assign(loss=[3.0, np.nan, 2.5]), a_fit())
    assert list(used_runs(load_study(results, tmp_path))["run_id"]) == ["a", "c"]
    assert fitted_runs(load_study(results, tmp_path / "no-fit")) is None


def test_runs_without_a_number_format_are_told_apart_by_the_laws_columns(tmp_path: Path) -> None:
    table = LOSSES[["params", "tokens", "loss"]].assign(bits_post=[3.0, 4.0, 3.0])
    names = ("A", "alpha", "B", "beta", "E", "C_T", "gamma_D", "gamma_N", "gamma_post")
    ptq = a_fit(law="ptq", parameters=dict.fromkeys(names, 1.0))
    study = load_study(write(tmp_path, table, ptq), tmp_path)
    assert list(study.table["format"]) == ["3", "4", "3"]
    schemes = table.assign(forward=["BF16", "A", "A"], backward="BF16")
    quartet = dict.fromkeys(("A", "alpha", "B", "beta", "E", "gamma", "eff_N[A]"), 1.0)
    study = load_study(write(tmp_path, schemes, a_fit(law="quartet", parameters=quartet)), tmp_path)
    assert list(study.table["format"]) == ["BF16:BF16", "A:BF16", "A:BF16"]
    assert study.order == ["A:BF16", "BF16:BF16"]
    study = load_study(write(tmp_path, table, a_fit()), tmp_path)
    assert set(study.table["format"]) == {"all runs"}


def test_verdicts_know_their_degrees_of_freedom(tmp_path: Path) -> None:
    """Paired differences .08 and .12: z = .1/.02 = 5, but one degree of freedom needs 236."""
    pair = LOSSES.iloc[:2]
    loss = [[3.0, 3.08], [3.2, 3.32]]
    runs = [
        pair.assign(seed=s, loss=both, run_id=[f"{s}a", f"{s}b"]) for s, both in enumerate(loss)
    ]
    study = load_study(write(tmp_path, pd.concat(runs)), tmp_path)
    assert study.cells is not None
    cell = study.cells.iloc[0]
    assert (cell["dof"], cell["verdict"]) == (1, "cannot tell")
    assert cell["z"] == pytest.approx(5)


def test_a_fit_that_does_not_suit_the_runs_is_refused(tmp_path: Path) -> None:
    wrong = a_fit(parameters={**a_fit()["parameters"], "A": -1.0})
    study = load_study(write(tmp_path, LOSSES, wrong), tmp_path)
    with pytest.raises(ResultsError, match=r"fit\.json does not suit the results: A=-1\.0"):
        fitted_runs(study)
    names = ("n", "alpha", "d", "beta", "epsilon", "gamma", "delta", "nu")
    other = a_fit(law="floating_point", parameters=dict.fromkeys(names, 1.0))
    study = load_study(write(tmp_path, LOSSES.drop(columns="exponent"), other), tmp_path)
    with pytest.raises(ResultsError, match="law=floating_point needs column exponent"):
        fitted_runs(study)


def test_a_format_is_compared_where_none_was_run_beside_it(tmp_path: Path) -> None:
    study = load_study(write(tmp_path, LOSSES), tmp_path)
    assert study.order == ["E2M1", "none"]
    assert study.cells is not None
    cells = study.cells.set_index("params")["difference"].astype(float)
    assert cells[1e6] == pytest.approx(0.1, rel=1e-12)
    assert np.isnan(cells[1e8])


@pytest.mark.parametrize(
    ("table", "said"),
    [
        (LOSSES.drop(columns="mantissa"), "no column mantissa: formats cannot be compared"),
        (LOSSES.drop(columns="seed"), "no column seed: formats cannot be compared"),
        (LOSSES.assign(loss=np.nan), "No run ended with a loss"),
        (LOSSES.iloc[1:], "No quantized cell has an unquantized counterpart"),
    ],
    ids=["mantissa", "seed", "loss", "none"],
)
def test_where_nothing_can_be_compared_the_reason_is_kept(
    table: pd.DataFrame, said: str, tmp_path: Path
) -> None:
    study = load_study(write(tmp_path, table), tmp_path)
    assert study.cells is None
    assert said in study.no_cells
