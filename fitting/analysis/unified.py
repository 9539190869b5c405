"""The cost of any number format under the unified law, from the format's error alone.

The law reads no exponent or mantissa bits, only the relative squared error e of an operand, which
`experiments.quant.normal_error` computes for any format.  So what was fitted to a few formats says
what all others cost: the split of a number of bits with the least error is the best one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from experiments.quant.formats import MAX_EXPONENT_BITS, MAX_MANTISSA_BITS
from experiments.quant.normal_error import error_of
from fitting.analysis.capacity import CHINCHILLA, tokens_for_capacity
from fitting.analysis.conditions import HOLDS_FOR, HoldsFor, distinct
from fitting.analysis.costs import COST_OF_PRECISION, Cost, equal_loss, middle, share_number
from fitting.analysis.layouts import layout_name
from fitting.analysis.optima import (
    BUDGETS,
    COST_K,
    OPTIMAL_PRECISION,
    OptimalPrecision,
    optimum,
)
from fitting.analysis.trades import QUIET
from fitting.law.conclusion import (
    Basis,
    Column,
    Conclusion,
    Count,
    Derived,
    Estimate,
    Interval,
    Number,
    Sample,
    Table,
    Values,
    estimate,
)
from fitting.law.curves import Array
from fitting.results.format_errors import ERRORS
from fitting.words import between, number

FORWARD_ERRORS = ("err_input", "err_weight")
"""Columns with the relative squared errors of the operands of the forward pass, P1 and P2."""
OPERANDS = {"err_input": "inputs", "err_weight": "weights"}
BACKWARD_ERRORS = {
    "c_grad_input": ("err_grad_input_grad_output", "err_grad_input_weight"),
    "c_grad_weight": ("err_grad_weight_grad_output", "err_grad_weight_input"),
}
"""Parameters of the backward pass -> the columns of the errors that they weigh: dX and dW."""
BITS = range(2, 12)
"""Total bits among which the best are searched for."""
NEAR_TIE = 0.95
"""A split with at least this share of the best one's effective parameters is a near-tie."""
_NEEDED = CHINCHILLA | {"c"}


def signal_share(p: Sample, errors: Mapping[str, Values]) -> Values:
    """N_eff/N = 1/(prod (1 + c_x s_x) + sum c_y s_y), s = e/(1 - e): what noise leaves.

    Args:
        p: Parameters of `unified`; without `c_input` inputs cost as much as weights, and without
            a constant of the backward pass that one costs nothing.
        errors: Relative squared errors by column; operands that are not named are exact.

    >>> e = error_of("mxfp4")
    >>> round(signal_share({"c": 30}, {"err_input": e, "err_weight": e}), 3)
    0.506
    """
    noise = {name: np.divide(e, np.subtract(1, e)) for name, e in errors.items()}
    total = np.asarray(1.0)
    for name, constant in (("err_weight", p["c"]), ("err_input", p.get("c_input", p["c"]))):
        total = total * (1 + np.multiply(constant, noise.get(name, 0.0)))
    for name, columns in BACKWARD_ERRORS.items():
        if name in p:
            total = total + np.multiply(p[name], sum(noise.get(c, 0.0) for c in columns))
    share = 1 / total
    return float(share) if np.ndim(share) == 0 else share


def share_of_rows(p: Sample, rows: pd.DataFrame) -> Array:
    """N_eff/N of each row of a table, [rows]."""
    known = {c: rows[c].to_numpy(dtype=np.float64) for c in ERRORS if c in rows}
    return np.broadcast_to(np.asarray(signal_share(p, known), dtype=np.float64), len(rows))


@dataclass(frozen=True)
class Split:
    """The best exponent/mantissa split of a number of bits."""

    bits: Count
    """Sign included."""
    layout: str
    error: Number
    """Its relative squared error on normal data."""
    effective_params: Number
    """N_eff/N with the operands in this format that the fitted runs quantize."""
    effective_params_interval: Interval
    near_ties: list[str]
    """The other splits that keep `NEAR_TIE` of the best one's effective parameters."""
    extrapolated: bool
    """Whether no run had an error as small, or none one as large."""


@dataclass(frozen=True)
class Splits:
    """Best splits, and the setting in which they are compared."""

    operands: list[str]
    """Columns of the errors of the operands that are quantized."""
    blocks: str
    """What shares a scale, and the scale: "block32-fp32"."""
    splits: list[Split]
    constants: dict[str, Estimate]
    """c, and those that the runs tell from it, as multiples of c."""


