"""Scatter that is pooled where it is the same: known numbers, and how often verdicts are false."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from fitting.seeds.compare import compare_cells, compare_layouts
from fitting.seeds.noise import losses_of_seeds, noise_floor
from fitting.seeds.spread import ALIKE, Spread, error_of_mean
from fitting.seeds.verdicts import BETTER, WORSE

SEEDS, FORMATS = 3, ((1, 1), (2, 1), (1, 2), (3, 1), (1, 3))


def study(scatter: dict[float, float], seed: int) -> pd.DataFrame:
    """Runs of which no format is worse than another, with a scatter of its own at each size."""
    rng = np.random.default_rng(seed)
    rows = [
        (n, tokens, s, *form, 2 + std * rng.normal())
        for (n, std), tokens, s, form in itertools.product(
            scatter.items(), (1e6, 4e6), range(SEEDS), [(8, 23), *FORMATS]
        )
    ]
    names = ["params", "tokens", "seed", "exponent", "mantissa", "loss"]
    table = pd.DataFrame(rows, columns=names).assign(status="finished")
    none = table["exponent"] == 8
    return table.assign(
        model=table["params"].map("n{:.0f}".format),
        recipe=np.where(none, "none", "sun"),
        granularity=np.where(none, "none", "row"),
        scale=np.where(none, "none", "fp32"),
        block_size=np.where(none, 1.0, 64.0),
    )


def test_bartletts_statistic_is_scipys() -> None:
    rng = np.random.default_rng(0)
    different = 0
    for _ in range(200):
        stds = np.exp(0.6 * rng.normal(size=3))
        sizes = zip(stds, (8, 12, 5), strict=True)
        groups = [rng.normal(scale=std, size=size) for std, size in sizes]
        table = pd.DataFrame(
            [(float(n), value) for n, values in enumerate(groups, 1) for value in values],
            columns=["params", "x"],
        )
        spread = Spread.of(table, ["params"], "x")
        expected = stats.bartlett(*groups).pvalue < ALIKE
        assert bool(spread.by_size) == expected
        different += expected
    assert 10 < different < 190, "both happen"


def test_sizes_that_scatter_differently_are_judged_each_by_its_own() -> None:
    table = study({1e5: 0.1, 1e6: 0.01}, 0)
    spread = losses_of_seeds(table)
    assert set(spread.by_size) == {1e5, 1e6}
    for size, rows in table.groupby("params"):
        alone = noise_floor(rows)
        assert spread.at(float(size)) == pytest.approx((alone.std_loss, alone.dof))  # type: ignore[arg-type]
    cells = compare_cells(table)
    errors = cells.groupby("params")["standard_error"].first()
    assert 5 < errors[1e5] / errors[1e6] < 20
    assert set(cells["dof"]) == {2 * 5 * (SEEDS - 1)}
    alike = compare_cells(study({1e5: 0.01, 1e6: 0.01}, 0))
    assert alike["standard_error"].nunique() == 1
    assert set(alike["dof"]) == {2 * 2 * 5 * (SEEDS - 1)}


def test_a_mean_of_values_that_scatter_differently_has_welchs_error() -> None:
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=9), 5 * rng.normal(size=6)
    std = pd.Series([x.std(ddof=1)] * 9 + [y.std(ddof=1)] * 6)
    dof = pd.Series([8] * 9 + [5] * 6)
    sizes = pd.Series([1.0] * 9 + [2.0] * 6)
    error, count = error_of_mean(std, dof, sizes)
    a, b = 9 * x.var(ddof=1), 6 * y.var(ddof=1)
    assert error == pytest.approx(math.sqrt(a + b) / 15)
    assert count == int((a + b) ** 2 / (a**2 / 8 + b**2 / 5))
    one = error_of_mean(std[:9], dof[:9], sizes[:9])
    assert one == pytest.approx((x.std(ddof=1) / 3, 8))


@pytest.mark.parametrize("scatter", [{1e5: 0.02, 1e6: 0.02}, {1e5: 0.09, 1e6: 0.009}], ids=str)
def test_false_verdicts_are_as_rare_as_they_say(scatter: dict[float, float]) -> None:
    """0.27 %; pooled over unequal sizes the noisy one would have ten times as many."""
    cells, layouts = [], []
    for seed in range(150):
        table = study(scatter, seed)
        cells.append(compare_cells(table))
        layouts.append(compare_layouts(table))
    judged = pd.concat(cells)
    for _, rows in judged.groupby("params"):
        alarms = int(rows["verdict"].isin([WORSE, BETTER]).sum())
        # 1,500 verdicts, of which those of one table share runs: 4 expected.
        assert alarms <= 14, alarms
    pairs = pd.concat(layouts)
    assert (pairs["verdict"] == BETTER).sum() <= 8, "300 pairs of splits: 1 expected"
