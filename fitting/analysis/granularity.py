"""Coarse scales as block sizes: what B a scale per channel or per tensor is worth.

In Sun et al. 2501.02423 the precision term grows with log2(B).  A scale per channel behaves like a
constant B (theirs: log2 B = 13.1567), one per tensor like log2 B = N^omega/(xi D^eta), whose
constants they do not print.  Both are measured here, from the losses of such runs and a law that
was fitted to runs with blocks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pandas as pd

from fitting.analysis.samples import samples, with_interval
from fitting.analysis.trades import NEEDED
from fitting.fit.result import Fit
from fitting.laws.curves import Array
from fitting.results.table import select_rows

Integers: TypeAlias = npt.NDArray[np.integer[Any]]

COARSE = ("row", "tensor")
"""Of the column `granularity`: a scale per channel, a scale per tensor."""
POOLED = ("corpus", "compute_dtype", "operand_values", "operands", "recipe")
"""A run counts only if it agrees with some fitted run in these columns."""
RESAMPLING_SEED = 0
"""Of the rows: the same inputs give the same intervals."""
ENOUGH_FINITE = 0.95
"""Share of draws that must give a value, else there is no interval."""


def equivalent_blocks(
    fit: Fit, draws: pd.DataFrame | None, table: pd.DataFrame, every: pd.DataFrame
) -> list[dict[str, Any]]:
    """The block size to which a scale per channel or tensor is equivalent, as measured.

    For each granularity the log2 B that gives the rows' losses in least squares of L/Lhat; rows
    are resampled along with the draws of the law.

    Args:
        fit: Of the law `floating_point`.
        draws: From `fitting.fit.bootstrap.bootstrap`; None leaves out the intervals.
        table: The fitted table.
        every: The table that it was selected from: its coarse rows are measured.

    Returns:
        JSON-ready dicts: `granularity`; `log2_block` with `interval` (95 %), for a scale per tensor
        the mean over sizes and data; `given`, the mean log2 of the rows' own `block_size`; `rows`;
        `fitted`, whether the fit had such rows: it then took `given` for granted, which pulls the
        measurement towards it; for tensors also `omega`, `xi` and `eta` with their intervals, None
        where sizes and data do not vary enough.  Empty without coarse rows, or where no row with
        blocks was fitted or the table does not hold a parameter: nothing is then measured.
    """
    if "granularity" not in every or "granularity" not in table or set(NEEDED) & set(fit.flat):
        return []
    fitted = select_rows(table)[0]
    if not (fitted["granularity"] == "block").any():
        return []
    rows = select_rows(every)[0]
    for column in (c for c in POOLED if c in rows and c in fitted):
        rows = rows[rows[column].isin(fitted.loc[fitted["granularity"] != "none", column])]
    entries = []
    for kind in COARSE:
        mine = rows[(rows["granularity"] == kind) & (rows["block_size"] > 1)]
        if mine.empty:
            continue
        values = _resampled(fit, draws, mine)
        log2_block, interval = with_interval([v[0] for v in values])
        entry = {
            "granularity": kind,
            "log2_block": log2_block,
            "interval": interval,
            "given": float(np.log2(mine["block_size"].to_numpy(dtype=np.float64)).mean()),
            "rows": len(mine),
            "fitted": bool((fitted["granularity"] == kind).any()),
        }
        if kind == "tensor":
            for i, name in enumerate(("omega", "xi", "eta"), start=1):
                entry[name], entry[f"{name}_interval"] = with_interval([v[i] for v in values])
        entries.append(entry)
    return entries


def _resampled(fit: Fit, draws: pd.DataFrame | None, rows: pd.DataFrame) -> list[list[Any]]:
    """log2 B, omega, xi and eta: of the fit, and where there are draws an array of each."""
    columns = ("params", "tokens", "exponent", "mantissa", "loss")
    runs = {name: rows[name].to_numpy(dtype=np.float64) for name in columns}
    cells = rows.groupby(["params", "tokens"], sort=True).ngroup().to_numpy()
    best: list[Any] = _measure(fit.parameters, runs, cells, np.ones(len(rows)))
    if draws is None:
        return [best]
    rng = np.random.default_rng(RESAMPLING_SEED)
    drawn = samples(fit, draws)[1]
    each = []
    for i in range(len(draws)):
        counts = rng.multinomial(len(rows), np.full(len(rows), 1 / len(rows)))
        weights = counts.astype(np.float64)
        each.append(_measure({n: float(v[i]) for n, v in drawn.items()}, runs, cells, weights))
    # Where many draws hold no law for log2 B, those that do are no sample of it.
    finite = np.isfinite(np.array(each))
    known = finite.mean(axis=0) >= ENOUGH_FINITE
    columns_of_draws = np.array(each).T
    return [best, [v[f & k] for v, f, k in zip(columns_of_draws, finite.T, known, strict=True)]]


def _measure(
    p: Mapping[str, float], runs: Mapping[str, Array], cells: Integers, weights: Array
) -> list[float]:
    """log2 B over all runs; omega, xi, eta of log2 B = N^omega/(xi D^eta) over cells."""
    n, d, loss = runs["params"], runs["tokens"], runs["loss"]
    full = p["n"] * n ** -p["alpha"] + p["d"] * d ** -p["beta"] + p["epsilon"]
    unit = d ** p["beta"] * n ** -p["alpha"] / p["gamma"]  # what log2 B = 1 would add
    unit = unit * (runs["exponent"] + 0.5) ** -p["delta"] * (runs["mantissa"] + 0.5) ** -p["nu"]
    above = weights * (loss - full) * unit / loss**2
    square = weights * (unit / loss) ** 2
    sums, squares = np.bincount(cells, above), np.bincount(cells, square)
    overall = float(sums.sum() / squares.sum())
    with np.errstate(invalid="ignore", divide="ignore"):
        each = sums / squares
        good = each > 0
    first = np.unique(cells, return_index=True)[1][good]
    design = np.column_stack([np.log(n[first]), -np.ones(len(first)), -np.log(d[first])])
    # A draw whose parameter ran away measures nothing.
    known = np.isfinite(np.append(squares[good], each[good])).all()
    if not known or len(first) < 3 or np.linalg.matrix_rank(design - design.mean(axis=0)) < 2:
        return [overall, math.nan, math.nan, math.nan]
    root = np.sqrt(squares[good]) * each[good]  # one over the standard error of log each
    omega, log_xi, eta = np.linalg.lstsq(
        design * root[:, None], np.log(each[good]) * root, rcond=None
    )[0]
    return [overall, float(omega), float(np.exp(log_xi)), float(eta)]
