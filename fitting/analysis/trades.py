"""What precision is worth under the floating-point law: optimal bits, effective parameters, trades.

Formulas are of Sun et al. 2501.02423 in the letters of its Eq. 1 (`fitting.laws.catalogue`), at the
best split of P bits, E + 1/2 = delta P/(delta + nu) and M + 1/2 = nu P/(delta + nu).  A run of N
parameters, D tokens and P bits costs C = k P N D; k = 6/16 makes that 6 N D at 16 bits.

Every function takes numbers, or arrays of draws for the parameters.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from fitting.analysis.samples import json_number, samples, with_interval
from fitting.fit.result import Fit
from fitting.laws.curves import Array
from fitting.laws.law import FitError
from fitting.results.table import select_rows
from fitting.words import number

COST = 6 / 16
"""k of C = k P N D where no other is given."""
FEWEST_BITS, MOST_BITS = 1.0, 16.0
"""A sign at least, and what unquantized training has: optima beyond are moved here and marked."""
BUDGETS = (0.01, 0.1, 1.0, 10.0, 100.0)
"""Multiples of the most expensive run's cost for which optima are reported."""
QUIET = np.errstate(divide="ignore", over="ignore", invalid="ignore")
"""Draws in which a parameter is at a bound may have no optimum: infinite or NaN, not a warning."""
NEEDED = ("n", "alpha", "d", "beta", "gamma", "delta", "nu")
"""What every conclusion here rests on."""


def gamma_rho(p: Mapping[str, Any]) -> Any:
    """Precision's scale at the best split: gamma delta^delta nu^nu / (delta + nu)^(delta + nu)."""
    delta, nu = np.asarray(p["delta"], float), np.asarray(p["nu"], float)
    log = np.log(p["gamma"]) + _xlogx(delta) + _xlogx(nu) - _xlogx(delta + nu)
    return _plain(np.exp(log))


def gamma_n(p: Mapping[str, Any]) -> Any:
    """gamma_rho n, of the effective number of parameters."""
    return gamma_rho(p) * p["n"]


def gamma_d(p: Mapping[str, Any]) -> Any:
    """(delta + nu - alpha)/(n alpha gamma_rho), of the optimal bits for given data.

    Zero where delta + nu <= alpha: fewer bits are then always better.
    """
    gain = np.subtract(np.add(p["delta"], p["nu"]), p["alpha"])
    return _plain(np.maximum(gain, 0) / (p["n"] * p["alpha"] * gamma_rho(p)))


def gamma_size(p: Mapping[str, Any]) -> Any:
    """(beta + delta + nu)/(d beta gamma_rho), of the optimal bits for a given size (gamma_N)."""
    return (p["beta"] + p["delta"] + p["nu"]) / (p["d"] * p["beta"] * gamma_rho(p))


def optimal_precision_term(
    p: Mapping[str, Any], params: float, tokens: float, bits: float, block_size: float
) -> Any:
    """rho_opt: what P bits at their best split add to the loss, nats per token.

    (D^beta/N^alpha) log2(B)/(gamma_rho P^(delta + nu)).

    >>> from fitting.laws.catalogue import SUN_2025
    >>> round(optimal_precision_term(SUN_2025, 1e9, 1e11, 8, 128), 6)
    0.000431
    """
    scale = np.power(tokens, p["beta"]) / np.power(params, p["alpha"])
    return _plain(scale * _over_power(p, bits, block_size) / gamma_rho(p))


def effective_params(p: Mapping[str, Any], tokens: float, bits: float, block_size: float) -> Any:
    """N_eff/N: the unquantized model of what size does as well, at the best split of P bits.

    1/(1 + D^beta log2(B)/(gamma_n P^(delta + nu)))^(1/alpha); the same for every N.  One over it
    is the factor in parameters that precision costs at equal loss and data.
    """
    lost = np.power(tokens, p["beta"]) * _over_power(p, bits, block_size) / gamma_n(p)
    return _plain((1 + lost) ** (-1 / np.asarray(p["alpha"], float)))


def effective_params_of_format(
    p: Mapping[str, Any], tokens: float, exponent: float, mantissa: float, block_size: float
) -> Any:
    """N_eff/N of a given split instead of the best one."""
    inverse = _over_format(p, exponent, mantissa, block_size)
    lost = np.power(tokens, p["beta"]) * inverse / (p["gamma"] * np.asarray(p["n"], float))
    return _plain((1 + lost) ** (-1 / np.asarray(p["alpha"], float)))


