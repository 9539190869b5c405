"""Figures that judge a fit: every run named, errors in their units, nothing drawn of nothing."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pandas as pd

from fitting.figures import fits as fit_figures
from fitting.figures.style import INK, format_colours
from fitting.fit.evidence import HeldOut, HeldOutRows
from tests.support.fits import saved

ORDER = ["E1M1", "E2M1", "none"]
COLOURS = format_colours(ORDER)
RUNS = pd.DataFrame(
    {
        "run_id": ["a", "b", "c"], "format": ORDER, "params": 1e5, "tokens": 2e6,
        "seed": [0, 1, 0], "loss": [3.0, 2.5, 2.0], "predicted": [2.97, 2.5, 2.02],
    }
)  # fmt: skip


def test_every_run_is_a_mark_that_names_it_and_its_numbers() -> None:
    fit, residuals = fit_figures.predicted_v_observed(RUNS, ORDER, COLOURS, 0.005)
    words = (
        "a&#10;E1M1, 100k parameters, 2M tokens, seed 0&#10;loss 3.0000, predicted 2.9700 (+1 %)"
    )
    for panel in (fit, residuals):
        assert panel.svg.count(f'data-tip="{words}"') == 1
        assert panel.svg.count("data-tip=") == 3
        assert 'data-series="E2M1"' in panel.svg
        assert INK not in panel.svg


def test_a_foreign_table_has_no_run_ids_and_no_seeds() -> None:
    rows = RUNS.drop(columns=["run_id", "seed"])
    fit, _ = fit_figures.predicted_v_observed(rows, ORDER, COLOURS, float("nan"))
    assert 'data-tip="E1M1, 100k parameters, 2M tokens&#10;loss 3.0000' in fit.svg


def test_ten_thousand_runs_stay_a_small_picture() -> None:
    predicted = np.random.default_rng(0).uniform(2, 4, 10_000)
    rows = pd.DataFrame({"predicted": predicted, "loss": predicted * 1.01, "format": "E1M1"})
    for panel in fit_figures.predicted_v_observed(rows, ORDER, COLOURS, 0.005):
        assert len(panel.svg) < 200_000


def an_entry(rms: float, bias: float, extrapolated: bool, **more: Any) -> HeldOutRows:
    return HeldOutRows(6, 18, rms, bias, 1.0, extrapolated, [], **more)


def test_held_out_errors_have_a_mean_and_a_spread_around_it() -> None:
    """An rms of 5 % around a bias of 3 % is a spread of 4 %."""
    sizes = [an_entry(0.05, 0.03, False, params=1e5)]
    held = HeldOut(0.01, sizes, largest=an_entry(0.02, -0.02, True))
    (panel,) = fit_figures.held_out(held, 0.01)
    assert "100k parameters held out: 6 runs&#10;mean error +3 %, rms 5 %" in panel.svg
    assert "largest compute held out: 6 runs&#10;mean error −2 %, rms 2 %" in panel.svg
    (axes,) = panel.figure.axes
    lines = [line.get_xdata() for line in axes.lines if len(line.get_xdata()) == 2]
    ends = [tuple(x) for x in lines if x[0] != x[1]]
    np.testing.assert_allclose(ends[0], (-1.0, 7.0), atol=1e-9)
    hollow = [line for line in axes.lines if line.get_markerfacecolor() == "none"]
    assert len(hollow) == 1
    assert fit_figures.held_out(HeldOut(0.01), 0.01) == []
    assert fit_figures.held_out(None, 0.01) == []


def test_parameters_stand_over_their_published_values() -> None:
    fit = saved(
        "chinchilla",
        parameters={"A": 4820.1, "B": 0.0},
        intervals={"A": [400.0, None], "alpha": [0.3, 0.4]},
        profile_intervals={"alpha": [0.25, 0.45]},
    )
    (panel,) = fit_figures.beside_published(fit)
    assert "A = 4,820 (–)&#10;published: 482" in panel.svg
    assert re.search(r"alpha = 0.3478 \(0.3 to 0.4\)&#10;published: 0.3478", panel.svg)
    assert "B = " not in panel.svg, "zero has no place on a logarithmic axis"
    (axes,) = panel.figure.axes
    right = max(float(np.max(line.get_xdata())) for line in axes.lines)
    assert right == fit_figures.FARTHEST, "an open interval ends at the edge"
    assert fit_figures.beside_published(saved("qat")) == []
