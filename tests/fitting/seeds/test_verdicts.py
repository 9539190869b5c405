"""Verdicts: the critical values of Student's t, and what they make of cells."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from fitting.seeds.verdicts import enough, judge


@pytest.mark.parametrize("dof", [1, 2, 16, 40, 10_000])
def test_the_false_alarm_rate_is_that_of_three_standard_errors(dof: int) -> None:
    assert 2 * stats.t.sf(enough(dof), dof) == pytest.approx(2 * stats.norm.sf(3), rel=1e-9)


def test_without_degrees_of_freedom_nothing_is_enough() -> None:
    assert enough(0) == math.inf
    assert enough(np.array([0.0, 16.0])) == pytest.approx([math.inf, 3.5441], abs=1e-4)


def test_few_repeats_need_more_than_three_standard_errors() -> None:
    """Student's t with 4 degrees of freedom needs 6.62, with 16 it needs 3.54."""
    z = [3.2, 6.5, 6.7, -3.5, -3.6, np.nan]
    told = ["cannot tell", "cannot tell", "worse", "cannot tell", "better", "cannot tell"]
    assert judge(z, [16, 4, 4, 16, 16, 0]).tolist() == told
