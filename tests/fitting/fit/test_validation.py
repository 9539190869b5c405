"""Held-out rows: predictions by hand, laws told apart, criteria against scipy's likelihoods."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from fitting.fit.search import fit
from fitting.fit.validation import (
    compare_laws,
    hold_out,
    hold_out_largest,
    information,
    leave_one_out,
    roll_out,
)
from fitting.law.terms import FitError
from fitting.laws.published import BESIROGLU_2024, QUARTET_2025
from fitting.laws.synthetic import make_table

SIZES, RATIOS = (3e7, 5e7, 1e8, 2e8), (25.0, 50.0, 100.0, 200.0, 400.0, 800.0)
DESIGN = pd.DataFrame(
    [(n, r * n, "BF16", "BF16") for n in SIZES for r in RATIOS],
    columns=["params", "tokens", "forward", "backward"],
)


def table(noise: float) -> pd.DataFrame:
    return make_table("chinchilla", BESIROGLU_2024, DESIGN, noise, 0)


def test_held_out_errors_are_those_of_a_fit_to_the_others() -> None:
    runs = table(5e-3)
    runs.loc[3, "status"] = "diverged"
    fitted = fit(runs, "chinchilla", delta=1e-2, freeze={"E": 1.8})
    held = runs["params"] == 5e7
    found = hold_out(runs, fitted, held, "middle")
    others = fit(runs[~held], "chinchilla", delta=1e-2, freeze={"E": 1.8})
    predicted = others.law.predict(others.parameters, runs[held])
    assert (found.name, found.trained) == ("middle", 17)
    assert found.errors.to_numpy() == pytest.approx(np.log(runs[held]["loss"] / predicted))
    assert list(found.errors.index) == [6, 7, 8, 9, 10, 11]
    assert found.rms == pytest.approx(np.sqrt(np.mean(found.errors**2)))
    assert found.bias == pytest.approx(found.errors.mean())
    assert found.extrapolation == pytest.approx(5e7**2 / 2e8**2)


def test_the_right_law_predicts_sizes_and_compute_that_it_has_not_seen() -> None:
    runs = table(0.0)
    fitted = fit(runs, "chinchilla")
    sizes = leave_one_out(runs, fitted, runs["params"], "params={}")
    assert [s.name for s in sizes] == [f"params={n}" for n in SIZES]
    assert [s.trained for s in sizes] == [18] * 4
    assert max(s.rms for s in sizes) < 1e-9
    assert [s.extrapolation > 1 for s in sizes] == [False, False, False, True]


def test_growing_sizes_are_predicted_from_smaller_ones_alone() -> None:
    runs = table(1e-3)
    fitted = fit(runs, "chinchilla")
    [last] = roll_out(runs, fitted)
    assert last.trained == 18
    assert last.rms == hold_out(runs, fitted, runs["params"] == 2e8, "200M").rms
    # Of five sizes the fourth does not know the fifth, whatever its losses are.
    more = runs[runs["params"] == 2e8].assign(params=4e8)
    more.index += len(runs)
    other = pd.concat([runs, more.assign(loss=9.9)])
    fourth, fifth = roll_out(other, fit(other, "chinchilla"))
    assert fourth.errors.to_numpy() == pytest.approx(last.errors.to_numpy(), abs=1e-7)
    assert fifth.trained == 24
    assert fifth.rms > 1
    with pytest.raises(FitError, match="3 sizes: each needs 3 smaller ones to follow from"):
        roll_out(runs[runs["params"] < 2e8], fitted)


def test_computes_beyond_64_bit_integers_are_compared() -> None:
    """1e10 parameters and 1e12 tokens are 1e22, a thousand times what 64 bits hold."""
    whole = DESIGN.assign(
        params=(DESIGN["params"] * 50).astype(int), tokens=(DESIGN["tokens"] * 50).astype(int)
    )
    runs = make_table("chinchilla", BESIROGLU_2024, whole, 0.0, 0)
    sizes = leave_one_out(runs, fit(runs, "chinchilla"), runs["params"])
    assert sizes[-1].extrapolation == pytest.approx((2e8 / 1e8) ** 2)
    assert sizes[0].extrapolation == pytest.approx((3e7 / 2e8) ** 2)


def test_the_largest_runs_are_those_of_the_most_compute() -> None:
    runs = table(0.0).sample(frac=1, random_state=0)
    found = hold_out_largest(runs, fit(runs, "chinchilla"), share=0.15)
    compute = runs["params"] * runs["tokens"]
    assert set(found.errors.index) == set(compute.nlargest(4).index)  # 15 % of 24, rounded up
    assert found.rms < 1e-9
    assert found.extrapolation == pytest.approx(compute.max() / compute.nlargest(5).min())


def test_runs_of_the_same_compute_are_held_out_together() -> None:
    runs = table(1e-3)
    few = runs[(runs["tokens"] / runs["params"]).isin([25.0, 100.0, 400.0])]
    found = hold_out_largest(few, fit(few, "chinchilla"), share=0.1)
    # N^2 D/N of 1e8 at 400 is that of 2e8 at 100; above it there is 2e8 at 400 alone, 1 of 12.
    assert len(found.errors) == 3


def test_a_law_that_is_right_wins_where_it_counts() -> None:
    truth = {n: v for n, v in QUARTET_2025.items() if not n.startswith("eff")}
    runs = make_table("quartet", truth, DESIGN, 2e-4, 0)
    compared = compare_laws(runs, ["chinchilla", "quartet"], delta=1e-4)
    assert list(compared["law"]) == ["quartet", "chinchilla"]
    right, wrong = compared.iloc[0], compared.iloc[1]
    assert right["aic"] < wrong["aic"] - 10
    assert right["bic"] < wrong["bic"] - 10
    assert right["rms_largest"] < wrong["rms_largest"]
    assert right["sizes_won"] + wrong["sizes_won"] == right["sizes"] == 4
    assert right["sizes_won"] >= 3


def test_sizes_that_some_law_cannot_predict_do_not_count() -> None:
    design = DESIGN.assign(forward=np.where(DESIGN["params"] == 1e8, "Quartet", "BF16"))
    truth = {n: v for n, v in QUARTET_2025.items() if n != "eff_D[Quartet]"}
    runs = make_table("quartet", truth, design, 1e-3, 0)
    compared = compare_laws(runs, ["chinchilla", "quartet"]).set_index("law")
    assert list(compared["sizes"]) == [3, 3]  # nobody else tells what the scheme of 1e8 costs
    others = [fit(runs[runs["params"] != n], "chinchilla") for n in (3e7, 5e7, 2e8)]
    errors = pd.concat(
        np.log(held["loss"] / other.law.predict(other.parameters, held))
        for other, n in zip(others, (3e7, 5e7, 2e8), strict=True)
        for held in [runs[runs["params"] == n]]
    )
    rms = compared.loc["chinchilla", "rms_sizes"]
    assert rms == pytest.approx(np.sqrt(np.mean(errors**2)), rel=1e-6)
    one = runs[runs["params"] == 2e8]
    twice = pd.concat([one, one.assign(loss=one["loss"] * 1.001)], ignore_index=True)
    lone = compare_laws(twice, ["quartet", "chinchilla"])
    assert lone["sizes"].tolist() == [0, 0]
    assert lone["rms_sizes"].isna().all()
    assert lone["bic"].is_monotonic_increasing


def test_a_parameter_that_does_nothing_is_charged_for() -> None:
    # A power of one is Chinchilla's form: the objective can only gain by chance, BIC charges
    # log(24) = 3.2 for it.  20 tables: the gain, chi-squared with one degree of freedom, is above
    # 3.2 in 7 % of them; more than 6 of 20 with a chance of 3e-4.
    lost = 0
    for seed in range(20):
        runs = make_table("chinchilla", BESIROGLU_2024, DESIGN, 2e-3, seed)
        plain, bent = (
            information(runs, fit(runs, law, objective="least_squares", starts=16))[1]
            for law in ("chinchilla", "quartet")
        )
        lost += bent < plain
    assert lost <= 6


def test_criteria_are_those_of_scipys_likelihoods() -> None:
    runs = table(5e-3)
    for objective, family in (("least_squares", stats.norm), ("lad", stats.laplace)):
        fitted = fit(runs, "chinchilla", objective=objective)
        residual = fitted.residuals
        size = residual.abs().mean() if objective == "lad" else np.sqrt((residual**2).mean())
        likelihood = family.logpdf(residual, scale=size).sum()
        assert information(runs, fitted) == pytest.approx(
            (2 * 6 - 2 * likelihood, np.log(24) * 6 - 2 * likelihood), rel=1e-9
        )


def test_hubers_criteria_lie_between_and_reach_both_ends() -> None:
    runs = table(5e-3)
    ends = {o: information(runs, fit(runs, "chinchilla", objective=o)) for o in ("lad",)}
    ends["least_squares"] = information(runs, fit(runs, "chinchilla", objective="least_squares"))
    wide, narrow = (fit(runs, "chinchilla", delta=d) for d in (1.0, 1e-7))
    assert information(runs, wide) == pytest.approx(ends["least_squares"], rel=1e-6)
    assert information(runs, narrow) == pytest.approx(ends["lad"], rel=1e-4)
    # Between: the density integrates to one at the scale that was found.
    fitted = fit(runs, "chinchilla", delta=5e-3)
    r, step = np.linspace(-0.2, 0.2, 200_001, retstep=True)
    clipped, mean = np.clip(r, -5e-3, 5e-3), fitted.objective.value / 24
    rho = clipped * (r - clipped / 2)
    scales = mean * np.geomspace(0.5, 4, 4001)
    likelihoods = [-mean / s - np.log(np.exp(-rho / s).sum() * step) for s in scales]
    assert information(runs, fitted)[0] == pytest.approx(12 - 48 * max(likelihoods), rel=1e-6)


def test_what_cannot_be_held_out_is_refused() -> None:
    runs = table(1e-3)
    fitted = fit(runs, "chinchilla")
    with pytest.raises(FitError, match="hold out none: no usable row is held out"):
        hold_out(runs, fitted, runs["params"] < 0, "none")
    with pytest.raises(FitError, match="5 free parameters need at least 6"):
        hold_out(runs, fitted, pd.Series(runs.index >= 5, runs.index), "all but five")
    one = runs[runs["params"] == 1e8]
    with pytest.raises(FitError, match=r"only one \(params=100000000.0\): nothing to leave"):
        leave_one_out(one, fit(one, "chinchilla"), one["params"], "params={}")
    with pytest.raises(FitError, match="share=1.5: must be between 0 and 1"):
        hold_out_largest(runs, fitted, 1.5)
    with pytest.raises(FitError, match="1 law to compare: give at least two"):
        compare_laws(runs, ["chinchilla"])


def test_a_scheme_that_only_held_out_rows_have_cannot_be_predicted() -> None:
    design = DESIGN.assign(forward=np.where(DESIGN["params"] == 2e8, "Quartet", "BF16"))
    truth = {n: v for n, v in QUARTET_2025.items() if n != "eff_D[Quartet]"}
    runs = make_table("quartet", truth, design, 1e-4, 0)
    fitted = fit(runs, "quartet", delta=1e-4, starts=16)
    with pytest.raises(FitError, match=r"no value for eff_N\[Quartet\], forward has it"):
        hold_out(runs, fitted, runs["params"] == 2e8, "largest")
    frozen = fit(runs, "quartet", delta=1e-4, freeze={"eff_N[Quartet]": 0.65}, starts=16)
    found = hold_out(runs, frozen, runs["params"] == 2e8, "largest")
    assert found.rms < 5e-3


def test_where_all_runs_cost_the_same_there_is_no_largest() -> None:
    runs = table(5e-3).assign(params=1e8, tokens=1e10)
    with pytest.raises(FitError, match="all runs have the same compute"):
        hold_out_largest(runs, fit(runs, "chinchilla", freeze={"alpha": 0.3, "beta": 0.3}))
