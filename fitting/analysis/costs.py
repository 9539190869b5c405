"""The cost of a precision at equal loss: in parameters, and in tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pandas as pd

from fitting.analysis.layouts import BITS, integer_layout, layout_name
from fitting.analysis.trades import (
    NEEDED,
    QUIET,
    effective_params_of_format,
    tokens_for_equal_loss,
)
from fitting.law.conclusion import (
    Basis,
    Column,
    Conclusion,
    Count,
    Derived,
    Interval,
    Number,
    Table,
    Values,
    estimate,
)
from fitting.words import between, count_label, number


@dataclass(frozen=True)
class Cost:
    """The cost of a precision at equal loss, at a size and a token count."""

    format: str
    params: float
    tokens: float
    effective_params: Number
    """N_eff/N: the share of its parameters with which an unquantized model does as well."""
    effective_params_interval: Interval
    extrapolated: bool
    """Whether the table reaches neither down to N_eff nor up to the compensating size, or has no
    runs of the compensating number of tokens."""
    params_factor: Number = None
    """The inverse of N_eff/N: how many times the parameters make up for the precision."""
    params_factor_interval: Interval | None = None
    tokens_factor: Number = None
    """How many times the tokens make up for it; None if no amount does."""
    tokens_factor_interval: Interval | None = None
    bits: Count | None = None
    block_size: float | None = None


@QUIET
def equal_loss(
    rows: pd.DataFrame,
    format_: str,
    params: float,
    tokens: float,
    shares: Sequence[Values],
    factors: Sequence[Values],
    bits: int | None = None,
    block_size: float | None = None,
    seen: bool = True,
) -> Cost:
    """The cost of a precision at equal loss.

    Args:
        rows: The fitted rows.
        format_: The precision's name.
        params: N.
        tokens: D.
        shares: N_eff/N at `Basis.samples`.
        factors: The factor in data that makes up for it, likewise.
        bits: The format's bits, if there is one row per number of bits.
        block_size: The format's block size, if it has one.
        seen: Whether the table holds runs of such a format.
    """
    share, sizes = float(shares[0]), rows["params"]
    within = params * share >= sizes.min() or params <= share * sizes.max()
    within = within and tokens * factors[0] <= rows["tokens"].max()
    effective, more, longer = (
        estimate(values) for values in (shares, [1 / np.asarray(s) for s in shares], factors)
    )
    return Cost(
        format_, float(params), float(tokens), *effective.pair, not (within and seen),
        *more.pair, *longer.pair, bits, block_size,
    )  # fmt: skip


def middle(values: pd.Series) -> float:
    """The middle one of a column's distinct values, the lower of two middle ones."""
    distinct = sorted(map(float, values.unique()))
    return distinct[(len(distinct) - 1) // 2]


def _by_bits(basis: Basis) -> list[Cost]:
    """The cost of each number of bits, for the largest size at its middle data.

    The formats are the fit's best layouts, in the table's most common block size.
    """
    seen = basis.quantized
    if basis.lacks(NEEDED) or seen.empty:
        return []
    size = float(seen["params"].max())
    tokens = middle(seen.loc[seen["params"] == size, "tokens"])
    block = float(seen["block_size"].mode().iloc[0])
    seen_bits = 1 + seen["exponent"] + seen["mantissa"]
    found = []
    for bits in BITS:
        e, m = integer_layout(basis.parameters, bits)
        inside = bool(seen_bits.min() <= bits <= seen_bits.max())
        found.append(_of_layout(basis, size, tokens, e, m, block, bits, inside))
    return found


def _by_format(basis: Basis) -> list[Cost]:
    """The cost of each quantized format of a table, by size, at the size's middle data."""
    seen = basis.quantized
    if basis.lacks(NEEDED) or seen.empty:
        return []
    data = {size: middle(group["tokens"]) for size, group in seen.groupby("params")}
    cells = seen[["params", "exponent", "mantissa", "block_size"]].drop_duplicates()
    found = []
    for size, e, m, block in sorted(
        cells.itertuples(index=False, name=None), key=lambda c: (c[0], c[1] + c[2], c[1], c[3])
    ):
        found.append(_of_layout(basis, size, data[size], e, m, float(block)))
    return found


def _of_layout(
    basis: Basis,
    size: float,
    tokens: float,
    e: float,
    m: float,
    block: float,
    bits: int | None = None,
    seen: bool = True,
) -> Cost:
    """The cost of a layout at a size and its data, under the floating-point law."""
    share = [effective_params_of_format(p, tokens, e, m, block) for p in basis.samples]
    more = [tokens_for_equal_loss(p, size, tokens, e, m, block) for p in basis.samples]
    name = layout_name(int(e), int(m))
    return equal_loss(basis.rows, name, size, tokens, share, more, bits, block, seen)


# --- words ------------------------------------------------------------------------------------


def share_number(value: float) -> str:
    """Three decimals, or two significant digits where these would be lost: 0.785, 0.00014."""
    return f"{value:.3f}" if value >= 0.01 else number(value, 2)


def factor_words(value: Number, bounds: Interval | None) -> str | None:
    """How much more is needed, in words: "+30 % (+13 % to +80 %)", or that no amount is enough.

    The value and its interval share one unit: "times" where any of them is two or more.
    """
    if bounds is None:
        return None
    known = [x for x in (value, *bounds) if x is not None]
    in_times = any(x >= 2 for x in known)

    def more(factor: float) -> str:
        if in_times:
            return f"{number(factor, 3)} ×"
        percent = 100 * (factor - 1)
        return f"{'−' if percent < 0 else '+'}{number(abs(percent), 2)} %"

    if value is None:
        return "no amount" if bounds[0] is None else f"no amount (at least {more(bounds[0])})"
    return between(value, bounds, more)


class BlockSize(Protocol):
    """A row of formats that may have a block size."""

    @property
    def block_size(self) -> float | None: ...


def block_words(row: BlockSize) -> str | None:
    """A row's block size; None where formats have none."""
    return None if row.block_size is None else number(row.block_size, 3)


_Col = Column[Cost]
_COSTS: tuple[Column[Cost], ...] = (
    Column(
        "effective parameters",
        lambda row: between(row.effective_params, row.effective_params_interval, share_number),
    ),
    Column(
        "more parameters", lambda row: factor_words(row.params_factor, row.params_factor_interval)
    ),
    Column("more tokens", lambda row: factor_words(row.tokens_factor, row.tokens_factor_interval)),
)
_EFFECTIVE = (
    "Effective parameters: the share of these parameters with which an unquantized model does as "
    "well."
)


def _note_by_bits(rows: Sequence[Cost], derived: Derived) -> str:
    first = rows[0]
    size, tokens = count_label(first.params), count_label(first.tokens)
    return (
        f"At {size} parameters, {tokens} tokens and blocks of {block_words(first)} values. "
        f"{_EFFECTIVE} More parameters, or more tokens: either makes up for the bits."
    )


def _note_by_format(rows: Sequence[Cost], derived: Derived) -> str:
    if rows[0].params_factor_interval is None:
        return _EFFECTIVE
    return f"{_EFFECTIVE} More parameters, or more tokens: either makes up for the format."


COST_OF_BITS = Conclusion(
    "cost_of_bits",
    list[Cost],
    _by_bits,
    (
        Table(
            "cost_of_bits",
            "What bits cost at equal loss",
            (
                _Col("bits", lambda row: str(row.bits)),
                _Col("best split", lambda row: row.format, number=False),
                *_COSTS,
            ),
            _note_by_bits,
        ),
    ),
)
COST_OF_PRECISION = Conclusion(
    "cost_of_precision",
    list[Cost],
    _by_format,
    (
        Table(
            "cost_of_precision",
            "What each format costs",
            (
                _Col("format", lambda row: row.format, number=False),
                Column("block size", block_words),
                *_COSTS,
            ),
            _note_by_format,
            group=lambda row: (
                f"{count_label(row.params)} parameters, {count_label(row.tokens)} tokens"
            ),
        ),
    ),
)
"""The conclusion under the floating-point law; other laws find it in another way."""
