"""Splits by a factor: made-up losses with a known effect, how often it is missed or made up."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from fitting.seeds.interaction import layouts_by
from fitting.seeds.verdicts import EQUAL_WITHIN, equal
from tests.support.crossed import crossed


def row(found: pd.DataFrame, first: str, second: str, at: str, against: str = "") -> pd.Series:
    names = ["first", "second", "at", "against"]
    [index] = found.index[(found[names] == [first, second, at, against]).all(axis=1)]
    return found.loc[index]


def test_differences_and_their_change_come_back() -> None:
    found = layouts_by(crossed(0), "recipe")
    assert len(found) == 3 * (2 + 1)
    for at, cost in (("plain", 0.004), ("rotated", -0.008)):
        told = row(found, "E2M1", "E1M2", at)
        assert told["low"] < cost < told["high"]
        assert (told["pairs"], told["dof"]) == (16, 14)
    change = row(found, "E2M1", "E1M2", "rotated", "plain")
    assert change["low"] < -0.012 < change["high"]
    assert change["verdict"] == "worse", "for the first: the second gains"
    assert row(found, "E3M0", "E2M1", "plain")["verdict"] == "worse"


def test_a_column_that_goes_with_the_factor_does_not_part_its_pairs() -> None:
    without = layouts_by(crossed(0).drop(columns="recipe.output.hadamard"), "recipe")
    pd.testing.assert_frame_equal(layouts_by(crossed(0), "recipe"), without)


def test_a_change_that_is_not_there_is_made_up_as_rarely_as_stated() -> None:
    # 400 studies: at 0.27 % for each more than six have a chance of 4e-5; 95 % intervals miss
    # in 20 of 400, more than 36 or fewer than 8 with a chance of 6e-4.
    alarms = missed = 0
    for seed in range(400):
        change = row(
            layouts_by(crossed(seed, rotated=0.0, seeds=4), "recipe"),
            *("E2M1", "E1M2", "rotated", "plain"),
        )
        alarms += change["verdict"] in ("better", "worse")
        missed += not change["low"] < 0.0 < change["high"]
    assert alarms <= 6
    assert 8 <= missed <= 36


def test_equal_is_said_of_what_is_and_not_of_what_differs_by_the_margin() -> None:
    # At the margin the two tests call 5 % of 400 studies equal: more than 34 with a chance of .1 %.
    at_margin = within = 0
    for seed in range(400):
        rng = np.random.default_rng(seed)
        for true, add in ((EQUAL_WITHIN, 0), (0.0, 1)):
            values = true + rng.normal(scale=0.004, size=20)
            said = equal(values.mean(), values.std(ddof=1) / 20**0.5, 19)
            at_margin, within = at_margin + said * (1 - add), within + said * add
    assert at_margin <= 34
    assert within >= 396
    assert not equal(0.0, np.nan, 10)
    assert not equal(0.0, 0.001, 0)


def test_without_repeated_seeds_nothing_is_told() -> None:
    found = layouts_by(crossed(0, seeds=1), "recipe")
    assert set(found["verdict"]) == {"cannot tell"}
    assert found["standard_error"].isna().all()


@pytest.mark.parametrize("margin", [0.001, 0.01])
def test_the_margin_counts(margin: float) -> None:
    assert equal(0.0, 0.002, 30, margin) == (margin > 0.005)
