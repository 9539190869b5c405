"""Profile intervals: Student's where these are exact, the bootstrap's elsewhere, open ends."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from fitting.fit.bootstrap import bootstrap, intervals
from fitting.fit.profile import profile_intervals
from fitting.fit.search import fit
from fitting.law.terms import COEFFICIENT, FitError, Law, Term
from fitting.laws.published import BESIROGLU_2024
from fitting.laws.synthetic import make_table

CONSTANT = Law(
    "constant", "one number", lambda c: [Term({"E": 1})], {"tokens": 0.0}, {"E": COEFFICIENT}
)


def constant(rows: int) -> pd.DataFrame:
    noise = np.random.default_rng(0).normal(scale=0.01, size=rows)
    return pd.DataFrame({"tokens": 1.0, "loss": 3 * np.exp(noise)})


def chinchilla(
    noise: float, truth: dict[str, float] = BESIROGLU_2024, seed: int = 0
) -> pd.DataFrame:
    n, d = np.meshgrid(np.geomspace(5e7, 1e10, 7), np.geomspace(1e9, 3e11, 6))
    design = pd.DataFrame({"params": n.ravel(), "tokens": d.ravel()})
    return make_table("chinchilla", truth, design, noise, seed)


def test_the_interval_of_a_mean_is_students() -> None:
    table = constant(12)
    logs = np.log(table["loss"])
    low, high = profile_intervals(table, fit(table, CONSTANT, objective="least_squares"))["E"]
    expected = stats.t.interval(0.95, 11, logs.mean(), logs.std(ddof=1) / math.sqrt(12))
    # Ends are found to 1e-3 of the half width.
    error = 1.1e-3 * (expected[1] - expected[0]) / 2
    assert (math.log(low), math.log(high)) == pytest.approx(expected, abs=error)


@pytest.mark.parametrize(("objective", "delta"), [("lad", 1.0), ("huber", 1e-4), ("huber", 0.01)])
def test_robust_intervals_have_their_asymptotic_width(objective: str, delta: float) -> None:
    # 4,000 normal residuals of sd .01: the variance of the estimate is E psi^2 / (E psi')^2 / n.
    # psi' is a share of 760 rows or more: its error is 4 %, and 12 % three times that.
    table = constant(4000)
    fitted = fit(table, CONSTANT, objective=objective, delta=delta, starts=4)
    low, high = profile_intervals(table, fitted)["E"]
    cut = 1e-7 if objective == "lad" else delta
    r = np.linspace(-0.08, 0.08, 1_000_001)
    density = stats.norm.pdf(r, scale=0.01) * (r[1] - r[0])
    squares = float(density @ np.minimum(np.abs(r), cut) ** 2)
    inside = 2 * stats.norm.cdf(cut / 0.01) - 1
    expected = 1.96 * math.sqrt(squares / 4000) / inside
    assert math.log(high / low) / 2 == pytest.approx(expected, rel=0.12)


def test_profiles_agree_with_the_bootstrap_where_residuals_are_alike() -> None:
    # 1,000 draws: an end of an interval is known to 4 % of the half width; 42 rows more or less
    # alike make the two methods differ by some 15 %.
    table = chinchilla(2e-3)
    fitted = fit(table, "chinchilla", objective="least_squares")
    profiles, drawn = (
        profile_intervals(table, fitted),
        intervals(bootstrap(table, fitted, draws=1000)),
    )
    for name, (low, high) in profiles.items():
        assert low < fitted.parameters[name] < high
        assert high - low == pytest.approx(drawn[name][1] - drawn[name][0], rel=0.35)


def test_an_end_is_where_the_frozen_fit_has_risen_to_the_limit() -> None:
    table = chinchilla(2e-3)
    fitted = fit(table, "chinchilla", objective="least_squares")
    [(name, ends)] = profile_intervals(table, fitted, ("beta",)).items()
    limit = fitted.objective.value * (1 + stats.t.ppf(0.975, 37) ** 2 / 37)
    for end in ends:
        held = fit(table, "chinchilla", objective="least_squares", freeze={name: end})
        rise = held.objective.value - fitted.objective.value
        # A parabola's slope at its end turns 1e-3 of the half width into 2e-3 of the rise.
        assert rise == pytest.approx(limit - fitted.objective.value, rel=3e-3)


def test_a_term_that_the_data_do_not_need_has_an_open_end() -> None:
    table = chinchilla(1e-2, {**BESIROGLU_2024, "A": 30.0, "B": 100.0, "E": 1e-7}, seed=1)
    fitted = fit(table, "chinchilla")
    low, high = profile_intervals(table, fitted, ("E",))["E"]
    assert low == 0
    assert 0 < high < table["loss"].min()


def test_bounds_end_an_interval_and_frozen_parameters_have_none() -> None:
    table = chinchilla(2e-3)
    best = fit(table, "chinchilla").parameters["alpha"]
    fitted = fit(table, "chinchilla", bounds={"alpha": (best - 1e-4, best + 1e-4)}, starts=8)
    assert profile_intervals(table, fitted, ("alpha",))["alpha"] == pytest.approx(
        (best - 1e-4, best + 1e-4), rel=1e-12
    )
    frozen = fit(table, "chinchilla", freeze={"E": 1.8}, starts=8)
    assert set(profile_intervals(table, frozen)) == {"A", "alpha", "B", "beta"}
    with pytest.raises(FitError, match="profile: E is not a free parameter; there are A, alpha"):
        profile_intervals(table, frozen, ("E",))


def test_flat_directions_and_two_kinds_of_runs_are_no_crash() -> None:
    runs = chinchilla(2e-3)
    lone = runs[runs["params"] == runs["params"].iloc[0]]
    fitted = fit(lone, "chinchilla", freeze={"A": 482.0})
    assert set(fitted.flat) == {"alpha", "E"}
    low, high = profile_intervals(lone, fitted, ("alpha",))["alpha"]
    assert high == fitted.law.parameters["alpha"].bounds[1], "E takes over"
    # Below, A/N^alpha alone would be more than the loss without end of data, and E is positive.
    p, n = fitted.parameters, lone["params"].iloc[0]
    limit = math.log(p["A"] / (p["A"] * n ** -p["alpha"] + p["E"])) / math.log(n)
    assert low == pytest.approx(limit, abs=0.01)  # 0.01 is 18 % of that loss
    twice = pd.concat([runs, runs.assign(loss=9.0)], ignore_index=True)
    with pytest.raises(FitError, match="profile: no residual is near zero"):
        profile_intervals(twice, fit(twice, "chinchilla"))


def test_as_many_rows_as_parameters_leave_nothing_to_judge_by() -> None:
    few = chinchilla(2e-3).iloc[[0, 5, 20, 30, 41]]
    held = fit(few, "chinchilla", freeze={"E": 1.8}, starts=8)
    with pytest.raises(FitError, match="profile: 5 rows for 5 free parameters"):
        profile_intervals(few, replace(held, frozen=()))


@pytest.mark.parametrize(("seed", "irreducible"), [(8, 0.0), (9, 0.0), (9, 1.0)])
def test_where_a_term_has_vanished_ends_are_where_blind_fits_say(
    seed: int, irreducible: float
) -> None:
    n, d = np.meshgrid([3e7, 6e7, 1.2e8, 2.5e8, 5e8, 1e9], [1e9, 3e9, 1e10, 3e10], indexing="ij")
    truth = {"A": 30.0, "alpha": 0.18} if irreducible else {"A": 8.0, "alpha": 0.08}
    truth |= {"B": 400.0, "beta": 0.3, "E": max(irreducible, 1e-12)}
    design = pd.DataFrame({"params": n.ravel(), "tokens": d.ravel()})
    table = make_table("chinchilla", truth, design, 0.04, seed)
    how: dict[str, Any] = {"objective": "least_squares", "starts": 8}
    fitted = fit(table, "chinchilla", **how)
    assert fitted.at_bound == ("E",)
    limit = fitted.objective.value * stats.t.ppf(0.975, 19) ** 2 / 19
    found = profile_intervals(table, fitted, ("E", "B"))
    assert found["E"][0] == 0
    assert found["E"][1] < table["loss"].median()
    for name, ends in found.items():
        for end in ends:
            if 0 < end < math.inf:
                held = fit(table, "chinchilla", freeze={name: end}, **how)
                rise = held.objective.value - fitted.objective.value
                assert rise == pytest.approx(limit, rel=0.01), name
