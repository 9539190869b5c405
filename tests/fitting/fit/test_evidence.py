"""What judges a fit: numbers that other functions give, and reasons where there are none."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pandas as pd
import pytest

from fitting.command.options import fit_options
from fitting.entry.errors import UsageError
from fitting.fit import evidence as module
from fitting.fit.evidence import comparison, evidence
from fitting.fit.profile import profile_intervals
from fitting.fit.search import fit
from fitting.fit.validation import compare_laws, hold_out_largest, information, leave_one_out
from fitting.law.conclusion import entries
from fitting.laws.catalogue import get
from fitting.laws.published import BESIROGLU_2024
from fitting.laws.synthetic import make_table

SIZES, RATIOS = (3e7, 5e7, 1e8, 2e8), (25.0, 50.0, 100.0, 200.0, 400.0, 800.0)
RUNS = make_table(
    "chinchilla",
    BESIROGLU_2024,
    pd.DataFrame([(n, r * n) for n in SIZES for r in RATIOS], columns=["params", "tokens"]),
    2e-3,
    0,
)


def told(*given: Any, **how: bool) -> Any:
    """The evidence as fit.json has it."""
    return entries(evidence(*given, **how))


def test_every_number_is_that_of_the_function_that_it_comes_from() -> None:
    fitted = fit(RUNS, "chinchilla")
    assert evidence(RUNS, fitted).profile_intervals == profile_intervals(RUNS, fitted)
    found = told(RUNS, fitted)
    assert tuple(found["information"].values()) == information(RUNS, fitted)
    sizes = leave_one_out(RUNS, fitted, RUNS["params"], "params={}")
    entries = found["held_out"]["sizes"]
    assert [e["params"] for e in entries] == list(SIZES)
    assert [(e["rows"], e["trained"]) for e in entries] == [(6, 18)] * 4
    for key in ("rms", "bias", "extrapolation"):
        assert [e[key] for e in entries] == [getattr(size, key) for size in sizes]
    assert [e["extrapolated"] for e in entries] == [False, False, False, True]
    squares = pd.concat([size.errors for size in sizes]) ** 2
    assert found["held_out"]["sizes_rms"] == pytest.approx(np.sqrt(squares.mean()))
    assert found["held_out"]["largest"]["rms"] == hold_out_largest(RUNS, fitted).rms
    assert found["held_out"]["residual_rms"] == pytest.approx(np.sqrt((fitted.residuals**2).mean()))
    assert found["not_computed"] == {}


def test_what_cannot_be_held_out_has_its_reason_and_hides_nothing_else() -> None:
    one = RUNS[RUNS["params"] == 1e8]
    found = told(one, fit(one, "chinchilla"))
    assert "sizes" not in found["held_out"]
    assert found["not_computed"] == {
        "sizes left out": "there is only one size",
        "token counts left out": "law=chinchilla: 5 usable rows, but 5 free parameters need at "
        "least 6; freeze some or add runs",
        "largest compute held out": "law=chinchilla: 4 usable rows, but 5 free parameters need at "
        "least 6; freeze some or add runs",
    }
    few = pd.concat([one, RUNS[RUNS["params"] == 2e8].iloc[:2]])
    found = told(few, fit(few, "chinchilla"))
    assert [e["params"] for e in found["held_out"]["sizes"]] == [2e8]
    assert found["held_out"]["largest"]["rows"] == 2  # of 8: 1e8 at 400 and at 800
    assert found["not_computed"] == {
        "100M parameters left out": "law=chinchilla: 2 usable rows, but 5 free parameters need at "
        "least 6; freeze some or add runs",
    }


def test_a_long_table_is_neither_profiled_nor_held_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_ROWS", 23)
    found = told(RUNS, fit(RUNS, "chinchilla"))
    reason = "24 rows are more than 23"
    assert found["not_computed"] == {
        "profile intervals": reason,
        "held-out predictions": reason,
    }
    assert found["profile_intervals"] == {}
    assert found["information"]["aic"] < 0
    monkeypatch.undo()
    monkeypatch.setattr(module, "MOST_SIZES", 3)
    found = told(RUNS, fit(RUNS, "chinchilla"))
    assert found["not_computed"] == {"sizes left out": "4 sizes are more than 3"}
    assert "largest" in found["held_out"]


def test_evidence_can_be_switched_off() -> None:
    found = told(RUNS, fit(RUNS, "chinchilla"), wanted=False)
    assert found["not_computed"] == dict.fromkeys(
        ("profile intervals", "held-out predictions"), "evidence=false"
    )
    assert found["profile_intervals"] == {}
    assert set(found["held_out"]) == {"residual_rms"}
    typed = ["results=a", "out=b", "law=quartet"]
    assert fit_options(typed).evidence
    assert not fit_options([*typed, "evidence=false"]).evidence
    with pytest.raises(UsageError, match="evidence=no: must be true or false"):
        fit_options([*typed, "evidence=no"])
    with pytest.raises(UsageError, match="evidence=false: compare= judges laws"):
        fit_options([*typed, "evidence=false", "compare=chinchilla"])


def test_held_out_fits_that_begin_warm_end_where_blind_ones_do() -> None:
    fitted = fit(RUNS, "chinchilla")
    for held in leave_one_out(RUNS, fitted, RUNS["params"], "params={}"):
        size = float(held.name.partition("=")[2])
        others = RUNS[RUNS["params"] != size]
        blind = fit(others, "chinchilla")
        errors = np.log(
            RUNS["loss"][held.errors.index]
            / blind.law.predict(blind.parameters, RUNS.loc[held.errors.index])
        )
        assert held.errors.to_numpy() == pytest.approx(errors.to_numpy(), abs=1e-7)


def test_compared_laws_are_plain_json() -> None:
    table = RUNS.assign(forward="BF16", backward="BF16")
    laws = [get("chinchilla"), get("quartet")]
    found = [entries(rival) for rival in comparison(table, laws, "least_squares", 1e-3, 1.0, None)]
    expected = compare_laws(table, laws, objective="least_squares")
    assert [row["law"] for row in json.loads(json.dumps(found))] == list(expected["law"])
    assert [row["bic"] for row in found] == list(expected["bic"])