def _holds_for(basis: Basis) -> HoldsFor:
    rows = basis.rows[(basis.rows[list(FORWARD_ERRORS)] > 0).any(axis=1)]
    return HoldsFor(distinct(rows, "operands"), distinct(rows, "recipe"))


@dataclass(frozen=True)
class _Setting:
    """How the quantized runs of a table are quantized, apart from the element's bits."""

    operands: list[str]
    blocks: str
    errors: tuple[float, float]
    """The smallest and the largest error in the table."""

    @classmethod
    def of(cls, rows: pd.DataFrame) -> _Setting | None:
        """The commonest setting of the quantized rows; None if there are none."""
        seen = rows[(rows[list(FORWARD_ERRORS)] > 0).any(axis=1)]
        if seen.empty:
            return None
        operands = [name for name in FORWARD_ERRORS if (seen[name] > 0).any()]
        errors = seen[operands].to_numpy(dtype=np.float64)
        blocks = "block32-fp32"
        if {"granularity", "block_size", "scale"} <= set(seen):
            kinds = seen[seen["granularity"] == "block"]
            if len(kinds):
                alike = "block" + kinds["block_size"].map("{:g}".format) + "-" + kinds["scale"]
                blocks = str(alike.mode().iloc[0])
        return cls(operands, blocks, (errors[errors > 0].min(), errors.max()))

    def error(self, exponent: int, mantissa: int) -> float:
        """The error of a split; of scales made for one element alone, that of FP32 ones."""
        name = layout_name(exponent, mantissa)
        try:
            return error_of(f"{name}-{self.blocks}")
        except ValueError:
            return error_of(f"{name}-{self.blocks.partition('-')[0]}-fp32")

    def splits(self, bits: int) -> list[tuple[float, str]]:
        """Errors and names of all splits of a number of bits, the best first."""
        layouts = [(e, bits - 1 - e) for e in range(min(bits - 1, MAX_EXPONENT_BITS), -1, -1)]
        known = [(e, m) for e, m in layouts if m <= MAX_MANTISSA_BITS]
        # E1 and E0 have the same numbers: the one with an exponent goes first.
        named = [(float(f"{self.error(e, m):.6g}"), layout_name(e, m)) for e, m in known]
        return sorted(named, key=lambda each: each[0])

    def share(self, p: Sample, error: float) -> Values:
        """N_eff/N with this error in every operand that is quantized."""
        return signal_share(p, dict.fromkeys(self.operands, error))

    def inside(self, error: float) -> bool:
        """Whether runs had errors as small and as large."""
        return self.errors[0] <= error * (1 + 1e-6) and error <= self.errors[1] * (1 + 1e-6)


def _splits(basis: Basis) -> Splits | None:
    setting = _Setting.of(basis.rows)
    if setting is None or basis.lacks(("c",)):
        return None
    found = []
    for bits in BITS:
        (error, best), *others = setting.splits(bits)
        shares = [setting.share(p, error) for p in basis.samples]
        least = NEAR_TIE * float(shares[0])
        ties = [name for e, name in others if setting.share(basis.parameters, e) >= least]
        found.append(
            Split(bits, best, error, *estimate(shares).pair, ties, not setting.inside(error))
        )
    constants = {"c": basis.estimate(lambda p: p["c"])}
    for name in (n for n in ("c_input", *BACKWARD_ERRORS) if n in basis.parameters):
        if not basis.lacks((name,)):
            constants[name] = estimate([np.divide(p[name], p["c"]) for p in basis.samples])
    return Splits(setting.operands, setting.blocks, found, constants)


@QUIET
def _costs(basis: Basis) -> list[Cost] | None:
    """The cost of each format of the table at equal loss: for the largest size, at its data."""
    rows = basis.rows
    if basis.lacks(_NEEDED):
        return None
    seen = rows[(rows[list(FORWARD_ERRORS)] > 0).any(axis=1)]
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
        found.append(equal_loss(rows, _format_of(these), size, tokens, shares, more))
    return found


