"""Coarse scales as block sizes: the B to which a scale per channel or per tensor is equivalent.

In Sun et al. 2501.02423 the precision term grows with log2(B).  A scale per channel behaves like a
constant B (theirs: log2 B = 13.1567), one per tensor like log2 B = N^omega/(xi D^eta), whose
constants they do not print.  Both are measured here, from the losses of such runs and a law that
was fitted to runs with blocks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import pandas as pd

from fitting.analysis.trades import NEEDED
from fitting.law.conclusion import (
    Basis,
    Column,
    Conclusion,
    Count,
    Interval,
    Number,
    Table,
    Values,
    estimate,
)
from fitting.law.curves import Array
from fitting.words import between, number, three_digits

Integers: TypeAlias = npt.NDArray[np.intp]

COARSE = ("row", "tensor")
"""Values of the column `granularity`: a scale per channel, a scale per tensor."""
POOLED = ("corpus", "compute_dtype", "operand_values", "operands", "recipe")
"""A run counts only if it agrees with some fitted run in these columns."""
RESAMPLING_SEED = 0
"""Seed of the resampled rows: the same inputs give the same intervals."""
ENOUGH_FINITE = 0.95
"""Share of draws that must give a value, else there is no interval."""


@dataclass(frozen=True)
class EquivalentBlock:
    """The block size to which a scale per channel or tensor is equivalent, as measured."""

    granularity: str
    log2_block: Number
    """For a scale per tensor the mean over sizes and data."""
    interval: Interval
    given: Number
    """Mean log2 of the rows' own `block_size`."""
    rows: Count
    fitted: bool
    """Whether the fit used such rows: it then assumed `given`, which pulls the measurement
    towards it."""
    omega: Number = None
    omega_interval: Interval | None = None
    xi: Number = None
    xi_interval: Interval | None = None
    eta: Number = None
    eta_interval: Interval | None = None


def equivalent_blocks(basis: Basis) -> list[EquivalentBlock]:
    """The block size to which a scale per channel or tensor is equivalent, as measured.

    For each granularity, the log2 B that fits the rows' losses best, by least squares of L/Lhat;
    rows are resampled along with the draws of the law.

    Args:
        basis: A fit of the law `floating_point`; its coarse rows, fitted or not, are measured.

    Returns:
        One for a scale per row, one per tensor; the latter's `omega`, `xi` and `eta` are unknown
        where sizes and data do not vary enough.  Empty if there are no coarse rows, if no row with
        blocks was fitted, or if the table leaves a parameter open.
    """
    rows, fitted = basis.every, basis.rows
    if "granularity" not in rows or "granularity" not in fitted or basis.lacks(NEEDED):
        return []
    if not (fitted["granularity"] == "block").any():
        return []
    for column in (c for c in POOLED if c in rows and c in fitted):
        rows = rows[rows[column].isin(fitted.loc[fitted["granularity"] != "none", column])]
    found = []
    for kind in COARSE:
        mine = rows[(rows["granularity"] == kind) & (rows["block_size"] > 1)]
        if mine.empty:
            continue
        values = _resampled(basis, mine)
        overall, omega, xi, eta = (estimate([v[i] for v in values]) for i in range(4))
        law = (*omega.pair, *xi.pair, *eta.pair) if kind == "tensor" else ()
        found.append(
            EquivalentBlock(
                kind,
                *overall.pair,
                float(np.log2(mine["block_size"].to_numpy(dtype=np.float64)).mean()),
                len(mine),
                bool((fitted["granularity"] == kind).any()),
                *law,
            )
        )
    return found


def _resampled(basis: Basis, rows: pd.DataFrame) -> list[list[Values]]:
    """log2 B, omega, xi and eta: of the fit and, if there are draws, an array of each."""
    columns = ("params", "tokens", "exponent", "mantissa", "loss")
    runs = {name: rows[name].to_numpy(dtype=np.float64) for name in columns}
    cells = rows.groupby(["params", "tokens"], sort=True).ngroup().to_numpy().astype(np.intp)
    best: list[Values] = _measure(basis.parameters, runs, cells, np.ones(len(rows)))
    if basis.draws is None:
        return [best]
    rng = np.random.default_rng(RESAMPLING_SEED)
    each = []
    for i in range(len(next(iter(basis.draws.values())))):
        counts = rng.multinomial(len(rows), np.full(len(rows), 1 / len(rows)))
        weights = counts.astype(np.float64)
        each.append(
            _measure({n: float(v[i]) for n, v in basis.draws.items()}, runs, cells, weights)
        )
    # If many draws give no law for log2 B, those that do are not a fair sample of it.
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
    unit = d ** p["beta"] * n ** -p["alpha"] / p["gamma"]  # the loss that log2 B = 1 would add
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


# --- words ------------------------------------------------------------------------------------


def _law(row: EquivalentBlock) -> str:
    if row.omega is None:
        return "–"
    known = (
        ("omega", row.omega, row.omega_interval),
        ("xi", row.xi, row.xi_interval),
        ("eta", row.eta, row.eta_interval),
    )
    return ", ".join(f"{name} {between(value, ends, three_digits)}" for name, value, ends in known)


def _doubts(found: list[EquivalentBlock], identified: Mapping[str, bool]) -> list[str]:
    return [
        f"runs with a scale per {row.granularity} were fitted with the table's block_size "
        f"(log2 {row.given:.3g}); to measure the block size that they are equivalent to, fit with "
        f"where=\"granularity != '{row.granularity}'\""
        for row in found
        if row.fitted
    ]


_Col = Column[EquivalentBlock]
EQUIVALENT_BLOCKS = Conclusion(
    "equivalent_blocks",
    list[EquivalentBlock],
    equivalent_blocks,
    (
        Table(
            "equivalent_blocks",
            "Block size that coarse scales are equivalent to",
            (
                _Col("a scale per", lambda row: row.granularity, number=False),
                _Col("log2 B", lambda row: between(row.log2_block, row.interval, three_digits)),
                _Col("given log2 B", lambda row: number(row.given, 3)),
                _Col("runs", lambda row: str(row.rows)),
                _Col(
                    "the fit",
                    lambda row: "took the given size" if row.fitted else "did not use them",
                    number=False,
                ),
                Column("log2 B = N^omega/(xi D^eta)", _law, number=False),
            ),
            "Measured from the losses of these runs and the law. Sun et al. (2501.02423) find "
            "13.16 per channel. A fit that took the given block size pulls the measurement "
            "towards it.",
        ),
    ),
    doubts=_doubts,
)
