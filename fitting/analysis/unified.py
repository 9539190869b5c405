"""Costs at equal loss and compute-optimal bits under the unified law, and all its conclusions."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fitting.analysis.backward import BACKWARD_COSTS
from fitting.analysis.capacity import CHINCHILLA, tokens_for_capacity
from fitting.analysis.conditions import HOLDS_FOR, HoldsFor, distinct
from fitting.analysis.costs import COST_OF_PRECISION, Cost, equal_loss, middle
from fitting.analysis.optima import BUDGETS, COST_K, OPTIMAL_PRECISION, OptimalPrecision, optimum
from fitting.analysis.signal import FORWARD_ERRORS, format_of, quantized_forward, signal_share
from fitting.analysis.splits import BITS, SPLITS, Setting
from fitting.analysis.trades import QUIET
from fitting.law.conclusion import Basis, Conclusion, Estimate, Sample, Values, estimate
from fitting.law.curves import Array

_NEEDED = CHINCHILLA | {"c"}


def _holds_for(basis: Basis) -> HoldsFor:
    rows = quantized_forward(basis.rows)
    return HoldsFor(distinct(rows, "operands"), distinct(rows, "recipe"))


@QUIET
def _costs(basis: Basis) -> list[Cost] | None:
    """The cost of each format of the table at equal loss: for the largest size, at its data."""
    rows = basis.rows
    if basis.lacks(_NEEDED):
        return None
    seen = quantized_forward(rows)
    if seen.empty:
        return []
    size = float(seen["params"].max())
    tokens = middle(seen.loc[seen["params"] == size, "tokens"])
    found = []
    by_pair = seen.groupby(seen[list(FORWARD_ERRORS)].apply(tuple, axis=1))
    for pair, these in sorted(by_pair, key=lambda each: sum(each[0])):
        shares = [
            signal_share(p, dict(zip(FORWARD_ERRORS, pair, strict=True))) for p in basis.samples
        ]
        more = [
            tokens_for_capacity(p, size, tokens, share)
            for p, share in zip(basis.samples, shares, strict=True)
        ]
        found.append(equal_loss(rows, format_of(these), size, tokens, shares, more))
    return found


def _worth(p: Sample, setting: Setting) -> Array:
    """N_eff/N over bits, for each of `BITS`: [bits], or [bits, draws]."""
    each = [np.divide(setting.share(p, setting.splits(bits)[0][0]), bits) for bits in BITS]
    return np.array(each)


def _best_bits(worth: Array) -> Values:
    best = np.array(BITS)[worth.argmax(axis=0)]
    return float(best) if best.ndim == 0 else best.astype(np.float64)


def _optimal_bits(basis: Basis) -> Estimate | None:
    """Bits of least loss at any cost C = k P N D, and at any data: those of the largest N_eff/P."""
    setting = Setting.of(basis.rows)
    if setting is None or basis.lacks(("c",)):
        return None
    found = estimate([_best_bits(_worth(p, setting)) for p in basis.samples])
    assert found.value is not None
    inside = setting.inside(setting.splits(int(found.value))[0][0])
    return Estimate(*found.pair, extrapolated=not inside)


@QUIET
def _optimal_precision(basis: Basis) -> OptimalPrecision | None:
    """Optimal bits, size and data at given costs; and the optimal bits of each size."""
    setting = Setting.of(basis.rows)
    if setting is None or basis.lacks(_NEEDED):
        return None
    rows, k = basis.rows, basis.assumed.cost_k
    inside = [bits for bits in BITS if setting.inside(setting.splits(bits)[0][0])]
    span = (float(min(inside, default=BITS[0])), float(max(inside, default=BITS[-1])))
    dearest = float((k * 16 * rows["params"] * rows["tokens"]).max())
    sizes = sorted(map(float, rows["params"].unique()))
    fixed, joint = [], []
    for cost in (dearest * budget for budget in BUDGETS):
        for size in sizes:
            bits = [_bits_for_size(p, setting, size, cost, k) for p in basis.samples]
            fixed.append(optimum(bits, rows, span, params=size, cost=cost, k=k))
        best, params, tokens = zip(
            *(_jointly(p, setting, cost, k) for p in basis.samples), strict=True
        )
        joint.append(
            optimum(list(best), rows, span, params=list(params), tokens=list(tokens), cost=cost)
        )
    return OptimalPrecision(fixed_params=fixed, joint=joint)


def _bits_for_size(p: Sample, setting: Setting, size: float, cost: float, k: float) -> Values:
    """Bits of least loss where the rest of the cost is data."""
    alpha, beta = np.asarray(p["alpha"], float), np.asarray(p["beta"], float)
    losses = []
    for bits in BITS:
        share = np.asarray(setting.share(p, setting.splits(bits)[0][0]))
        tokens = cost / (k * bits * size)
        losses.append(p["A"] * (size * share) ** -alpha + p["B"] * tokens**-beta)
    return _best_bits(-np.array(losses))


def _jointly(p: Sample, setting: Setting, cost: float, k: float) -> tuple[Values, Values, Values]:
    """Bits, parameters and tokens of least loss at a cost.

    With N_eff = N rho and the largest rho/P, N_eff^(alpha + beta) = alpha A/(beta B) (N_eff D)^beta
    as for Chinchilla.
    """
    alpha, beta = np.asarray(p["alpha"], float), np.asarray(p["beta"], float)
    worth = _worth(p, setting)
    bits = _best_bits(worth)
    product = cost / k * worth.max(axis=0)
    ratio = alpha * p["A"] / (beta * np.asarray(p["B"]))
    effective = (ratio * product**beta) ** (1 / (alpha + beta))
    params = effective / (worth.max(axis=0) * bits)
    return bits, params, product / effective


UNIFIED_CONCLUSIONS = (
    SPLITS,
    replace(COST_OF_PRECISION, found=_costs),
    BACKWARD_COSTS,
    replace(HOLDS_FOR, found=_holds_for, doubts=None),
    replace(OPTIMAL_PRECISION, found=_optimal_precision),
    replace(COST_K, found=lambda b: None if b.lacks(_NEEDED) else b.assumed.cost_k),
    Conclusion("optimal_bits", Estimate, _optimal_bits, title="optimal bits at any cost"),
)
