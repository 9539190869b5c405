"""Fits for tests: a complete fit.json of any law in a line, and what follows from a real one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from fitting.fit.derived import IDENTIFIED, basis_of, derived, identified
from fitting.fit.fit_file import FIT, SavedFit, saved_fit
from fitting.fit.result import Fit
from fitting.law.conclusion import Assumptions, entries_of
from fitting.laws.catalogue import LAWS


def fit_json(law: str = "floating_point", **content: Any) -> dict[str, Any]:
    """A fit.json: the least that is complete, with the law's published constants, and `content`.

    `content` may hold rows of conclusions as they are, and some of the parameters.
    """
    model = LAWS[law]
    published = {} if model.published is None else model.published.parameters
    known = {**dict.fromkeys(model.parameters, 1.0), **published, **content.pop("parameters", {})}
    least: dict[str, Any] = {
        "law": law,
        "source": model.source,
        "objective": {"name": "huber", "delta": 1e-3, "value": 1.25e-4},
        "parameters": known,
        "status": "converged",
        "starts": {"tried": 32, "agreeing": 31},
        "rows": {"used": 48, "excluded": {}},
        "warnings": [],
    }
    return entries_of(least | content)


def saved(law: str = "floating_point", **content: Any) -> SavedFit:
    """The same as read."""
    return saved_fit(fit_json(law, **content), Path(FIT))


def derived_json(
    fit: Fit,
    draws: pd.DataFrame | None,
    table: pd.DataFrame,
    every: pd.DataFrame | None = None,
    **assumed: float,
) -> dict[str, Any]:
    """What `derived` of a fit's fit.json holds; arguments as of `basis_of` and `Assumptions`."""
    known = identified(fit, draws)
    found = derived(fit, basis_of(fit, draws, table, every, Assumptions(**assumed)), known)
    return entries_of({IDENTIFIED: known, **found.values})
