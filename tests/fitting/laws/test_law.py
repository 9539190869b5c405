"""What a law is: schemes of a table become parameters, frozen values become offsets."""

from __future__ import annotations

from itertools import product

import numpy as np
import pandas as pd
import pytest

from fitting.files.own_json import ResultsError
from fitting.law.terms import FitError
from fitting.laws.catalogue import LAWS
from fitting.laws.published import QUARTET_2025

QUARTET = LAWS["quartet"]


@pytest.fixture
def runs() -> pd.DataFrame:
    """Every pair of four schemes at three sizes."""
    schemes = ("BF16", "FP8", "Quartet", "LUQ")
    rows = [(n, 50 * n, f, b) for n in (3e7, 1e8, 2e8) for f, b in product(schemes, schemes)]
    return pd.DataFrame(rows, columns=["params", "tokens", "forward", "backward"])


VALUES = {**QUARTET_2025, "eff_N[LUQ]": 0.49, "eff_D[LUQ]": 0.15}


def test_each_scheme_but_the_lossless_ones_gets_an_efficiency(runs: pd.DataFrame) -> None:
    extra = list(QUARTET.on(runs).parameters)[len(QUARTET.parameters) :]
    assert extra == ["eff_N[LUQ]", "eff_N[Quartet]", "eff_D[LUQ]", "eff_D[Quartet]"]
    assert QUARTET.on(runs.assign(forward="FP8", backward="BF16")) == QUARTET


def test_schemes_of_one_table_are_not_those_of_another(runs: pd.DataFrame) -> None:
    law = QUARTET.on(runs).without_schemes()
    assert dict(law.parameters) == dict(QUARTET.parameters)
    assert "eff_N[LUQ]" not in law.on(runs[runs["forward"] != "LUQ"]).parameters


def test_efficiencies_scale_the_size_and_the_data_of_their_rows(runs: pd.DataFrame) -> None:
    size = {"BF16": 1.0, "FP8": 1.0, "Quartet": 0.65, "LUQ": 0.49}
    data = {"BF16": 1.0, "FP8": 1.0, "Quartet": 0.95, "LUQ": 0.15}
    effective = runs.assign(
        params=runs["params"] * runs["forward"].map(size),
        tokens=runs["tokens"] * runs["backward"].map(data),
        forward="BF16",
        backward="BF16",
    )
    expected = QUARTET.predict(VALUES, effective)
    assert QUARTET.predict(VALUES, runs) == pytest.approx(expected, rel=1e-13)


def test_a_scheme_without_a_value_is_named(runs: pd.DataFrame) -> None:
    with pytest.raises(FitError, match=r"no value for eff_N\[LUQ\], forward has it"):
        QUARTET.predict(QUARTET_2025, runs)
    with pytest.raises(ResultsError, match=r"quartet needs column backward.*columns.backward="):
        QUARTET.predict(VALUES, runs.drop(columns="backward"))


def test_a_row_without_a_scheme_is_refused(runs: pd.DataFrame) -> None:
    runs.loc[3, "forward"] = None
    with pytest.raises(
        FitError, match="'forward' is empty in 1 of 48 rows; write BF16 or FP8 or none"
    ):
        QUARTET.on(runs)


def test_any_parameters_can_be_frozen(runs: pd.DataFrame) -> None:
    # The same law whichever part of it is constant, also where what a frozen one does depends on
    # a free one: A^gamma with gamma free, eff_N^(alpha gamma) with alpha free.
    law = QUARTET.with_schemes(VALUES)
    expected = np.log(law.term_values(VALUES, runs))
    names = list(VALUES)
    rng = np.random.default_rng(0)
    for _ in range(50):
        held = {n: VALUES[n] for n in names if rng.random() < 0.5}
        design = law.design(runs, held)
        logs = design.log_terms(law.encode(VALUES, held))
        assert logs == pytest.approx(expected, abs=1e-12)
        assert design.regressors.shape[2] == len(names) - len(held)
