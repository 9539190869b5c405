"""Compute-optimal precision: at given data, at given sizes and costs, and at costs alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from fitting.analysis.trades import (
    NEEDED,
    QUIET,
    compute_optimal,
    optimal_bits_for_params,
    optimal_bits_for_tokens,
)
from fitting.law.conclusion import (
    COST,
    Basis,
    Column,
    Conclusion,
    Derived,
    Interval,
    Number,
    Table,
    Values,
    estimate,
    json_number,
)
from fitting.words import between, count, decimals, number

FEWEST_BITS, MOST_BITS = 1.0, 16.0
"""The least number of bits, a sign, and the most, those of unquantized training; optima beyond are
moved to these ends and marked."""
BUDGETS = (0.01, 0.1, 1.0, 10.0, 100.0)
"""Multiples of the most expensive run's cost for which optima are reported."""


@dataclass(frozen=True)
class Optimum:
    """Optimal bits under some given quantities."""

    bits: Number
    bits_interval: Interval
    unclamped: Number
    """The optimum itself, which may lie outside `FEWEST_BITS` to `MOST_BITS`."""
    clamped: bool
    extrapolated: bool
    """Whether bits, size or data are outside those of the table."""
    params: Number = None
    params_interval: Interval | None = None
    tokens: Number = None
    tokens_interval: Interval | None = None
    cost: Number = None
    block_size: float | None = None


@dataclass(frozen=True)
class OptimalPrecision:
    """Optimal bits by what is given."""

    fixed_tokens: list[Optimum] | None = None
    fixed_params: list[Optimum] | None = None
    """At given sizes and costs."""
    joint: list[Optimum] | None = None
    """At given costs, with the best size and data."""


@QUIET
def optimum(
    values: Sequence[Values],
    rows: pd.DataFrame,
    seen_bits: tuple[float, float],
    *,
    params: Sequence[Values] | float | None = None,
    tokens: Sequence[Values] | float | None = None,
    cost: float | None = None,
    k: float = COST,
    block_size: float | None = None,
) -> Optimum:
    """Optimal bits under some given quantities, and whether these are within a table.

    Args:
        values: The optimum at `Basis.samples`.
        rows: The fitted rows.
        seen_bits: Fewest and most bits of its quantized rows.
        params: N if it is given; its values at `Basis.samples` if it was found.
        tokens: D, likewise; with a cost and a given size it is what the bits leave, C/(k P N).
        cost: C, if it is given.
        k: Factor of the cost C = k P N D.
        block_size: Values that share a scale.
    """
    best = float(values[0])
    bits = estimate([np.clip(v, FEWEST_BITS, MOST_BITS) for v in values])
    sizes = (params, None) if isinstance(params, float | None) else estimate(params).pair
    if cost is not None and isinstance(params, float):
        tokens = cost / (k * float(np.clip(values[0], FEWEST_BITS, MOST_BITS)) * params)
    data = (tokens, None) if isinstance(tokens, float | None) else estimate(tokens).pair
    inside = [seen_bits[0] <= best <= seen_bits[1]] + [
        bool(rows[c].min() * (1 - 1e-9) <= value <= rows[c].max() * (1 + 1e-9))
        for c, value in (("params", _first(params)), ("tokens", _first(tokens)))
        if value is not None
    ]
    return Optimum(
        *bits.pair,
        unclamped=json_number(best),
        clamped=not FEWEST_BITS <= best <= MOST_BITS,
        extrapolated=not all(inside),
        params=_finite(sizes[0]),
        params_interval=sizes[1],
        tokens=_finite(data[0]),
        tokens_interval=data[1],
        cost=_finite(cost),
        block_size=block_size,
    )


def _first(value: Sequence[Values] | float | None) -> float | None:
    return value if isinstance(value, float | None) else float(value[0])


def _finite(value: Number) -> Number:
    return None if value is None else json_number(value)


def _has_optimum(basis: Basis) -> bool:
    return not basis.lacks(NEEDED) and not basis.quantized.empty


