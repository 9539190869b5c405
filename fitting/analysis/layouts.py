"""The best split of bits between exponent and mantissa.

Formulas are of Sun et al. 2501.02423 in the letters of its Eq. 1 (`fitting.laws.catalogue`); P = E
+ M + 1 counts the sign.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from fitting.law.conclusion import (
    Basis,
    Column,
    Conclusion,
    Count,
    Interval,
    Number,
    Table,
    json_number,
    percentiles,
)
from fitting.law.curves import Array
from fitting.words import decimals, share_words

BITS = range(2, 17)
"""Total bits of the layouts reported: from sign + exponent to half precision."""
NEAR_TIE = 1.25
"""A layout with at most this multiple of the best one's precision term is a near-tie."""


@dataclass(frozen=True)
class Layout:
    """The best exponent/mantissa split of a number of bits, and how certain it is."""

    bits: Count
    """Sign included."""
    exponent_opt: Number
    """Exponent bits as a real number."""
    mantissa_opt: Number
    exponent_interval: Interval
    mantissa_interval: Interval
    ratio: Number
    """E:M; None unless both are above zero."""
    ratio_interval: Interval
    layout: str
    """In whole bits, "E2M1"."""
    shares: dict[str, float]
    """Shares of the draws in which each layout wins, a tie shared out."""
    near_ties: list[str]
    """The other layouts whose precision term is at most `NEAR_TIE` times the best one's."""
    extrapolated: bool
    """Whether no run had this many bits."""


def optimal_layout(parameters: Mapping[str, float], bits: int) -> tuple[float, float]:
    """Exponent and mantissa bits, as real numbers, that minimise the loss at P = bits.

    E = delta P/(delta + nu) - 1/2, M = nu P/(delta + nu) - 1/2 (Sun et al., from Eq. 1); they sum
    to P - 1.  NaN where delta and nu are both zero: no layout is then better than another.

    >>> from fitting.laws.catalogue import SUN_2025
    >>> [round(x, 4) for x in optimal_layout(SUN_2025, 4)]
    [1.5775, 1.4225]
    """
    delta, nu = parameters["delta"], parameters["nu"]
    if delta + nu == 0:
        return math.nan, math.nan
    exponent = delta / (delta + nu) * bits - 0.5
    return exponent, bits - 1 - exponent


def integer_layout(parameters: Mapping[str, float], bits: int) -> tuple[int, int]:
    """Exponent and mantissa bits that maximise (E+.5)^delta (M+.5)^nu, E + M = P - 1.

    Where layouts tie exactly, the one with the fewest exponent bits.

    >>> from fitting.laws.catalogue import SUN_2025
    >>> integer_layout(SUN_2025, 8)
    (4, 3)
    """
    exponent = int(_log_denominators(parameters["delta"], parameters["nu"], bits).argmax())
    return exponent, bits - 1 - exponent


def layout_costs(parameters: Mapping[str, float], bits: int) -> dict[str, float]:
    """Precision term of every layout as a multiple of the best one's, the best (1.0) first."""
    log_denominators = _log_denominators(parameters["delta"], parameters["nu"], bits)
    costs = np.exp(log_denominators.max() - log_denominators)
    return {
        layout_name(int(e), bits - 1 - int(e)): float(costs[e])
        for e in costs.argsort(kind="stable")
    }


def _log_denominators(delta: ArrayLike, nu: ArrayLike, bits: int) -> Array:
    """Logs of (E+.5)^delta (M+.5)^nu for E = 0..bits-1: [bits], or [draws, bits] for draws."""
    exponent = np.arange(bits)
    mantissa = bits - 1 - exponent
    result: Array = np.multiply.outer(np.asarray(delta, dtype=np.float64), np.log(exponent + 0.5))
    result += np.multiply.outer(np.asarray(nu, dtype=np.float64), np.log(mantissa + 0.5))
    return result


