"""When to begin with quantization: the best share of a run's tokens that is trained quantized.

Chen et al. 2509.22935: with S = D/(N P/8) tokens per byte of parameters, the share is
f = exp(-a / ln S).  The more data a run sees, the longer it should be quantized.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fitting.law.conclusion import (
    Basis,
    Column,
    Conclusion,
    Interval,
    Number,
    Table,
    Values,
    estimate,
)
from fitting.words import between, count_label, number, percent

LONGER = (1, 10, 100)
"""Multiples of a size's longest run at which the share is foretold."""
BITS_PER_BYTE = 8.0


def tokens_per_byte(params: Values, tokens: Values, bits: Values) -> Values:
    """S = D/(N P/8), the tokens for each byte of a model whose weights have P bits."""
    return np.divide(tokens, np.multiply(params, np.divide(bits, BITS_PER_BYTE)))


def quantized_share(a: Values, params: Values, tokens: Values, bits: Values) -> Values:
    """The best share of quantized tokens, exp(-a / ln S), after a start in high precision.

    Args:
        a: The law's constant; 6.7297 in 2509.22935.
        params: N.
        tokens: D, all tokens of the run.
        bits: P, bits of a weight.

    Returns:
        A share between 0 and 1; zero where there is at most one token for each byte.

    >>> round(float(quantized_share(6.7297, 1e9, 1e11, 4)), 4)
    0.2808
    """
    log = np.log(tokens_per_byte(params, tokens, bits))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(log > 0, np.exp(-np.asarray(a) / log), 0.0)


@dataclass(frozen=True)
class BestShare:
    """The best share of quantized tokens at a size, a length and a number of bits."""

    params: float
    bits: float
    tokens: float
    share: Number
    share_interval: Interval
    extrapolated: bool
    """Whether no run of that size and that many bits was as long."""


def _shares(basis: Basis) -> list[BestShare] | None:
    if basis.lacks(("a",)):
        return None
    found = []
    longest = basis.rows.groupby(["params", "bits"], as_index=False)["tokens"].max()
    for params, bits, tokens in longest.itertuples(index=False, name=None):
        for times in LONGER:
            at = params, times * tokens, bits
            share = estimate([quantized_share(p["a"], *at) for p in basis.samples])
            found.append(
                BestShare(float(params), float(bits), float(at[1]), *share.pair, times > 1)
            )
    return found


def _words(row: BestShare) -> str:
    return between(row.share, row.share_interval, lambda x: percent(x))


_Col = Column[BestShare]
BEST_SHARES = Conclusion(
    "best_shares",
    list[BestShare],
    _shares,
    (
        Table(
            "best_shares",
            "Best share of quantized tokens",
            (
                _Col("bits", lambda row: number(row.bits, 3)),
                _Col("tokens", lambda row: count_label(row.tokens)),
                _Col("quantized share", _words),
                _Col("beyond data?", lambda row: "yes" if row.extrapolated else "", number=False),
            ),
            "The share of a run's tokens, its last ones, that is best trained quantized, after a "
            "start in high precision.",
            group=lambda row: f"{count_label(row.params)} parameters",
        ),
    ),
    missing="No best shares: the runs do not determine a.",
)
"""The best share of quantized tokens for each size and number of bits, and for longer runs."""
