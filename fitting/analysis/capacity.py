"""The capacity that precision leaves a model: laws in which it costs parameters or adds a penalty.

Kumar et al. 2411.04330 (`precision`, `ptq`), Chen et al. 2505.14302 (`qat`), Panferov et al.
2506.01863 (`compressed`).  All share A/N^alpha + B/D^beta + E, so all can say which unquantized
model does as well.  Functions take numbers, or arrays of draws for the parameters.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from fitting.analysis.costs import COST_OF_PRECISION, Cost, equal_loss, middle
from fitting.analysis.critical import CRITICAL_TOKENS, CriticalTokens
from fitting.analysis.optima import (
    BUDGETS,
    COST_K,
    OPTIMAL_PRECISION,
    OptimalPrecision,
    optimum,
)
from fitting.analysis.roots import rising_root
from fitting.analysis.trades import QUIET
from fitting.law.conclusion import (
    COST,
    Basis,
    Conclusion,
    Estimate,
    Sample,
    Values,
    estimate,
)
from fitting.law.curves import Array
from fitting.law.terms import FitError

OPERANDS = ("w", "a", "kv")
"""The operands to which Kumar et al. give bits of their own: weights, activations, cache."""
BITS_RANGE = (1.0, 64.0)
"""Range of bits in which the optimum is searched for."""
CHINCHILLA = frozenset(("A", "alpha", "B", "beta"))


# --- formulas ---------------------------------------------------------------------------------


def kumar_capacity(p: Sample, bits: Mapping[str, float]) -> Values:
    """N_eff/N = prod_x (1 - exp(n_x - P_x/gamma_x)) over the operands in `bits`, of `precision`.

    Raises:
        FitError: N_eff is not positive: the law is not defined for so few bits.

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


def _kept(p: Sample, x: str, count: Values) -> Values:
    return -np.expm1(np.subtract(p[f"n_{x}"], np.divide(count, p[f"gamma_{x}"])))


def _shares(p: Sample, bits: Mapping[str, Values]) -> Values:
    """`kumar_capacity`, with zero in draws for which the law is not defined."""
    return math.prod(np.maximum(_kept(p, x, count), 0.0) for x, count in bits.items())


def kumar_optimal_bits(p: Sample) -> Values:
    """Bits, the same for weights, activations and cache, of least loss at any cost C = k P N D.

    Where N and P are chosen, the optimum depends neither on the data nor on the cost: sum over
    operands of (P/gamma_x) y_x/(1 - y_x) = 1 with y_x = exp(n_x - P/gamma_x).  Zero where it is
    below one bit.

    >>> from fitting.laws.catalogue import KUMAR_2024
    >>> round(kumar_optimal_bits(KUMAR_2024), 4)
    7.0021
    """
    return _bits_root(lambda bits: 1 - _worth(p, bits), p)


