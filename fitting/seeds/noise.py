"""The noise floor: the spread between repeated seeds, measured without a fit.

A difference between two formats means nothing unless it is larger than the change that another seed
would have made.  `noise_floor` measures that change; `compare_cells` judges by it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd

from fitting.results.table import require_columns, select_rows
from fitting.seeds.cells import cell_keys
from fitting.seeds.spread import Spread


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
    rows, keys = _repeats(table)
    if not keys:
        return NoiseFloor(math.nan, math.nan, 0, 0)
    loss = Spread.of(rows, keys, "loss")
    logs = Spread.of(rows.assign(loss=np.log(rows["loss"].astype(float))), keys, "loss")
    repeated = int((loss.groups["size"] > 1).sum())
    return NoiseFloor(logs.pooled[0], *loss.pooled, repeated)


def losses_of_seeds(table: pd.DataFrame) -> Spread:
    """The spread of losses between seeds, by size where sizes differ in it; as `noise_floor`."""
    rows, keys = _repeats(table)
    return Spread.of(rows, keys or ["loss"], "loss")


def _repeats(table: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Runs with a loss, one for each cell and seed, and the columns of a cell.

    No column where no run is known to be a repeat.
    """
    require_columns(table, ("loss", "tokens"), "the noise floor")
    rows, _ = select_rows(table)
    if "seed" not in rows or rows.empty:
        return rows, []
    keys = cell_keys(table)
    return rows.drop_duplicates([*keys, "seed"]), keys
