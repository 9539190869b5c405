"""The efficiency that low precision costs, and where it pays: the map of Quartet.

Castro et al. 2505.14669: a scheme keeps a share eff_N of the parameters (forward pass) or eff_D of
the tokens (backward pass) and runs faster.  Formulas take numbers, or arrays of draws for the
parameters.  Precisions are written forward:backward, FP4 standing for the low one and FP8, taken
as lossless, for the high one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import pandas as pd
from pydantic import Field

from fitting.analysis.costs import factor_words
from fitting.analysis.roots import rising_root
from fitting.law.conclusion import (
    FASTER,
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
from fitting.law.curves import Array
from fitting.words import (
    count_label,
    decimals,
    interval_of,
    number,
    share_words,
    three_digits,
)

CHOICES = ("FP8:FP8", "FP4:FP8", "FP8:FP4", "FP4:FP4")
RATIOS = (1e-2, 1e8)
"""Range of tokens per parameter in which crossovers are searched for."""


def training_speedup(forward: float, backward: float) -> float:
    """Speed-up of training, from that of each pass: the backward one is two thirds of the work.

    >>> training_speedup(2, 1), training_speedup(1, 2), training_speedup(2, 2)
    (1.2, 1.5, 2.0)
    """
    return 3 / (1 / forward + 2 / backward)


def quartet_loss(
    p: Sample, params: Values, tokens: Values, eff_n: Values = 1.0, eff_d: Values = 1.0
) -> Values:
    """Loss in nats per token: (A/(N eff_N)^alpha + B/(D eff_D)^beta)^gamma + E."""
    size = p["A"] / np.power(np.multiply(params, eff_n), p["alpha"])
    data = p["B"] / np.power(np.multiply(tokens, eff_d), p["beta"])
    return np.power(size + data, p["gamma"]) + p["E"]


def gains(choice: str, forward: float = FASTER, backward: float = FASTER) -> tuple[float, float]:
    """Factors in parameters and tokens that a choice can train at the cost of FP8:FP8.

    A forward pass that is faster by s serves a model s times as large at the same cost; what
    training gains beyond that goes into data: N s and D s_training/s.

    >>> [gains(choice) for choice in CHOICES]
    [(1.0, 1.0), (2.0, 0.6), (1.0, 1.5), (2.0, 1.0)]
    """
    first, second = (precision == "FP4" for precision in choice.split(":"))
    serving = forward if first else 1.0
    training = training_speedup(serving, backward if second else 1.0)
    return serving, training / serving


def budget_losses(
    p: Sample,
    eff_n: Values,
    eff_d: Values,
    params: Values,
    tokens: Values,
    forward: float = FASTER,
    backward: float = FASTER,
) -> dict[str, Values]:
    """Loss of each choice of precisions at the cost of an FP8:FP8 run of a given size and length.

    Args:
        p: Parameters of `quartet`.
        eff_n: Parameter efficiency of the FP4 forward pass.
        eff_d: Data efficiency of the FP4 backward pass.
        params: N of the FP8:FP8 run.
        tokens: D of the FP8:FP8 run.
        forward: Speed-up of the FP4 forward pass over FP8.
        backward: Speed-up of the FP4 backward pass over FP8.

    Returns:
        Loss in nats per token by choice, as in `CHOICES`; what a choice trains is in `gains`.
    """
    losses = {}
    for choice in CHOICES:
        larger, longer = gains(choice, forward, backward)
        first, second = choice.split(":")
        losses[choice] = quartet_loss(
            p,
            np.multiply(params, larger),
            np.multiply(tokens, longer),
            eff_n if first == "FP4" else 1.0,
            eff_d if second == "FP4" else 1.0,
        )
    return losses


def best_precision(
    p: Mapping[str, float],
    eff_n: float,
    eff_d: float,
    params: float,
    tokens: float,
    forward: float = FASTER,
    backward: float = FASTER,
) -> str:
    """The choice of lowest loss; arguments as of `budget_losses`."""
    losses = budget_losses(p, eff_n, eff_d, params, tokens, forward, backward)
    return min(losses, key=lambda choice: float(losses[choice]))


def crossover(
    p: Sample,
    eff_n: Values,
    eff_d: Values,
    params: float,
    choices: tuple[str, str] = ("FP4:FP4", "FP8:FP4"),
    forward: float = FASTER,
    backward: float = FASTER,
) -> Values:
    """Tokens per parameter from which the first choice beats the second.

    Infinite where it never does, zero where it always does (between .01 and 10^8).  Arguments as
    of `budget_losses`.
    """

    def advantage(log_ratio: Array) -> Array:
        losses = budget_losses(
            p, eff_n, eff_d, params, params * np.exp(log_ratio), forward, backward
        )
        gain: Array = losses[choices[1]] - losses[choices[0]]
        return gain

    low, high = (math.log(r) for r in RATIOS)
    ratio = np.exp(rising_root(advantage, low, high, np.shape(p["A"])))
    return float(ratio) if ratio.ndim == 0 else ratio


@dataclass(frozen=True)
class Efficiency:
    """The worth of a scheme in a pass."""

    scheme: str
    pass_: Annotated[str, Field(alias="pass")]
    """forward or backward."""
    efficiency: Number
    """The share of parameters (forward, eff_N) or of tokens (backward, eff_D)."""
    efficiency_interval: Interval
    params_factor: Number = None
    """The factor in parameters that makes up for it."""
    params_factor_interval: Interval | None = None
    tokens_factor: Number = None
    """The factor in tokens that makes up for it."""
    tokens_factor_interval: Interval | None = None


@dataclass(frozen=True)
class Speedups:
    """The speed of FP4 over that of FP8, by pass."""

    forward: float
    backward: float


@dataclass(frozen=True)
class Crossover:
    """Data from which FP4 in both passes beats FP4 in the backward pass alone, at a size."""

    params: float
    tokens_per_param: Number
    """Zero: always; None: never."""
    interval: Interval
    extrapolated: bool
    """Whether the runs trained then lie outside the table's sizes or its ratios."""


