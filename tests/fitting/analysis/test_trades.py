"""What precision is worth: worked numbers of the published law, minimisers, honest marks."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import minimize

from fitting.analysis.critical import critical_tokens
from fitting.analysis.trades import (
    compute_optimal,
    effective_params,
    effective_params_of_format,
    gamma_d,
    gamma_n,
    gamma_rho,
    gamma_size,
    optimal_bits_for_params,
    optimal_bits_for_tokens,
    optimal_precision_term,
    tokens_for_equal_loss,
)
from fitting.fit.bootstrap import bootstrap
from fitting.fit.result import Fit
from fitting.fit.search import fit
from fitting.law.curves import Array
from fitting.law.terms import FitError
from fitting.laws.catalogue import LAWS
from fitting.laws.published import SUN_2025
from fitting.laws.synthetic import SUN_TOKENS, make_table, sun_design
from tests.support.fits import derived_json

LAW = LAWS["floating_point"]


def loss(params: float, tokens: float, bits: float, block_size: float = 128) -> float:
    """Loss of the published law at the best split of P bits, from its terms."""
    unquantized = pd.DataFrame(
        {"params": [params], "tokens": tokens, "exponent": 8, "mantissa": 7, "block_size": 1}
    )
    full = float(LAW.predict(SUN_2025, unquantized)[0])
    return full + float(optimal_precision_term(SUN_2025, params, tokens, bits, block_size))


def run(params: float, tokens: float, exponent: float, mantissa: float, block: float) -> float:
    """The published law's loss."""
    columns = {"exponent": exponent, "mantissa": mantissa, "block_size": block}
    table = pd.DataFrame({"params": [params], "tokens": tokens, **columns})
    return float(LAW.predict(SUN_2025, table)[0])


def test_derived_constants_are_the_worked_ones() -> None:
    derived_constants = [f(SUN_2025) for f in (gamma_rho, gamma_n, gamma_d, gamma_size)]
    worked = [160.697239, 11125.7608, 2.24327962e-3, 1.16458290e-6]
    assert derived_constants == pytest.approx(worked, rel=1e-6)


@pytest.mark.parametrize(("tokens", "bits"), [(1e10, 3.51794), (1e11, 4.26841), (1e12, 5.17897)])
def test_optimal_bits_for_given_data_are_the_worked_ones(tokens: float, bits: float) -> None:
    assert optimal_bits_for_tokens(SUN_2025, tokens, 128) == pytest.approx(bits, abs=1e-5)


@pytest.mark.parametrize(("cost", "bits"), [(1e21, 6.04260), (1e24, 16.31663)])
def test_optimal_bits_for_a_given_size_are_the_worked_ones(cost: float, bits: float) -> None:
    assert optimal_bits_for_params(SUN_2025, 1e9, cost, 128) == pytest.approx(bits, abs=1e-4)


@pytest.mark.parametrize(
    ("cost", "bits", "params", "tokens", "best"),
    [
        (1e20, 3.94922, 1.704e9, 3.963e10, 2.60866),
        (1e21, 4.19025, 7.930e9, 8.025e10, 2.39422),
        (1e31, 7.57763, 3.786e16, 9.295e13, 1.91889),
    ],
)
def test_joint_optima_are_the_worked_ones(
    cost: float, bits: float, params: float, tokens: float, best: float
) -> None:
    found = compute_optimal(SUN_2025, cost, 128)
    assert found[0] == pytest.approx(bits, abs=1e-5)
    assert found[1:] == pytest.approx((params, tokens), rel=5e-4)  # printed to four digits
    assert loss(found[1], found[2], found[0]) == pytest.approx(best, abs=1e-5)
    assert 6 / 16 * math.prod(found) == pytest.approx(cost, rel=1e-12)


@pytest.mark.parametrize("cost", [1e18, 1e24])
def test_joint_optimum_is_what_a_minimiser_finds(cost: float) -> None:
    bits, params, tokens = compute_optimal(SUN_2025, cost, 128)

    def objective(x: Array) -> float:
        p, n = np.exp(x)
        return loss(n, cost / (6 / 16 * p * n), p)

    start = np.log([bits * 1.3, params / 3])
    found = minimize(
        objective,
        start,
        method="Nelder-Mead",
        options={"xatol": 1e-10, "fatol": 1e-15, "maxiter": 4000},
    )
    # A loss exact to 1e-15 has a flat bottom of about the root of that in relative position.
    assert np.exp(found.x) == pytest.approx([bits, params], rel=1e-5)
    data = cost / (6 / 16 * bits * params)
    assert data == pytest.approx(tokens, rel=1e-12)


