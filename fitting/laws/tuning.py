"""Laws of fine-tuning with low-rank adapters: what tokens and rank repair of a rounded base.

A base that has not seen a text lacks something, and more if it is rounded only when it is tuned.
Tuning repairs a share of both, held back by the tokens and by the rank, whichever is scarce.  A
base that was trained with its weights rounded has learned to live with that, and loses the same
whatever the tokens and the rank.  An adapter of few bits is worth one of a lower rank.
"""

from __future__ import annotations

import numpy as np

from fitting.analysis.adapters import WORTH, WORTHS
from fitting.law.curves import Array, Decay, Unrepaired
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
    "E": COEFFICIENT,
    "F": COEFFICIENT,
    "B": COEFFICIENT,
    "beta": EXPONENT,
    "R": COEFFICIENT,
    "kappa": EXPONENT,
    "C": PENALTY_COEFFICIENT,
    "mu": _POWER_OF_NOISE,
    "G": PENALTY_COEFFICIENT,
    "nu": _POWER_OF_NOISE,
}


def _fine_tuning(c: Columns) -> list[Term | Bent]:
    """L = A/N^alpha + E + (F + C s^mu) q/(1 + q) + G t^nu, q = B/D^beta + R/(r eff_r)^kappa.

    D are tokens of tuning, r is the rank, eff_r what one of its adapter's format is worth, one for
    each format.  s = e/(1-e), e the relative squared error of a base's weights that were rounded
    when it was tuned; t the same of a base that was trained so.
    """
    now, always = _noises(c)
    scarce = [Term({"B": 1, "beta": -np.log(c["tokens"])}), _of_rank("R", c)]
    return [
        Bent(Unrepaired(), [Term({"F": 1}), *scarce]),
        Bent(Unrepaired(), [Term({"C": 1, "mu": _log(now)}, offset=_only(now)), *scarce]),
        *_whatever(c, always),
    ]


def _decaying(c: Columns) -> list[Term | Bent]:
    """L = A/N^alpha + E + B/D^beta + F/(r eff_r)^kappa + C s^mu exp(-h r^a) + G t^nu.

    Tokens and rank each repair something of their own, and what rounding took decays with the rank
    alone.
    """
    now, always = _noises(c)
    repaired = Term({"C": 1, "mu": _log(now)}, offset=_only(now))
    rate = Term({"h": 1, "a": np.log(c["rank"])})
    data = Term({"B": 1, "beta": -np.log(c["tokens"])})
    return [Bent(Decay(), [repaired, rate]), *_whatever(c, always), data, _of_rank("F", c)]


def _whatever(c: Columns, always: Array) -> list[Term]:
    """What neither tokens nor rank repair."""
    return [
        Term({"A": 1, "alpha": -np.log(c["params"])}),
        Term({"E": 1}),
        Term({"G": 1, "nu": _log(always)}, offset=_only(always)),
    ]


def _of_rank(coefficient: str, c: Columns) -> Term:
    worths = {name: -rows for name, rows in c.items() if name.startswith(f"{WORTH}[")}
    return Term({coefficient: 1, "kappa": -np.log(c["rank"]), **worths})


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
    parameters={name: kind for name, kind in _SHARED.items() if name != "R"}
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
