"""Capacities: worked numbers of the published laws, minimisers, honest marks."""

from __future__ import annotations

import json
import math

import numpy as np
import pandas as pd
import pytest

from fitting.analysis.capacity import (
    OPERANDS,
    capacity_after,
    compressed_capacity,
    kumar_capacity,
    kumar_optimal_bits,
    kumar_optimal_bits_for_params,
    ptq_critical_tokens,
    ptq_penalty,
    qat_penalty,
    tokens_for_capacity,
)
from fitting.fit.bootstrap import bootstrap
from fitting.fit.search import fit
from fitting.law.terms import FitError
from fitting.laws.catalogue import LAWS
from fitting.laws.published import KUMAR_2024, KUMAR_2024_PTQ, QAT_2025
from fitting.laws.synthetic import make_table
from tests.support.fits import derived_json

WITHOUT_OFFSETS = KUMAR_2024 | {f"n_{x}": 0.0 for x in OPERANDS}
MEAN = sum(KUMAR_2024[f"gamma_{x}"] for x in OPERANDS) / 3
ONE_SCALE = WITHOUT_OFFSETS | {f"gamma_{x}": MEAN for x in OPERANDS}


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


@pytest.mark.parametrize(
    ("size", "cost"), [(3e7, 1e17), (3e8, 1e19), (1e10, 1e22)], ids=["small", "middle", "large"]
)
def test_optimal_bits_of_a_given_size_are_those_of_least_loss(size: float, cost: float) -> None:
    p = KUMAR_2024
    bits = np.linspace(3.2, 40, 36_801)
    share = np.prod([1 - np.exp(p[f"n_{x}"] - bits / p[f"gamma_{x}"]) for x in OPERANDS], axis=0)
    tokens = cost / (6 / 16 * bits * size)
    losses = p["A"] * (size * share) ** -p["alpha"] + p["B"] * tokens ** -p["beta"]
    best = bits[losses.argmin()]
    assert best == pytest.approx(kumar_optimal_bits_for_params(p, size, cost), abs=2e-3)


def test_penalties_are_the_laws_terms() -> None:
    p = KUMAR_2024_PTQ
    runs = pd.DataFrame({"params": 1e9, "tokens": 1e11, "bits_post": [3.0, 4.0, 5.0]})
    found = [ptq_penalty(p, 1e9, 1e11, bits) for bits in (3, 4, 5)]
    assert found == pytest.approx(LAWS["ptq"].term_values(p, runs)[3], rel=1e-13)
    p = QAT_2025["W4A4"]
    runs = pd.DataFrame({"params": 595e6, "tokens": 1e11, "block_size": [32.0, 128.0]})
    found = [qat_penalty(p, 595e6, 1e11, group) for group in (32, 128)]
    assert found == pytest.approx(LAWS["qat"].term_values(p, runs)[3], rel=1e-13)


def test_tokens_make_up_for_capacity_until_none_do() -> None:
    p, size = KUMAR_2024, 1e8
    share = kumar_capacity(p, dict.fromkeys(OPERANDS, 8))

    def loss(capacity: float, tokens: float) -> float:
        return float(p["A"] * (size * capacity) ** -p["alpha"] + p["B"] * tokens ** -p["beta"])

    cost = p["A"] * size ** -p["alpha"] * (share ** -p["alpha"] - 1)
    limit = (cost / p["B"]) ** (-1 / p["beta"])  # where the data leave no more than that
    for tokens in (1e-3 * limit, 0.9 * limit):
        factor = tokens_for_capacity(p, size, tokens, share)
        assert loss(share, tokens * factor) == pytest.approx(loss(1, tokens), rel=1e-12)
    assert tokens_for_capacity(p, size, 1.001 * limit, share) == math.inf
    draws = tokens_for_capacity(p, size, limit, np.array([1.0, share * 0.99]))
    assert list(draws) == [1.0, math.inf]


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
    found = derived_json(fitted, bootstrap(table, fitted, 200), table)["optimal_bits"]
    low, high = found["interval"]
    assert low < found["value"] < high
    assert abs(found["value"] - 7.0021) < 1.5 * (high - low)  # 6 standard errors: p = 2e-9
    assert high - low < 1
    assert not found["extrapolated"]
    few = table[table[columns[2:]].max(axis=1) <= 6]
    assert derived_json(fitted, None, few)["optimal_bits"]["extrapolated"]

    result = derived_json(fitted, bootstrap(table, fitted, 200), table)
    costs = {c["format"]: c for c in result["cost_of_precision"]}
    assert len(costs) == len(set(levels)) - 1, "the run without quantization costs nothing"
    exact = kumar_capacity(KUMAR_2024, dict.fromkeys(OPERANDS, 6))
    low, high = costs["w6 a6 kv6"]["effective_params_interval"]
    assert abs(costs["w6 a6 kv6"]["effective_params"] - exact) < 1.5 * (high - low)
    assert not costs["w6 a6 kv6"]["extrapolated"]
    assert costs["w4 a4 kv4"]["extrapolated"], "smaller than 3e7: N_eff/N is .02"
    for entry in result["optimal_precision"]["fixed_params"]:
        exact = kumar_optimal_bits_for_params(KUMAR_2024, entry["params"], entry["cost"])
        assert entry["clamped"] == (entry["unclamped"] > 16)
        low, high = entry["bits_interval"]
        assert abs(entry["bits"] - min(exact, 16)) <= 1.5 * (high - low)
    dearer = derived_json(fitted, None, table, cost_k=0.75)
    assert dearer["cost_k"] == 0.75
    for one, two in zip(
        *(r["optimal_precision"]["fixed_params"] for r in (result, dearer)), strict=True
    ):
        assert two["cost"] == pytest.approx(2 * one["cost"], rel=1e-12)
        assert two["bits"] == pytest.approx(one["bits"], rel=1e-9)


