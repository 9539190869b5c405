"""What a fitted law says: the best split of bits, and how much data a format can take.

Formulas are of Sun et al. 2501.02423 in the letters of its Eq. 1 (`fitting.laws.catalogue`); P = E
+ M + 1 counts the sign.  Everything comes with bootstrap intervals, and is marked as extrapolated
where it leaves the data.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from fitting.analysis.samples import json_number, percentiles, samples
from fitting.analysis.trades import (
    NEEDED,
    QUIET,
    effective_params_of_format,
    equal_loss,
    middle,
    tokens_for_equal_loss,
)
from fitting.fit.result import Fit
from fitting.laws.curves import Array
from fitting.results.table import select_rows

BITS = range(2, 17)
"""Total bits of the layouts reported: from sign + exponent to half precision."""
NEAR_TIE = 1.25
"""A layout with at most this multiple of the best one's precision term is a near-tie."""


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

    Of layouts that tie exactly the one with the fewest exponent bits.

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
    return {_name(int(e), bits - 1 - int(e)): float(costs[e]) for e in costs.argsort(kind="stable")}


def _log_denominators(delta: ArrayLike, nu: ArrayLike, bits: int) -> Array:
    """Logs of (E+.5)^delta (M+.5)^nu for E = 0..bits-1: [bits], or [draws, bits] for draws."""
    exponent = np.arange(bits)
    mantissa = bits - 1 - exponent
    result: Array = np.multiply.outer(np.asarray(delta, dtype=np.float64), np.log(exponent + 0.5))
    result += np.multiply.outer(np.asarray(nu, dtype=np.float64), np.log(mantissa + 0.5))
    return result


def critical_tokens(
    parameters: Mapping[str, Any],
    params: float,
    exponent: float,
    mantissa: float,
    block_size: float,
) -> Any:
    """Training tokens beyond which more data raise the loss.

    D_crit = (d gamma N^alpha (E+.5)^delta (M+.5)^nu / log2 B)^(1/(2 beta)) (Sun et al.);
    infinite without quantization (B = 1) or where the law does not depend on data (beta = 0).

    Args:
        parameters: Of `floating_point`: numbers, or arrays or columns of draws.
        params: N.
        exponent: Exponent bits.
        mantissa: Mantissa bits.
        block_size: B, values that share a scale.

    Returns:
        Tokens: a number, or an array for arrays.

    >>> from fitting.laws.catalogue import SUN_2025
    >>> f"{critical_tokens(SUN_2025, 1e9, 4, 3, 128):.4g}"
    '2.733e+13'
    """
    with np.errstate(divide="ignore", over="ignore"):
        log_power = (
            np.log(parameters["d"])
            + np.log(parameters["gamma"])
            + np.multiply(parameters["alpha"], math.log(params))
            + np.multiply(parameters["delta"], math.log(exponent + 0.5))
            + np.multiply(parameters["nu"], math.log(mantissa + 0.5))
            - np.log(np.log2(block_size))
        )
        beta = np.asarray(parameters["beta"], dtype=np.float64)
        tokens = np.exp(log_power / np.where(beta > 0, 2 * beta, np.nan))
    tokens = np.where(beta > 0, tokens, np.inf)
    return float(tokens) if tokens.ndim == 0 else tokens


def layout_table(
    fit: Fit, draws: pd.DataFrame | None, table: pd.DataFrame, bits: Iterable[int] = BITS
) -> list[dict[str, Any]]:
    """Best exponent/mantissa split for each number of bits, and how sure it is.

    Args:
        fit: Of the law `floating_point`.
        draws: From `fitting.fit.bootstrap.bootstrap`; None leaves out intervals and shares.
        table: The fitted table: bits outside those of its quantized rows are extrapolated.
        bits: Total bits P, sign included.

    Returns:
        For each P a JSON-ready dict: `bits`; `exponent_opt`, `mantissa_opt` and their `ratio` E:M
        as real numbers, with `exponent_interval`, `mantissa_interval`, `ratio_interval` (95 %;
        None where the mantissa or the exponent is not above zero, or where there are no draws);
        `layout` in integers, "E2M1"; `shares` of the draws in which each layout wins, the largest
        first, a tie shared out; `near_ties`, the other layouts whose precision term is at most
        1.25 times the best one's; `extrapolated`.  Empty where the table says nothing about delta
        or nu, or both are zero: no layout is then better than another.
    """
    if {"delta", "nu"} & set(fit.flat) or fit.parameters["delta"] + fit.parameters["nu"] == 0:
        return []
    seen = quantized_rows(table)
    seen_bits = 1 + seen["exponent"] + seen["mantissa"]
    entries = []
    for p in bits:
        exponent, mantissa = optimal_layout(fit.parameters, p)
        low = high = math.nan
        shares: dict[str, float] = {}
        if draws is not None:
            delta, nu = draws["delta"].to_numpy(), draws["nu"].to_numpy()
            some = delta + nu > 0  # E grows with delta/(delta + nu), M falls with it
            low, high = percentiles(delta[some] / (delta + nu)[some] * p - 0.5)
            log_denominators = _log_denominators(delta, nu, p)
            ties = log_denominators == log_denominators.max(axis=1, keepdims=True)
            wins = (ties / ties.sum(axis=1, keepdims=True)).mean(axis=0)
            shares = {
                _name(int(e), p - 1 - int(e)): float(wins[e])
                for e in (-wins).argsort(kind="stable")
                if wins[e]
            }
        best, *others = layout_costs(fit.parameters, p).items()
        entries.append(
            {
                "bits": p,
                "exponent_opt": json_number(exponent),
                "mantissa_opt": json_number(mantissa),
                "exponent_interval": [json_number(low), json_number(high)],
                "mantissa_interval": [json_number(p - 1 - high), json_number(p - 1 - low)],
                "ratio": _ratio(exponent, p),
                "ratio_interval": [_ratio(low, p), _ratio(high, p)],
                "layout": best[0],
                "shares": shares,
                "near_ties": [name for name, cost in others if cost <= NEAR_TIE],
                "extrapolated": not seen_bits.min() <= p <= seen_bits.max(),
            }
        )
    return entries


