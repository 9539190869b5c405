"""Everything that follows from a fit: its law's conclusions, drawn."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from fitting.entry.errors import one_line
from fitting.fit.bootstrap import vague
from fitting.fit.result import Fit
from fitting.law.conclusion import Assumptions, Basis, Conclusion, Derived, Value
from fitting.law.terms import FitError, Law
from fitting.results.table import select_rows

IDENTIFIED = "identified"
"""The key for what is known of every parameter; the other keys are those of conclusions."""


def basis_of(
    fit: Fit,
    draws: pd.DataFrame | None,
    table: pd.DataFrame,
    every: pd.DataFrame | None = None,
    assumed: Assumptions | None = None,
) -> Basis:
    """The basis of a fit's conclusions.

    Args:
        fit: A fit of any law.
        draws: From `fitting.fit.bootstrap.bootstrap`; None leaves out the intervals.
        table: The fitted table.
        every: The table from which that one was selected; None if it is the same.
        assumed: The assumptions of the conclusions.
    """
    drawn = None
    if draws is not None:
        drawn = {name: draws[name].to_numpy(dtype=np.float64) for name in fit.parameters}
    rows = select_rows(table)[0]
    return Basis(
        fit.parameters,
        drawn,
        rows,
        rows if every is None else select_rows(every)[0],
        fit.flat,
        assumed or Assumptions(),
    )


def identified(fit: Fit, draws: pd.DataFrame | None) -> dict[str, bool]:
    """Parameter -> whether neither the fit nor its draws doubt it."""
    doubtful = set() if draws is None else set(vague(draws)) - set(fit.frozen)
    return {name: known and name not in doubtful for name, known in fit.identified.items()}


def derived(fit: Fit, basis: Basis, known: dict[str, bool]) -> Derived:
    """What follows from a fit, by its law's conclusions.

    Nothing follows if all values are arbitrary, unless all are frozen.

    Args:
        fit: The fit.
        basis: From `basis_of`.
        known: From `identified`.

    Raises:
        FitError: A law of the user's own cannot draw one.
    """
    free = [name for name in fit.parameters if name not in fit.frozen]
    if free and not any(known[name] for name in free):
        return Derived()
    # Draws in which a parameter is at a bound may have no value: infinite or NaN, not a warning.
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        found = {c.key: _found(c, basis, fit.law) for c in fit.law.conclusions}
    return Derived({key: value for key, value in found.items() if value is not None})


def _found(conclusion: Conclusion[Value], basis: Basis, law: Law) -> Value | None:
    """The result of a conclusion; a mistake in the user's own law becomes a line that says so."""
    try:
        return conclusion.found(basis)
    except Exception as error:
        if not law.typed:
            raise
        why = f"{type(error).__name__}: {one_line(error)}"
        raise FitError(f"law={law.typed}: {conclusion.key} cannot be concluded ({why})") from error


def doubts(law: Law, concluded: Derived, known: Mapping[str, bool]) -> list[str]:
    """Warnings about what a law's conclusions leave in doubt."""
    return [
        warning
        for conclusion in law.conclusions
        if conclusion.doubts and (value := concluded.of(conclusion)) is not None
        for warning in conclusion.doubts(value, known)
    ]
