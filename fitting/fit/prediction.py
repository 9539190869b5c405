"""Predictions of a fit for runs that it has not seen, each with the interval a run should fall in.

A run's interval has two parts: how far the law's prediction moves between the bootstrap's draws,
and how far the fitted runs lie from the law, which is noise and what the law lacks together.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from fitting.fit.bootstrap import central_spread
from fitting.fit.centred import representable
from fitting.fit.result import Fit
from fitting.fit.validation import formats_of
from fitting.law.conclusion import LEVEL, Count, Interval, Number, json_number
from fitting.law.curves import Array
from fitting.law.terms import Law
from fitting.results.table import select_rows


@dataclass(frozen=True)
class Predicted:
    """Runs of one size, length and format as predicted, and as they came out."""

    name: str
    params: float
    tokens: float
    loss: Number
    """Predicted, nats per token."""
    interval: Interval
    """The 95 % interval of a single run."""
    runs: Count
    """Runs of the cell that have a loss; 0 for a plan."""
    measured: Number
    """Their mean loss."""
    inside: Count
    """How many of them lie within the interval."""


def predict(fitted: Fit, draws: pd.DataFrame, table: pd.DataFrame) -> list[Predicted]:
    """The losses of a table's runs, trained or planned, from a fit to others.

    Args:
        fitted: The fit.
        draws: Its bootstrap.
        table: Runs with the law's columns; those with a `loss` are compared with the prediction.

    Raises:
        FitError: The law is not defined for a row.
        ResultsError: The table lacks a column of the law.
    """
    law = fitted.law
    predicted = law.predict(fitted.parameters, table)
    drawn = _drawn(law, draws[draws["converged"].astype(bool)], table)
    degrees = max(fitted.rows.used - len(fitted.parameters) + len(fitted.frozen), 1)
    noise = float((fitted.residuals**2).sum()) / degrees
    spread = np.sqrt(central_spread(np.log(drawn)) ** 2 + noise)
    reach = np.exp(spread * stats.t.ppf((1 + LEVEL) / 2, degrees))
    low, high = predicted / reach, predicted * reach
    formats = formats_of(table, [law]).fillna("none")
    rows = pd.DataFrame(
        {
            "name": formats, "params": table["params"], "tokens": table["tokens"],
            "predicted": predicted, "low": low, "high": high,
        },
        index=table.index,
    )  # fmt: skip
    finished = select_rows(table)[0]["loss"] if "loss" in table else pd.Series(dtype=np.float64)
    found = []
    for _, cell in rows.groupby(["name", "params", "tokens", "predicted"], sort=True):
        first, losses = cell.iloc[0], finished.reindex(cell.index).dropna()
        bounds = float(first["low"]), float(first["high"])
        found.append(
            Predicted(
                name=str(first["name"]),
                params=float(first["params"]), tokens=float(first["tokens"]),
                loss=json_number(float(first["predicted"])),
                interval=(json_number(bounds[0]), json_number(bounds[1])),
                runs=len(losses),
                measured=float(losses.mean()) if len(losses) else None,
                inside=int(losses.between(*bounds).sum()),
            )
        )  # fmt: skip
    return found


def _drawn(law: Law, draws: pd.DataFrame, table: pd.DataFrame) -> Array:
    """Losses by each draw's parameters, [draws, rows]."""
    design = law.design(table)
    losses = []
    for parameters in draws[list(law.parameters)].to_dict("records"):
        held = representable(law, {str(n): float(v) for n, v in parameters.items()})
        losses.append(np.exp(design.log_terms(law.encode(held))).sum(axis=0))
    return np.array(losses)
