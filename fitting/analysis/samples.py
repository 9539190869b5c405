"""Formulas at a fit's parameters and at its bootstrap draws."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from fitting.fit.result import Fit
from fitting.laws.curves import Array


def samples(fit: Fit, draws: pd.DataFrame | None) -> list[Mapping[str, Any]]:
    """The parameters, and where there are draws theirs, as arrays: what formulas are applied to."""
    if draws is None:
        return [fit.parameters]
    return [fit.parameters, {n: draws[n].to_numpy(dtype=np.float64) for n in fit.parameters}]


def with_interval(values: Sequence[Any]) -> tuple[float | None, list[float | None]]:
    """A formula's value at `samples` and its 95 % interval, JSON-ready; [None, None] without draws.

    Args:
        values: A number, and where there are draws an array.
    """
    low, high = percentiles(values[1]) if len(values) > 1 else (math.nan, math.nan)
    return json_number(float(values[0])), [json_number(low), json_number(high)]


ENOUGH_KNOWN = 0.95
"""Share of the draws that must have a value of something derived, else it has no interval."""


LEVEL = 0.95
"""Of intervals of what is derived from draws."""


def percentiles(values: Array) -> tuple[float, float]:
    """The 95 % percentile interval of something derived from draws, (low, high).

    Infinite draws count, an interval may end there.  NaN for both where more than a few draws have
    no value (0/0 where two exponents are zero): those that have one are then no sample of it.
    """
    known = values[~np.isnan(values)]
    if not len(known) or len(known) < ENOUGH_KNOWN * len(values):
        return math.nan, math.nan
    values = known
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(values, [tail, 1 - tail], method="nearest")
    return float(low), float(high)


def json_number(value: float) -> float | None:
    """A number as JSON can say it: no NaN and no infinity."""
    return float(value) if math.isfinite(value) else None
