"""Whether a law that does not fit is said not to, and how often one that does is."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from fitting.fit.lack_of_fit import ALARM, lack_of_fit
from fitting.fit.search import fit
from fitting.laws.published import BESIROGLU_2024
from fitting.laws.synthetic import make_table
from fitting.seeds.noise import noise_floor

TRUTH = BESIROGLU_2024 | {"gamma": 0.8, "c": 25.0}
ERRORS = (0.0, 0.003, 0.01, 0.05)


def runs(seeds: int, noise: float, seed: int) -> pd.DataFrame:
    cells = itertools.product((3e7, 1e8, 3e8), (1.5e9, 6e9, 3e10), ERRORS, range(seeds))
    design = pd.DataFrame(cells, columns=["params", "tokens", "err_weight", "seed"])
    return make_table("unified", TRUTH, design.assign(err_input=0.0), noise, seed)


def warned(table: pd.DataFrame, law: str = "unified") -> list[str]:
    fitted = fit(table, law, objective="least_squares", starts=4, near=[TRUTH][: law == "unified"])
    floor = noise_floor(table)
    return lack_of_fit(fitted, table, floor.std_log, floor.dof)


@pytest.mark.parametrize("seeds", [1, 2])
def test_a_law_that_holds_is_nearly_never_doubted(seeds: int) -> None:
    # 100 tables: at a rate of one in a thousand more than two have a chance of 2e-4.
    doubted = sum(bool(warned(runs(seeds, 5e-3, seed))) for seed in range(100))
    assert stats.binom.sf(2, 100, ALARM) < 2e-4
    assert doubted <= 2


def test_a_law_that_knows_no_formats_is_told_by_the_seeds() -> None:
    [said] = warned(runs(2, 3e-3, 0), "chinchilla")
    assert said.startswith("the law does not fit: residuals of")
    assert "where another seed makes 0.2" in said
    assert "(F = " in said


def test_without_repeats_it_is_told_by_what_the_residuals_depend_on() -> None:
    table = runs(1, 3e-3, 0)
    table["loss"] *= np.where(table["err_weight"] == 0.01, 1.03, 1.0)
    [said] = warned(table)
    assert said.startswith("the law does not fit: its residuals of")
    assert "still depend on format (p below" in said


def test_residuals_of_nine_percent_do_not_pass() -> None:
    table = runs(3, 0.088, 0).drop(columns="seed")
    [said] = warned(table)
    assert said.startswith("the law explains only")
    assert "(residuals 8." in said


def test_exact_losses_and_weights_are_not_tested() -> None:
    assert warned(runs(2, 0.0, 0)) == []
    table = runs(2, 3e-3, 0).assign(n=1.0)
    fitted = fit(table, "chinchilla", weights="n", starts=4)
    assert lack_of_fit(fitted, table, 3e-3, 36) == []
