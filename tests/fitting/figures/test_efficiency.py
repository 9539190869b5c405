"""Figures of the law `quartet`: the map follows the law, efficiencies have intervals."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd

from fitting.analysis.efficiency import Efficiency
from fitting.analysis.precision_map import MeasuredSpeeds, Speedups, best_precision
from fitting.figures import efficiency as efficiency_figures
from fitting.figures.style import INK
from fitting.fit.fit_file import SavedFit
from fitting.law.speeds import Speeds
from fitting.laws.published import QUARTET_2025
from tests.support.fits import saved

RUNS = pd.DataFrame({"params": [3e7, 3e7, 2e8, 2e8], "tokens": [7.5e8, 2.4e10, 5e9, 1.6e11]})


def fitted(speedup: float) -> SavedFit:
    speedups = Speedups(speedup, speedup)
    found = {"forward": "Quartet", "backward": "Quartet", "speedups": speedups}
    return saved("quartet", derived=found)


QUARTET = fitted(2.0)


def test_the_map_names_the_choices_that_win_and_hatches_what_no_run_tested() -> None:
    [panel] = efficiency_figures.precision_map(QUARTET, RUNS)
    winners = {
        best_precision(QUARTET_2025, 0.65, 0.95, n, n * ratio)
        for n in np.geomspace(7.5e6, 8e8, 20)
        for ratio in np.geomspace(25 / 4, 800 * 4, 20)
    }
    named = set(re.findall(r">(FP[48]:FP[48])<", panel.svg))
    assert named == winners == {"FP4:FP4", "FP8:FP4"}
    assert "pattern" in panel.svg
    assert ">extrapolated<" in panel.svg


def test_the_map_follows_the_speeds() -> None:
    [panel] = efficiency_figures.precision_map(fitted(1.0), RUNS)
    assert set(re.findall(r">(FP[48]:FP[48])<", panel.svg)) == {"FP8:FP8"}


def test_measured_speeds_have_a_map_of_their_own() -> None:
    """Where FP4 trains at .8 of FP8's speed it never pays."""
    speeds = Speeds.measured({"FP4:FP4": 0.8})
    slow = MeasuredSpeeds("FP4:FP4=.8", "typed", speeds.serving, dict(speeds.training))
    found = {"forward": "Quartet", "backward": "Quartet", "speedups": Speedups(2.0, 2.0)}
    both = saved("quartet", derived=found | {"measured_speeds": slow})
    ideal, measured = efficiency_figures.precision_map(both, RUNS)
    [alone] = efficiency_figures.precision_map(QUARTET, RUNS)
    assert ideal == alone
    assert set(re.findall(r">(FP[48]:FP[48])<", measured.svg)) == {"FP8:FP8"}
    assert "as measured (FP4:FP4=.8)" in measured.title


def test_the_map_has_stable_bytes_and_the_inks_of_either_theme() -> None:
    [one] = efficiency_figures.precision_map(QUARTET, RUNS)
    [two] = efficiency_figures.precision_map(QUARTET, RUNS)
    assert one == two
    assert INK not in one.svg


def an_efficiency(scheme: str, of: str, value: float, low: float | None) -> Efficiency:
    return Efficiency(scheme, of, value, (low, None if low is None else 0.99))


def test_efficiencies_stand_by_scheme_and_pass_with_their_intervals() -> None:
    entries = [
        an_efficiency("QuEST", "forward", 0.69, 0.65),
        an_efficiency("QuEST", "backward", 0.9, None),
        an_efficiency("LUQ", "backward", 0.5, 0.4),
    ]
    [panel] = efficiency_figures.efficiencies(entries)
    assert "QuEST, forward pass&#10;0.690 (0.65 to 0.99) of its parameters, eff_N" in panel.svg
    assert "LUQ, backward pass&#10;0.500 (0.4 to 0.99) of its tokens, eff_D" in panel.svg
    assert panel.svg.count("data-tip=") == 3
    assert panel.svg.count('data-series="tokens, eff_D"') == 2, "one interval, two marks"
