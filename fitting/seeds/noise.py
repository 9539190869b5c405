"""The noise floor: the spread between repeated seeds, measured without a fit.

A difference between two formats means nothing unless it is larger than the change that another seed
would have made.  `noise_floor` measures that change; `compare_cells` judges by it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd

from fitting.law.curves import Array
from fitting.results.table import require_columns, select_rows
from fitting.seeds.cells import cell_keys


@dataclass(frozen=True)
class NoiseFloor:
    """The effect of another seed, pooled over all cells that were run with several seeds."""

    std_log: float
    """Standard deviation of log loss, roughly the relative one of loss; NaN without repeats."""
    std_loss: float
    """Standard deviation of loss, nats per token; NaN without repeats."""
    dof: int
    """Degrees of freedom: runs minus cells."""
    cells: int
    """Cells with at least two seeds."""


def noise_floor(table: pd.DataFrame) -> NoiseFloor:
    """Pooled standard deviation of repeated runs that differ only by their seed.

    Args:
        table: Results (see `fitting.results.record`); `fitting.seeds.cells.cell_keys` says which
            runs are repeats.  Rows without a loss do not count; of several rows with the same cell
            and seed only the first counts, since they are one run.  Without a column `seed` no run
            is known to be a repeat.

    Returns:
        Within-cell standard deviations, sqrt(sum of squares / degrees of freedom).

    Raises:
        ResultsError: The table has no loss or no tokens.
    """
    require_columns(table, ("loss", "tokens"), "the noise floor")
    rows, _ = select_rows(table)
    if "seed" not in rows or rows.empty:
        return NoiseFloor(math.nan, math.nan, 0, 0)
    keys = cell_keys(table)
    rows = rows.drop_duplicates([*keys, "seed"])
    loss = rows["loss"].to_numpy(dtype=float)
    cell = rows.groupby(keys, dropna=False).ngroup().to_numpy()
    sizes = np.bincount(cell)
    dof = int((sizes - 1).sum())

    def pooled(values: Array) -> float:
        means = np.bincount(cell, values) / sizes
        return float(np.sqrt(((values - means[cell]) ** 2).sum() / dof)) if dof else math.nan

    return NoiseFloor(pooled(np.log(loss)), pooled(loss), dof, int((sizes > 1).sum()))