def _found(basis: Basis) -> list[Layout]:
    """Best exponent/mantissa split for each number of bits, and how certain it is.

    Empty if the runs say nothing about delta or nu, or if both are zero: no layout is then better
    than another.
    """
    p = basis.parameters
    if basis.lacks(("delta", "nu")) or p["delta"] + p["nu"] == 0:
        return []
    seen = basis.quantized
    seen_bits = 1 + seen["exponent"] + seen["mantissa"]
    found = []
    for bits in BITS:
        exponent, mantissa = optimal_layout(p, bits)
        low = high = math.nan
        shares: dict[str, float] = {}
        if basis.draws is not None:
            low, high, shares = _drawn(basis.draws, bits)
        best, *others = layout_costs(p, bits).items()
        found.append(
            Layout(
                bits=bits,
                exponent_opt=json_number(exponent),
                mantissa_opt=json_number(mantissa),
                exponent_interval=(json_number(low), json_number(high)),
                mantissa_interval=(json_number(bits - 1 - high), json_number(bits - 1 - low)),
                ratio=_ratio(exponent, bits),
                ratio_interval=(_ratio(low, bits), _ratio(high, bits)),
                layout=best[0],
                shares=shares,
                near_ties=[name for name, cost in others if cost <= NEAR_TIE],
                extrapolated=not seen_bits.min() <= bits <= seen_bits.max(),
            )
        )
    return found


def _drawn(draws: Mapping[str, Array], bits: int) -> tuple[float, float, dict[str, float]]:
    """The interval of the best exponent, and the shares of the draws in which layouts win."""
    delta, nu = draws["delta"], draws["nu"]
    some = delta + nu > 0  # E grows with delta/(delta + nu), M falls with it
    low, high = percentiles(delta[some] / (delta + nu)[some] * bits - 0.5)
    log_denominators = _log_denominators(delta, nu, bits)
    ties = log_denominators == log_denominators.max(axis=1, keepdims=True)
    wins = (ties / ties.sum(axis=1, keepdims=True)).mean(axis=0)
    ranked = (-wins).argsort(kind="stable")
    return (
        low,
        high,
        {layout_name(int(e), bits - 1 - int(e)): float(wins[e]) for e in ranked if wins[e]},
    )


def layout_name(exponent: int, mantissa: int) -> str:
    """A split's name, "E2M1"."""
    return f"E{exponent}M{mantissa}"


def _ratio(exponent: float, bits: int) -> float | None:
    mantissa = bits - 1 - exponent
    return exponent / mantissa if exponent > 0 and mantissa > 0 else None


def _doubts(found: list[Layout], identified: Mapping[str, bool]) -> list[str]:
    doubtful = [name for name in ("delta", "nu") if not identified.get(name, True)]
    if not found or not doubtful:
        return []
    verb = "is" if len(doubtful) == 1 else "are"
    return [f"{' and '.join(doubtful)} {verb} not identified: the best layouts are not known"]


_Col = Column[Layout]
LAYOUTS = Conclusion(
    "layouts",
    list[Layout],
    _found,
    (
        Table(
            "layouts",
            "Best exponent/mantissa split",
            (
                _Col("bits", lambda row: str(row.bits)),
                _Col("best", lambda row: row.layout, number=False),
                _Col("share of draws", lambda row: share_words(row.shares, most=2), number=False),
                _Col(
                    "exponent bits", lambda row: decimals(row.exponent_opt, row.exponent_interval)
                ),
                _Col(
                    "mantissa bits", lambda row: decimals(row.mantissa_opt, row.mantissa_interval)
                ),
                _Col("E:M", lambda row: decimals(row.ratio, row.ratio_interval)),
                _Col(
                    "near-ties",
                    lambda row: ", ".join([n for n in row.near_ties if n != row.layout][:2]) or "–",
                    number=False,
                ),
            ),
            "Best: the whole-bit split with the smallest precision term. Exponent and mantissa "
            "bits as real numbers, and their ratio: the law's optimum with 95 % intervals. "
            "Near-ties lie within 1.25 times the best precision term.",
        ),
    ),
    doubts=_doubts,
    missing="No optimal layouts: they need a fit of the floating-point law whose delta and nu the "
    "data determine.",
)
