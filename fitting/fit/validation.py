"""Tests of a law: its predictions for runs it has not seen, and whether another law does better.

A law with more parameters always comes closer to the rows that it was fitted to.  What counts is
the error on rows that were held out: a whole model size, or the largest runs, whose prediction is
the purpose of a scaling law.  If nothing can be held out, AIC and BIC charge for each parameter.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import optimize, special

from fitting.fit.result import Fit
from fitting.fit.search import fit, row_weights
from fitting.law.terms import FitError, Law
from fitting.laws.catalogue import get
from fitting.naming import format_names
from fitting.results.table import require_columns, select_rows

BLIND_STARTS = 8
"""Blind starts of a fit without some rows, which also begins at the optima found with them."""
MOST_GROUPS = 40
"""Formats, or token counts, beyond which they are not left out one by one."""
FEWEST_SIZES = 3
"""Sizes from which a larger one is predicted: fewer do not tell E from A and alpha."""
LARGEST = 0.2
"""Share of the rows, by compute, that counts as the largest runs."""
_DESIGN = ("params", "tokens")


@dataclass(frozen=True)
class Prediction:
    """A law's prediction of rows that it was not fitted to."""

    name: str
    """Which rows, e.g. "params=679477248"."""
    trained: int
    """Rows that it was fitted to."""
    errors: pd.Series
    """log L - log Lhat of the held-out rows, with the table's index."""
    extrapolation: float
    """Largest held-out compute (N D) over the largest trained; at most 1 is interpolation."""
    warnings: tuple[str, ...]
    """Warnings of the fit to the other rows."""

    @property
    def rms(self) -> float:
        """Root mean square of the errors, about the relative error of the loss."""
        return _rms(self.errors)

    @property
    def bias(self) -> float:
        """Mean of the errors; positive where the law predicts too low a loss."""
        return float(self.errors.mean())


def hold_out(table: pd.DataFrame, fitted: Fit, held: pd.Series, name: str) -> Prediction:
    """Fit the rows that are not held out in the same way as `fitted`, and predict the others.

    Args:
        table: The table that `fitted` was fitted to.
        fitted: Its law, objective, weights, bounds and frozen parameters are kept.
        held: True for the rows to hold out, with the table's index.
        name: Name of the held-out rows.

    Raises:
        FitError: Nothing is held out, too few rows are left, or the law cannot predict the
            held-out rows, e.g. those of a scheme that no other row has.
        ResultsError: The table lacks params or tokens.
    """
    require_columns(table, ("params", "tokens"), "held-out prediction")
    rows, _ = select_rows(table)
    out = held.loc[rows.index].to_numpy(dtype=bool)
    if not out.any():
        raise FitError(f"hold out {name}: no usable row is held out")
    trained, unseen = rows[~out], rows[out]
    law = fitted.law.without_schemes()
    frozen = {n: fitted.parameters[n] for n in fitted.frozen}
    has = law.on(trained).parameters
    again = fit(
        trained,
        law,
        objective=fitted.objective.name,
        delta=fitted.objective.delta or 1.0,  # has an effect in Huber's objective only
        overestimate=fitted.objective.times,
        freeze={n: v for n, v in frozen.items() if n in has},
        bounds=fitted.bounds,
        weights=fitted.weights,
        starts=BLIND_STARTS,
        near=[p for p in (fitted.parameters, fitted.rival) if p is not None],
    )
    predicted = law.predict({**frozen, **again.parameters}, unseen)
    compute = rows["params"].astype(np.float64) * rows["tokens"]  # beyond 64-bit integers
    return Prediction(
        name=name,
        trained=len(trained),
        errors=np.log(unseen["loss"] / predicted).rename("error"),
        extrapolation=float(compute[out].max() / compute[~out].max()),
        warnings=again.warnings,
    )


def formats_of(table: pd.DataFrame, laws: Sequence[Law]) -> pd.Series:
    """The format of each row in words, or what the laws read of it; missing where unquantized.

    Args:
        table: A results table.
        laws: The laws whose columns say how a run is quantized.
    """
    quantized = pd.Series(False, index=table.index)
    for law in laws:
        quantized |= law.quantized(table)
    told = [c for law in laws for c in (*law.columns, *law.schemes) if c not in _DESIGN]
    names = pd.Series("", index=table.index)
    if {"exponent", "mantissa", "block_size"} <= set(table):
        names = format_names(table, among=table)
    else:
        for column in dict.fromkeys(told):
            words = table[column].map(lambda x: f"{x:.4g}" if isinstance(x, float) else str(x))
            names = names + f"{column}=" + words + " "
    return names.str.strip().where(quantized)