@pytest.mark.parametrize("fixed", ["tokens", "params"])
def test_partial_optima_are_what_a_search_finds(fixed: str) -> None:
    cost, size, data = 1e21, 3e9, 2e11
    grid = np.linspace(2, 14, 120_001)
    if fixed == "tokens":
        expected = optimal_bits_for_tokens(SUN_2025, data, 128)
        n, d = cost / (6 / 16 * grid * data), np.full_like(grid, data)
    else:
        expected = optimal_bits_for_params(SUN_2025, size, cost, 128)
        n, d = np.full_like(grid, size), cost / (6 / 16 * grid * size)
    p = SUN_2025
    losses = p["n"] / n ** p["alpha"] + p["d"] / d ** p["beta"]
    losses += d ** p["beta"] / n ** p["alpha"] * 7 / (gamma_rho(p) * grid ** (p["delta"] + p["nu"]))
    assert grid[losses.argmin()] == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(("bits", "share"), [(4, 0.782722), (8, 0.996448), (16, 0.999950)])
def test_effective_parameters_are_the_worked_ones(bits: float, share: float) -> None:
    assert effective_params(SUN_2025, 1e11, bits, 128) == pytest.approx(share, abs=1e-6)


def test_the_best_split_is_the_best_format_where_bits_may_be_fractions() -> None:
    e = SUN_2025["delta"] * 8 / (SUN_2025["delta"] + SUN_2025["nu"]) - 0.5
    share = effective_params_of_format(SUN_2025, 1e11, e, 7 - e, 128)
    assert share == pytest.approx(effective_params(SUN_2025, 1e11, 8, 128), rel=1e-12)


def test_effective_parameters_give_the_same_loss_unquantized() -> None:
    share = effective_params_of_format(SUN_2025, 1e11, 2, 1, 128)
    unquantized = run(1e9 * share, 1e11, 2, 1, 1)
    assert run(1e9, 1e11, 2, 1, 128) == pytest.approx(unquantized, rel=1e-13)
    assert run(1e9 / share, 1e11, 2, 1, 128) == pytest.approx(run(1e9, 1e11, 2, 1, 1), rel=1e-13)


def test_more_tokens_make_up_for_a_format_until_none_do() -> None:
    size, crit = 1e9, critical_tokens(SUN_2025, 1e9, 2, 1, 128)
    limit = crit * 0.25 ** (1 / (2 * SUN_2025["beta"]))
    for tokens in (1e-3 * limit, 0.5 * limit, limit * (1 - 1e-9)):
        factor = tokens_for_equal_loss(SUN_2025, size, tokens, 2, 1, 128)
        low, full = run(size, tokens * factor, 2, 1, 128), run(size, tokens, 2, 1, 1)
        assert low == pytest.approx(full, rel=1e-12)
        assert 1 < factor <= 2 ** (1 / SUN_2025["beta"])  # where r = 1/4, u = 2
        assert tokens * factor <= crit * (1 + 1e-4)
    assert tokens_for_equal_loss(SUN_2025, size, limit * (1 + 1e-6), 2, 1, 128) == math.inf
    assert run(size, crit, 2, 1, 128) > run(size, limit * (1 + 1e-6), 2, 1, 1)


def test_draws_give_what_their_numbers_give_one_by_one() -> None:
    single = [SUN_2025, {name: 1.05 * v for name, v in SUN_2025.items()}]
    both = {name: np.array([p[name] for p in single]) for name in SUN_2025}
    functions: list[Callable[[Any], Any]] = [
        lambda p: optimal_bits_for_tokens(p, 1e11, 32),
        lambda p: optimal_bits_for_params(p, 1e8, 1e20, 32),
        lambda p: compute_optimal(p, 1e20, 32)[1],
        lambda p: effective_params(p, 1e11, 4, 32),
        lambda p: effective_params_of_format(p, 1e11, 2, 1, 32),
        lambda p: tokens_for_equal_loss(p, 1e9, 1e10, 2, 1, 32),
    ]
    for function in functions:
        assert function(both) == pytest.approx([function(p) for p in single], rel=1e-12)


def test_without_blocks_there_is_no_optimum() -> None:
    with pytest.raises(FitError, match="block_size=1: must be above 1, else nothing is quantized"):
        optimal_bits_for_tokens(SUN_2025, 1e11, 1)


# --- tables -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return make_table("floating_point", SUN_2025, sun_design(), noise=2e-3, seed=4)


@pytest.fixture(scope="module")
def fitted(table: pd.DataFrame) -> Fit:
    return fit(table, "floating_point", starts=8)


@pytest.fixture(scope="module")
def draws(table: pd.DataFrame, fitted: Fit) -> pd.DataFrame:
    return bootstrap(table, fitted, draws=200)