@dataclass(frozen=True)
class BackwardCost:
    """The effective parameters of a backward pass, with one forward pass in front of it."""

    forward: str
    """The format of the forward pass."""
    grad_input: str
    """The errors of the two operands of dX."""
    grad_weight: str
    """The errors of the two operands of dW."""
    effective_params: Number
    """N_eff/N over that of the same forward pass with an exact backward one."""
    effective_params_interval: Interval


def _backward(basis: Basis) -> list[BackwardCost] | None:
    """The cost of each backward pass of the table, by the forward pass that it follows."""
    there = {n: columns for n, columns in BACKWARD_ERRORS.items() if n in basis.parameters}
    if not there or basis.lacks({"c", *there}):
        return None
    columns = [*FORWARD_ERRORS, *(c for each in there.values() for c in each)]
    found = []
    for _, these in basis.rows.groupby(columns, sort=True):
        each = {name: float(these[name].iloc[0]) for name in columns}
        backward = {c: each[c] for columns in there.values() for c in columns}
        if not any(backward.values()):
            continue
        forward = {name: each[name] for name in FORWARD_ERRORS}
        ratios = [signal_share(p, each) / signal_share(p, forward) for p in basis.samples]
        label = _format_of(these) if any(forward.values()) else "none"
        first, second = (
            _errors_in_words(backward.get(c, 0.0) for c in columns)
            for columns in BACKWARD_ERRORS.values()
        )
        found.append(BackwardCost(label, first, second, *estimate(ratios).pair))
    return sorted(found, key=lambda row: (row.forward != "none", row.forward))


def _errors_in_words(errors: Iterable[float]) -> str:
    some = [f"{error:.3g}" for error in errors if error]
    return " and ".join(dict.fromkeys(some)) or "–"


def _format_of(rows: pd.DataFrame) -> str:
    """A name for rows of one format, as the table has it."""
    first = rows.iloc[0]
    named = [str(first[n]) for n in ("format_input", "format_weight") if n in rows]
    if named:
        return " × ".join(dict.fromkeys(named))
    if {"exponent", "mantissa", "granularity", "block_size", "scale"} <= set(rows):
        layout = layout_name(int(first["exponent"]), int(first["mantissa"]))
        return f"{layout}-{first['granularity']}{first['block_size']:.4g}-{first['scale']}"
    return " × ".join(f"error {first[n]:.3g}" for n in FORWARD_ERRORS if first[n] > 0)


def _worth(p: Sample, setting: _Setting) -> Array:
    """N_eff/N over bits, for each of `BITS`: [bits], or [bits, draws]."""
    each = [np.divide(setting.share(p, setting.splits(bits)[0][0]), bits) for bits in BITS]
    return np.array(each)


def _best_bits(worth: Array) -> Values:
    best = np.array(BITS)[worth.argmax(axis=0)]
    return float(best) if best.ndim == 0 else best.astype(np.float64)


def _optimal_bits(basis: Basis) -> Estimate | None:
    """Bits of least loss at any cost C = k P N D, and at any data: those of the largest N_eff/P."""
    setting = _Setting.of(basis.rows)
    if setting is None or basis.lacks(("c",)):
        return None
    found = estimate([_best_bits(_worth(p, setting)) for p in basis.samples])
    assert found.value is not None
    inside = setting.inside(setting.splits(int(found.value))[0][0])
    return Estimate(*found.pair, extrapolated=not inside)


@QUIET
def _optimal_precision(basis: Basis) -> OptimalPrecision | None:
    """Optimal bits, size and data at given costs; and the optimal bits of each size."""
    setting = _Setting.of(basis.rows)
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


def _bits_for_size(p: Sample, setting: _Setting, size: float, cost: float, k: float) -> Values:
    """Bits of least loss where the rest of the cost is data."""
    alpha, beta = np.asarray(p["alpha"], float), np.asarray(p["beta"], float)
    losses = []
    for bits in BITS:
        share = np.asarray(setting.share(p, setting.splits(bits)[0][0]))
        tokens = cost / (k * bits * size)
        losses.append(p["A"] * (size * share) ** -alpha + p["B"] * tokens**-beta)
    return _best_bits(-np.array(losses))


def _jointly(p: Sample, setting: _Setting, cost: float, k: float) -> tuple[Values, Values, Values]:
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


# --- words ------------------------------------------------------------------------------------