def leave_one_out(
    table: pd.DataFrame, fitted: Fit, groups: pd.Series, name: str = "{}"
) -> list[Prediction]:
    """Each group of rows predicted from all others.

    Args:
        table: The table that `fitted` was fitted to.
        fitted: See `hold_out`.
        groups: The group of each row of the table, such as a column of it; missing for rows that
            are never held out.
        name: The name of what is held out, with the group's in braces: "params={}".

    Raises:
        FitError: There is only one group, or as for `hold_out`.
    """
    rows, _ = select_rows(table)
    values = sorted(groups[rows.index].dropna().unique())
    if len(values) < 2:
        only = f" ({name.format(values[0])})" if values else ""
        raise FitError(f"there is only one{only}: nothing to leave out")
    return [hold_out(table, fitted, groups == value, name.format(value)) for value in values]


def roll_out(table: pd.DataFrame, fitted: Fit) -> list[Prediction]:
    """Each size predicted from the smaller ones alone, as a ladder of growing models would be.

    Args:
        table: The table that `fitted` was fitted to.
        fitted: See `hold_out`.

    Raises:
        FitError: There are no more than `FEWEST_SIZES` sizes, or as for `hold_out`.
        ResultsError: The table lacks params or tokens.
    """
    require_columns(table, ("params", "tokens"), "predicting larger sizes from smaller ones")
    sizes = sorted(select_rows(table)[0]["params"].unique())
    if len(sizes) <= FEWEST_SIZES:
        raise FitError(f"{len(sizes)} sizes: each needs {FEWEST_SIZES} smaller ones to follow from")
    size = table["params"]
    return [
        hold_out(table[size <= each], fitted, size == each, f"params={each} from smaller")
        for each in sizes[FEWEST_SIZES:]
    ]


def hold_out_largest(table: pd.DataFrame, fitted: Fit, share: float = LARGEST) -> Prediction:
    """The runs of the largest compute, N D, predicted from all smaller ones.

    Args:
        table: The table that `fitted` was fitted to.
        fitted: See `hold_out`.
        share: Least share of the rows; runs of the same compute are held out together.

    Raises:
        FitError: `share` is not between 0 and 1, or see `hold_out`.
        ResultsError: The table lacks params or tokens.
    """
    if not 0 < share < 1:
        raise FitError(f"share={share}: must be between 0 and 1")
    held = _largest(table, share)
    if not held.any():
        raise FitError("all runs have the same compute: there is no largest to hold out")
    least = (table["params"].astype(np.float64) * table["tokens"])[held].min()
    return hold_out(table, fitted, held, f"compute>={least:.3g}")


def _largest(table: pd.DataFrame, share: float) -> pd.Series:
    """True for the usable rows of the largest compute, at least this share of them."""
    require_columns(table, ("params", "tokens"), "holding out the largest runs")
    rows, _ = select_rows(table)
    compute = rows["params"].astype(np.float64) * rows["tokens"]
    least = compute.nlargest(math.ceil(share * len(rows))).min()
    if least == compute.min():  # most runs have the least compute of all
        least = compute[compute > least].min()
    held: pd.Series = (compute >= least).reindex(table.index, fill_value=False)
    return held


def compare_laws(
    table: pd.DataFrame,
    laws: Sequence[Law | str],
    *,
    objective: str = "huber",
    delta: float = 1e-3,
    overestimate: float = 1.0,
    weights: str | None = None,
) -> pd.DataFrame:
    """Laws fitted to the same rows, and judged by what they predict for others.

    Args:
        table: One row per run, with the columns of all the laws.
        laws: At least two.
        objective: See `fitting.fit.search.fit`.
        delta: See there.
        overestimate: See there.
        weights: See there.

    Returns:
        One row per law, by its error on left-out sizes, then by BIC: `law`, `parameters` (free
        ones), `objective`, `aic`, `bic` (`information`; lower is better, both count differences
        only), `rms` of the fit's own residuals; `sizes`, how many of the table's sizes every law
        predicts from the others (too few rows may be left, or a scheme is in one size only),
        `rms_sizes` over their rows as predicted without their size, `sizes_won`, how many of them
        this law predicts best; `rms_largest` (`hold_out_largest`); `rms_formats` and `rms_tokens`
        over the quantized rows as predicted without their format, and over all rows without their
        token count; `rms_growing` over the sizes that follow from smaller ones (`roll_out`).  NaN
        where something cannot be predicted.

    Raises:
        FitError: Fewer than two laws, or one cannot be fitted.
        ResultsError: The table lacks a column.
    """
    if len(laws) < 2:
        raise FitError(f"{len(laws)} law to compare: give at least two")
    usable, _ = select_rows(table)
    sizes = sorted(usable["params"].unique())
    formats = formats_of(usable, [get(law) if isinstance(law, str) else law for law in laws])
    found, by_size = [], []
    for law in laws:
        fitted = fit(
            table,
            law,
            objective=objective,
            delta=delta,
            overestimate=overestimate,
            weights=weights,
        )
        by_size.append([_predicted(table, fitted, table["params"] == size) for size in sizes])
        aic, bic = information(table, fitted)
        found.append(
            {
                "law": fitted.law.name,
                "parameters": len(fitted.parameters),
                "objective": fitted.objective.value,
                "aic": aic,
                "bic": bic,
                "rms": _rms(fitted.residuals),
                "rms_largest": _rms(_predicted(table, fitted, _largest(table, LARGEST))),
                "rms_formats": _rms_without(usable, fitted, formats),
                "rms_tokens": _rms_without(usable, fitted, usable["tokens"]),
                "rms_growing": _rms_growing(usable, fitted),
            }
        )
    result = pd.DataFrame(found)
    common = [errors for errors in zip(*by_size, strict=True) if all(map(len, errors))]
    best = [int(np.argmin([_rms(errors) for errors in each])) for each in common]
    result["rms_sizes"] = [_rms(pd.concat(e)) for e in zip(*common, strict=True)] or math.nan
    result["sizes_won"] = np.bincount(best, minlength=len(result))
    result["sizes"] = len(common)
    ordered: pd.DataFrame = result.sort_values(["rms_sizes", "bic"], ignore_index=True)
    return ordered


