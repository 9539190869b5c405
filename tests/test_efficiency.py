"""Efficiencies: worked numbers of the published laws, the map and its crossovers."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pandas as pd
import pytest

from fitting.analysis import derived
from fitting.efficiency import (
    best_precision,
    budget_losses,
    capacity_after,
    compressed_capacity,
    crossover,
    kumar_capacity,
    kumar_optimal_bits,
    ptq_critical_tokens,
    quartet_loss,
    training_speedup,
)
from fitting.fit import fit
from fitting.law import FitError
from fitting.laws import KUMAR_2024, KUMAR_2024_PTQ, LAWS, OPERANDS, QAT_2025, QUARTET_2025
from fitting.synthetic import make_table
from fitting.uncertainty import bootstrap

WITHOUT_OFFSETS = KUMAR_2024 | {f"n_{x}": 0.0 for x in OPERANDS}
MEAN = sum(KUMAR_2024[f"gamma_{x}"] for x in OPERANDS) / 3
ONE_SCALE = WITHOUT_OFFSETS | {f"gamma_{x}": MEAN for x in OPERANDS}


# --- Quartet ----------------------------------------------------------------------------------


def test_training_is_one_third_forward() -> None:
    assert training_speedup(1, 1) == 1
    assert [training_speedup(*s) for s in ((2, 1), (1, 2), (2, 2))] == [1.2, 1.5, 2]


def test_the_formula_is_the_fitted_law() -> None:
    runs = pd.DataFrame(
        {"params": [1e8, 8e9], "tokens": [1e10, 15e12], "forward": "Quartet", "backward": "Quartet"}
    )
    direct = quartet_loss(QUARTET_2025, runs["params"], runs["tokens"], 0.65, 0.95)
    assert LAWS["quartet"].predict(QUARTET_2025, runs) == pytest.approx(direct, rel=1e-13)


def test_the_large_budget_is_the_worked_one() -> None:
    losses = budget_losses(QUARTET_2025, 0.65, 0.95, 8e9, 15e12)
    assert losses["FP8:FP8"] == pytest.approx(2.040623, abs=1e-5)
    assert losses["FP4:FP8"] == pytest.approx(2.025157, abs=1e-5)
    assert best_precision(QUARTET_2025, 0.65, 0.95, 8e9, 15e12) == "FP4:FP4"
    assert best_precision(QUARTET_2025, 0.65, 0.95, 8e9, 15e12, 1.0, 1.0) == "FP8:FP8"


@pytest.mark.parametrize(("eff_n", "eff_d", "ratio"), [(0.65, 0.95, 85.5), (0.64, 0.93, 96.9)])
def test_crossovers_are_the_worked_ones(eff_n: float, eff_d: float, ratio: float) -> None:
    found = crossover(QUARTET_2025, eff_n, eff_d, 1e8)
    assert found == pytest.approx(ratio, rel=5e-3)
    arguments = (QUARTET_2025, eff_n, eff_d, 1e8)
    assert best_precision(*arguments, 1e8 * found * 1.001) == "FP4:FP4"
    assert best_precision(*arguments, 1e8 * found * 0.999) == "FP8:FP4"


def test_crossovers_that_do_not_exist_are_zero_or_infinite() -> None:
    # Speed for nothing always pays; a scheme that loses more than it gains never does.
    both = ("FP8:FP4", "FP8:FP8")
    assert crossover(QUARTET_2025, 1.0, 1.0, 1e8, both) == 0
    assert crossover(QUARTET_2025, 1.0, 0.5, 1e8, both) == math.inf


def test_draws_give_what_their_numbers_give_one_by_one() -> None:
    p = {n: np.array([v, 1.01 * v]) for n, v in QUARTET_2025.items()}
    single = [{n: float(v[i]) for n, v in p.items()} for i in range(2)]
    found = crossover(p, np.array([0.65, 0.64]), np.array([0.95, 0.93]), 1e8)
    one = [crossover(single[0], 0.65, 0.95, 1e8), crossover(single[1], 0.64, 0.93, 1e8)]
    assert found == pytest.approx(one, rel=1e-12)
    k = {n: np.array([v, 1.01 * v]) for n, v in KUMAR_2024.items()}
    one = [kumar_optimal_bits({n: float(v[i]) for n, v in k.items()}) for i in range(2)]
    assert kumar_optimal_bits(k) == pytest.approx(one, rel=1e-12)


def test_the_map_of_a_fit_holds_the_truth() -> None:
    sizes, ratios = (3e7, 5e7, 1e8, 2e8), (25, 50, 100, 200, 400, 800)
    schemes = itertools.product(("BF16", "FP4"), ("BF16", "FP4", "INT4"))
    rows = [
        (n, r * n, *s) for (n, r), s in itertools.product(itertools.product(sizes, ratios), schemes)
    ]
    design = pd.DataFrame(rows, columns=["params", "tokens", "forward", "backward"])
    truth = {n: v for n, v in QUARTET_2025.items() if not n.startswith("eff")}
    truth |= {"eff_N[FP4]": 0.65, "eff_D[FP4]": 0.95, "eff_D[INT4]": 0.5}
    table = make_table("quartet", truth, design, 5e-4, 0)
    fitted = fit(table, "quartet", starts=8)
    draws = bootstrap(table, fitted, 200)
    result = json.loads(json.dumps(derived(fitted, draws, table), allow_nan=False))

    assert (result["forward"], result["backward"]) == ("eff_N[FP4]", "eff_D[FP4]")
    costs = {c["scheme"]: c for c in result["cost_of_precision"]}
    # 95 % intervals are 4 standard errors wide: one and a half of them is 6 (p = 2e-9).
    low, high = costs["eff_N[FP4]"]["params_factor_interval"]
    assert abs(costs["eff_N[FP4]"]["params_factor"] - 1 / 0.65) < 1.5 * (high - low)
    low, high = costs["eff_D[INT4]"]["tokens_factor_interval"]
    assert abs(costs["eff_D[INT4]"]["tokens_factor"] - 2) < 1.5 * (high - low)

    for entry in result["crossovers"]:
        exact = crossover(truth, 0.65, 0.95, entry["params"])
        low, high = entry["interval"]
        assert low < entry["tokens_per_param"] < high
        assert abs(entry["tokens_per_param"] - exact) < 1.5 * (high - low)
        assert high / low < 1.5
        # FP4 forward is a model twice as large, and 2e8 is the largest there is.
        assert entry["extrapolated"] == (entry["params"] > 1e8)
    assert len(result["map"]) == 4 * 6
    for entry in result["map"]:
        ratio = entry["tokens"] / entry["params"]
        exact = crossover(truth, 0.65, 0.95, entry["params"])
        if not 0.8 < ratio / exact < 1.25:
            assert entry["best"] == ("FP4:FP4" if ratio > exact else "FP8:FP4")
            assert entry["shares"] == {entry["best"]: 1.0}
        assert sum(entry["shares"].values()) == pytest.approx(1)
    at = {(e["params"], e["tokens"]): e for e in result["map"]}
    assert at[2e8, 800 * 2e8]["extrapolated"]
    assert not at[5e7, 800 * 5e7]["extrapolated"]

    # A shorter derivation without draws: the same, but for what draws are needed for.
    bare = derived(fitted, None, table)
    assert [e["best"] for e in bare["map"]] == [e["best"] for e in result["map"]]
    assert all(e["shares"] == {} for e in bare["map"])
    assert all(e["interval"] == [None, None] for e in bare["crossovers"])


# --- Kumar, QAT, compression ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bits", "share"), [(6, 0.61129), (8, 0.82776), (12, 0.96707), (16, 0.99366)]
)
def test_capacities_with_offsets_are_the_worked_ones(bits: float, share: float) -> None:
    all_three = dict.fromkeys(OPERANDS, bits)
    assert kumar_capacity(KUMAR_2024, all_three) == pytest.approx(share, abs=1e-5)


@pytest.mark.parametrize(("bits", "share"), [(4, 0.63892), (8, 0.92411), (16, 0.99676)])
def test_capacities_without_offsets_are_the_worked_ones(bits: float, share: float) -> None:
    all_three = dict.fromkeys(OPERANDS, bits)
    assert kumar_capacity(WITHOUT_OFFSETS, all_three) == pytest.approx(share, abs=1e-5)


def test_too_few_bits_leave_no_capacity() -> None:
    # gamma_a n_a = 2.2102 * 1.4072 = 3.11: three bits are too few for activations.
    with pytest.raises(FitError, match=r"bits_a=3: N_eff.*above gamma_a n_a = 3.11 bits"):
        kumar_capacity(KUMAR_2024, dict.fromkeys(OPERANDS, 3))


@pytest.mark.parametrize(
    ("parameters", "bits"),
    [(KUMAR_2024, 7.0021), (WITHOUT_OFFSETS, 3.4688), (ONE_SCALE, 3.7077)],
    ids=["offsets", "no offsets", "one scale"],
)
def test_optimal_bits_are_the_worked_ones(parameters: dict[str, float], bits: float) -> None:
    assert kumar_optimal_bits(parameters) == pytest.approx(bits, abs=1e-3)


@pytest.mark.parametrize("cost", [1e18, 1e24])
def test_optimal_bits_are_those_of_least_loss_at_any_cost(cost: float) -> None:
    # At each P the best N for N D = C/(k P), from the law's two power terms; then the best P.
    p = KUMAR_2024
    bits = np.linspace(4, 14, 10_001)
    share = np.prod([1 - np.exp(p[f"n_{x}"] - bits / p[f"gamma_{x}"]) for x in OPERANDS], axis=0)
    product = cost / (6 / 16 * bits)
    a, b = p["alpha"], p["beta"]
    size_scale = p["A"] * share**-a
    n = (a * size_scale * product**b / (b * p["B"])) ** (1 / (a + b))
    losses = size_scale * n**-a + p["B"] * (product / n) ** -b
    assert bits[losses.argmin()] == pytest.approx(kumar_optimal_bits(p), abs=2e-3)


@pytest.mark.parametrize(("bits", "tokens"), [(3, 5.450e10), (4, 2.946e11), (5, 1.592e12)])
def test_critical_data_of_post_training_quantization_are_the_worked_ones(
    bits: float, tokens: float
) -> None:
    found = ptq_critical_tokens(KUMAR_2024_PTQ, 1e9, bits)
    assert found == pytest.approx(tokens, rel=1e-3)
    around = pd.DataFrame(
        {"params": 1e9, "tokens": found * np.geomspace(0.5, 2, 2001), "bits_post": bits}
    )
    assert LAWS["ptq"].predict(KUMAR_2024_PTQ, around).argmin() == 1000


def test_capacity_after_a_penalty_gives_the_same_loss_without_it() -> None:
    p = QAT_2025["W4A4"]
    runs = pd.DataFrame({"params": [595e6], "tokens": 1e11, "block_size": 128.0})
    penalty = LAWS["qat"].term_values(p, runs)[3]
    share = capacity_after(p, runs["params"], penalty)
    smaller = runs.assign(params=runs["params"] * share, block_size=1.0)
    assert 0 < share[0] < 1
    expected = LAWS["qat"].predict(p, runs)
    assert LAWS["qat"].predict(p, smaller) == pytest.approx(expected, rel=1e-13)


def test_compressed_capacity_is_that_of_the_law() -> None:
    p = {"A": 400.0, "alpha": 0.34, "B": 2000.0, "beta": 0.37, "E": 1.8}
    p |= {"L": 0.95, "F": 0.4, "C": 0.7}
    share = compressed_capacity(p, 0.0132)
    runs = pd.DataFrame({"params": [1e8, 1e8 * share], "tokens": 1e10, "gmse": [0.0132, 0]})
    predicted = LAWS["compressed"].predict(p, runs)
    assert predicted[0] == pytest.approx(predicted[1], rel=1e-13)


def test_optimal_bits_of_a_fit_come_with_an_interval() -> None:
    levels = [(p, 16, 16) for p in (3, 4, 5, 6, 8, 16)]
    levels += [(16, p, 16) for p in (4, 5, 6, 8)] + [(16, 16, p) for p in (4, 5, 6, 8)]
    levels += [(p, p, p) for p in (4, 6, 8, 12)]
    rows = [(n, d, *x) for n in (3e7, 1e8, 2.2e8) for d in (1.5e9, 6e9, 2.6e10) for x in levels]
    columns = ["params", "tokens", *(f"bits_{x}" for x in OPERANDS)]
    table = make_table("precision", KUMAR_2024, pd.DataFrame(rows, columns=columns), 1e-3, 0)
    fitted = fit(table, "precision", starts=8)
    found = derived(fitted, bootstrap(table, fitted, 200), table)["optimal_bits"]
    low, high = found["interval"]
    assert low < found["value"] < high
    assert abs(found["value"] - 7.0021) < 1.5 * (high - low)  # 6 standard errors: p = 2e-9
    assert high - low < 1
    assert not found["extrapolated"]
    few = table[table[columns[2:]].max(axis=1) <= 6]
    assert derived(fitted, None, few)["optimal_bits"]["extrapolated"]