def _found(basis: Basis) -> OptimalPrecision:
    """Optimal bits at a table's data, sizes and costs, and beyond; in its commonest block size.

    Costs are multiples of the most expensive quantized run's.
    """
    if not _has_optimum(basis):
        return OptimalPrecision()
    rows, quantized, k = basis.rows, basis.quantized, basis.assumed.cost_k
    block = float(quantized["block_size"].mode().iloc[0])
    seen_bits = 1 + quantized["exponent"] + quantized["mantissa"]
    dearest = float((k * seen_bits * quantized["params"] * quantized["tokens"]).max())
    span = float(seen_bits.min()), float(seen_bits.max())
    fixed_tokens = []
    for data in sorted(map(float, quantized["tokens"].unique())):
        bits = [optimal_bits_for_tokens(p, data, block) for p in basis.samples]
        fixed_tokens.append(optimum(bits, rows, span, tokens=data, block_size=block))
    fixed_params, joint = [], []
    for cost in (dearest * budget for budget in BUDGETS):
        for size in sorted(map(float, quantized["params"].unique())):
            bits = [optimal_bits_for_params(p, size, cost, block, k) for p in basis.samples]
            fixed_params.append(
                optimum(bits, rows, span, params=size, cost=cost, k=k, block_size=block)
            )
        best = zip(*(compute_optimal(p, cost, block, k) for p in basis.samples), strict=True)
        bits, sizes, tokens = map(list, best)
        joint.append(
            optimum(bits, rows, span, params=sizes, tokens=tokens, cost=cost, block_size=block)
        )
    return OptimalPrecision(fixed_tokens, fixed_params, joint)


# --- words ------------------------------------------------------------------------------------


def cost_formula(derived: Derived) -> str:
    """A run's cost, its constant in sixteenths: "C = 6/16 P N D"."""
    k = derived.of(COST_K)
    return f"C = {number(16 * (COST if k is None else k))}/16 P N D"


def _costs_tried(rows: Sequence[Optimum], derived: Derived) -> str:
    formula = cost_formula(derived)
    at_16_bits = formula.removeprefix("C = ").replace("/16 P", "")
    return (
        f"Costs {formula} ({at_16_bits} at 16 bits), from a hundredth of the most expensive "
        "quantized run's to a hundred times that"
    )


def _bits(row: Optimum) -> str:
    """Optimal bits in words; at an end of the scale they are a bound, not an optimum."""
    text = decimals(row.bits, row.bits_interval)
    if row.clamped:
        beyond = row.unclamped is None or row.bits is None or row.unclamped > row.bits
        text = f"{'at least' if beyond else 'at most'} {text}"
    return text


_Col = Column[Optimum]
_BITS = Column("best bits", _bits)
_COST = _Col("cost C", lambda row: number(row.cost, 3))
OPTIMAL_PRECISION = Conclusion(
    "optimal_precision",
    OptimalPrecision,
    _found,
    (
        Table(
            "bits_for_tokens",
            "Compute-optimal bits for given data",
            (_Col("tokens", lambda row: count(row.tokens)), _BITS),
            lambda rows, derived: (
                f"Whatever the cost: the rest of it, {cost_formula(derived)}, goes into parameters."
            ),
            rows=lambda found: found.fixed_tokens or [],
        ),
        Table(
            "bits_for_params",
            "Compute-optimal bits for a given size",
            (
                _Col("parameters", lambda row: count(row.params)),
                _COST,
                _Col("tokens", lambda row: count(row.tokens)),
                _BITS,
            ),
            lambda rows, derived: (
                f"{_costs_tried(rows, derived)}; what the bits leave of it goes into tokens."
            ),
            rows=lambda found: found.fixed_params or [],
        ),
        Table(
            "bits_jointly",
            "Compute-optimal bits, size and data together",
            (
                _COST,
                _BITS,
                _Col("parameters", lambda row: between(row.params, row.params_interval, count)),
                _Col("tokens", lambda row: between(row.tokens, row.tokens_interval, count)),
            ),
            lambda rows, derived: f"{_costs_tried(rows, derived)}.",
            rows=lambda found: found.joint or [],
        ),
    ),
)
"""The conclusion under the floating-point law; `precision` finds part of it in another way."""
COST_K = Conclusion(
    "cost_k", float, lambda basis: basis.assumed.cost_k if _has_optimum(basis) else None
)
"""The constant k of a run's cost with which the optima were found."""
