"""Figures of conclusions: the numbers are where they belong, extrapolation is drawn and said."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest

from fitting.analysis.optima import OptimalPrecision
from fitting.figures import conclusions as law_figures
from fitting.figures.style import INK
from tests.support.fits import a_cost, a_layout, a_limit, an_optimum, saved

RUNS = pd.DataFrame({"params": [3e7, 3e7, 2e8, 2e8], "tokens": [7.5e8, 2.4e10, 5e9, 1.6e11]})


def drawn(**derived: Any) -> dict[str, str]:
    """The figures of such conclusions, by name."""
    found = law_figures.conclusions(saved(derived=derived), RUNS, {})
    return {name: panels[0].svg for name, panels in found.items()}


@pytest.mark.parametrize("beyond", [False, True])
def test_extrapolation_is_hatched_or_dashed_and_said(beyond: bool) -> None:
    limits = [a_limit(3e7, 1e11, False), a_limit(2e8, 1e12 if beyond else 1.2e11, beyond)]
    optima = [an_optimum(1e9, 4.0), an_optimum(1e10, 5.0, extrapolated=beyond)]
    figures = drawn(
        layouts=[a_layout(4), a_layout(5, extrapolated=beyond)],
        cost_of_bits=[a_cost(4, 1.3), a_cost(5, 1.1, extrapolated=beyond)],
        critical_tokens=limits,
        optimal_precision=OptimalPrecision(optima),
    )
    assert set(figures) == {"layouts", "cost_of_bits", "critical_tokens", "bits_for_tokens"}
    for name, svg in figures.items():
        assert ("extrapolated" in svg) == beyond, name
        assert ("pattern" in svg or "stroke-dasharray" in svg) == beyond, name


def test_shares_are_printed_on_the_bars() -> None:
    svg = drawn(layouts=[a_layout(4)])["layouts"]
    assert ">E2M1 75%<" in svg
    assert ">E1M2 25%<" in svg


def test_what_no_amount_makes_up_for_is_not_drawn() -> None:
    some = drawn(cost_of_bits=[a_cost(4, 1.3), a_cost(5, None)])["cost_of_bits"]
    only = drawn(cost_of_bits=[a_cost(4, 1.3)])["cost_of_bits"]
    assert some == only


def test_one_size_gives_no_line_of_critical_data() -> None:
    assert drawn(critical_tokens=[a_limit(3e7, 1e11, False)]) == {}
    assert drawn(critical_tokens=[a_limit(3e7, 1e11, False), a_limit(2e8, None, True)]) == {}


def test_a_fit_without_conclusions_has_no_figures() -> None:
    assert law_figures.conclusions(saved(), RUNS, {}) == {}
    assert drawn(layouts=[a_layout(4, shares={})]) == {}


def test_figures_have_the_inks_of_either_theme() -> None:
    cost = a_cost(5, 1.1, extrapolated=True)
    for svg in drawn(layouts=[a_layout(5, extrapolated=True)], cost_of_bits=[cost]).values():
        assert INK not in svg
        assert "currentColor" in svg


def test_marks_give_the_numbers_with_their_intervals() -> None:
    figures = drawn(
        layouts=[a_layout(4)],
        cost_of_bits=[a_cost(4, 1.3)],
        critical_tokens=[a_limit(3e7, 1e11, False), a_limit(2e8, 1.2e11, False)],
        optimal_precision=OptimalPrecision([an_optimum(1e9, 4.0), an_optimum(1e10, 5.0)]),
    )
    for name, words in (
        ("layouts", "4 bits: E2M1&#10;wins 75.0 % of draws"),
        ("cost_of_bits", "4 bits: 30 % more parameters&#10;(factor 1.05 to 1.6)"),
        ("critical_tokens", "E2M1, 30M parameters&#10;critical at 100B tokens (1B to ∞)"),
        ("bits_for_tokens", "10B tokens&#10;5.00 bits (4 to 6)"),
    ):
        assert f'data-tip="{words}"' in figures[name], name


def test_formats_keep_the_colours_of_the_study_where_it_has_them_all() -> None:
    limits = [a_limit(3e7, 1e11, False), a_limit(2e8, 1.2e11, False)]
    fit = saved(derived={"critical_tokens": limits})
    for known, colour in (({"E2M1": "#123456"}, "#123456"), ({"E2M1 row": "#123456"}, "#d55e00")):
        [panel] = law_figures.conclusions(fit, RUNS, known)["critical_tokens"]
        assert colour in panel.svg
