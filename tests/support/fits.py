"""Fits for tests: a complete fit.json of any law, rows of conclusions, what a real fit gives."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from fitting.analysis.costs import Cost
from fitting.analysis.critical import CriticalTokens
from fitting.analysis.layouts import Layout
from fitting.analysis.optima import Optimum
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


def a_layout(bits: int, **changes: Any) -> Layout:
    """The best split of so many bits."""
    row = Layout(
        bits, 1.5, 1.4, (1.3, 1.7), (1.2, 1.6), 1.07, (0.9, 1.3), "E2M1",
        shares={"E2M1": 0.75, "E1M2": 0.25}, near_ties=[], extrapolated=False,
    )  # fmt: skip
    return replace(row, **changes)


def a_cost(bits: int, factor: float | None, **changes: Any) -> Cost:
    """What so many bits cost: the factor in parameters and in tokens."""
    row = Cost(
        "E2M1", 1e8, 1e10, 0.5, (0.4, 0.6), False, factor, (1.05, 1.6), factor, (1.05, None),
        bits, 32.0,
    )  # fmt: skip
    return replace(row, **changes)


def a_limit(params: float, tokens: float | None, extrapolated: bool) -> CriticalTokens:
    """A critical data size of E2M1."""
    return CriticalTokens(params, "E2M1", tokens, (1e9, None), extrapolated, 32.0)


def an_optimum(tokens: float, bits: float, **changes: Any) -> Optimum:
    """The best bits for given data."""
    row = Optimum(bits, (bits - 1, bits + 1), bits, False, False, tokens=tokens, block_size=32.0)
    return replace(row, **changes)
