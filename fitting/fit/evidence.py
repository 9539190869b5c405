"""The worth of a fit beyond its own residuals: the part of fit.json that judges it.

Profile intervals stand beside the bootstrap's, information criteria beside the objective, and
errors on runs that the law was not fitted to beside the noise floor.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import pandas as pd

from fitting.fit.profile import profile_intervals
from fitting.fit.result import Fit
from fitting.fit.validation import (
    FEWEST_SIZES,
    MOST_GROUPS,
    Prediction,
    compare_laws,
    formats_of,
    hold_out,
    hold_out_largest,
    information,
    leave_one_out,
    roll_out,
)
from fitting.law.conclusion import Count, Interval, Number
from fitting.law.terms import FitError, Law
from fitting.results.table import select_rows
from fitting.words import count_label

MOST_ROWS = 5_000
"""Rows beyond which nothing is profiled or held out: each takes as long as tens of fits."""
MOST_SIZES = 24
"""Sizes beyond which they are not left out one by one."""


@dataclass(frozen=True)
class HeldOutRows:
    """Quality of predictions for rows that the fit did not see; errors are log L - log Lhat."""

    rows: Count
    trained: Count
    """Rows that the prediction was fitted to."""
    rms: Number
    bias: Number
    extrapolation: Number
    """Largest held-out compute over the largest trained."""
    extrapolated: bool
    """Whether this ratio is above one."""
    warnings: list[str]
    params: float | None = None
    """The size that was left out."""
    format: str | None = None
    """The format that was left out."""
    tokens: float | None = None
    """The token count that was left out."""


@dataclass(frozen=True)
class HeldOut:
    """Predictions of rows that the fit did not see, beside the fit's own residuals."""

    residual_rms: Number
    sizes: list[HeldOutRows] | None = None
    """Each size predicted from the others."""
    sizes_rms: Number = None
    """Rms error over all of these."""
    largest: HeldOutRows | None = None
    """The runs of the largest compute predicted from the rest."""
    growing: list[HeldOutRows] | None = None
    """Each size predicted from the smaller ones."""
    growing_rms: Number = None
    """Rms error over all of these."""
    formats: list[HeldOutRows] | None = None
    """Each format predicted from the others."""
    formats_rms: Number = None
    """Rms error over all of these."""
    tokens: list[HeldOutRows] | None = None
    """Each token count predicted from the others."""
    tokens_rms: Number = None
    """Rms error over all of these."""

    @property
    def named(self) -> list[tuple[str, HeldOutRows]]:
        """What was held out, in words, with how well it was predicted."""
        named = [(f"{count_label(size.params or 0)} parameters", size) for size in self.sizes or []]
        named += [(f"{count_label(data.tokens or 0)} tokens", data) for data in self.tokens or []]
        named += [
            (f"{count_label(size.params or 0)} parameters from smaller", size)
            for size in self.growing or []
        ]
        if self.largest is not None:
            named.append(("runs of the largest compute", self.largest))
        return named + [(str(form.format), form) for form in self.formats or []]


@dataclass(frozen=True)
class Information:
    """Information criteria; lower is better, both count differences only."""

    aic: Number
    bic: Number


@dataclass(frozen=True)
class Evidence:
    """The worth of a fit beyond its own residuals."""

    profile_intervals: dict[str, Interval] = field(default_factory=dict)
    """Parameter -> 95 % ends, of which a missing one is infinite."""
    information: Information | None = None
    held_out: HeldOut | None = None
    not_computed: dict[str, str] = field(default_factory=dict)
    """What was not computed, with the reason."""


@dataclass(frozen=True)
class Rival:
    """A row of `fitting.fit.validation.compare_laws`."""

    law: str
    parameters: Count
    objective: Number
    aic: Number
    bic: Number
    rms: Number
    rms_largest: Number
    rms_sizes: Number
    sizes: Count
    sizes_won: Count
    rms_formats: Number = None
    rms_tokens: Number = None
    rms_growing: Number = None


def evidence(table: pd.DataFrame, fitted: Fit, wanted: bool = True) -> Evidence:
    """Profile intervals, information criteria and held-out errors of a fit.

    Args:
        table: The table that `fitted` was fitted to.
        fitted: The fit.
        wanted: Whether to compute profile intervals and held-out errors, which take as long as
            tens of fits.
    """
    missing: dict[str, str] = {}
    held = HeldOut(_rms(fitted.residuals))
    profile: dict[str, Interval] = {}
    if not wanted or fitted.rows.used > MOST_ROWS:
        long = f"{fitted.rows.used:,} rows are more than {MOST_ROWS:,}"
        reason = long if wanted else "evidence=false"
        missing = dict.fromkeys(("profile intervals", "held-out predictions"), reason)
    else:
        held = _held_out(table, fitted, missing)
        try:
            profile = {
                n: (low, high) for n, (low, high) in profile_intervals(table, fitted).items()
            }
        except FitError as error:
            missing["profile intervals"] = str(error)
    return Evidence(profile, Information(*information(table, fitted)), held, missing)


