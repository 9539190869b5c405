"""What a fit is worth beyond its own residuals, JSON-ready: the part of fit.json that judges it.

Profile intervals stand beside the bootstrap's, information criteria beside the objective, and
errors on runs that the law was not fitted to beside the noise floor.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd

from fitting.fit.profile import profile_intervals
from fitting.fit.result import Fit
from fitting.fit.validation import (
    HeldOut,
    compare_laws,
    hold_out,
    hold_out_largest,
    information,
)
from fitting.laws.law import FitError, Law
from fitting.results.table import select_rows
from fitting.words import count_label

MOST_ROWS = 5_000
"""More are neither profiled nor held out: each takes as long as tens of fits."""
MOST_SIZES = 24
"""More are not left out one by one."""


def evidence(table: pd.DataFrame, fitted: Fit, wanted: bool = True) -> dict[str, Any]:
    """Profile intervals, information criteria and held-out errors of a fit.

    Args:
        table: The table that `fitted` was fitted to.
        fitted: The fit.
        wanted: Whether to compute profile intervals and held-out errors, which take as long as
            tens of fits.

    Returns:
        `profile_intervals` (parameter -> 95 % ends, of which a missing one is infinite);
        `information` (`aic`, `bic`); `held_out` with `residual_rms` of the fit itself, `sizes` (one
        entry a left-out size, with its `params`), `sizes_rms` over all of these, and `largest`
        (the runs of the largest compute).  An entry has `rows`, `trained`, `rms` and `bias` of
        log L - log Lhat, `extrapolation` (largest held-out over largest trained compute),
        `extrapolated` where that is above one, and `warnings`.  What there is none of is absent,
        with the reason in `not_computed`.
    """
    missing: dict[str, str] = {}
    aic, bic = information(table, fitted)
    held: dict[str, Any] = {"residual_rms": _rms(fitted.residuals)}
    profile: dict[str, tuple[float, float]] = {}
    if not wanted or fitted.rows.used > MOST_ROWS:
        long = f"{fitted.rows.used:,} rows are more than {MOST_ROWS:,}"
        reason = long if wanted else "evidence=false"
        missing = dict.fromkeys(("profile intervals", "held-out predictions"), reason)
    else:
        held |= _held_out(table, fitted, missing)
        try:
            profile = profile_intervals(table, fitted)
        except FitError as error:
            missing["profile intervals"] = str(error)
    return {
        "profile_intervals": profile,
        "information": {"aic": aic, "bic": bic},
        "held_out": held,
        "not_computed": missing,
    }


def _held_out(table: pd.DataFrame, fitted: Fit, missing: dict[str, str]) -> dict[str, Any]:
    """Each size predicted by the others and the largest compute by the rest, as far as can be."""
    found: dict[str, Any] = {}
    rows, _ = select_rows(table)
    if not {"params", "tokens"} <= set(rows):
        missing["held-out predictions"] = "the table lacks params or tokens"
        return found
    sizes = sorted(map(float, rows["params"].unique()))
    if not 1 < len(sizes) <= MOST_SIZES:
        many = f"{len(sizes):,} sizes are more than {MOST_SIZES}"
        missing["sizes left out"] = many if len(sizes) > 1 else "there is one size only"
        sizes = []
    predicted = {}
    for size in sizes:
        name = f"{count_label(size)} parameters left out"
        try:
            predicted[size] = hold_out(table, fitted, table["params"] == size, name)
        except FitError as error:
            missing[name] = str(error)
    if predicted:
        found["sizes"] = [{"params": size, **_entry(held)} for size, held in predicted.items()]
        found["sizes_rms"] = _rms(pd.concat([held.errors for held in predicted.values()]))
    try:
        found["largest"] = _entry(hold_out_largest(table, fitted))
    except FitError as error:
        missing["largest compute held out"] = str(error)
    return found


def comparison(
    table: pd.DataFrame,
    laws: Sequence[Law],
    objective: str,
    delta: float,
    weights: str | None,
) -> list[dict[str, Any]]:
    """`fitting.fit.validation.compare_laws` as JSON-ready rows.

    Raises:
        FitError: A law cannot be fitted, or there is one size only.
        ResultsError: The table lacks a column of a law.
    """
    compared = compare_laws(table, laws, objective=objective, delta=delta, weights=weights)
    return [{str(k): v for k, v in row.items()} for row in compared.to_dict("records")]


def _entry(held: HeldOut) -> dict[str, Any]:
    return {
        "rows": len(held.errors),
        "trained": held.trained,
        "rms": held.rms,
        "bias": held.bias,
        "extrapolation": held.extrapolation,
        "extrapolated": held.extrapolation > 1,
        "warnings": list(held.warnings),
    }


def _rms(errors: pd.Series) -> float:
    return math.sqrt(float((errors**2).mean()))
