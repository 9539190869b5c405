"""Conclusions in words: the numbers of fit.json, their intervals, and a word for extrapolation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fitting.analysis.granularity import EquivalentBlock
from fitting.analysis.optima import OptimalPrecision, cost_formula
from fitting.command.describe import describe
from fitting.fit.bootstrap import bootstrap
from fitting.fit.fit_file import FIT, SavedFit, saved_fit
from fitting.fit.search import fit
from fitting.law.conclusion import Derived
from fitting.laws.published import (
    BESIROGLU_2024,
    KUMAR_2024,
    KUMAR_2024_PTQ,
    QUARTET_2025,
    SUN_2025,
)
from fitting.laws.synthetic import make_table, sun_design
from fitting.page import conclusions
from fitting.page.tables import View
from tests.support.fits import a_cost, an_optimum, saved


def report(table: pd.DataFrame, law: str, draws: int = 40) -> SavedFit:
    fitted = fit(table, law, starts=8)
    told = describe(fitted, bootstrap(table, fitted, draws) if draws else None, table)
    return saved_fit(told, Path(FIT))


@pytest.fixture(scope="module")
def sun() -> SavedFit:
    return report(make_table("floating_point", SUN_2025, sun_design(), 2e-3, 0), "floating_point")


@pytest.fixture(scope="module")
def quartet() -> SavedFit:
    names = ("BF16", "FP4")
    rows = [
        (n, r * n, f, b)
        for n in (3e7, 5e7, 1e8, 2e8)
        for r in (25, 50, 100, 200, 400, 800)
        for f in names
        for b in names
    ]
    design = pd.DataFrame(rows, columns=["params", "tokens", "forward", "backward"])
    truth = {n: v for n, v in QUARTET_2025.items() if not n.startswith("eff")}
    truth |= {"eff_N[FP4]": 0.65, "eff_D[FP4]": 0.95}
    return report(make_table("quartet", truth, design, 2e-4, 0), "quartet")


def named(fit: SavedFit) -> dict[str, View]:
    return {view.name: view for view in conclusions.views(fit)}


def test_a_floating_point_fit_supports_every_conclusion(sun: SavedFit) -> None:
    assert list(named(sun)) == [
        *("layouts", "cost_of_bits", "cost_of_precision", "critical_tokens"),
        *("bits_for_tokens", "bits_for_params", "bits_jointly", "equivalent_blocks"),
    ]


def test_each_row_says_whether_it_is_extrapolated(sun: SavedFit) -> None:
    derived = sun.derived
    optimal = derived["optimal_precision"]
    for name, rows in (
        ("layouts", derived["layouts"]),
        ("cost_of_bits", derived["cost_of_bits"]),
        ("cost_of_precision", derived["cost_of_precision"]),
        ("critical_tokens", derived["critical_tokens"]),
        ("bits_for_tokens", optimal["fixed_tokens"]),
        ("bits_for_params", optimal["fixed_params"]),
        ("bits_jointly", optimal["joint"]),
    ):
        view = named(sun)[name]
        shown = [cells for kind, cells in view.rows if kind != "group"]
        assert view.header[-1][0] == "beyond data?"
        assert [cells[-1] for cells in shown] == [
            "extrapolated" if row["extrapolated"] else "" for row in rows
        ]
        assert [kind for kind, _ in view.rows if kind != "group"] == [
            "muted" if row["extrapolated"] else "" for row in rows
        ]
        assert {len(cells) for cells in shown} == {len(view.header)}
        assert len(view.data) == len(rows)


def test_a_number_stands_with_its_interval(sun: SavedFit) -> None:
    [row] = [r for r in sun.derived["layouts"] if r["bits"] == 4]
    [cells] = [c for _, c in named(sun)["layouts"].rows if c[0] == "4"]
    low, high = row["exponent_interval"]
    assert cells[1] == row["layout"] == "E2M1"
    assert cells[3] == f"{row['exponent_opt']:.2f} ({low:.2f} to {high:.2f})"
    assert "E1M2" in cells[6]


def test_formats_are_grouped_by_size_and_data(sun: SavedFit) -> None:
    rows = named(sun)["cost_of_precision"].rows
    headings = [cells[0] for kind, cells in rows if kind == "group"]
    assert headings == [f"{n} parameters, 21B tokens" for n in ("40.9M", "84.9M", "154M", "679M")]
    assert [kind for kind, _ in rows[:3]] == ["group", *[kind for kind, _ in rows[1:3]]]
    assert len(rows) == 4 + 4 * 21


@pytest.mark.parametrize(
    ("value", "bounds", "words"),
    [
        (1.3, [1.13, 2.38], "1.3 × (1.13 × to 2.38 ×)"),
        (2.28, [1.98, 2.36], "2.28 × (1.98 × to 2.36 ×)"),
        (1.3, [1.13, 1.8], "+30 % (+13 % to +80 %)"),
        (0.9901, [0.98, 1.01], "−0.99 % (−2 % to +1 %)"),
        (51.3, [20.1, None], "51.3 × (20.1 × to ∞)"),
        (None, [3.25, None], "no amount (at least 3.25 ×)"),
        (None, [None, None], "no amount"),
        (1.0042, [None, None], "+0.42 %"),
    ],
)
def test_what_makes_up_for_bits_is_in_words(
    value: float | None, bounds: list[float | None], words: str
) -> None:
    row = a_cost(4, value, params_factor_interval=bounds, tokens_factor_interval=bounds)
    [view] = conclusions.views(saved(derived={"cost_of_bits": [row]}))
    assert view.rows[0][1][2:5] == ["0.500 (0.400 to 0.600)", words, words]
    assert "At 100M parameters, 10B tokens and blocks of 32 values." in view.note


def test_costs_are_labelled_with_their_constant() -> None:
    row = an_optimum(1e10, 4.0, params=1e8, cost=1e20)
    optimal = OptimalPrecision([row], [row])
    for k, formula, sixteen in (
        (6 / 16, "C = 6/16 P N D", "6 N D"),
        (0.5, "C = 8/16 P N D", "8 N D"),
    ):
        fit = saved(derived={"optimal_precision": optimal, "cost_k": k})
        by_tokens, by_params = conclusions.views(fit)
        assert formula in by_tokens.note
        assert f"Costs {formula} ({sixteen} at 16 bits), from" in by_params.note
    assert cost_formula(Derived()) == "C = 6/16 P N D", "what it was before it could be set"


def test_an_optimum_at_the_end_of_the_scale_is_a_bound() -> None:
    many = an_optimum(1e10, 16.0, bits_interval=(12.0, 16.0), unclamped=21.0, clamped=True)
    few = an_optimum(1e10, 1.0, bits_interval=(1.0, 1.5), unclamped=0.3, clamped=True)
    [view] = conclusions.views(saved(derived={"optimal_precision": OptimalPrecision([many, few])}))
    assert [cells[1] for _, cells in view.rows] == [
        "at least 16.00 (12.00 to 16.00)", "at most 1.00 (1.00 to 1.50)",
    ]  # fmt: skip


def test_quartets_map_names_schemes_and_speeds(quartet: SavedFit) -> None:
    views = named(quartet)
    assert list(views) == ["efficiencies", "crossovers", "map"]
    forward, backward = (cells for _, cells in views["efficiencies"].rows)
    assert forward[:2] == ["FP4", "forward"]
    assert forward[3].startswith("+54 %")  # 1/.65
    assert forward[4] == backward[3] == "–"
    assert "FP4 is taken to be 2 × as fast as FP8 forward and 2 × backward." in views["map"].note
    at = {tuple(cells[:2]): cells for _, cells in views["map"].rows}
    assert at["100M", "25"][2:4] == ["FP8:FP4", "FP8:FP4 100 %"]
    assert at["100M", "400"][2:4] == ["FP4:FP4", "FP4:FP4 100 %"]
    assert at["200M", "400"][6] == "extrapolated"
    assert at["100M", "400"][4:6] == ["FP8:FP4", "FP8:FP4 100 %"], "FP4 forward gains too little"
    assert "training in FP4:FP4 is 1.16 × as fast as in FP8:FP8" in views["map"].note


def test_a_measured_block_size_says_whether_the_fit_took_it_for_granted() -> None:
    row = EquivalentBlock(
        "tensor", 14.2, (13.1, 15.0), 10.0, 48, True, 0.12, (0.1, 0.14), 0.02, (None, None), 0.14,
        (0.13, 0.15),
    )  # fmt: skip
    [view] = conclusions.views(saved(derived={"equivalent_blocks": [row]}))
    assert view.rows[0][1] == [
        "tensor", "14.2 (13.1 to 15)", "10", "48", "took the given size",
        "omega 0.12 (0.1 to 0.14), xi 0.02, eta 0.14 (0.13 to 0.15)",
    ]  # fmt: skip


def test_other_laws_say_what_they_support() -> None:
    n, d = np.meshgrid(np.geomspace(3e7, 1e9, 4), np.geomspace(1e9, 1e11, 4))
    design = pd.DataFrame({"params": n.ravel(), "tokens": d.ravel()})
    table = make_table("chinchilla", BESIROGLU_2024, design, 1e-3, 0)
    [only] = conclusions.views(report(table, "chinchilla"))
    assert only.rows[0][1][0] == "exponent of the compute-optimal size"
    bits = pd.DataFrame({"bits_post": [3.0, 4.0, 5.0, 6.0]})
    table = make_table("ptq", KUMAR_2024_PTQ, design.merge(bits, how="cross"), 1e-3, 0)
    assert list(named(report(table, "ptq"))) == ["cost_of_precision", "critical_tokens"]
    counts = [(4, 16, 16), (16, 5, 16), (16, 16, 4), (8, 8, 8), (16, 16, 16), (6, 6, 6), (3, 8, 8)]
    bits = pd.DataFrame(counts, columns=["bits_w", "bits_a", "bits_kv"])
    table = make_table("precision", KUMAR_2024, design.merge(bits, how="cross"), 1e-4, 0)
    assert {"cost_of_precision", "bits_for_params", "conclusions"} <= set(
        named(report(table, "precision", draws=0))
    )


def test_nothing_is_concluded_from_a_fit_that_says_nothing() -> None:
    assert conclusions.views(saved()) == []
    assert conclusions.views(saved("quartet", derived={"identified": {}})) == []