@dataclass(frozen=True)
class Choice:
    """The best choice of passes at the FP8:FP8 budget of a size and a token count."""

    params: float
    tokens: float
    best: str
    shares: dict[str, float]
    """Shares of the draws in which each choice wins."""
    extrapolated: bool


def _known(basis: Basis, prefix: str) -> list[str]:
    """The efficiencies of a pass that a fit determines."""
    return [
        n
        for n, v in basis.parameters.items()
        if n.startswith(prefix) and n not in basis.arbitrary and 0 < v < math.inf
    ]


def _efficiencies(basis: Basis) -> list[Efficiency]:
    found = []
    for prefix, role in (("eff_N", "forward"), ("eff_D", "backward")):
        for name in _known(basis, prefix):
            scheme = name[len(prefix) + 1 : -1]
            share, factor = (
                estimate([np.asarray(s[name], float) ** power for s in basis.samples]).pair
                for power in (1, -1)
            )
            more = (*factor, None, None) if role == "forward" else (None, None, *factor)
            found.append(Efficiency(scheme, role, *share, *more))
    return found


@dataclass(frozen=True)
class _Best:
    """The most efficient scheme of each pass, with the range of the table to judge them by."""

    names: tuple[str, str]
    pairs: list[tuple[Sample, Values, Values]]
    """Parameters and both efficiencies, of the fit and of its draws."""
    rows: pd.DataFrame
    speedups: Speedups
    sizes: tuple[float, float]
    """The smallest and the largest size of the table."""
    ratios: tuple[float, float]
    """The smallest and the largest number of tokens per parameter."""

    @classmethod
    def of(cls, basis: Basis) -> _Best | None:
        """The table's best schemes; None if it lacks one for a pass or leaves a parameter open."""
        known = [_known(basis, prefix) for prefix in ("eff_N", "eff_D")]
        if not all(known) or basis.arbitrary:
            return None
        n, d = (max(names, key=lambda name: basis.parameters[name]) for names in known)
        assumed = basis.assumed
        speedups = Speedups(assumed.speedup_forward, assumed.speedup_backward)
        rows = basis.rows
        sizes, ratios = (
            (float(seen.min()), float(seen.max()))
            for seen in (rows["params"], rows["tokens"] / rows["params"])
        )
        pairs = [(s, s[n], s[d]) for s in basis.samples]
        return cls((n, d), pairs, rows, speedups, sizes, ratios)

    def holds(self, choice: str, params: float, tokens: float) -> bool:
        """Whether the run that a choice trains at a budget is within the table, up to rounding."""
        larger, longer = gains(choice, self.speedups.forward, self.speedups.backward)
        trained = params * larger, tokens * longer / (params * larger)
        return all(
            low * (1 - 1e-9) <= value <= high * (1 + 1e-9)
            for value, (low, high) in zip(trained, (self.sizes, self.ratios), strict=True)
        )

    def choice(self, size: float, tokens: float) -> Choice:
        """The best choice at a budget, the shares of the draws, and whether it is extrapolated."""
        speedups = (self.speedups.forward, self.speedups.backward)
        best = best_precision(*self.pairs[0], size, tokens, *speedups)
        shares = {}
        if len(self.pairs) > 1:
            each = budget_losses(*self.pairs[1], size, tokens, *speedups)
            losses = np.stack(list(each.values()))
            wins = np.bincount(losses.argmin(axis=0), minlength=len(CHOICES)) / losses.shape[1]
            shares = {CHOICES[i]: float(wins[i]) for i in (-wins).argsort(kind="stable") if wins[i]}
        return Choice(size, tokens, best, shares, not self.holds(best, size, tokens))