def tokens_for_equal_loss(
    p: Mapping[str, Any],
    params: float,
    tokens: float,
    exponent: float,
    mantissa: float,
    block_size: float,
) -> Any:
    """The factor in tokens that makes up for a format, against the unquantized run.

    Infinite where no amount of data does: the loss has its minimum at the critical data size
    D_crit.  From d/(m D)^beta + rho(m D) = d/D^beta: with u = m^beta and r = (D/D_crit)^(2 beta),
    r u^2 - u + 1 = 0, whose smaller root is real for r <= 1/4.
    """
    scale = np.power(tokens, 2 * np.asarray(p["beta"], float)) / np.power(params, p["alpha"])
    r = scale * _over_format(p, exponent, mantissa, block_size) / (p["gamma"] * np.asarray(p["d"]))
    with np.errstate(divide="ignore"):
        u = 2 / (1 + np.sqrt(np.maximum(1 - 4 * r, 0)))  # the root without cancellation
        factor = np.where(r <= 0.25, u ** (1 / np.asarray(p["beta"], float)), np.inf)
    return _plain(factor)


def optimal_bits_for_tokens(p: Mapping[str, Any], tokens: float, block_size: float) -> Any:
    """P of least loss at given data and any cost: P^(delta + nu) = gamma_D D^beta log2 B.

    >>> from fitting.laws.catalogue import SUN_2025
    >>> round(optimal_bits_for_tokens(SUN_2025, 1e12, 128), 4)
    5.179
    """
    log = np.log(gamma_d(p)) + np.log(tokens) * np.asarray(p["beta"]) + _log_log2(block_size)
    return _plain(np.exp(log / (np.asarray(p["delta"]) + p["nu"])))


def optimal_bits_for_params(
    p: Mapping[str, Any], params: float, cost: float, block_size: float, k: float = COST
) -> Any:
    """P of least loss at a given size and cost C = k P N D, the rest of which is data.

    P^(delta + nu + 2 beta) = gamma_N (C/k)^(2 beta) N^-(alpha + 2 beta) log2 B.
    """
    beta = np.asarray(p["beta"], float)
    log = np.log(gamma_size(p)) + 2 * beta * math.log(cost / k) + _log_log2(block_size)
    log -= (p["alpha"] + 2 * beta) * math.log(params)
    return _plain(np.exp(log / (np.asarray(p["delta"]) + p["nu"] + 2 * beta)))


def compute_optimal(
    p: Mapping[str, Any], cost: float, block_size: float, k: float = COST
) -> tuple[Any, Any, Any]:
    """Bits, parameters and tokens of least loss at cost C = k P N D (Sun et al., Eq. 25).

    >>> from fitting.laws.catalogue import SUN_2025
    >>> bits, params, tokens = compute_optimal(SUN_2025, 1e21, 128)
    >>> f"{bits:.4f} bits, {params:.3e} parameters, {tokens:.3e} tokens"
    '4.1903 bits, 7.930e+09 parameters, 8.025e+10 tokens'
    """
    alpha, beta = np.asarray(p["alpha"], float), np.asarray(p["beta"], float)
    both = np.add(p["delta"], p["nu"])
    log_data = np.log(gamma_d(p)) + _log_log2(block_size)
    log = (alpha + beta) / beta * log_data + alpha * math.log(cost / k)
    log = log + np.log(p["d"] * beta / (p["n"] * alpha))
    log = log + np.log(np.maximum(both - alpha, 0) / (both + beta))
    log_bits = log / (both * (alpha + beta) / beta + alpha)
    log_tokens = (both * log_bits - log_data) / beta
    log_params = math.log(cost / k) - log_bits - log_tokens
    bits, params, tokens = (_plain(np.exp(x)) for x in (log_bits, log_params, log_tokens))
    return bits, params, tokens