def a_grid(column: str, values: tuple[float, ...]) -> pd.DataFrame:
    rows = [(n, d, v) for n in (3e7, 1e8, 3e8, 1e9) for d in (1e9, 5e9, 2e10, 1e11) for v in values]
    return pd.DataFrame(rows, columns=["params", "tokens", column])


def test_critical_data_after_quantization_come_with_intervals_and_marks() -> None:
    design = a_grid("bits_post", (3.0, 4.0, 5.0, 6.0))
    table = make_table("ptq", KUMAR_2024_PTQ, design, 1e-3, 0)
    fitted = fit(table, "ptq", starts=8)
    result = derived_json(fitted, bootstrap(table, fitted, 100), table)
    result = json.loads(json.dumps(result, allow_nan=False))
    found = {(e["params"], e["format"]): e for e in result["critical_tokens"]}
    assert len(found) == 16
    for (size, name), entry in found.items():
        exact = ptq_critical_tokens(KUMAR_2024_PTQ, size, float(name.split()[0]))
        low, high = entry["interval"]
        assert abs(entry["tokens"] - exact) < 1.5 * (high - low)  # 6 standard errors
        assert entry["extrapolated"] == (entry["tokens"] > 1e11)
    assert not found[1e9, "3 bits"]["extrapolated"]  # 5.45e10 tokens
    for entry in result["cost_of_precision"]:
        assert 0 < entry["effective_params"] < 1
        assert "params_factor" not in entry


def test_effective_parameters_of_quantization_aware_training_hold_the_truth() -> None:
    p = QAT_2025["W4A4"]
    table = make_table("qat", p, a_grid("block_size", (1.0, 32.0, 128.0, 256.0)), 5e-4, 0)
    fitted = fit(table, "qat", starts=8)
    costs = derived_json(fitted, bootstrap(table, fitted, 100), table)["cost_of_precision"]
    assert len(costs) == 4 * 3
    for entry in costs:
        penalty = qat_penalty(p, entry["params"], 1e11, float(entry["format"].split()[-1]))
        exact = capacity_after(p, entry["params"], penalty)
        low, high = entry["effective_params_interval"]
        assert abs(entry["effective_params"] - exact) < 1.5 * (high - low)  # 6 standard errors
        assert entry["extrapolated"] == (entry["params"] * entry["effective_params"] < 3e7)


def test_costs_of_compression_hold_the_truth() -> None:
    p = {"A": 400.0, "alpha": 0.34, "B": 2000.0, "beta": 0.37, "E": 1.8}
    p |= {"L": 0.95, "F": 0.4, "C": 0.7}
    table = make_table("compressed", p, a_grid("gmse", (0.0, 1e-3, 1e-2, 0.1, 0.4)), 5e-4, 0)
    fitted = fit(table, "compressed", starts=8)
    costs = derived_json(fitted, bootstrap(table, fitted, 100), table)["cost_of_precision"]
    assert [c["format"] for c in costs] == ["GMSE 0.001", "GMSE 0.01", "GMSE 0.1", "GMSE 0.4"]
    for entry, error in zip(costs, (1e-3, 1e-2, 0.1, 0.4), strict=True):
        low, high = entry["params_factor_interval"]
        exact = 1 / compressed_capacity(p, error)
        assert abs(entry["params_factor"] - exact) < 1.5 * (high - low)  # 6 standard errors
        assert (entry["params"], entry["tokens"]) == (1e9, 5e9)
