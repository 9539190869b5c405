"""What is left of a model's capacity: laws in which precision costs parameters, or adds a penalty.

Kumar et al. 2411.04330 (`precision`, `ptq`), Chen et al. 2505.14302 (`qat`), Panferov et al.
2506.01863 (`compressed`).  All share A/N^alpha + B/D^beta + E, so all can say which unquantized
model does as well.  Functions take numbers, or arrays of draws for the parameters.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from fitting.analysis.roots import rising_root
from fitting.analysis.samples import samples
from fitting.analysis.trades import BUDGETS, COST, QUIET, equal_loss, middle, named, optimum
from fitting.fit.result import Fit
from fitting.laws.catalogue import OPERANDS
from fitting.laws.curves import Array
from fitting.laws.law import FitError
from fitting.results.table import select_rows

BITS_RANGE = (1.0, 64.0)
"""Bits between which the optimum is looked for."""
CHINCHILLA = frozenset(("A", "alpha", "B", "beta"))


# --- formulas ---------------------------------------------------------------------------------


def kumar_capacity(p: Mapping[str, Any], bits: Mapping[str, float]) -> Any:
    """N_eff/N = prod_x (1 - exp(n_x - P_x/gamma_x)) over the operands in `bits`, of `precision`.

    Raises:
        FitError: It is not positive: the law is not defined for so few bits.

    >>> from fitting.laws.catalogue import KUMAR_2024
    >>> round(kumar_capacity(KUMAR_2024, {"w": 8, "a": 8, "kv": 8}), 5)
    0.82776
    """
    for x, count in bits.items():
        if np.any(_kept(p, x, count) <= 0):
            raise FitError(
                f"bits_{x}={count:g}: N_eff would not be positive, the law holds above "
                f"gamma_{x} n_{x} = {np.max(np.multiply(p[f'gamma_{x}'], p[f'n_{x}'])):.3g} bits"
            )
    share = np.asarray(_shares(p, bits))
    return float(share) if share.ndim == 0 else share


def _kept(p: Mapping[str, Any], x: str, count: Any) -> Any:
    return -np.expm1(np.subtract(p[f"n_{x}"], np.divide(count, p[f"gamma_{x}"])))


def _shares(p: Mapping[str, Any], bits: Mapping[str, Any]) -> Any:
    """`kumar_capacity`, zero in draws in which the law is not defined."""
    return math.prod(np.maximum(_kept(p, x, count), 0.0) for x, count in bits.items())


def kumar_optimal_bits(p: Mapping[str, Any]) -> Any:
    """Bits of weights, activations and cache alike of least loss at any cost C = k P N D.

    Where N and P are chosen, the optimum depends neither on the data nor on the cost: sum over
    operands of (P/gamma_x) y_x/(1 - y_x) = 1 with y_x = exp(n_x - P/gamma_x).  Zero where it is
    below one bit.

    >>> from fitting.laws.catalogue import KUMAR_2024
    >>> round(kumar_optimal_bits(KUMAR_2024), 4)
    7.0021
    """
    return _bits_root(lambda bits: 1 - _worth(p, bits), p)


@QUIET  # below the law's domain nothing is left of the parameters
def kumar_optimal_bits_for_params(
    p: Mapping[str, Any], params: float, cost: float, k: float = COST
) -> Any:
    """The same at a given size, the rest of the cost C = k P N D being data.

    Where the next bit takes as much from the data as it gives to the parameters:
    beta B/D^beta = alpha A/N_eff^alpha times the sum in `kumar_optimal_bits`.
    """

    def condition(bits: Array) -> Array:
        tokens = cost / (k * bits * params)
        size = np.multiply(params, _shares(p, dict.fromkeys(OPERANDS, bits)))
        gain = p["alpha"] * p["A"] * size ** -np.asarray(p["alpha"], float) * _worth(p, bits)
        loss: Array = p["beta"] * p["B"] * tokens ** -np.asarray(p["beta"], float) - gain
        return loss

    return _bits_root(condition, p)


def _worth(p: Mapping[str, Any], bits: Array) -> Array:
    """By what factor N_eff grows when the bits do: d log N_eff/d log P."""
    total = np.zeros(np.shape(bits))
    for x in OPERANDS:
        scaled = bits / p[f"gamma_{x}"]
        exponent = scaled - p[f"n_{x}"]
        # Below the law's domain bits are worth anything.
        total += np.where(exponent > 0, scaled / np.expm1(np.maximum(exponent, 1e-300)), np.inf)
    return total


def _bits_root(condition: Callable[[Array], Array], p: Mapping[str, Any]) -> Any:
    bits = np.maximum(rising_root(condition, *BITS_RANGE, np.shape(p["gamma_w"])), 0.0)
    return float(bits) if bits.ndim == 0 else bits


def ptq_critical_tokens(p: Mapping[str, Any], params: float, bits_post: float) -> Any:
    """Training tokens beyond which more data raise the loss after quantizing the weights.

    D_crit = (beta B N^gamma_N exp(P/gamma_post)/(gamma_D C_T))^(1/(gamma_D + beta)) (Kumar et al.,
    Eq. 13), of `ptq`.
    """
    log = np.log(np.divide(np.multiply(p["beta"], p["B"]), np.multiply(p["gamma_D"], p["C_T"])))
    log = log + np.multiply(p["gamma_N"], math.log(params)) + np.divide(bits_post, p["gamma_post"])
    tokens = np.exp(log / np.add(p["gamma_D"], p["beta"]))
    return float(tokens) if np.ndim(tokens) == 0 else tokens


def ptq_penalty(p: Mapping[str, Any], params: float, tokens: float, bits_post: float) -> Any:
    """What quantizing the weights after training adds: C_T D^gamma_D/N^gamma_N e^(-P/gamma_post).

    Kumar et al., nats per token.
    """
    scale = np.power(tokens, p["gamma_D"]) / np.power(params, p["gamma_N"])
    return p["C_T"] * scale * np.exp(-np.divide(bits_post, p["gamma_post"]))


def qat_penalty(p: Mapping[str, Any], params: float, tokens: float, block_size: float) -> Any:
    """What quantization-aware training adds: k D^gamma_D (log2 G)^gamma_G/N^gamma_N.

    Chen et al., nats per token.
    """
    scale = np.power(tokens, p["gamma_D"]) / np.power(params, p["gamma_N"])
    return p["k"] * scale * np.power(math.log2(block_size), p["gamma_G"])


def capacity_after(p: Mapping[str, Any], params: Any, penalty: Any) -> Any:
    """N_eff/N of a run that a penalty (nats per token) has made worse, in a law with A/N^alpha.

    (A/(A + penalty N^alpha))^(1/alpha), the effective parameter multiplier of Chen et al.
    """
    share = 1 + np.multiply(penalty, np.power(params, p["alpha"])) / p["A"]
    return share ** (-1 / np.asarray(p["alpha"], float))


def compressed_capacity(p: Mapping[str, Any], gmse: float) -> Any:
    """N_eff/N = L tanh(F log_{1/4} GMSE)^C of `compressed` (Panferov et al.).

    Capacities of several compressions at once multiply.
    """
    return p["L"] * np.tanh(np.multiply(p["F"], -math.log(gmse) / math.log(4))) ** p["C"]


@QUIET
def tokens_for_capacity(p: Mapping[str, Any], params: float, tokens: float, share: Any) -> Any:
    """The factor in tokens that makes up for a capacity N_eff/N, the same at any data.

    (1 - x)^(-1/beta) with x what the capacity costs over what the data leave, B/D^beta; infinite
    from x = 1 on: then no amount of data does.
    """
    alpha, beta = np.asarray(p["alpha"], float), np.asarray(p["beta"], float)
    lost = p["A"] * float(params) ** -alpha * (np.asarray(share, float) ** -alpha - 1)
    left = 1 - lost / (p["B"] * float(tokens) ** -beta)
    factor = np.where(left > 0, np.maximum(left, 0.0) ** (-1 / beta), np.inf)
    return float(factor) if factor.ndim == 0 else factor


# --- tables -----------------------------------------------------------------------------------


def kumar_table(
    fit: Fit, draws: pd.DataFrame | None, table: pd.DataFrame, k: float = COST
) -> dict[str, Any]:
    """Optimal bits and what each choice of bits costs, of `precision`.

    Args:
        fit: Of the law `precision`.
        draws: From `fitting.fit.bootstrap.bootstrap`; None leaves out the intervals.
        table: The fitted table.
        k: Of the cost C = k P N D.

    Returns:
        `optimal_bits` (`value`, `interval`, `extrapolated`): the same bits for all operands, at
        given data and jointly at any cost; `optimal_precision` with `fixed_params`, as
        `fitting.analysis.trades.optimal_table`; `cost_of_precision` as `_costs`, by bits of
        weights, activations and cache.  Empty where the table does not hold a parameter of the
        capacity.
    """
    if {f"{kind}_{x}" for kind in ("gamma", "n") for x in OPERANDS} & set(fit.flat):
        return {}
    rows = select_rows(table)[0]
    seen = rows[[f"bits_{x}" for x in OPERANDS]]
    values = samples(fit, draws)
    named_bits = named("bits", [kumar_optimal_bits(s) for s in values])
    best = named_bits["bits"]
    inside = best is not None and bool(((seen.min() <= best) & (best <= seen.max())).all())
    result: dict[str, Any] = {
        "optimal_bits": {
            "value": best,
            "interval": named_bits["bits_interval"],
            "extrapolated": not inside,
        }
    }
    if CHINCHILLA & set(fit.flat):
        return result
    dearest = float((k * seen.mean(axis=1) * rows["params"] * rows["tokens"]).max())
    span = float(seen.min().max()), float(seen.max().min())
    fixed = []
    for cost in (dearest * budget for budget in BUDGETS):
        for size in sorted(map(float, rows["params"].unique())):
            bits = [kumar_optimal_bits_for_params(s, size, cost, k) for s in values]
            fixed.append(optimum(bits, rows, span, params=size, cost=cost, k=k))
    result["optimal_precision"] = {"fixed_params": fixed}
    cells = []
    choices = sorted(set(seen.itertuples(index=False, name=None)), key=lambda b: (sum(b), b))
    for choice in choices:
        if choice != tuple(seen.max()):
            counts = dict(zip(OPERANDS, map(float, choice), strict=True))
            label = " ".join(f"{x}{count:g}" for x, count in counts.items())
            cells.append((label, [_shares(s, counts) for s in values]))
    result["cost_of_precision"] = _costs(cells, values, rows)
    return result


def compressed_table(fit: Fit, draws: pd.DataFrame | None, table: pd.DataFrame) -> dict[str, Any]:
    """What each representation of a table costs, of `compressed`; arguments as of `kumar_table`.

    Returns:
        `cost_of_precision` as `_costs`, by GMSE.  Empty where the table does not hold a parameter.
    """
    if {*CHINCHILLA, "L", "F", "C"} & set(fit.flat):
        return {}
    rows = select_rows(table)[0]
    values = samples(fit, draws)
    errors = sorted({float(gmse) for gmse in rows["gmse"] if gmse > 0})
    cells = [(f"GMSE {e:.3g}", [compressed_capacity(s, e) for s in values]) for e in errors]
    return {"cost_of_precision": _costs(cells, values, rows)}


@QUIET
def _costs(
    cells: Sequence[tuple[str, Sequence[Any]]],
    values: Sequence[Mapping[str, Any]],
    rows: pd.DataFrame,
) -> list[dict[str, Any]]:
    """What capacities cost at equal loss, for the largest size at its middle data.

    Returns:
        JSON-ready dicts: `format` and what `fitting.analysis.trades.equal_loss` gives.
    """
    size = float(rows["params"].max())
    tokens = middle(rows.loc[rows["params"] == size, "tokens"])
    entries = []
    for label, shares in cells:
        pairs = zip(values, shares, strict=True)
        more = [tokens_for_capacity(s, size, tokens, share) for s, share in pairs]
        entries.append({"format": label} | equal_loss(rows, size, tokens, shares, more))
    return entries


@QUIET
def ptq_table(fit: Fit, draws: pd.DataFrame | None, table: pd.DataFrame) -> dict[str, Any]:
    """Critical data size and effective parameters by size and bits after training, of `ptq`.

    Args:
        fit: Of the law `ptq`.
        draws: From `fitting.fit.bootstrap.bootstrap`; None leaves out the intervals.
        table: The fitted table.

    Returns:
        `critical_tokens` as `fitting.analysis.layouts.critical_table`, and `cost_of_precision` with
        `effective_params` for each size's longest runs.  Empty where the table does not hold a
        parameter.
    """
    if {*CHINCHILLA, "C_T", "gamma_D", "gamma_N", "gamma_post"} & set(fit.flat):
        return {}
    rows = select_rows(table)[0]
    values = samples(fit, draws)
    critical = []
    for size, bits in sorted(set(rows[["params", "bits_post"]].itertuples(index=False, name=None))):
        tokens = named("tokens", [ptq_critical_tokens(s, size, bits) for s in values])
        critical.append(
            {
                "params": float(size),
                "format": f"{bits:g} bits",
                "tokens": tokens["tokens"],
                "interval": tokens["tokens_interval"],
                "extrapolated": tokens["tokens"] is None
                or tokens["tokens"] > float(rows["tokens"].max()),
            }
        )
    costs = _penalized(rows, "bits_post", "{:g} bits", values, ptq_penalty)
    return {"critical_tokens": critical, "cost_of_precision": costs}


def qat_table(fit: Fit, draws: pd.DataFrame | None, table: pd.DataFrame) -> dict[str, Any]:
    """Effective parameters by size and group, of `qat`; arguments as of `ptq_table`.

    Returns:
        `cost_of_precision` with `effective_params` for each size's longest runs.  Empty where the
        table does not hold a parameter.
    """
    if {*CHINCHILLA, "k", "gamma_D", "gamma_G", "gamma_N"} & set(fit.flat):
        return {}
    rows = select_rows(table)[0]
    quantized = rows[rows["block_size"] > 1]
    costs = _penalized(
        quantized, "block_size", "groups of {:.4g}", samples(fit, draws), qat_penalty
    )
    return {"cost_of_precision": costs}


@QUIET
def _penalized(
    rows: pd.DataFrame,
    column: str,
    label: str,
    values: Sequence[Mapping[str, Any]],
    penalty: Callable[[Mapping[str, Any], float, float, float], Any],
) -> list[dict[str, Any]]:
    """Effective parameters of each size's longest run, for each value of a column.

    Their inverse is not what precision costs at equal loss: the penalty changes with the size.
    """
    entries = []
    longest = rows.groupby("params")["tokens"].max()
    smallest = float(rows["params"].min())
    for size, value in sorted(set(rows[["params", column]].itertuples(index=False, name=None))):
        tokens = float(longest[size])
        shares = [capacity_after(s, size, penalty(s, size, tokens, value)) for s in values]
        entries.append(
            {
                "params": float(size),
                "tokens": tokens,
                "format": label.format(value),
                **named("effective_params", shares),
                "extrapolated": bool(size * shares[0] < smallest),
            }
        )
    return entries
