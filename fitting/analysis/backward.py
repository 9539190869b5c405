"""The cost of quantizing the backward pass, which depends on the forward pass that it follows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from fitting.analysis.costs import share_number
from fitting.analysis.signal import BACKWARD_ERRORS, FORWARD_ERRORS, format_of, signal_share
from fitting.law.conclusion import Basis, Column, Conclusion, Interval, Number, Table, estimate
from fitting.words import between


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
        label = format_of(these) if any(forward.values()) else "none"
        first, second = (
            _errors_in_words(backward.get(c, 0.0) for c in columns)
            for columns in BACKWARD_ERRORS.values()
        )
        found.append(BackwardCost(label, first, second, *estimate(ratios).pair))
    return sorted(found, key=lambda row: (row.forward != "none", row.forward))


def _errors_in_words(errors: Iterable[float]) -> str:
    some = [f"{error:.3g}" for error in errors if error]
    return " and ".join(dict.fromkeys(some)) or "–"


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
