"""What a design can hope to tell: the spread of fits to tables in which the truth is known."""

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fitting.command import main as commands
from fitting.command.expected import SPLIT, expected_intervals
from fitting.fit.bootstrap import bootstrap
from fitting.fit.search import fit
from fitting.law.terms import FitError
from fitting.laws.published import SUN_2025
from fitting.laws.synthetic import make_table, sun_design

POWER = {"E": 1.8, "A": 480.0, "alpha": 0.35, "B": 2100.0, "beta": 0.37}


def chinchilla_runs() -> pd.DataFrame:
    cells = [(n, d) for n in (1e7, 3e7, 1e8, 3e8) for d in (3e8, 1e9, 3e9, 1e10)]
    return pd.DataFrame(cells * 2, columns=["params", "tokens"])


def test_the_spread_is_that_of_the_least_squares_theory() -> None:
    """Linear in the parameters near the truth: covariance noise^2 (J^T J)^-1, J of log loss.

    100 fits know a standard deviation to 7 %, and 95 % quantiles less; three times that is allowed.
    """
    design, noise = chinchilla_runs(), 1e-3
    found = expected_intervals(
        "chinchilla", POWER, design, noise, tables=100, objective="least_squares"
    )
    assert found["fits"].eq(100).all()
    jacobian = []
    base = np.log(law_of(POWER, design))
    for name, value in POWER.items():
        moved = {**POWER, name: value * (1 + 1e-6)}
        jacobian.append((np.log(law_of(moved, design)) - base) / (value * 1e-6))
    covariance = noise**2 * np.linalg.inv(np.array(jacobian) @ np.array(jacobian).T)
    for i, name in enumerate(POWER):
        width = found.loc[name, "high"] - found.loc[name, "low"]
        assert width == pytest.approx(2 * 1.96 * np.sqrt(covariance[i, i]), rel=0.25)


def law_of(parameters: dict[str, float], rows: pd.DataFrame) -> np.ndarray:
    """Hoffmann et al. 2203.15556, Eq. 2."""
    p = parameters
    return np.asarray(
        p["E"] + p["A"] / rows["params"] ** p["alpha"] + p["B"] / rows["tokens"] ** p["beta"]
    )


def test_it_promises_what_the_bootstrap_of_such_a_study_finds() -> None:
    """Widths within a third: one table's bootstrap of 200 draws against 40 tables."""
    design, noise = sun_design(), 5e-3
    promised = expected_intervals("floating_point", SUN_2025, design, noise, tables=40, starts=4)
    assert promised.loc[SPLIT, "assumed"] == pytest.approx(0.519384, abs=1e-6)
    table = make_table("floating_point", SUN_2025, design, noise, seed=9)
    draws = bootstrap(table, fit(table, "floating_point"), 200)
    for name in ("alpha", "delta", "nu"):
        low, high = np.quantile(draws[name], [0.025, 0.975])
        width = promised.loc[name, "high"] - promised.loc[name, "low"]
        assert width == pytest.approx(high - low, rel=1 / 3), name


def test_more_runs_promise_more() -> None:
    design = chinchilla_runs()
    few = expected_intervals("chinchilla", POWER, design, 1e-3, tables=40)
    many = expected_intervals("chinchilla", POWER, pd.concat([design] * 4), 1e-3, tables=40)
    ratio = (many["high"] - many["low"]) / (few["high"] - few["low"])
    assert ratio["alpha"] == pytest.approx(0.5, rel=0.4)


def test_the_command_reads_a_plan_and_a_pilots_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    chinchilla_runs().to_csv("plan.csv", index=False)
    pilot = {"law": "chinchilla", "parameters": POWER, "noise_floor": {"std_log": None}}
    Path("fit.json").write_text(json.dumps(pilot))

    def run(*arguments: str) -> None:
        typed = ["lowbit-fit", "results=plan.csv", "expect=fit.json", "tables=10", *arguments]
        monkeypatch.setattr(sys, "argv", typed)
        commands.fit()

    run("out=out", "noise=0.001", "where=params > 2e7")
    assert "expected 95 % interval" in capsys.readouterr().out
    written = json.loads(Path("out/expected.json").read_text())
    assert written["runs"] == 24
    assert written["expected"]["alpha"]["low"] < 0.35 < written["expected"]["alpha"]["high"]
    for arguments, said in (
        ((), "noise: the pilot repeated no seed; give noise=0.01"),
        (("noise=-1",), "noise=-1"),
        (("noise=.1", "law=floating_point"), "needs column"),
        (("noise=.1", "where=params > 1e12"), "where=params > 1e12: keeps none of 32 rows"),
    ):
        with pytest.raises(SystemExit) as end:
            run("out=out", *arguments)
        assert end.value.code == 2
        assert said in capsys.readouterr().err


def test_a_design_on_which_the_law_is_not_defined_is_refused() -> None:
    with pytest.raises(FitError):
        expected_intervals("chinchilla", POWER, chinchilla_runs().iloc[:3], 1e-3, tables=5)