@QUIET
def cost_table(fit: Fit, draws: pd.DataFrame | None, table: pd.DataFrame) -> list[dict[str, Any]]:
    """What each quantized format of a table costs at equal loss, by size.

    Args:
        fit: Of the law `floating_point`.
        draws: From `fitting.fit.bootstrap.bootstrap`; None leaves out the intervals.
        table: The fitted table.

    Returns:
        JSON-ready dicts: `format`, `block_size` and what `equal_loss` gives.  Empty where the
        table does not hold a parameter.
    """
    rows = select_rows(table)[0]
    quantized = rows[rows["block_size"] > 1]
    if set(NEEDED) & set(fit.flat) or quantized.empty:
        return []
    data = {size: middle(group["tokens"]) for size, group in quantized.groupby("params")}
    cells = quantized[["params", "exponent", "mantissa", "block_size"]].drop_duplicates()
    both = samples(fit, draws)
    entries = []
    for size, e, m, block in sorted(
        cells.itertuples(index=False, name=None), key=lambda c: (c[0], c[1] + c[2], c[1], c[3])
    ):
        tokens = data[size]
        share = [effective_params_of_format(p, tokens, e, m, block) for p in both]
        more = [tokens_for_equal_loss(p, size, tokens, e, m, block) for p in both]
        entry = {"format": f"E{int(e)}M{int(m)}", "block_size": float(block)}
        entries.append(entry | equal_loss(rows, size, tokens, share, more))
    return entries


