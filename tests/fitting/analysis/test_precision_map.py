"""Efficiencies: worked numbers of the published laws, the map and its crossovers."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from fitting.analysis.efficiency import quartet_loss
from fitting.analysis.precision_map import best_precision, budget_losses, crossover
from fitting.command.describe import describe
from fitting.entry.errors import Refusal
from fitting.fit.bootstrap import bootstrap
from fitting.fit.fit_file import saved_fit
from fitting.fit.search import fit
from fitting.law.conclusion import Assumptions
from fitting.law.speeds import Speeds
from fitting.laws.catalogue import LAWS
from fitting.laws.published import QUARTET_2025
from fitting.laws.synthetic import make_table
from fitting.page.conclusions import views
from tests.support.fits import derived_json


def test_the_formula_is_the_fitted_law() -> None:
    runs = pd.DataFrame(
        {"params": [1e8, 8e9], "tokens": [1e10, 15e12], "forward": "Quartet", "backward": "Quartet"}
    )
    direct = quartet_loss(QUARTET_2025, runs["params"], runs["tokens"], 0.65, 0.95)
    assert LAWS["quartet"].predict(QUARTET_2025, runs) == pytest.approx(direct, rel=1e-13)


def test_the_large_budget_is_the_worked_one() -> None:
    losses = budget_losses(QUARTET_2025, 0.65, 0.95, 8e9, 15e12, Speeds.of_passes(2.0, 2.0))
    assert losses["FP8:FP8"] == pytest.approx(2.040623, abs=1e-5)
    assert losses["FP4:FP8"] == pytest.approx(2.025157, abs=1e-5)
    assert best_precision(QUARTET_2025, 0.65, 0.95, 8e9, 15e12) == "FP4:FP4"
    none_faster = Speeds.of_passes(1.0, 1.0)
    assert best_precision(QUARTET_2025, 0.65, 0.95, 8e9, 15e12, none_faster) == "FP8:FP8"


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
    result = json.loads(json.dumps(derived_json(fitted, draws, table), allow_nan=False))

    assert (result["forward"], result["backward"]) == ("FP4", "FP4")
    assert result["speedups"] == {"forward": 2, "backward": 2}
    found = {(e["pass"], e["scheme"]): e for e in result["efficiencies"]}
    # 95 % intervals are 4 standard errors wide: one and a half of them is 6 (p = 2e-9).
    for scheme, key, exact in (
        (("forward", "FP4"), "efficiency", 0.65),
        (("forward", "FP4"), "params_factor", 1 / 0.65),
        (("backward", "INT4"), "efficiency", 0.5),
        (("backward", "INT4"), "tokens_factor", 2),
    ):
        low, high = found[scheme][f"{key}_interval"]
        assert abs(found[scheme][key] - exact) < 1.5 * (high - low)
        assert low < found[scheme][key] < high

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
    # 25 tokens per parameter: FP8:FP4 wins and trains 37.5 of them.
    assert not at[2e8, 25 * 2e8]["extrapolated"]

    # On hardware on which FP4 is no faster it never pays; a slow backward pass leaves FP4:FP8.
    alone = derived_json(fitted, None, table, speedup_forward=1.0, speedup_backward=1.0)
    assert {e["best"] for e in alone["map"]} == {"FP8:FP8"}
    forward_only = derived_json(fitted, None, table, speedup_forward=4.0, speedup_backward=1.0)
    assert {e["best"] for e in forward_only["map"]} <= {"FP4:FP8", "FP8:FP8"}
    assert forward_only["speedups"] == {"forward": 4, "backward": 1}
    with pytest.raises(Refusal, match=r"speedup.backward=0: must be a positive number"):
        Assumptions(speedup_backward=0.0)

    # A shorter derivation without draws: the same, but for what draws are needed for.
    bare = derived_json(fitted, None, table)
    assert [e["best"] for e in bare["map"]] == [e["best"] for e in result["map"]]
    assert all(e["shares"] == {} for e in bare["map"])
    assert all(e["interval"] == [None, None] for e in bare["crossovers"])

    # With measured speeds, which the map sets beside the others, FP4 pays in fewer places.
    assert result["measured_speeds"]["typed"] == "nvfp4"
    measured = Speeds.parse("nvfp4")
    assert measured is not None
    for entry in result["map"]:
        at_ratio = (entry["params"], entry["tokens"])
        p = fitted.parameters
        expected = best_precision(p, p["eff_N[FP4]"], p["eff_D[FP4]"], *at_ratio, measured)
        assert entry["measured"] == expected
        assert sum(entry["measured_shares"].values()) == pytest.approx(1)
    none = derived_json(fitted, None, table, measured=None)
    assert "measured_speeds" not in none or none["measured_speeds"] is None
    assert all("measured" not in entry for entry in none["map"])


def crossed(interaction: float, seed: int) -> pd.DataFrame:
    """Both passes crossed, two seeds a cell; what has both loses more, by a share of the loss."""
    sizes = [(n, r * n) for n in (3e7, 1e8, 3e8) for r in (25, 100, 400)]
    passes = itertools.product(("BF16", "FP4"), ("BF16", "FP4"))
    rows = [(*size, *each) for size, each in itertools.product(sizes, list(passes) * 2)]
    design = pd.DataFrame(rows, columns=["params", "tokens", "forward", "backward"])
    truth = {n: v for n, v in QUARTET_2025.items() if not n.startswith("eff")}
    truth |= {"eff_N[FP4]": 0.65, "eff_D[FP4]": 0.9}
    table = make_table("quartet", truth, design, 2e-3, seed)
    both = (table["forward"] == "FP4") & (table["backward"] == "FP4")
    return table.assign(loss=table["loss"] * np.exp(interaction * both))


def together(table: pd.DataFrame) -> dict[str, Any]:
    found = derived_json(fit(table, "quartet", objective="least_squares", starts=4), None, table)
    return dict(found["together"])


def test_passes_that_interact_are_told_and_others_are_not() -> None:
    """A 95 % interval: of 40 tables without an interaction, at most 6 may be called one (1 %)."""
    found = [together(crossed(0.0, seed)) for seed in range(40)]
    assert {each["runs"] for each in found} == {18}
    outside = [not low <= 0 <= high for low, high in (each["excess_interval"] for each in found)]
    assert sum(outside) <= 6
    for seed in range(5):
        each = together(crossed(0.02, seed))
        low, high = each["excess_interval"]
        assert 0 < low < 0.02 < high
        assert low < each["excess"] < high


def test_passes_that_never_ran_together_are_said_to_be_assumed() -> None:
    table = crossed(0.0, 0)
    apart = table[(table["forward"] == "BF16") | (table["backward"] == "BF16")]
    found = fit(apart, "quartet", starts=4)
    assert together(apart) == {"runs": 0}
    [note] = [
        view.note
        for view in views(saved_fit(describe(found, None, apart), Path("fit.json")))
        if view.name == "map"
    ]
    assert "No run had both schemes together: that their efficiencies hold at once" in note
    assert "FP8 is assumed lossless" in note
    assert "1,805 against 1,562 TFLOP/s" in note
