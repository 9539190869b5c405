"""Runs that a fit has not seen: intervals hold them, and plans have predictions without runs."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from experiments.quant.normal_error import error_of
from fitting.command.describe import run_fit
from fitting.command.options import fit_options
from fitting.entry.errors import UsageError
from fitting.fit.bootstrap import bootstrap
from fitting.fit.prediction import predict
from fitting.fit.search import fit
from fitting.laws.published import BESIROGLU_2024
from fitting.laws.synthetic import make_table
from fitting.page.tables import predicted

TRUTH = BESIROGLU_2024 | {"gamma": 0.8, "c": 25.0}
SEEN, UNSEEN = ("none", "E2M2", "E2M1", "E1M1"), ("INT4", "E3M2", "mxfp4 stochastic")


def runs(names: tuple[str, ...], seed: int, noise: float = 3e-3) -> pd.DataFrame:
    cells = itertools.product((3e7, 1e8, 3e8), (1.5e9, 6e9, 3e10), map(error_of, names))
    design = pd.DataFrame(cells, columns=["params", "tokens", "err_weight"])
    return make_table("unified", TRUTH, design.assign(err_input=0.0), noise, seed)


def test_intervals_hold_nineteen_of_twenty_runs() -> None:
    inside = total = 0
    for seed in range(40):
        seen = runs(SEEN, seed)
        fitted = fit(seen, "unified", objective="least_squares", starts=4, near=[TRUTH])
        found = predict(fitted, bootstrap(seen, fitted, 100, seed), runs(UNSEEN, 1000 + seed))
        inside += sum(each.inside for each in found)
        total += sum(each.runs for each in found)
    # Runs of one table share its fit: 1,080 runs are worth some 300, of which 95 % +- 2.5 %.
    assert total == 40 * 27
    assert 0.92 < inside / total < 0.98


def test_a_plan_has_predictions_and_no_losses() -> None:
    seen = runs(SEEN, 0)
    fitted = fit(seen, "unified", starts=4)
    plan = runs(UNSEEN, 0).drop(columns=["loss", "status"])
    found = predict(fitted, bootstrap(seen, fitted, 50), plan)
    assert len(found) == 27
    assert {(each.runs, each.measured, each.inside) for each in found} == {(0, None, 0)}
    for each in found:
        low, high = each.interval
        assert low is not None
        assert high is not None
        assert each.loss is not None
        assert low < each.loss < high
    diverged = runs(UNSEEN, 0).assign(status="diverged", loss=np.nan)
    assert sum(e.runs for e in predict(fitted, bootstrap(seen, fitted, 50), diverged)) == 0


def test_the_command_predicts_and_says_how_many_runs_came_out_so(tmp_path: Path) -> None:
    runs(SEEN, 0).to_csv(tmp_path / "seen.csv", index=False)
    runs(UNSEEN, 1).to_csv(tmp_path / "unseen.csv", index=False)
    typed = [f"results={tmp_path}/seen.csv", f"out={tmp_path}/fit", "law=unified"]
    typed += ["bootstrap=50", "evidence=false", f"predict={tmp_path}/unseen.csv"]
    view = predicted(run_fit(fit_options(typed)))
    assert view is not None
    assert len(view.rows) == 27
    inside = sum(int(cells[-1].split()[0]) for _, cells in view.rows)
    assert view.note.endswith(f"In all {inside} of 27 runs lie within theirs.")
    typed[3] = "bootstrap=0"
    with pytest.raises(UsageError, match="bootstrap=0 has no intervals"):
        fit_options(typed)