def _split_note(rows: Sequence[Split], derived: Derived) -> str:
    found = derived.of(SPLITS)
    assert found is not None
    what = " and ".join(OPERANDS[name] for name in found.operands)
    return (
        f"Computed, not fitted: the split with the least squared error on normal data, scales "
        f"{found.blocks}, nearest even. Effective parameters: with {what} of the forward pass in "
        "this format, as in the fitted runs; the interval is that of c. Near-ties keep 95 % of the "
        "best split's effective parameters. Under this law more data never raise the loss: there "
        "is no critical data size."
    )


def _lead(found: Splits) -> str:
    """The law in three sentences: its constant, the backward pass, and the best splits."""
    constants = dict(found.constants)
    c = constants.pop("c")
    ratios = {
        name: f"{between(each.value, each.interval, lambda x: number(x, 2))} times"
        for name, each in constants.items()
    }
    whose = "a weight" if "c_input" in ratios else "an operand"
    said = [
        f"One constant, c = {between(c.value, c.interval, lambda x: number(x, 3))}, prices every "
        f"format by its error e on normal data: {whose} of the forward pass leaves 1/(1 + c s) of "
        "the parameters, s = e/(1 − e)."
    ]
    if "c_input" in ratios:
        said.append(f"Noise in its input costs {ratios['c_input']} as much.")
    passes = {"c_grad_input": "dX", "c_grad_weight": "dW"}
    if there := [f"{ratios[name]} as much in {passes[name]}" for name in passes if name in ratios]:
        said.append(
            f"Noise of the backward pass counts {' and '.join(there)}, and adds to that of the "
            "forward pass: the noisier that is, the less the backward pass costs."
        )
    best = [
        f"{split.bits} bits ({' or '.join([split.layout, *split.near_ties[:2]])}) keep "
        f"{between(split.effective_params, split.effective_params_interval, share_number)}"
        for split in found.splits
        if split.bits in (3, 4) and not split.extrapolated
    ]
    if best:
        what = " and ".join(OPERANDS[name] for name in found.operands)
        said.append(f"With {what} in the best split, {' and '.join(best)} of the parameters.")
    return " ".join(said)


_Col = Column[Split]
_Back = Column[BackwardCost]
BACKWARD_COSTS = Conclusion(
    "backward_costs",
    list[BackwardCost],
    _backward,
    (
        Table(
            "backward_costs",
            "What the backward pass costs, by the forward pass that it follows",
            (
                _Back("errors of dX", lambda row: row.grad_input, number=False),
                _Back("errors of dW", lambda row: row.grad_weight, number=False),
                _Back(
                    "effective parameters",
                    lambda row: between(
                        row.effective_params, row.effective_params_interval, share_number
                    ),
                ),
            ),
            "Effective parameters: the share with which a model that has the same forward pass and "
            "an exact backward one does as well. Noise of the backward pass adds to that of the "
            "forward pass, so that it costs the less the noisier that is.",
            group=lambda row: f"forward pass {row.forward}",
        ),
    ),
)
"""The cost of quantizing the backward pass, where a table tells it from that of the forward one."""
SPLITS = Conclusion(
    "splits",
    Splits,
    _splits,
    (
        Table(
            "splits",
            "Best exponent/mantissa split, from the error of the format",
            (
                _Col("bits", lambda row: str(row.bits)),
                _Col("best", lambda row: row.layout, number=False),
                _Col("error", lambda row: number(row.error, 3)),
                _Col(
                    "effective parameters",
                    lambda row: between(
                        row.effective_params, row.effective_params_interval, share_number
                    ),
                ),
                _Col("near-ties", lambda row: ", ".join(row.near_ties[:3]) or "–", number=False),
            ),
            _split_note,
            rows=lambda found: found.splits,
        ),
    ),
    lead=_lead,
    missing="No best splits: they need quantized runs and a fit that determines c.",
)
"""The best split of any number of bits."""
UNIFIED_CONCLUSIONS = (
    SPLITS,
    replace(COST_OF_PRECISION, found=_costs),
    BACKWARD_COSTS,
    replace(HOLDS_FOR, found=_holds_for, doubts=None),
    replace(OPTIMAL_PRECISION, found=_optimal_precision),
    replace(COST_K, found=lambda b: None if b.lacks(_NEEDED) else b.assumed.cost_k),
    Conclusion("optimal_bits", Estimate, _optimal_bits, title="optimal bits at any cost"),
)
