"""The conditions under which a law of formats holds: which tensors were quantized, and how."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from fitting.law.conclusion import Basis, Conclusion


@dataclass(frozen=True)
class HoldsFor:
    """What the fitted, quantized runs have in common; None if the table does not tell."""

    operands: list[str] | None
    recipe: list[str] | None


def distinct(rows: pd.DataFrame, column: str) -> list[str] | None:
    """The values of a column; None if there is no such column."""
    return sorted(str(v) for v in rows[column].unique()) if column in rows else None


def _found(basis: Basis) -> HoldsFor:
    rows = basis.quantized
    return HoldsFor(distinct(rows, "operands"), distinct(rows, "recipe"))


def _doubts(found: HoldsFor, identified: Mapping[str, bool]) -> list[str]:
    if found.operands is not None:
        return []
    return [
        "the table has no column operands: the law holds only for one choice of quantized "
        "tensors, and whether these runs share one cannot be checked"
    ]


HOLDS_FOR = Conclusion("holds_for", HoldsFor, _found, doubts=_doubts)
