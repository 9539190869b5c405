"""Laws of fine-tuning with low-rank adapters: what a rank repairs of a base that was rounded.

A base that is rounded only when it is tuned lacks what rounding took, and its adapter makes up for
that as for anything else that a rank cannot say: both fall by one power of the rank.  A base that
was trained with its weights rounded has nothing to be repaired, and loses the same at every rank.
An adapter of few bits is worth one of a lower rank.
"""

from __future__ import annotations

import numpy as np

from fitting.analysis.adapters import WORTH, WORTHS
from fitting.law.curves import Array, Decay
from fitting.law.terms import (
    COEFFICIENT,
    EXPONENT,
    PENALTY_COEFFICIENT,
    POSITIVE,
    Bent,
    Columns,
    Law,
    Parameter,
    Term,
)

_COLUMNS = {
    "params": POSITIVE,
    "tokens": POSITIVE,
    "rank": 1.0,
    "err_weight": 0.0,
    "err_trained": 0.0,
}
_BELOW = {"err_weight": 1.0, "err_trained": 1.0}
_UNQUANTIZED = dict.fromkeys(_BELOW, 0.0)
_POWER_OF_NOISE = Parameter("exponent", bounds=(0.0, 5.0), start=(0.3, 1.5))
_SHARE = Parameter("factor", bounds=(1e-3, 5.0), start=(0.1, 1.0), parent="kappa")
_SHARED = {
    "A": COEFFICIENT,
    "alpha": EXPONENT,
    "B": COEFFICIENT,
    "beta": EXPONENT,
    "E": COEFFICIENT,
    "F": COEFFICIENT,
    "kappa": EXPONENT,
    "C": PENALTY_COEFFICIENT,
    "mu": _POWER_OF_NOISE,
    "G": PENALTY_COEFFICIENT,
    "nu": _POWER_OF_NOISE,
}


def _fine_tuning(c: Columns) -> list[Term]:
    """L = A/N^alpha + B/D^beta + E + (F + C s^mu) / (r eff_r)^kappa + G t^nu.

    r is the rank, eff_r what one of its adapter's format is worth, one for each format.
    s = e/(1-e), e the relative squared error of a base's weights that were rounded when it was
    tuned; t the same of a base that was trained so.
    """
    ranks = {"kappa": -np.log(c["rank"])} | _worths(c)
    now, always = _noises(c)
    return [
        *_without_rank(c, always),
        Term({"F": 1, **ranks}),
        Term({"C": 1, "mu": _log(now), **ranks}, offset=_only(now)),
    ]


def _decaying(c: Columns) -> list[Term | Bent]:
    """The same with C s^mu exp(-h r^a): what is repaired decays faster than any power."""
    now, always = _noises(c)
    repaired = Term({"C": 1, "mu": _log(now)}, offset=_only(now))
    rate = Term({"h": 1, "a": np.log(c["rank"])})
    return [
        Bent(Decay(), [repaired, rate]),
        *_without_rank(c, always),
        Term({"F": 1, "kappa": -np.log(c["rank"]), **_worths(c)}),
    ]


def _without_rank(c: Columns, always: Array) -> list[Term]:
    return [
        Term({"A": 1, "alpha": -np.log(c["params"])}),
        Term({"B": 1, "beta": -np.log(c["tokens"])}),
        Term({"E": 1}),
        Term({"G": 1, "nu": _log(always)}, offset=_only(always)),
    ]


def _worths(c: Columns) -> dict[str, Array]:
    return {name: -rows for name, rows in c.items() if name.startswith(f"{WORTH}[")}


def _noises(c: Columns) -> tuple[Array, Array]:
    """Noise over signal of bases that were rounded when tuned, and of those trained so."""
    always = c["err_trained"] / (1 - c["err_trained"])
    now = np.where(always > 0, 0.0, c["err_weight"] / (1 - c["err_weight"]))
    return now, always


def _log(noise: Array) -> Array:
    logs: Array = np.log(np.where(noise > 0, noise, 1.0))
    return logs


def _only(noise: Array) -> Array:
    """The offset of a term that is exactly zero where there is no noise."""
    return np.where(noise > 0, 0.0, -np.inf)


FINE_TUNING = Law(
    "fine_tuning",
    "this project: bases of several precisions tuned with low-rank adapters",
    _fine_tuning,
    columns=_COLUMNS,
    parameters=_SHARED,
    below=_BELOW,
    unquantized=_UNQUANTIZED,
    schemes={"adapter_format": (WORTH, _SHARE)},
    conclusions=(WORTHS,),
)
DECAY = Law(
    "fine_tuning_decay",
    "a candidate of 2026: what the base lacks decays exponentially with a power of the rank",
    _decaying,
    columns=_COLUMNS,
    parameters=_SHARED
    | {
        "h": Parameter("factor", bounds=(1e-3, 10.0), start=(0.05, 1.0)),
        "a": Parameter("exponent", bounds=(0.0, 3.0), start=(0.1, 1.0)),
    },
    below=_BELOW,
    unquantized=_UNQUANTIZED,
    schemes={"adapter_format": (WORTH, _SHARE)},
    conclusions=(WORTHS,),
)
"""`compare=fitting.laws.tuning:DECAY`"""