def middle(values: pd.Series) -> float:
    """The middle one of a column's distinct values, the lower one of two."""
    distinct = sorted(map(float, values.unique()))
    return distinct[(len(distinct) - 1) // 2]


def equal_loss(
    rows: pd.DataFrame, params: float, tokens: float, shares: Sequence[Any], factors: Sequence[Any]
) -> dict[str, Any]:
    """What a precision costs at equal loss, JSON-ready.

    Args:
        rows: The fitted rows.
        params: N.
        tokens: D.
        shares: N_eff/N at `fitting.analysis.samples.samples`.
        factors: By how much more data it is made up for, likewise.

    Returns:
        `params`, `tokens`; `effective_params` (N_eff/N), `params_factor` (one over it) and
        `tokens_factor` (None where no amount of data makes up), each with `.._interval` (95 %);
        `extrapolated`, where the table reaches neither down to N_eff nor up to the size that makes
        up, or has no runs of as many tokens as make up.
    """
    share, sizes = float(shares[0]), rows["params"]
    within = params * share >= sizes.min() or params <= share * sizes.max()
    return {
        "params": float(params),
        "tokens": float(tokens),
        **named("effective_params", shares),
        **named("params_factor", [1 / np.asarray(s) for s in shares]),
        **named("tokens_factor", factors),
        "extrapolated": not (within and tokens * factors[0] <= rows["tokens"].max()),
    }


@QUIET
def optimal_table(
    fit: Fit, draws: pd.DataFrame | None, table: pd.DataFrame, k: float = COST
) -> dict[str, list[dict[str, Any]]]:
    """Compute-optimal precision at the data, sizes and costs of a table, and at greater costs.

    Args:
        fit: Of the law `floating_point`.
        draws: From `fitting.fit.bootstrap.bootstrap`; None leaves out the intervals.
        table: The fitted table; its most common block size is used.
        k: Of the cost C = k P N D.

    Returns:
        `fixed_tokens` (by `tokens`), `fixed_params` (by `params` and `cost`) and `joint` (by
        `cost`; also the best `params` and `tokens`): JSON-ready dicts with `bits`, its
        `bits_interval` (95 %), `block_size`; `clamped`, where the optimum `unclamped` lies outside
        1 to 16 bits; `extrapolated`, where bits, size or data are outside those of the table.
        Costs are multiples of the dearest quantized run's.  Empty where the table does not hold a
        parameter.
    """
    rows = select_rows(table)[0]
    quantized = rows[rows["block_size"] > 1]
    if set(NEEDED) & set(fit.flat) or quantized.empty:
        return {}
    block = float(quantized["block_size"].mode().iloc[0])
    seen_bits = 1 + quantized["exponent"] + quantized["mantissa"]
    dearest = float((k * seen_bits * quantized["params"] * quantized["tokens"]).max())
    both = samples(fit, draws)
    span = float(seen_bits.min()), float(seen_bits.max())
    fixed_tokens = []
    for data in sorted(map(float, quantized["tokens"].unique())):
        bits = [optimal_bits_for_tokens(p, data, block) for p in both]
        fixed_tokens.append(optimum(bits, rows, span, tokens=data))
    fixed_params, joint = [], []
    for cost in (dearest * budget for budget in BUDGETS):
        for size in sorted(map(float, quantized["params"].unique())):
            bits = [optimal_bits_for_params(p, size, cost, block, k) for p in both]
            fixed_params.append(optimum(bits, rows, span, params=size, cost=cost, k=k))
        optima = [compute_optimal(p, cost, block, k) for p in both]
        best = optimum([o[0] for o in optima], rows, span, params=optima[0][1], tokens=optima[0][2])
        best |= named("params", [o[1] for o in optima]) | named("tokens", [o[2] for o in optima])
        joint.append({"cost": cost} | best)
    found = {"fixed_tokens": fixed_tokens, "fixed_params": fixed_params, "joint": joint}
    return {kind: [e | {"block_size": block} for e in entries] for kind, entries in found.items()}


def optimum(
    values: Sequence[Any],
    rows: pd.DataFrame,
    seen_bits: tuple[float, float],
    *,
    params: float | None = None,
    tokens: float | None = None,
    cost: float | None = None,
    k: float = COST,
) -> dict[str, Any]:
    """Optimal bits where something is given, JSON-ready, and whether that is within a table.

    Args:
        values: The optimum at `fitting.analysis.samples.samples`.
        rows: The fitted rows.
        seen_bits: Fewest and most bits of its quantized rows.
        params: N, if it is given or found.
        tokens: D, likewise; with `cost` it is what the optimal bits leave, C/(k P N).
        cost: C, if it is given.
        k: Of the cost C = k P N D.

    Returns:
        What is given; `bits` with `bits_interval` (95 %); `clamped`, where the optimum `unclamped`
        lies outside 1 to 16 bits; `extrapolated`.
    """
    best = float(values[0])
    bits = [np.clip(v, FEWEST_BITS, MOST_BITS) for v in values]
    if cost is not None and params is not None:
        tokens = cost / (k * float(bits[0]) * params)
    given = {"params": params, "tokens": tokens, "cost": cost}
    inside = [seen_bits[0] <= best <= seen_bits[1]] + [
        rows[c].min() * (1 - 1e-9) <= value <= rows[c].max() * (1 + 1e-9)
        for c, value in (("params", params), ("tokens", tokens))
        if value is not None
    ]
    return {
        **{name: json_number(value) for name, value in given.items() if value is not None},
        **named("bits", bits),
        "unclamped": json_number(best),
        "clamped": not FEWEST_BITS <= best <= MOST_BITS,
        "extrapolated": not all(inside),
    }


def named(name: str, values: Sequence[Any]) -> dict[str, Any]:
    """A formula's value at `samples`, and its interval as `.._interval`."""
    value, interval = with_interval(values)
    return {name: value, f"{name}_interval": interval}


def _over_power(p: Mapping[str, Any], bits: float, block_size: float) -> Array:
    """log2(B)/P^(delta + nu)."""
    over: Array = np.log2(block_size) / np.power(bits, np.add(p["delta"], p["nu"]))
    return over


def _over_format(
    p: Mapping[str, Any], exponent: float, mantissa: float, block_size: float
) -> Array:
    """log2(B)/((E + .5)^delta (M + .5)^nu)."""
    power = np.power(exponent + 0.5, p["delta"]) * np.power(mantissa + 0.5, p["nu"])
    over: Array = np.log2(block_size) / power
    return over


def _log_log2(block_size: float) -> float:
    if block_size <= 1:
        raise FitError(f"block_size={block_size:g}: must be above 1, else nothing is quantized")
    return math.log(math.log2(block_size))


def _xlogx(x: Array) -> Array:
    """The product x log x, zero at zero."""
    result: Array = x * np.log(np.where(x > 0, x, 1.0))
    return result


def _plain(values: Any) -> Any:
    """A number for numbers, an array for draws."""
    return float(values) if np.ndim(values) == 0 else values


def cost_formula(derived: Mapping[str, Any]) -> str:
    """A run's cost, its constant in sixteenths: "C = 6/16 P N D"."""
    return f"C = {number(16 * derived.get('cost_k', COST))}/16 P N D"
