"""Which rows of a table a fit takes: those that a condition keeps, or the best of each group."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from fitting.entry.errors import UsageError
from fitting.law.terms import Law
from fitting.results.table import require_columns, select_rows
from fitting.results.where import ExpressionError, evaluate


def keep(table: pd.DataFrame, expression: str) -> pd.DataFrame:
    """The rows for which an expression holds; all for "".

    Raises:
        UsageError: It cannot be evaluated, is not a condition, or holds for no row.
    """
    if not expression:
        return table
    try:
        mask = evaluate(expression, table)
    except ExpressionError as error:
        raise UsageError(f"where={expression}: cannot be evaluated ({error})") from error
    if not isinstance(mask, pd.Series) or mask.dtype != bool:
        raise UsageError(f"where={expression}: must be true or false for each row")
    kept: pd.DataFrame = table[mask]
    if kept.empty:
        raise UsageError(f"where={expression}: keeps none of {len(table)} rows")
    return kept


def best_of_each(
    table: pd.DataFrame, columns: Sequence[str], laws: Sequence[Law]
) -> tuple[pd.DataFrame, list[str]]:
    """The row of least loss of each combination of values of some columns, and what to say of it.

    Args:
        table: A results table; rows without a usable loss stay, so that they are counted.
        columns: The columns; all rows are kept if there are none.
        laws: The laws that are fitted: rows that differ in what these read are never rivals.

    Raises:
        UsageError: Rows of one group differ in what a law reads.
        ResultsError: There is no such column.
    """
    if not columns:
        return table, []
    typed = f"best_per={','.join(columns)}"
    require_columns(table, tuple(columns), typed)
    rows = select_rows(table)[0]
    groups = rows.groupby(list(columns), dropna=False, sort=False)
    for law in laws:
        more = [column for each, _ in law.extras.values() for column in each]
        read = [c for c in (*law.columns, *law.schemes, *more) if c in rows and c not in columns]
        for column in read:
            if (groups[column].nunique(dropna=False) > 1).any():
                raise UsageError(
                    f"{typed}: rows of one group differ in {column}, which law={law.name} reads; "
                    f"give best_per={','.join((*columns, column))}"
                )
    best = groups["loss"].idxmin()
    kept = table.loc[table.index.isin(best) | ~table.index.isin(rows.index)]
    if len(best) == len(rows):
        return kept, [f"{typed}: each has one run, so none was left out"]
    return kept, [
        f"{typed}: {len(best)} of {len(rows)} runs were fitted, the best of each; the least of "
        "several losses lies below what one more run would reach"
    ]
