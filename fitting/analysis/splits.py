"""The best split of any number of bits between exponent and mantissa: the one with the least error.

What was fitted to a few formats says what all others cost, since the law reads only their errors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from experiments.quant.formats import MAX_EXPONENT_BITS, MAX_MANTISSA_BITS
from experiments.quant.normal_error import error_of
from fitting.analysis.costs import share_number
from fitting.analysis.layouts import layout_name
from fitting.analysis.signal import (
    BACKWARD_ERRORS,
    FORWARD_ERRORS,
    OPERANDS,
    quantized_forward,
    signal_share,
)
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
from fitting.words import between, number

BITS = range(2, 12)
"""Total bits among which the best are searched for."""
NEAR_TIE = 0.95
"""A split with at least this share of the best one's effective parameters is a near-tie."""


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


@dataclass(frozen=True)
class Setting:
    """How the quantized runs of a table are quantized, apart from the element's bits."""

    operands: list[str]
    blocks: str
    errors: tuple[float, float]
    """The smallest and the largest error in the table."""

    @classmethod
    def of(cls, rows: pd.DataFrame) -> Setting | None:
        """The commonest setting of the quantized rows; None if there are none."""
        seen = quantized_forward(rows)
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
    setting = Setting.of(basis.rows)
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
