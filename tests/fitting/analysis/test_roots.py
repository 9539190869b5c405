"""Roots: those of scipy, for every draw at once, and what is outside the bracket."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.optimize import brentq

from fitting.analysis.roots import rising_root


def test_each_draw_has_the_root_that_brent_finds() -> None:
    rates = np.array([0.3, 1.0, 7.0])
    found = rising_root(lambda x: x - np.exp(-rates * x), 0.0, 2.0, rates.shape)
    exact = [brentq(lambda x, r=r: x - math.exp(-r * x), 0, 2, xtol=1e-15) for r in rates]
    assert found == pytest.approx(exact, rel=1e-12)


def test_a_root_outside_the_bracket_is_infinite() -> None:
    shift = np.array([-1.0, 0.5, 3.0])
    found = rising_root(lambda x: x - shift, 0.0, 2.0, shift.shape)
    assert found == pytest.approx([-math.inf, 0.5, math.inf], rel=1e-12)


def test_a_number_gives_a_number() -> None:
    assert float(rising_root(lambda x: x**3 - 8.0, 0.0, 10.0, ())) == pytest.approx(2)
