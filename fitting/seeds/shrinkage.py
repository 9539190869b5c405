"""How much each split shrinks what it rounds, by rotation and scale: as measured in training.

Rounding to nearest on a grid whose steps widen puts more of a bin's mass below its middle's number
than above it: <x, Q(x)> is less than <x, x>, and over the layers that multiplies (2606.20381).
"""

from __future__ import annotations

import pandas as pd

from fitting.results.format_errors import SHRINKAGE
from fitting.results.table import select_rows

BY = ("exponent", "mantissa", "recipe", "scale")
"""What a mean is taken for."""


def shrinkage_by(table: pd.DataFrame) -> pd.DataFrame:
    """Mean shrinkage of each operand, over the quantized runs in which it was measured.

    Args:
        table: Results, with the columns of `BY` and of
            `fitting.results.format_errors.SHRINKAGE`.

    Returns:
        One row for each split, recipe and scale: `BY`, `runs`, and a column for each operand, NaN
        where it was not measured.  Empty where nothing was, or where a column is missing.
    """
    names = list(SHRINKAGE)
    if not {*BY, "granularity", *names} <= set(table):
        return pd.DataFrame()
    rows = select_rows(table)[0]
    rows = rows[(rows["granularity"] != "none") & rows[names].notna().any(axis=1)]
    if rows.empty:
        return pd.DataFrame()
    groups = rows.groupby(list(BY))
    found = groups[names].mean()
    found.insert(0, "runs", groups.size())
    result: pd.DataFrame = found.reset_index()
    return result
