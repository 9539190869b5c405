"""The scatter within cells, pooled over sizes where these scatter alike, and by size where not.

A small number of repeats knows its own scatter badly, so that of all cells is pooled.  Models that
scatter differently (a vision transformer tenfold a convolutional network) must not be: the noisy
one's differences would look real, and the quiet one's would drown.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import pandas as pd
from scipy import special

ALIKE = 0.001
"""The chance, at most, with which sizes that scatter alike are taken one by one."""
Pooled: TypeAlias = tuple[float, int]
"""A standard deviation, NaN if unknown, and its degrees of freedom."""


@dataclass(frozen=True)
class Spread:
    """The scatter of values within groups."""

    groups: pd.DataFrame
    """`size` and `mean` of each group."""
    pooled: Pooled
    """Over all groups."""
    by_size: Mapping[float, Pooled]
    """`params` -> over the groups of that size; empty where all sizes scatter alike."""

    @classmethod
    def of(cls, values: pd.DataFrame, keys: Sequence[str], column: str) -> Spread:
        """The scatter of a column within the groups that agree in some others.

        Args:
            values: One row per value.
            keys: Columns of a group; sizes are told apart by `params`, if that is among them.
            column: The values' own.
        """
        groups = values.groupby([*keys], dropna=False)[column].agg(["size", "mean", "var"])
        dof = groups["size"] - 1
        squares = (groups["var"] * dof).fillna(0.0)  # one value has no variance
        found: dict[float, Pooled] = {}
        if "params" in keys:
            size = groups.index.get_level_values("params")
            each = pd.DataFrame({"squares": squares, "dof": dof}).groupby(size).sum()
            found = {float(n): _pooled(*row) for n, *row in each.itertuples() if row[1] > 0}
        alike = _alike(list(found.values()))
        return cls(groups, _pooled(squares.sum(), dof.sum()), {} if alike else found)

    def at(self, params: float) -> Pooled:
        """That of one size."""
        return self.by_size.get(params, self.pooled)

    def of_rows(self, rows: pd.DataFrame) -> tuple[pd.Series, pd.Series]:
        """Standard deviation and degrees of freedom for each row, by its `params`."""
        if "params" not in rows or not self.by_size:
            std, dof = self.pooled
            return pd.Series(std, rows.index), pd.Series(dof, rows.index)
        each = pd.DataFrame([self.at(float(n)) for n in rows["params"]], rows.index, ["std", "dof"])
        return each["std"], each["dof"]


def error_of_mean(std: pd.Series, dof: pd.Series, params: pd.Series) -> tuple[float, int]:
    """Standard error of the mean of values that scatter differently, and its degrees of freedom.

    Welch and Satterthwaite's; with one standard deviation it is that over the root of the count.

    Args:
        std: Each value's standard deviation.
        dof: Its degrees of freedom.
        params: The size that it belongs to: values of one size share theirs.
    """
    if std.nunique() <= 1:
        return float(std.iloc[0]) / math.sqrt(len(std)), int(dof.iloc[0])
    shares = (std**2).groupby(params).sum()
    known = dof.groupby(params).first()
    total = float(shares.sum())
    return math.sqrt(total) / len(std), int(total**2 / float((shares**2 / known).sum()))


def _pooled(squares: float, dof: float) -> Pooled:
    return (math.sqrt(squares / dof) if dof > 0 else math.nan), int(dof)


def _alike(sizes: Sequence[Pooled]) -> bool:
    """Whether standard deviations may be equal: Bartlett's test (1937) at `ALIKE`."""
    if len(sizes) < 2:
        return True
    dof = np.array([d for _, d in sizes], dtype=np.float64)
    variances = np.array([s**2 for s, _ in sizes])
    if not (variances > 0).all():
        return bool((variances == 0).all())
    total = dof.sum()
    mean = float(dof @ variances) / total
    statistic = total * math.log(mean) - float(dof @ np.log(variances))
    statistic /= 1 + (float((1 / dof).sum()) - 1 / total) / (3 * (len(sizes) - 1))
    return float(special.chdtrc(len(sizes) - 1, statistic)) >= ALIKE