def _crossovers(basis: Basis) -> list[Crossover] | None:
    if (best := _Best.of(basis)) is None:
        return None
    speedups = best.speedups.forward, best.speedups.backward
    choices = ("FP4:FP4", "FP8:FP4")
    found = []
    for size in sorted(map(float, best.rows["params"].unique())):
        ratio = estimate([crossover(*pair, size, choices, *speedups) for pair in best.pairs])
        inside = ratio.value is not None and all(
            best.holds(choice, size, size * ratio.value) for choice in choices
        )
        found.append(Crossover(size, *ratio.pair, not inside))
    return found


def _map(basis: Basis) -> list[Choice] | None:
    if (best := _Best.of(basis)) is None:
        return None
    budgets = best.rows[["params", "tokens"]].drop_duplicates().sort_values(["params", "tokens"])
    each = budgets.itertuples(index=False, name=None)
    return [best.choice(float(size), float(tokens)) for size, tokens in each]


def _scheme(place: int) -> Callable[[Basis], str | None]:
    """The most efficient scheme of the forward (0) or of the backward (1) pass."""

    def found(basis: Basis) -> str | None:
        best = _Best.of(basis)
        return None if best is None else best.names[place][6:-1]

    return found


def _speedups(basis: Basis) -> Speedups | None:
    best = _Best.of(basis)
    return None if best is None else best.speedups


# --- words ------------------------------------------------------------------------------------


def _schemes_words(derived: Derived) -> str:
    speed = derived.of(SPEEDUPS)
    if speed is None:
        return ""
    forward, backward = derived.of(FORWARD), derived.of(BACKWARD)
    return (
        f"Schemes: {forward} forward, {backward} backward; FP4 is taken to be "
        f"{number(speed.forward, 3)} × as fast as FP8 forward and "
        f"{number(speed.backward, 3)} × backward."
    )


def _ratio_words(row: Crossover) -> str:
    value = row.tokens_per_param
    return "never" if value is None else "always" if value == 0 else number(value, 3)


_EfficiencyCol = Column[Efficiency]
_CrossoverCol = Column[Crossover]
_ChoiceCol = Column[Choice]
FORWARD = Conclusion("forward", str, _scheme(0))
"""The most efficient scheme of the forward pass."""
BACKWARD = Conclusion("backward", str, _scheme(1))
"""The most efficient scheme of the backward pass."""
SPEEDUPS = Conclusion("speedups", Speedups, _speedups)
"""The speed-ups assumed for the passes."""
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
            "Efficiency: the share of parameters (forward pass, eff_N) or of tokens (backward "
            "pass, eff_D) that the scheme is worth. More parameters, or more tokens: either makes "
            "up for it.",
        ),
    ),
)
CROSSOVERS = Conclusion(
    "crossovers",
    list[Crossover],
    _crossovers,
    (
        Table(
            "crossovers",
            "Where FP4 begins to pay in both passes",
            (
                _CrossoverCol("parameters", lambda row: count_label(row.params)),
                Column("tokens per parameter", _ratio_words),
                _CrossoverCol("95 % interval", lambda row: interval_of(row.interval, three_digits)),
            ),
            lambda rows, derived: (
                "From this many tokens per parameter of the FP8:FP8 budget on, FP4 forward and "
                f"backward beats FP4 in the backward pass alone. {_schemes_words(derived)}"
            ),
        ),
    ),
)
MAP = Conclusion(
    "map",
    list[Choice],
    _map,
    (
        Table(
            "map",
            "Which forward:backward precision wins",
            (
                _ChoiceCol("parameters", lambda row: count_label(row.params)),
                _ChoiceCol("tokens per parameter", lambda row: number(row.tokens / row.params, 3)),
                _ChoiceCol("best", lambda row: row.best, number=False),
                _ChoiceCol("share of draws", lambda row: share_words(row.shares), number=False),
            ),
            lambda rows, derived: (
                "At the budget of an FP8:FP8 run of that size and length. "
                f"{_schemes_words(derived)} A faster forward pass serves a larger model at the "
                "same cost; faster training sees more tokens."
            ),
        ),
    ),
    missing="No map of which precision wins: it needs a scheme for each pass and a fit whose "
    "parameters the data determine.",
)
