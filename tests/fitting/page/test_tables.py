"""Tables that judge a fit: what is marked, what is left open, and whose numbers they hold."""

from __future__ import annotations

from typing import Any

import pytest

from fitting.page.tables import comparison, held_out, parameters
from fitting.words import open_interval
from tests.support.fits import saved


def an_entry(**changes: Any) -> dict[str, Any]:
    entry = {"rows": 6, "trained": 18, "rms": 0.00214, "bias": -0.0013, "extrapolation": 0.25}
    return {**entry, "extrapolated": False, "warnings": [], **changes}


def a_rival(law: str, **changes: Any) -> dict[str, Any]:
    rival = {"law": law, "parameters": 5, "objective": 1e-5, "aic": -100.0, "bic": -90.0}
    rival |= {"rms": 0.002, "rms_sizes": 0.003, "rms_largest": 0.004, "sizes_won": 2, "sizes": 3}
    return {**rival, **changes}


def test_held_out_runs_beyond_the_trained_compute_are_marked() -> None:
    beyond = an_entry(params=2e8, extrapolation=4.0, extrapolated=True)
    held = {"residual_rms": 0.001, "sizes": [an_entry(params=1e8), beyond], "sizes_rms": 0.0031}
    view = held_out(saved(held_out=held, noise_floor={"std_log": 0.0015}))
    assert view is not None
    words = ["6", "18", "0.21 %", "−0.13 %"]
    assert view.rows == [
        ("", ["100M parameters", *words, "0.25 ×", ""]),
        ("muted", ["200M parameters", *words, "4 ×", "extrapolated"]),
    ]
    said = "sizes together: 0.31 %. The fit's own residuals: 0.1 %; noise floor: 0.15 %."
    assert view.note.endswith(said)
    alone = held_out(saved(held_out={"residual_rms": 0.001, "largest": an_entry()}))
    assert alone is not None
    assert [cells[0] for _, cells in alone.rows] == ["runs of the largest compute"]
    assert "together" not in alone.note
    assert alone.note.endswith("noise floor: unknown.")
    assert held_out(saved(held_out={"residual_rms": 0.001})) is None
    assert held_out(saved()) is None, "a fit.json of another program"


def test_rivals_are_set_against_the_lowest_criterion() -> None:
    worse = a_rival("chinchilla", aic=-40.0, bic=-35.5, rms_largest=None, sizes_won=1)
    view = comparison(saved(comparison=[a_rival("quartet"), worse]))
    assert view is not None
    errors = ["0.2 %", "0.3 %"]
    assert view.rows == [
        ("", ["quartet", "5", *errors, "0.4 %", "2 of 3", "0", "0"]),
        ("", ["chinchilla", "5", *errors, "–", "1 of 3", "60", "54.5"]),
    ]
    assert comparison(saved()) is None


def test_a_law_that_fits_exactly_has_no_criterion_and_none_is_lower() -> None:
    exact = a_rival("quartet", aic=None, bic=None)
    view = comparison(saved(comparison=[exact, a_rival("chinchilla")]))
    assert view is not None
    assert [cells[-2:] for _, cells in view.rows] == [["0", "0"], ["–", "–"]]


@pytest.mark.parametrize(
    ("bounds", "words"),
    [
        ([0.2, 0.31], "0.2 to 0.31"),
        ([0.0, None], "0 to ∞"),
        ([None, 2.0], "−∞ to 2"),
        ([None, None], "–"),
        (None, "–"),
    ],
)
def test_an_interval_may_be_open(bounds: list[float | None] | None, words: str) -> None:
    assert open_interval(bounds) == words


def test_profile_intervals_stand_beside_the_bootstraps() -> None:
    fit = saved(
        "chinchilla", parameters={"A": 480.0, "E": 1.8}, frozen=["E"],
        intervals={"A": [400.0, 600.0], "E": [None, None]}, standard_errors={"A": 50.0},
        profile_intervals={"A": [390.0, None]},
    )  # fmt: skip
    view = parameters(fit)
    assert view.rows[0][1][:5] == ["A", "480", "400 to 600", "390 to ∞", "50"]
    assert view.rows[0][1][5] == "482", "the published constant"
    assert view.rows[1][1][3] == "–"
    assert view.data.loc[0, ["profile_low", "profile_high"]].tolist() == [390.0, None]
