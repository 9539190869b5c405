"""Everything that follows from a fit, JSON-ready: the part `derived` of fit.json."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from fitting.analysis.capacity import compressed_table, kumar_table, ptq_table, qat_table
from fitting.analysis.chinchilla import compute_optimal_exponent
from fitting.analysis.efficiency import FASTER, quartet_table
from fitting.analysis.granularity import equivalent_blocks
from fitting.analysis.layouts import (
    bits_table,
    columns_of,
    critical_table,
    layout_table,
    quantized_rows,
)
from fitting.analysis.samples import json_number, percentiles
from fitting.analysis.trades import (
    COST,
    QUIET,
    cost_table,
    optimal_table,
)
from fitting.fit.bootstrap import vague
from fitting.fit.result import Fit

CAPACITIES = {
    "ptq": ptq_table,
    "qat": qat_table,
    "compressed": compressed_table,
}
"""What the laws say in which precision costs capacity, or adds a penalty, by law."""


@QUIET
def derived(
    fit: Fit,
    draws: pd.DataFrame | None,
    table: pd.DataFrame,
    every: pd.DataFrame | None = None,
    speedups: tuple[float, float] = (FASTER, FASTER),
    k: float = COST,
) -> dict[str, Any]:
    """What follows from a fit, JSON-ready: the `derived` of fit.json.

    Args:
        fit: Of any law.
        draws: From `fitting.fit.bootstrap.bootstrap`; None leaves out the intervals.
        table: The fitted table.
        every: The table that it was selected from; None for the same.
        speedups: Of the FP4 forward and backward pass over FP8, for `quartet`.
        k: Of the cost C = k P N D of a run with P bits, for `floating_point` and `precision`.

    Returns:
        `identified` for every parameter (False where the fit or the draws doubt it), and nothing
        else where no free parameter is.  For
        `floating_point` also `holds_for` (the `operands` and `recipe` of its quantized rows, None
        where the table does not say), `layouts` (`layout_table`), `critical_tokens`
        (`critical_table`), `cost_of_bits` (`bits_table`), `cost_of_precision` and
        `optimal_precision` (`fitting.analysis.trades`), `equivalent_blocks`
        (`fitting.analysis.granularity`) and `cost_k`; for `quartet` what
        `fitting.analysis.efficiency` concludes; for `precision` (also with `cost_k`), `ptq`, `qat`
        and `compressed` what `fitting.analysis.capacity` does; for `chinchilla`
        `compute_optimal_exponent`, a dict of `value` and `interval`.
    """
    doubtful = set() if draws is None else set(vague(draws)) - set(fit.frozen)
    result: dict[str, Any] = {
        "identified": {n: known and n not in doubtful for n, known in fit.identified.items()}
    }
    if not any(known for n, known in result["identified"].items() if n not in fit.frozen) and set(
        fit.frozen
    ) != set(fit.parameters):
        return result  # nothing follows from values that are all arbitrary
    name = fit.law.name
    if name == "floating_point":
        result["holds_for"] = {
            column: _distinct(quantized_rows(table), column) for column in ("operands", "recipe")
        }
        result["layouts"] = layout_table(fit, draws, table)
        result["critical_tokens"] = critical_table(fit, draws, table)
        result["cost_of_bits"] = bits_table(fit, draws, table)
        result["cost_of_precision"] = cost_table(fit, draws, table)
        result["optimal_precision"] = optimal_table(fit, draws, table, k)
        result["equivalent_blocks"] = equivalent_blocks(
            fit, draws, table, table if every is None else every
        )
    elif name == "quartet":
        result |= quartet_table(fit, draws, table, *speedups)
    elif name == "precision":
        result |= kumar_table(fit, draws, table, k)
    elif name in CAPACITIES:
        result |= CAPACITIES[name](fit, draws, table)
    elif name == "chinchilla" and not {"alpha", "beta"} & set(fit.flat):
        low = high = math.nan
        if draws is not None:
            low, high = percentiles(compute_optimal_exponent(columns_of(draws)))
        result["compute_optimal_exponent"] = {
            "value": json_number(compute_optimal_exponent(fit.parameters)),
            "interval": [json_number(low), json_number(high)],
        }
    if result.get("optimal_precision"):
        result["cost_k"] = k
    return result


def _distinct(rows: pd.DataFrame, column: str) -> list[str] | None:
    return sorted(str(v) for v in rows[column].unique()) if column in rows else None