def _held_out(table: pd.DataFrame, fitted: Fit, missing: dict[str, str]) -> HeldOut:
    """Each size predicted from the others, the largest compute from the rest, if possible."""
    own = _rms(fitted.residuals)
    rows, _ = select_rows(table)
    if not {"params", "tokens"} <= set(rows):
        missing["held-out predictions"] = "the table lacks params or tokens"
        return HeldOut(own)
    sizes = sorted(map(float, rows["params"].unique()))
    if not 1 < len(sizes) <= MOST_SIZES:
        many = f"{len(sizes):,} sizes are more than {MOST_SIZES}"
        missing["sizes left out"] = many if len(sizes) > 1 else "there is only one size"
        sizes = []
    predicted = {}
    for size in sizes:
        name = f"{count_label(size)} parameters left out"
        try:
            predicted[size] = hold_out(table, fitted, table["params"] == size, name)
        except FitError as error:
            missing[name] = str(error)
    largest = None
    try:
        largest = _rows(hold_out_largest(table, fitted))
    except FitError as error:
        missing["largest compute held out"] = str(error)
    found = HeldOut(own, largest=largest)
    if predicted:
        left_out = [_rows(held, params=size) for size, held in predicted.items()]
        found = replace(found, sizes=left_out, sizes_rms=_rms_of(predicted.values()))
    if len(sizes) > FEWEST_SIZES:
        try:
            growing = roll_out(table, fitted)
            each = [
                _rows(held, params=size)
                for size, held in zip(sizes[FEWEST_SIZES:], growing, strict=True)
            ]
            found = replace(found, growing=each, growing_rms=_rms_of(growing))
        except FitError as error:
            missing["sizes from smaller ones"] = str(error)
    if formats := _groups(rows, fitted, formats_of(rows, [fitted.law]), "formats", missing):
        each = [_rows(held, format_=held.name) for held in formats]
        found = replace(found, formats=each, formats_rms=_rms_of(formats))
    if tokens := _groups(rows, fitted, rows["tokens"].astype(float), "token counts", missing):
        each = [_rows(held, tokens=float(held.name)) for held in tokens]
        found = replace(found, tokens=each, tokens_rms=_rms_of(tokens))
    return found


def _groups(
    rows: pd.DataFrame, fitted: Fit, groups: pd.Series, what: str, missing: dict[str, str]
) -> list[Prediction]:
    """Each group predicted from the others, if there are several and not too many."""
    count = groups.nunique()
    if count > MOST_GROUPS:
        missing[f"{what} left out"] = f"{count:,} {what} are more than {MOST_GROUPS}"
    if not 1 < count <= MOST_GROUPS:
        return []
    try:
        return leave_one_out(rows, fitted, groups)
    except FitError as error:
        missing[f"{what} left out"] = str(error)
        return []


def _rms_of(predictions: Iterable[Prediction]) -> float:
    return _rms(pd.concat([held.errors for held in predictions]))


def comparison(
    table: pd.DataFrame,
    laws: Sequence[Law],
    objective: str,
    delta: float,
    overestimate: float,
    weights: str | None,
) -> list[Rival]:
    """The rows of `fitting.fit.validation.compare_laws`.

    Raises:
        FitError: A law cannot be fitted, or there is only one size.
        ResultsError: The table lacks a column of a law.
    """
    compared = compare_laws(
        table, laws, objective=objective, delta=delta, overestimate=overestimate, weights=weights
    )
    return [Rival(**{str(k): v for k, v in row.items()}) for row in compared.to_dict("records")]


def _rows(
    held: Prediction,
    params: float | None = None,
    format_: str | None = None,
    tokens: float | None = None,
) -> HeldOutRows:
    return HeldOutRows(
        rows=len(held.errors),
        trained=held.trained,
        rms=held.rms,
        bias=held.bias,
        extrapolation=held.extrapolation,
        extrapolated=held.extrapolation > 1,
        warnings=list(held.warnings),
        params=params,
        format=format_,
        tokens=tokens,
    )


def _rms(errors: pd.Series) -> float:
    return math.sqrt(float((errors**2).mean()))
