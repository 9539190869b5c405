"""Tests of whether a law fits at all, whatever its parameters are.

Two questions, each answered by an F test at `ALARM`: are the residuals larger than repeated seeds
explain, and do they still depend on size, token count or format?  The second needs no repeats.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy import stats

from fitting.fit.result import Fit
from fitting.fit.validation import formats_of
from fitting.law.curves import Array
from fitting.words import number, percent

ALARM = 1e-3
"""The chance, at most, with which one of the tests warns of a law that holds, for normal noise."""
EXACT = 1e-6
"""Residuals below which they are those of the solver."""
EXPLAINED = 0.9
"""Least share of the variance of log loss for which a law is said to describe a table."""


def lack_of_fit(fitted: Fit, rows: pd.DataFrame, noise: float, repeats: int) -> list[str]:
    """Warnings that the law does not fit, if it does not.

    Args:
        fitted: The fit; nothing is tested with weights, since the rows' noise differs, and where
            runs below the law count more, since it is then not meant to go through their middle.
        rows: The fitted rows.
        noise: Standard deviation of log loss between repeated seeds.
        repeats: Its degrees of freedom; 0 where there are no repeats.
    """
    groups = {"params": rows["params"], "tokens": rows["tokens"]} if _has_design(rows) else {}
    if (formats := formats_of(rows, [fitted.law])).nunique() > 1:
        groups["format"] = formats
    residuals = fitted.residuals.to_numpy(dtype=np.float64)
    free = len(fitted.parameters) - len(fitted.frozen)
    degrees = len(residuals) - free
    squares = float((residuals**2).sum())
    if fitted.weights is not None or fitted.objective.overestimate or degrees < 1:
        return []
    size = float(np.sqrt(squares / len(residuals)))
    if size < EXACT:
        return []
    rms = percent(size)
    found = []
    between = degrees - repeats
    if repeats >= 1 and between >= 1 and noise > 0:
        ratio = max(squares - noise**2 * repeats, 0.0) / between / noise**2
        if stats.f.sf(ratio, between, repeats) < ALARM / 2:
            found.append(
                f"the law does not fit: residuals of {rms} where another seed makes "
                f"{percent(noise)} (F = {number(ratio, 3)}, p below {ALARM / 2:g}); "
                "intervals hold for the noise, not for what the law lacks"
            )
    tested = {kind: _explained(residuals, of, free) for kind, of in groups.items()}
    low = {kind: p for kind, p in tested.items() if p < ALARM / 2 / len(tested)}
    if low and not found:
        kinds = " and ".join(low)
        found.append(
            f"the law does not fit: its residuals of {rms} still depend on {kinds} "
            f"(p below {ALARM / 2 / len(tested):.2g})"
        )
    losses = np.log(rows["loss"].to_numpy(dtype=np.float64))
    spread = float(((losses - losses.mean()) ** 2).sum())
    if spread > 0 and squares > (1 - EXPLAINED) * spread and not found:
        share = percent(max(1 - squares / spread, 0.0))
        found.append(f"the law explains only {share} of the variance of log loss (residuals {rms})")
    return found


def _has_design(rows: pd.DataFrame) -> bool:
    return {"params", "tokens"} <= set(rows)


def _explained(residuals: Array, groups: pd.Series, free: int) -> float:
    """The chance of residuals whose means by group differ as much, if they were noise."""
    codes, names = pd.factorize(groups)
    some = codes >= 0
    codes, values = codes[some], residuals[some]
    counts = np.bincount(codes, minlength=len(names))
    degrees = len(values) - len(names) - free
    if len(names) < 2 or degrees < 1:
        return 1.0
    means = np.bincount(codes, values, minlength=len(names)) / counts
    between = float((counts * means**2).sum())
    within = float(((values - means[codes]) ** 2).sum())
    if within == 0:
        return 1.0
    return float(stats.f.sf(between / len(names) / (within / degrees), len(names), degrees))
