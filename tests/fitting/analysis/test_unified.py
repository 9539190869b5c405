"""The unified law's conclusions: by enumeration, by the law itself, and in words."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import optimize

from experiments.quant.normal_error import error_of
from fitting.analysis.costs import COST_OF_PRECISION
from fitting.analysis.optima import OPTIMAL_PRECISION
from fitting.analysis.unified import (
    FORWARD_ERRORS,
    SPLITS,
    UNIFIED_CONCLUSIONS,
    signal_share,
)
from fitting.fit.bootstrap import bootstrap
from fitting.fit.derived import basis_of, derived, identified
from fitting.fit.search import fit
from fitting.law.conclusion import Basis, Derived
from fitting.laws.catalogue import LAWS
from fitting.laws.synthetic import make_table

TRUTH = {"A": 400.0, "alpha": 0.34, "B": 2000.0, "beta": 0.37, "E": 1.8, "gamma": 0.8, "c": 25.0}
LAW = LAWS["unified"]
NAMES = ("none", "E2M2", "E2M1", "E1M2", "E1M1")


def table(noise: float = 1e-3, both: bool = True) -> pd.DataFrame:
    cells = itertools.product((3e7, 1e8, 3e8), (1.5e9, 6e9, 3e10), NAMES)
    design = pd.DataFrame(cells, columns=["params", "tokens", "format_weight"])
    design["err_weight"] = design["format_weight"].map(error_of)
    design["err_input"] = design["err_weight"] if both else 0.0
    return make_table(LAW, TRUTH, design, noise, 0)


@pytest.fixture(scope="module")
def basis() -> Basis:
    rows = table()
    fitted = fit(rows, LAW, starts=8)
    return basis_of(fitted, bootstrap(rows, fitted, 200), rows)


@pytest.fixture(scope="module")
def found(basis: Basis) -> Derived:
    return Derived({c.key: c.found(basis) for c in UNIFIED_CONCLUSIONS})


def row(params: float, tokens: float, *errors: float) -> pd.DataFrame:
    names = ["params", "tokens", "err_input", "err_weight"]
    return pd.DataFrame([(params, tokens, *errors)], columns=names)


def test_the_share_of_parameters_is_that_of_the_law() -> None:
    errors = (0.012, 0.034)
    share = signal_share(TRUTH, dict(zip(FORWARD_ERRORS, errors, strict=True)))
    assert share == pytest.approx(1 / (1 + 25 * 0.012 / 0.988) / (1 + 25 * 0.034 / 0.966))
    same = LAW.predict(TRUTH, row(1e8 * share, 1e10, 0.0, 0.0))
    assert LAW.predict(TRUTH, row(1e8, 1e10, *errors)) == pytest.approx(same, rel=1e-13)
    assert signal_share(TRUTH, {}) == 1


def test_costs_make_up_for_the_format(basis: Basis, found: Derived) -> None:
    costs = found.of(COST_OF_PRECISION)
    assert costs is not None
    assert [cost.format for cost in costs] == ["E2M2", "E1M2", "E2M1", "E1M1"]
    for cost in costs:
        error = error_of(cost.format)
        wanted = LAW.predict(basis.parameters, row(cost.params, cost.tokens, error, error))
        assert cost.params_factor is not None
        assert cost.effective_params is not None
        assert cost.effective_params_interval[0] is not None
        larger = row(cost.params * cost.params_factor, cost.tokens, error, error)
        plain = LAW.predict(basis.parameters, row(cost.params, cost.tokens, 0, 0))
        assert LAW.predict(basis.parameters, larger) == pytest.approx(plain, rel=1e-12)
        if cost.tokens_factor is not None:
            longer = row(cost.params, cost.tokens * cost.tokens_factor, error, error)
            assert LAW.predict(basis.parameters, longer) == pytest.approx(plain, rel=1e-12)
        smaller = row(cost.params * cost.effective_params, cost.tokens, 0, 0)
        assert LAW.predict(basis.parameters, smaller) == pytest.approx(wanted, rel=1e-12)
        assert cost.effective_params_interval[0] < cost.effective_params


def test_best_splits_are_those_of_least_error(found: Derived) -> None:
    splits = found.of(SPLITS)
    assert splits is not None
    assert (splits.operands, splits.blocks) == (["err_input", "err_weight"], "block32-fp32")
    for split in splits.splits:
        errors = {
            f"E{e}M{m}": error_of(f"E{e}M{m}")
            for e, m in ((e, split.bits - 1 - e) for e in range(split.bits))
            if e <= 8 and m <= 10
        }
        assert errors[split.layout] == pytest.approx(min(errors.values()), rel=1e-5)
        assert split.error == pytest.approx(errors[split.layout], rel=1e-5)
    four = splits.splits[2]
    assert (four.bits, four.layout, four.extrapolated) == (4, "E1M2", False)
    assert "E2M1" in four.near_ties
    assert "E3M0" not in four.near_ties
    assert splits.splits[-1].extrapolated


def test_optimal_bits_are_those_of_an_exhaustive_search(basis: Basis, found: Derived) -> None:
    optimal = found.of(OPTIMAL_PRECISION)
    splits = found.of(SPLITS)
    assert optimal is not None
    assert optimal.joint
    assert optimal.fixed_params
    assert splits is not None
    errors = {split.bits: split.error or 0.0 for split in splits.splits}
    p, k = basis.parameters, basis.assumed.cost_k

    def loss(bits: int, size: float, cost: float) -> float:
        run = row(size, cost / (k * bits * size), errors[bits], errors[bits])
        return float(LAW.predict(p, run)[0])

    for best in optimal.fixed_params:
        size, cost = best.params or 0.0, best.cost or 0.0
        losses = {bits: loss(bits, size, cost) for bits in errors}
        assert best.bits == min(losses, key=losses.__getitem__)
    for best in optimal.joint:
        cost = best.cost or 0.0
        least = {
            bits: optimize.minimize_scalar(
                lambda x, bits=bits, cost=cost: loss(bits, np.exp(x), cost),
                bounds=(np.log(1e4), np.log(1e13)),
                method="bounded",
                options={"xatol": 1e-9},
            )
            for bits in errors
        }
        bits = min(least, key=lambda b: least[b].fun)
        assert best.bits == bits
        assert best.params == pytest.approx(np.exp(least[bits].x), rel=1e-3)
        assert best.tokens == pytest.approx(cost / (k * bits * best.params), rel=1e-3)


def test_without_quantized_runs_there_is_nothing_to_conclude() -> None:
    rows = table()
    rows = rows[rows["err_weight"] == 0]
    fitted = fit(rows, LAW, starts=8, freeze={"c": 25.0})
    found = derived(fitted, basis_of(fitted, None, rows), identified(fitted, None))
    assert found.of(SPLITS) is None
    assert found.of(COST_OF_PRECISION) == []


def test_only_weights_are_counted_where_only_weights_are_quantized() -> None:
    rows = table(both=False)
    fitted = fit(rows, LAW, starts=8)
    found = derived(fitted, basis_of(fitted, None, rows), identified(fitted, None))
    splits = found.of(SPLITS)
    assert splits is not None
    assert splits.operands == ["err_weight"]
    share = signal_share(fitted.parameters, {"err_weight": splits.splits[2].error or 0.0})
    assert splits.splits[2].effective_params == pytest.approx(share)


def test_runs_of_ours_say_in_what_blocks_they_were_quantized() -> None:
    ours = table().drop(columns="format_weight")
    quantized = ours["err_weight"] > 0
    ours = ours.assign(
        exponent=2, mantissa=1, block_size=np.where(quantized, 16.0, 1.0),
        granularity=np.where(quantized, "block", "none"), scale=np.where(quantized, "e4m3", "none"),
    )  # fmt: skip
    fitted = fit(ours, LAW, starts=8)
    found = derived(fitted, basis_of(fitted, None, ours), identified(fitted, None))
    splits, costs = found.of(SPLITS), found.of(COST_OF_PRECISION)
    assert splits is not None
    assert costs is not None
    assert splits.blocks == "block16-e4m3"
    assert splits.splits[2].error == pytest.approx(error_of("E1M2-block16-e4m3"), rel=1e-5)
    assert {cost.format for cost in costs} == {"E2M1-block16-e4m3"}


def test_the_note_says_what_was_compared(found: Derived) -> None:
    [shown] = SPLITS.tables
    assert callable(shown.note)
    splits = found.of(SPLITS)
    assert splits is not None
    said = shown.note(shown.rows_of(splits), found)
    assert "with inputs and weights of the forward pass" in said
    alone = replace(splits, operands=["err_weight"])
    assert "with weights of" in shown.note([], Derived({SPLITS.key: alone}))