def test_costs_hold_the_truth_within_their_intervals(
    table: pd.DataFrame, fitted: Fit, draws: pd.DataFrame
) -> None:
    entries = derived_json(fitted, draws, table)["cost_of_precision"]
    assert len(entries) == 4 * 21
    for entry in entries:
        e, m = map(int, entry["format"][1:].split("M"))
        arguments = (entry["tokens"], e, m, entry["block_size"])
        assert entry["tokens"] == SUN_TOKENS[1]
        low, high = entry["effective_params_interval"]
        exact = effective_params_of_format(SUN_2025, *arguments)
        # 95 % intervals are 4 standard errors wide: one and a half of them is 6 (p = 2e-9).
        assert abs(entry["effective_params"] - exact) < 1.5 * (high - low)
        assert low <= entry["effective_params"] <= high
        assert entry["params_factor"] == pytest.approx(1 / entry["effective_params"])
        assert entry["params_factor_interval"] == pytest.approx([1 / high, 1 / low])
        factor = tokens_for_equal_loss(fitted.parameters, entry["params"], *arguments)
        assert entry["tokens_factor"] == (factor if math.isfinite(factor) else None)
        beyond = entry["tokens"] * factor > table["tokens"].max()
        # Down to N_eff or up to N/share: one of the two is within the table's sizes.
        share = entry["effective_params"]
        small, large = entry["params"] * share, entry["params"] / share
        beyond |= small < table["params"].min() and large > table["params"].max()
        assert entry["extrapolated"] == beyond
    assert {e["extrapolated"] for e in entries} == {True, False}


def test_optima_are_marked_where_no_run_went_and_where_bits_end(
    table: pd.DataFrame, fitted: Fit, draws: pd.DataFrame
) -> None:
    found = derived_json(fitted, draws, table)["optimal_precision"]
    blocks = {e["block_size"] for kind in found.values() for e in kind}
    assert blocks == {2.0**13.1567}  # the most common: a scale per channel
    for entry in found["fixed_tokens"]:
        exact = optimal_bits_for_tokens(SUN_2025, entry["tokens"], entry["block_size"])
        low, high = entry["bits_interval"]
        assert abs(entry["bits"] - exact) < 1.5 * (high - low)
        assert not entry["extrapolated"]
    assert len(found["joint"]) == 5
    assert len(found["fixed_params"]) == 5 * 4
    assert {e["extrapolated"] for e in found["joint"]} == {True, False}
    small = [e for e in found["fixed_params"] if e["params"] == table["params"].min()]
    assert small[-1]["clamped"]
    assert small[-1]["bits"] == 16
    assert small[-1]["unclamped"] > 16
    for entry in [*found["joint"], *found["fixed_params"]]:
        inside = all(
            table[c].min() * (1 - 1e-9) <= entry[c] <= table[c].max() * (1 + 1e-9)
            for c in ("params", "tokens")
        )
        assert entry["extrapolated"] == (not (inside and 3 <= entry["unclamped"] <= 10))
        if not entry["clamped"]:
            cost = 6 / 16 * entry["bits"] * entry["params"] * entry["tokens"]
            assert cost == pytest.approx(entry["cost"], rel=1e-9)


def test_the_costs_constant_is_a_unit_and_changes_no_optimum(
    table: pd.DataFrame, fitted: Fit
) -> None:
    ours, theirs = (derived_json(fitted, None, table, cost_k=k) for k in (6 / 16, 0.75))
    for kind in ("fixed_params", "joint"):
        pairs = (found["optimal_precision"][kind] for found in (ours, theirs))
        for one, two in zip(*pairs, strict=True):
            assert two["cost"] == pytest.approx(2 * one["cost"], rel=1e-12)
            for key in ("bits", "params", "tokens"):
                assert two[key] == pytest.approx(one[key], rel=1e-9)
    assert (ours["cost_k"], theirs["cost_k"]) == (6 / 16, 0.75)


def test_draws_without_an_optimum_do_not_disturb(
    table: pd.DataFrame, fitted: Fit, draws: pd.DataFrame
) -> None:
    # Precision that does not matter (delta = nu = 0): the fewest bits are best.
    odd = draws.assign(delta=0.0, nu=0.0)
    entries = derived_json(fitted, odd, table)["optimal_precision"]["fixed_tokens"]
    assert all(e["bits_interval"] == [1.0, 1.0] for e in entries)


def test_nothing_is_concluded_where_the_table_says_nothing() -> None:
    unquantized = make_table(
        "floating_point", SUN_2025, sun_design().assign(block_size=1.0), 1e-3, 0
    )
    fitted = fit(unquantized, "floating_point", starts=4)
    found = derived_json(fitted, None, unquantized)
    assert found["cost_of_precision"] == []
    assert found["optimal_precision"] == {}
    assert "cost_k" not in found
