"""A fit: the optimum that was found, with everything that limits its meaning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import pandas as pd

from fitting.law.conclusion import Count
from fitting.law.terms import Law


@dataclass(frozen=True)
class Objective:
    """The minimised function, and its value at the optimum."""

    name: str
    delta: float | None
    """Huber's threshold on log residuals; None for lad and least_squares."""
    value: float
    """Sum over rows."""
    overestimate: float | None = None
    """How many times a run counts that lies below the law; None for once, like any other."""

    @property
    def times(self) -> float:
        """`overestimate` as a factor."""
        return self.overestimate or 1.0


@dataclass(frozen=True)
class Starts:
    """How many starts were tried and how many ended at the best optimum."""

    tried: Count
    agreeing: Count


@dataclass(frozen=True)
class Rows:
    """How many rows were used, and how many were not, by reason."""

    used: Count
    excluded: dict[str, Count]


@dataclass(frozen=True)
class Fit:
    """A fitted law with everything that limits its meaning."""

    law: Law
    parameters: dict[str, float]
    objective: Objective
    status: str
    """converged, "at_bound: [names]" or max_steps."""
    starts: Starts
    rows: Rows
    frozen: tuple[str, ...]
    at_bound: tuple[str, ...]
    flat: tuple[str, ...]
    """Parameters in a direction along which the fit does not change: their values are arbitrary."""
    identified: dict[str, bool]
    """False: flat, at a bound, or a standard error above a factor of e.  Frozen counts as True."""
    residuals: pd.Series
    """log L - log Lhat of the used rows, with the table's index."""
    warnings: tuple[str, ...]
    weights: str | None = None
    """The column that weighted the rows."""
    bounds: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """Parameters with the bounds that were asked for."""
    rival: Mapping[str, float] | None = None
    """The lowest optimum in which a start ended and that is not the fit's, if there is one."""