def _rms_without(table: pd.DataFrame, fitted: Fit, groups: pd.Series) -> float:
    """Rms error of rows as predicted without their group; NaN where a group cannot be predicted."""
    if groups.nunique() > MOST_GROUPS:
        return math.nan
    try:
        return _rms(pd.concat([held.errors for held in leave_one_out(table, fitted, groups)]))
    except FitError:
        return math.nan


def _rms_growing(table: pd.DataFrame, fitted: Fit) -> float:
    """Rms error of sizes as predicted from smaller ones; NaN where they cannot be."""
    try:
        return _rms(pd.concat([held.errors for held in roll_out(table, fitted)]))
    except FitError:
        return math.nan


def _predicted(table: pd.DataFrame, fitted: Fit, held: pd.Series) -> pd.Series:
    """Errors of the held-out rows; none where they cannot be predicted."""
    try:
        return hold_out(table, fitted, held, "rows").errors
    except FitError:
        return pd.Series(dtype=np.float64)


def information(table: pd.DataFrame, fitted: Fit) -> tuple[float, float]:
    """Akaike's and Bayes' information criterion of a fit, (AIC, BIC).

    Each objective is a likelihood: residuals with density exp(-rho(r) / s) / Z(s), whose scale s
    is fitted as well and counts as a parameter (for Huber's rho as Besiroglu et al. 2404.10102
    do).  Least squares gives the usual normal one, lad Laplace's.  A weight counts as that many
    rows.  Only differences between fits to the same rows with the same objective mean anything.
    """
    rows, _ = select_rows(table)
    count = float(row_weights(rows, fitted.weights).sum())
    free = len(fitted.parameters) - len(fitted.frozen) + 1
    log_likelihood = count * _mean_log_likelihood(fitted, fitted.objective.value / count)
    return 2 * free - 2 * log_likelihood, math.log(count) * free - 2 * log_likelihood


def _mean_log_likelihood(fitted: Fit, mean: float) -> float:
    """The largest of -mean / s - log Z(s) over s, `mean` being rho's mean over the rows.

    Where negative residuals count k times, Z(s) is the mean of its halves, Z(s) and Z(s/k).
    """
    if mean == 0:
        return math.inf
    times = fitted.objective.times
    if fitted.objective.name == "lad":
        return -1 - math.log(mean * (1 + 1 / times))
    if fitted.objective.delta is None:
        halves = (1 + 1 / math.sqrt(times)) / 2
        return -0.5 * (1 + math.log(4 * math.pi * mean)) - math.log(halves)
    delta = fitted.objective.delta

    def normaliser(s: float) -> float:
        inside = math.sqrt(2 * math.pi * s) * special.erf(delta / math.sqrt(2 * s))
        return inside + 2 * s / delta * math.exp(-(delta**2) / (2 * s))

    def log_normaliser(log_s: float) -> float:
        s = math.exp(log_s)
        return math.log((normaliser(s) + normaliser(s / times)) / 2)

    # Normal residuals have s = 2 mean, Laplace's s = mean: between, or close by.
    around = math.log(mean)
    best = optimize.minimize_scalar(
        lambda log_s: mean * math.exp(-log_s) + log_normaliser(log_s),
        bounds=(around - 3, around + 3),
        method="bounded",
        options={"xatol": 1e-8},
    )
    return -float(best.fun)


def _rms(errors: pd.Series) -> float:
    """Root mean square."""
    return math.sqrt(float((errors**2).mean()))
