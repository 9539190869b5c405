"""Draws in which parameters are zero or run away: conclusions without a warning and without NaN."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fitting.command.describe import describe
from fitting.fit.bootstrap import intervals, standard_errors, vague
from fitting.fit.fit_file import FIT, saved_fit
from fitting.fit.search import fit
from fitting.law.conclusion import percentiles
from fitting.laws.catalogue import LAWS
from fitting.laws.published import BESIROGLU_2024
from fitting.laws.synthetic import make_table
from fitting.page.conclusions import views
from tests.support.fits import derived_json

SIZES = pd.DataFrame(
    list(itertools.product((3e7, 6e7, 1.1e8), (1.5e9, 3e9, 1e10))), columns=["params", "tokens"]
)
COMMON = {"A": 400.0, "alpha": 0.34, "B": 2000.0, "beta": 0.37, "E": 1.7}


def test_no_interval_where_many_draws_have_no_value() -> None:
    values = np.arange(100.0)
    assert percentiles(np.append(values, np.nan)) == percentiles(values)
    assert np.isnan(percentiles(np.append(values, [np.nan] * 10))).all()
    assert np.isnan(percentiles(np.array([np.nan] * 3))).all()


def test_draws_that_are_infinite_make_an_interval_open_and_a_parameter_vague() -> None:
    values = np.arange(1.0, 101.0)
    draws = pd.DataFrame({"a": values, "b": values, "c": values}).assign(converged=True)
    draws.loc[90:, "b"] = np.inf
    draws.loc[50, "c"] = np.nan
    assert intervals(draws)["b"] == (intervals(draws)["a"][0], np.inf)
    assert np.isnan(intervals(draws)["c"]).all()
    assert standard_errors(draws)["b"] == standard_errors(draws)["a"]
    assert vague(draws) == ("b", "c")
    draws["b"] = np.inf
    assert intervals(draws)["b"] == (np.inf, np.inf)
    assert np.isnan(standard_errors(draws)["b"])


@pytest.mark.parametrize("zero", [*itertools.combinations(COMMON, 1), ("alpha", "beta")])
def test_conclusions_of_chinchilla_survive_draws_without_a_parameter(zero: tuple[str, ...]) -> None:
    table = make_table("chinchilla", BESIROGLU_2024, SIZES, 1e-3, 0)
    fitted = fit(table, "chinchilla", starts=4)
    draws = pd.DataFrame([fitted.parameters] * 50).assign(converged=True)
    draws.loc[0, list(zero)] = 0.0
    draws.loc[1, list(zero)] = 1e300
    told = describe(fitted, draws, table)
    json.dumps(told, allow_nan=False)
    read = saved_fit(told, Path(FIT))
    assert read.derived["compute_optimal_exponent"]["interval"][0] is not None
    assert "nan" not in str([view.rows for view in views(read)])


def test_a_parent_of_zero_is_decoded_without_a_warning() -> None:
    design = SIZES.assign(forward="Q", backward="FP8")
    truth = COMMON | {"gamma": 0.9, "eff_N[Q]": 0.65}
    law = LAWS["quartet"].on(make_table("quartet", truth, design, 0.0, 0))
    coordinates = law.encode(truth)
    coordinates[list(law.parameters).index("alpha")] = 0.0
    decoded = law.decode(coordinates)
    assert decoded["alpha"] == 0
    assert not np.isfinite(decoded["eff_N[Q]"]) or decoded["eff_N[Q]"] == 0


def test_nothing_is_concluded_where_no_parameter_is_identified() -> None:
    table = make_table("chinchilla", BESIROGLU_2024, SIZES, 1e-3, 0)
    fitted = fit(table, "chinchilla", starts=4)
    unknown = replace(fitted, identified=dict.fromkeys(fitted.identified, False))
    assert list(derived_json(unknown, None, table)) == ["identified"]
    assert "compute_optimal_exponent" in derived_json(fitted, None, table)
