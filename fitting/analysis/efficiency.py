"""The efficiency that low precision costs in each pass, after Quartet.

Castro et al. 2505.14669: a scheme keeps a share eff_N of the parameters (forward pass) or eff_D of
the tokens (backward pass).  Formulas take numbers, or arrays of draws for the parameters.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import Field

from fitting.analysis.costs import factor_words
from fitting.law.conclusion import (
    Basis,
    Column,
    Conclusion,
    Derived,
    Interval,
    Number,
    Sample,
    Table,
    Values,
    estimate,
)
from fitting.words import decimals

PASSES = {"eff_N": "forward", "eff_D": "backward", "rho": "both"}
"""Parameters of efficiencies, by the prefix of their names -> the passes that they are of."""


def quartet_loss(
    p: Sample, params: Values, tokens: Values, eff_n: Values = 1.0, eff_d: Values = 1.0
) -> Values:
    """Loss in nats per token: (A/(N eff_N)^alpha + B/(D eff_D)^beta)^gamma + E."""
    size = p["A"] / np.power(np.multiply(params, eff_n), p["alpha"])
    data = p["B"] / np.power(np.multiply(tokens, eff_d), p["beta"])
    return np.power(size + data, p["gamma"]) + p["E"]


@dataclass(frozen=True)
class Efficiency:
    """The worth of a scheme in a pass."""

    scheme: str
    pass_: Annotated[str, Field(alias="pass")]
    """One of `PASSES`."""
    efficiency: Number
    """The share of parameters (forward, eff_N; both, rho) or of tokens (backward, eff_D)."""
    efficiency_interval: Interval
    params_factor: Number = None
    """The factor in parameters that makes up for it."""
    params_factor_interval: Interval | None = None
    tokens_factor: Number = None
    """The factor in tokens that makes up for it."""
    tokens_factor_interval: Interval | None = None


def known_efficiencies(basis: Basis, prefix: str) -> list[str]:
    """The efficiencies of a pass that a fit determines."""
    return [
        n
        for n, v in basis.parameters.items()
        if n.startswith(prefix) and n not in basis.arbitrary and 0 < v < math.inf
    ]


def _efficiencies(basis: Basis) -> list[Efficiency]:
    found = []
    for prefix, role in PASSES.items():
        for name in known_efficiencies(basis, prefix):
            scheme = name[len(prefix) + 1 : -1]
            share, factor = (
                estimate([np.asarray(s[name], float) ** power for s in basis.samples]).pair
                for power in (1, -1)
            )
            more = (None, None, *factor) if role == "backward" else (*factor, None, None)
            found.append(Efficiency(scheme, role, *share, *more))
    return found


def _efficiency_note(rows: Sequence[Efficiency], derived: Derived) -> str:
    what = "of parameters (forward pass, eff_N) or of tokens (backward pass, eff_D)"
    if all(row.pass_ == "both" for row in rows):
        return (
            "Efficiency: the share of parameters, rho, that the scheme is worth in both passes. So "
            "many more parameters make up for it."
        )
    return (
        f"Efficiency: the share {what} that the scheme is worth. More parameters, or more tokens: "
        "either makes up for it."
    )


_EfficiencyCol = Column[Efficiency]
EFFICIENCIES = Conclusion(
    "efficiencies",
    list[Efficiency],
    _efficiencies,
    (
        Table(
            "efficiencies",
            "Efficiency by scheme",
            (
                _EfficiencyCol("scheme", lambda row: row.scheme, number=False),
                _EfficiencyCol("pass", lambda row: row.pass_, number=False),
                _EfficiencyCol(
                    "efficiency", lambda row: decimals(row.efficiency, row.efficiency_interval, 3)
                ),
                _EfficiencyCol(
                    "more parameters",
                    lambda row: factor_words(row.params_factor, row.params_factor_interval) or "–",
                ),
                _EfficiencyCol(
                    "more tokens",
                    lambda row: factor_words(row.tokens_factor, row.tokens_factor_interval) or "–",
                ),
            ),
            _efficiency_note,
        ),
    ),
)
"""The efficiencies of all schemes that a fit determines."""
