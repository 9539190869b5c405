"""What the format of an adapter is worth: the rank of one in high precision that does as much."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fitting.analysis.efficiency import known_efficiencies
from fitting.law.conclusion import (
    Basis,
    Column,
    Conclusion,
    Derived,
    Interval,
    Number,
    Table,
    estimate,
)
from fitting.words import decimals

WORTH = "eff_r"
"""What the law's parameters begin with: eff_r[sign]."""
RANK = 16
"""The rank of which the table says what it is worth."""


@dataclass(frozen=True)
class Worth:
    """The worth of an adapter's format."""

    adapter_format: str
    worth: Number
    """The share of its rank that an adapter in high precision needs to do as much."""
    worth_interval: Interval


def _worths(basis: Basis) -> list[Worth]:
    found = []
    for name in known_efficiencies(basis, WORTH):
        share = estimate([np.asarray(sample[name], float) for sample in basis.samples])
        found.append(Worth(name[len(WORTH) + 1 : -1], *share.pair))
    return found


def _note(rows: Sequence[Worth], derived: Derived) -> str:
    return (
        "Worth: an adapter of rank r in this format does as much as one of that share of r in high "
        "precision. More than the bits that it takes: then few bits and a larger rank are cheaper."
    )


def _times(row: Worth, factor: float) -> str:
    low, high = row.worth_interval
    ends = (None if low is None else factor * low, None if high is None else factor * high)
    return decimals(None if row.worth is None else factor * row.worth, ends, 2)


_Col = Column[Worth]
WORTHS = Conclusion(
    "adapter_worths",
    list[Worth],
    _worths,
    (
        Table(
            "adapter_worths",
            "What an adapter's format is worth",
            (
                _Col("format", lambda row: row.adapter_format, number=False),
                _Col("share of its rank", lambda row: _times(row, 1)),
                _Col(f"rank {RANK} is worth rank", lambda row: _times(row, RANK)),
            ),
            _note,
        ),
    ),
)
"""The worth of each format that a fit determines."""