def critical_table(
    fit: Fit, draws: pd.DataFrame | None, table: pd.DataFrame
) -> list[dict[str, Any]]:
    """Critical data size of each size and quantized format in the table.

    Args:
        fit: Of the law `floating_point`.
        draws: From `fitting.fit.bootstrap.bootstrap`; None leaves out the intervals.
        table: The fitted table: beyond its largest token count D_crit is extrapolated.

    Returns:
        JSON-ready dicts: `params`, `format`, `block_size`, `tokens`, `interval` (95 %; None where
        infinite or without draws), `extrapolated`.  Empty where the table says nothing about a
        parameter that D_crit needs.
    """
    if {"alpha", "d", "beta", "gamma", "delta", "nu"} & set(fit.flat):
        return []
    seen = quantized_rows(table)
    largest = float(select_rows(table)[0]["tokens"].max())
    cells = seen[["params", "exponent", "mantissa", "block_size"]].drop_duplicates()
    samples = None if draws is None else columns_of(draws)
    entries = []
    for params, exponent, mantissa, block_size in sorted(
        cells.itertuples(index=False, name=None), key=lambda c: (c[0], c[1] + c[2], c[1], c[3])
    ):
        tokens = critical_tokens(fit.parameters, params, exponent, mantissa, block_size)
        low = high = math.nan
        if samples is not None:
            low, high = percentiles(
                critical_tokens(samples, params, exponent, mantissa, block_size)
            )
        entries.append(
            {
                "params": float(params),
                "format": _name(int(exponent), int(mantissa)),
                "block_size": float(block_size),
                "tokens": json_number(tokens),
                "interval": [json_number(low), json_number(high)],
                "extrapolated": tokens > largest,
            }
        )
    return entries


@QUIET
def bits_table(fit: Fit, draws: pd.DataFrame | None, table: pd.DataFrame) -> list[dict[str, Any]]:
    """What each number of bits costs at equal loss, for the largest size at its middle data.

    Args:
        fit: Of the law `floating_point`.
        draws: From `fitting.fit.bootstrap.bootstrap`; None leaves out the intervals.
        table: The fitted table; its most common block size is used.

    Returns:
        For P = 2..16 a JSON-ready dict as of `fitting.analysis.trades.cost_table`, with `bits` and,
        as `format`, the fit's best layout of as many; `extrapolated` also outside the bits of the
        table's quantized rows.  Empty where the table does not hold a parameter.
    """
    seen = quantized_rows(table)
    if set(NEEDED) & set(fit.flat) or seen.empty:
        return []
    rows = select_rows(table)[0]
    size = float(seen["params"].max())
    tokens = middle(seen.loc[seen["params"] == size, "tokens"])
    block = float(seen["block_size"].mode().iloc[0])
    seen_bits = 1 + seen["exponent"] + seen["mantissa"]
    both = samples(fit, draws)
    entries = []
    for bits in BITS:
        e, m = integer_layout(fit.parameters, bits)
        share = [effective_params_of_format(p, tokens, e, m, block) for p in both]
        more = [tokens_for_equal_loss(p, size, tokens, e, m, block) for p in both]
        entry: dict[str, Any] = {"bits": bits, "format": _name(e, m), "block_size": block}
        entry |= equal_loss(rows, size, tokens, share, more)
        entry["extrapolated"] |= not seen_bits.min() <= bits <= seen_bits.max()
        entries.append(entry)
    return entries


def quantized_rows(table: pd.DataFrame) -> pd.DataFrame:
    rows, _ = select_rows(table)
    quantized: pd.DataFrame = rows[rows["block_size"] > 1]
    return quantized


def columns_of(draws: pd.DataFrame) -> dict[str, Array]:
    return {str(name): draws[name].to_numpy(dtype=np.float64) for name in draws}


def _name(exponent: int, mantissa: int) -> str:
    return f"E{exponent}M{mantissa}"


def _ratio(exponent: float, bits: int) -> float | None:
    mantissa = bits - 1 - exponent
    return exponent / mantissa if exponent > 0 and mantissa > 0 else None
