"""Does the better of two splits depend on something else, say on a rotation?  Measured, paired.

The difference between two splits of one width is taken from runs that agree in all else, seed
included.  Whether it changes with a factor is again a paired question: the difference at one value
of the factor minus that at another, of the same seed and of the same scale and rounding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import pandas as pd
from scipy import stats

from fitting.results.table import require_columns, select_rows
from fitting.seeds.cells import CELL, cell_keys
from fitting.seeds.compare import PAIR, SPLIT, pairs_of_splits
from fitting.seeds.verdicts import EQUAL_WITHIN, equal, judge

LEVEL = 0.95


def layouts_by(table: pd.DataFrame, factor: str) -> pd.DataFrame:
    """Differences between splits of one width at each value of a factor, and how they change.

    Args:
        table: Results with the columns of `fitting.seeds.cells.CELL`, `seed`, `status` and `loss`.
        factor: A column, e.g. "recipe"; what has one value at each of its values goes with it.

    Returns:
        One row per pair of splits and value of the factor, then one per pair of values: `bits`,
        `first` and `second` (splits, more exponent bits first), `at`, `against` ("" for a
        difference at one value), `difference` (loss of the second minus that of the first; between
        values, its change from `against` to `at`), `standard_error`, `low`, `high` (95 %), `dof`,
        `pairs`, `verdict`: "better" (the first), "worse", "equal within ..." or "cannot tell".

    Raises:
        ResultsError: A column is missing.
    """
    require_columns(table, (*CELL, "seed", "status", "loss", factor), "splits by a factor")
    rows = select_rows(table)[0]
    rows = rows[rows["granularity"] != "none"]
    keys = [c for c in cell_keys(rows.drop(columns=[c for c in SPLIT if c in rows])) if c != factor]
    follows = [c for c in keys if rows.groupby(factor)[c].nunique(dropna=False).max() == 1]
    context = [c for c in keys if c not in follows]
    both = pairs_of_splits(rows, [*context, factor, "seed"])
    found = []
    for split, group in both.groupby(list(PAIR)):
        wide = group.pivot_table(index=[*context, "seed"], columns=factor, values="difference")
        values = sorted(map(str, wide.columns))
        names = _names([int(value) for value in cast("tuple[float, ...]", split)])
        for value in values:
            found.append((*names, value, "", *_told(wide[value].dropna(), context)))
        for i, value in enumerate(values):
            for other in values[:i]:
                change = (wide[value] - wide[other]).dropna()
                found.append((*names, value, other, *_told(change, context)))
    columns = ["bits", "first", "second", "at", "against", "difference", "standard_error"]
    return pd.DataFrame(found, columns=[*columns, "low", "high", "dof", "pairs", "verdict"])


def most_measured(found: pd.DataFrame) -> pd.DataFrame:
    """The rows of the pair of splits that was measured most."""
    runs = found.groupby(["first", "second"])["pairs"].transform("sum").to_numpy()
    most = found.iloc[int(runs.argmax())]
    same = (found["first"] == most["first"]) & (found["second"] == most["second"])
    rows: pd.DataFrame = found[same]
    return rows


def _names(split: Sequence[int]) -> tuple[int, str, str]:
    bits, *parts = split
    return bits, f"E{parts[0]}M{parts[1]}", f"E{parts[2]}M{parts[3]}"


def _told(
    values: pd.Series, context: list[str]
) -> tuple[float, float, float, float, int, int, str]:
    """Mean difference over contexts, from the spread between seeds within each context."""
    groups = values.groupby(level=context, dropna=False) if context else values.groupby(lambda _: 0)
    sizes, means = groups.size(), groups.mean()
    dof = int((sizes - 1).sum())
    difference = float(means.mean()) if len(means) else math.nan
    if not dof:
        return difference, math.nan, math.nan, math.nan, 0, len(values), str(judge(math.nan, 0))
    squares = float(((values - groups.transform("mean")) ** 2).sum())
    # Every context counts the same, however many seeds it has.
    error = math.sqrt(squares / dof * float((1 / sizes).sum())) / len(sizes)
    reach = float(stats.t.ppf((1 + LEVEL) / 2, dof)) * error
    z = difference / error if error else math.nan
    verdict = str(judge(-z, dof))  # of the first: better where the second loses more
    if verdict == "cannot tell" and equal(difference, error, dof):
        verdict = f"equal within {EQUAL_WITHIN:g}"
    return difference, error, difference - reach, difference + reach, dof, len(values), verdict