@QUIET  # below the law's domain nothing is left of the parameters
def kumar_optimal_bits_for_params(p: Sample, params: float, cost: float, k: float = COST) -> Values:
    """Optimal bits at a given size, where the rest of the cost C = k P N D is data.

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


def _worth(p: Sample, bits: Array) -> Array:
    """Relative growth of N_eff with the bits: d log N_eff/d log P."""
    total = np.zeros(np.shape(bits))
    for x in OPERANDS:
        scaled = bits / p[f"gamma_{x}"]
        exponent = scaled - p[f"n_{x}"]
        # Below the law's domain another bit is worth any price.
        total += np.where(exponent > 0, scaled / np.expm1(np.maximum(exponent, 1e-300)), np.inf)
    return total


def _bits_root(condition: Callable[[Array], Array], p: Sample) -> Values:
    bits = np.maximum(rising_root(condition, *BITS_RANGE, np.shape(p["gamma_w"])), 0.0)
    return float(bits) if bits.ndim == 0 else bits


def ptq_critical_tokens(p: Sample, params: float, bits_post: float) -> Values:
    """Training tokens beyond which more data raise the loss after quantizing the weights.

    D_crit = (beta B N^gamma_N exp(P/gamma_post)/(gamma_D C_T))^(1/(gamma_D + beta)) (Kumar et al.,
    Eq. 13), of `ptq`.
    """
    log = np.log(np.divide(np.multiply(p["beta"], p["B"]), np.multiply(p["gamma_D"], p["C_T"])))
    log = log + np.multiply(p["gamma_N"], math.log(params)) + np.divide(bits_post, p["gamma_post"])
    tokens = np.exp(log / np.add(p["gamma_D"], p["beta"]))
    return float(tokens) if np.ndim(tokens) == 0 else tokens


def ptq_penalty(p: Sample, params: float, tokens: float, bits_post: float) -> Values:
    """Loss added by quantizing trained weights: C_T D^gamma_D/N^gamma_N e^(-P/gamma_post).

    Kumar et al., nats per token.
    """
    scale = np.power(tokens, p["gamma_D"]) / np.power(params, p["gamma_N"])
    return p["C_T"] * scale * np.exp(-np.divide(bits_post, p["gamma_post"]))


def qat_penalty(p: Sample, params: float, tokens: float, block_size: float) -> Values:
    """Loss added by quantization-aware training: k D^gamma_D (log2 G)^gamma_G/N^gamma_N.

    Chen et al., nats per token.
    """
    scale = np.power(tokens, p["gamma_D"]) / np.power(params, p["gamma_N"])
    return p["k"] * scale * np.power(math.log2(block_size), p["gamma_G"])


def capacity_after(p: Sample, params: Values, penalty: Values) -> Values:
    """N_eff/N of a run that a penalty (nats per token) has made worse, in a law with A/N^alpha.

    (A/(A + penalty N^alpha))^(1/alpha), the effective parameter multiplier of Chen et al.
    """
    share = 1 + np.multiply(penalty, np.power(params, p["alpha"])) / p["A"]
    return share ** (-1 / np.asarray(p["alpha"], float))


def compressed_capacity(p: Sample, gmse: float) -> Values:
    """N_eff/N = L tanh(F log_{1/4} GMSE)^C of `compressed` (Panferov et al.).

    Capacities of several compressions at once multiply.
    """
    return p["L"] * np.tanh(np.multiply(p["F"], -math.log(gmse) / math.log(4))) ** p["C"]


@QUIET
def tokens_for_capacity(p: Sample, params: float, tokens: float, share: Values) -> Values:
    """The factor in tokens that makes up for a capacity N_eff/N.

    (1 - x)^(-1/beta), where x is the loss that the capacity costs over the data term B/D^beta;
    infinite from x = 1 on, where no amount of data makes up for it.
    """
    alpha, beta = np.asarray(p["alpha"], float), np.asarray(p["beta"], float)
    lost = p["A"] * float(params) ** -alpha * (np.asarray(share, float) ** -alpha - 1)
    left = 1 - lost / (p["B"] * float(tokens) ** -beta)
    factor = np.where(left > 0, np.maximum(left, 0.0) ** (-1 / beta), np.inf)
    return float(factor) if factor.ndim == 0 else factor


# --- conclusions ------------------------------------------------------------------------------


def _optimal_bits(basis: Basis) -> Estimate | None:
    """Optimal bits under `precision`, the same for all operands: at given data and at any cost."""
    if basis.lacks(_CAPACITY):
        return None
    seen = basis.rows[[f"bits_{x}" for x in OPERANDS]]
    found = basis.estimate(kumar_optimal_bits)
    best = found.value
    inside = best is not None and bool(((seen.min() <= best) & (best <= seen.max())).all())
    return Estimate(*found.pair, extrapolated=not inside)


def _optimal_precision(basis: Basis) -> OptimalPrecision | None:
    """Optimal bits at given sizes and costs."""
    if basis.lacks(_CAPACITY | CHINCHILLA):
        return None
    rows, k = basis.rows, basis.assumed.cost_k
    seen = rows[[f"bits_{x}" for x in OPERANDS]]
    dearest = float((k * seen.mean(axis=1) * rows["params"] * rows["tokens"]).max())
    span = float(seen.min().max()), float(seen.max().min())
    fixed = []
    for cost in (dearest * budget for budget in BUDGETS):
        for size in sorted(map(float, rows["params"].unique())):
            bits = [kumar_optimal_bits_for_params(s, size, cost, k) for s in basis.samples]
            fixed.append(optimum(bits, rows, span, params=size, cost=cost, k=k))
    return OptimalPrecision(fixed_params=fixed)


def _cost_k(basis: Basis) -> float | None:
    return None if basis.lacks(_CAPACITY | CHINCHILLA) else basis.assumed.cost_k


def _cost_of_bits(basis: Basis) -> list[Cost] | None:
    """The cost of each combination of bits for weights, activations and cache."""
    if basis.lacks(_CAPACITY | CHINCHILLA):
        return None
    seen = basis.rows[[f"bits_{x}" for x in OPERANDS]]
    cells = []
    choices = sorted(set(seen.itertuples(index=False, name=None)), key=lambda b: (sum(b), b))
    for choice in choices:
        if choice != tuple(seen.max()):
            counts = dict(zip(OPERANDS, map(float, choice), strict=True))
            label = " ".join(f"{x}{count:g}" for x, count in counts.items())
            cells.append((label, [_shares(s, counts) for s in basis.samples]))
    return _costs(cells, basis)


def _cost_of_representations(basis: Basis) -> list[Cost] | None:
    """The cost of each representation in a table under `compressed`, by its GMSE."""
    if basis.lacks({*CHINCHILLA, "L", "F", "C"}):
        return None
    errors = sorted({float(gmse) for gmse in basis.rows["gmse"] if gmse > 0})
    cells = [(f"GMSE {e:.3g}", [compressed_capacity(s, e) for s in basis.samples]) for e in errors]
    return _costs(cells, basis)


@QUIET
def _costs(cells: Sequence[tuple[str, Sequence[Values]]], basis: Basis) -> list[Cost]:
    """The cost of capacities at equal loss, for the largest size at its middle data."""
    rows = basis.rows
    size = float(rows["params"].max())
    tokens = middle(rows.loc[rows["params"] == size, "tokens"])
    found = []
    for label, shares in cells:
        pairs = zip(basis.samples, shares, strict=True)
        more = [tokens_for_capacity(s, size, tokens, share) for s, share in pairs]
        found.append(equal_loss(rows, label, size, tokens, shares, more))
    return found


@QUIET
def _ptq_critical(basis: Basis) -> list[CriticalTokens] | None:
    """Critical data size under `ptq`, by size and bits after training."""
    if basis.lacks(_PTQ):
        return None
    rows = basis.rows
    largest = float(rows["tokens"].max())
    found = []
    for size, bits in sorted(set(rows[["params", "bits_post"]].itertuples(index=False, name=None))):
        tokens = estimate([ptq_critical_tokens(s, size, bits) for s in basis.samples])
        beyond = tokens.value is None or tokens.value > largest
        found.append(CriticalTokens(float(size), f"{bits:g} bits", *tokens.pair, beyond))
    return found


def _ptq_costs(basis: Basis) -> list[Cost] | None:
    if basis.lacks(_PTQ):
        return None
    return _penalized(basis, basis.rows, "bits_post", "{:g} bits", ptq_penalty)


def _qat_costs(basis: Basis) -> list[Cost] | None:
    if basis.lacks({*CHINCHILLA, "k", "gamma_D", "gamma_G", "gamma_N"}):
        return None
    return _penalized(basis, basis.quantized, "block_size", "groups of {:.4g}", qat_penalty)


@QUIET
def _penalized(
    basis: Basis,
    rows: pd.DataFrame,
    column: str,
    label: str,
    penalty: Callable[[Sample, float, float, float], Values],
) -> list[Cost]:
    """Effective parameters of each size's longest run, for each value of a column.

    Their inverse is not the cost of precision at equal loss: the penalty changes with the size.
    """
    found = []
    longest = rows.groupby("params")["tokens"].max()
    smallest = float(rows["params"].min())
    for size, value in sorted(set(rows[["params", column]].itertuples(index=False, name=None))):
        tokens = float(longest[size])
        shares = [capacity_after(s, size, penalty(s, size, tokens, value)) for s in basis.samples]
        beyond = bool(size * shares[0] < smallest)
        found.append(Cost(label.format(value), float(size), tokens, *estimate(shares).pair, beyond))
    return found


_CAPACITY = frozenset(f"{kind}_{x}" for kind in ("gamma", "n") for x in OPERANDS)
_PTQ = frozenset((*CHINCHILLA, "C_T", "gamma_D", "gamma_N", "gamma_post"))
OPTIMAL_BITS = Conclusion("optimal_bits", Estimate, _optimal_bits, title="optimal bits at any cost")
KUMAR_CONCLUSIONS = (
    replace(COST_OF_PRECISION, found=_cost_of_bits),
    replace(OPTIMAL_PRECISION, found=_optimal_precision),
    replace(COST_K, found=_cost_k),
    OPTIMAL_BITS,
)
PTQ_CONCLUSIONS = (
    replace(COST_OF_PRECISION, found=_ptq_costs),
    replace(CRITICAL_TOKENS, found=_ptq_critical, missing=""),
)
QAT_CONCLUSIONS = (replace(COST_OF_PRECISION, found=_qat_costs),)
COMPRESSED_CONCLUSIONS = (replace(COST_OF_PRECISION, found=_cost_of_representations),)
