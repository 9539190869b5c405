"""Where low precision pays: which forward:backward precision has the least loss at equal cost.

After Quartet (2505.14669), with the efficiencies of `fitting.analysis.efficiency` and the speeds of
`fitting.law.speeds`.  FP8 is assumed to be lossless: the runs it stands for were made in BF16.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from fitting.analysis.efficiency import known_efficiencies, quartet_loss
from fitting.analysis.roots import rising_root
from fitting.law.conclusion import (
    LEVEL,
    Basis,
    Column,
    Conclusion,
    Count,
    Derived,
    Interval,
    Number,
    Sample,
    Table,
    Values,
    estimate,
)
from fitting.law.curves import Array
from fitting.law.speeds import CHOICES, Speeds
from fitting.law.terms import LOSSLESS
from fitting.words import count_label, interval_of, number, percent, share_words, three_digits

RATIOS = (1e-2, 1e8)
"""Range of tokens per parameter in which crossovers are searched for."""


def budget_losses(
    p: Sample, eff_n: Values, eff_d: Values, params: Values, tokens: Values, speeds: Speeds
) -> dict[str, Values]:
    """Loss of each choice of precisions at the cost of an FP8:FP8 run of a given size and length.

    Args:
        p: Parameters of `quartet`.
        eff_n: Parameter efficiency of the FP4 forward pass.
        eff_d: Data efficiency of the FP4 backward pass.
        params: N of the FP8:FP8 run.
        tokens: D of the FP8:FP8 run.
        speeds: How much faster the choices are than FP8:FP8.

    Returns:
        Loss in nats per token by choice, as in `CHOICES`; what a choice trains is `speeds.gains`.
    """
    losses = {}
    for choice in CHOICES:
        larger, longer = speeds.gains(choice)
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
    speeds: Speeds | None = None,
) -> str:
    """The choice of lowest loss; arguments as of `budget_losses`, speeds ideal if not given."""
    losses = budget_losses(p, eff_n, eff_d, params, tokens, speeds or Speeds.of_passes())
    return min(losses, key=lambda choice: float(losses[choice]))


def crossover(
    p: Sample,
    eff_n: Values,
    eff_d: Values,
    params: float,
    choices: tuple[str, str] = ("FP4:FP4", "FP8:FP4"),
    speeds: Speeds | None = None,
) -> Values:
    """Tokens per parameter from which the first choice beats the second.

    Infinite where it never does, zero where it always does (between .01 and 10^8).  Arguments as
    of `best_precision`.
    """
    at = speeds or Speeds.of_passes()

    def advantage(log_ratio: Array) -> Array:
        losses = budget_losses(p, eff_n, eff_d, params, params * np.exp(log_ratio), at)
        gain: Array = losses[choices[1]] - losses[choices[0]]
        return gain

    low, high = (math.log(r) for r in RATIOS)
    ratio = np.exp(rising_root(advantage, low, high, np.shape(p["A"])))
    return float(ratio) if ratio.ndim == 0 else ratio


@dataclass(frozen=True)
class Speedups:
    """The speed of FP4 over that of FP8, by pass."""

    forward: float
    backward: float


@dataclass(frozen=True)
class MeasuredSpeeds:
    """Speeds over FP8:FP8 as somebody measured them."""

    typed: str
    """A preset's name, or the numbers as they were typed."""
    source: str
    serving: float
    """The speed of an FP4 forward pass."""
    training: dict[str, float]
    """By choice."""


@dataclass(frozen=True)
class Together:
    """Whether the best schemes of both passes were ever run together, and what that did."""

    runs: Count
    """Runs that had both."""
    excess: Number = None
    """Log loss of these beyond what both efficiencies say apart; None if that cannot be told."""
    excess_interval: Interval | None = None


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
    measured: str | None = None
    """The best one with measured speeds."""
    measured_shares: dict[str, float] | None = None


@dataclass(frozen=True)
class _Best:
    """The most efficient scheme of each pass, with the range of the table to judge them by."""

    names: tuple[str, str]
    pairs: list[tuple[Sample, Values, Values]]
    """Parameters and both efficiencies, of the fit and of its draws."""
    rows: pd.DataFrame
    sizes: tuple[float, float]
    """The smallest and the largest size of the table."""
    ratios: tuple[float, float]
    """The smallest and the largest number of tokens per parameter."""

    @classmethod
    def of(cls, basis: Basis) -> _Best | None:
        """The table's best schemes; None if it lacks one for a pass or leaves a parameter open."""
        known = [known_efficiencies(basis, prefix) for prefix in ("eff_N", "eff_D")]
        if not all(known) or basis.arbitrary:
            return None
        n, d = (max(names, key=lambda name: basis.parameters[name]) for names in known)
        rows = basis.rows
        sizes, ratios = (
            (float(seen.min()), float(seen.max()))
            for seen in (rows["params"], rows["tokens"] / rows["params"])
        )
        pairs = [(s, s[n], s[d]) for s in basis.samples]
        return cls((n, d), pairs, rows, sizes, ratios)

    @property
    def schemes(self) -> tuple[str, str]:
        """Their names."""
        forward, backward = (name.partition("[")[2][:-1] for name in self.names)
        return forward, backward

    def holds(self, speeds: Speeds, choice: str, params: float, tokens: float) -> bool:
        """Whether the run that a choice trains at a budget is within the table, up to rounding."""
        larger, longer = speeds.gains(choice)
        trained = params * larger, tokens * longer / (params * larger)
        return all(
            low * (1 - 1e-9) <= value <= high * (1 + 1e-9)
            for value, (low, high) in zip(trained, (self.sizes, self.ratios), strict=True)
        )

    def choice(self, size: float, tokens: float, speeds: Speeds) -> tuple[str, dict[str, float]]:
        """The best choice at a budget, and the shares of the draws."""
        best = best_precision(*self.pairs[0], size, tokens, speeds)
        if len(self.pairs) == 1:
            return best, {}
        each = budget_losses(*self.pairs[1], size, tokens, speeds)
        losses = np.stack(list(each.values()))
        wins = np.bincount(losses.argmin(axis=0), minlength=len(CHOICES)) / losses.shape[1]
        ordered = (-wins).argsort(kind="stable")
        return best, {CHOICES[i]: float(wins[i]) for i in ordered if wins[i]}


def _crossovers(basis: Basis) -> list[Crossover] | None:
    if (best := _Best.of(basis)) is None:
        return None
    choices, speeds = ("FP4:FP4", "FP8:FP4"), basis.assumed.speeds
    found = []
    for size in sorted(map(float, best.rows["params"].unique())):
        ratio = estimate([crossover(*pair, size, choices, speeds) for pair in best.pairs])
        inside = ratio.value is not None and all(
            best.holds(speeds, choice, size, size * ratio.value) for choice in choices
        )
        found.append(Crossover(size, *ratio.pair, not inside))
    return found


def _map(basis: Basis) -> list[Choice] | None:
    if (best := _Best.of(basis)) is None:
        return None
    speeds, measured = basis.assumed.speeds, basis.assumed.measured
    budgets = best.rows[["params", "tokens"]].drop_duplicates().sort_values(["params", "tokens"])
    found = []
    for size, tokens in budgets.astype(float).itertuples(index=False, name=None):
        choice, shares = best.choice(size, tokens, speeds)
        beyond = not best.holds(speeds, choice, size, tokens)
        also = (None, None) if measured is None else best.choice(size, tokens, measured)
        found.append(Choice(size, tokens, choice, shares, beyond, *also))
    return found


def _together(basis: Basis) -> Together | None:
    """The interaction of the two passes, from the means of residuals of a crossed design.

    A fit takes up what each pass does alone; what both do together beyond that stays in the
    residuals: mean(both) - mean(forward alone) - mean(backward alone) + mean(neither).
    """
    if (best := _Best.of(basis)) is None:
        return None
    rows, p = best.rows, basis.parameters
    passes = rows["forward"].astype(str), rows["backward"].astype(str)
    own = [seen == scheme for seen, scheme in zip(passes, best.schemes, strict=True)]
    none = [seen.isin(LOSSLESS) for seen in passes]
    worth = [
        seen.map(lambda scheme, prefix=prefix: p.get(f"{prefix}[{scheme}]", 1.0)).to_numpy(float)
        for seen, prefix in zip(passes, ("eff_N", "eff_D"), strict=True)
    ]
    n, d = (rows[name].to_numpy(float) for name in ("params", "tokens"))
    residual = np.log(rows["loss"].to_numpy(float) / quartet_loss(p, n, d, *worth))
    corners = ((own[0] & own[1], 1), (own[0] & none[1], -1), (none[0] & own[1], -1))
    cells = [residual[mask] for mask, _ in (*corners, (none[0] & none[1], 1))]
    if min(map(len, cells)) < 2:
        return Together(len(cells[0]))
    excess = sum(sign * cell.mean() for sign, cell in zip((1, -1, -1, 1), cells, strict=True))
    # Welch and Satterthwaite: the cells need not scatter alike.
    squares = np.array([cell.var(ddof=1) / len(cell) for cell in cells])
    freedom = squares.sum() ** 2 / (squares**2 / [len(cell) - 1 for cell in cells]).sum()
    half = float(stats.t.ppf((1 + LEVEL) / 2, freedom) * math.sqrt(squares.sum()))
    excess = float(excess)
    return Together(len(cells[0]), excess, (excess - half, excess + half))


def _scheme(place: int) -> Callable[[Basis], str | None]:
    """The most efficient scheme of the forward (0) or of the backward (1) pass."""

    def found(basis: Basis) -> str | None:
        best = _Best.of(basis)
        return None if best is None else best.schemes[place]

    return found


def _speedups(basis: Basis) -> Speedups | None:
    if _Best.of(basis) is None:
        return None
    return Speedups(basis.assumed.speedup_forward, basis.assumed.speedup_backward)


def _measured(basis: Basis) -> MeasuredSpeeds | None:
    speeds = basis.assumed.measured
    if speeds is None or _Best.of(basis) is None:
        return None
    return MeasuredSpeeds(speeds.typed, speeds.source, speeds.serving, dict(speeds.training))


# --- words ------------------------------------------------------------------------------------


def _schemes_words(derived: Derived) -> str:
    speed = derived.of(SPEEDUPS)
    if speed is None:
        return ""
    forward, backward = derived.of(FORWARD), derived.of(BACKWARD)
    return (
        f"Schemes: {forward} forward, {backward} backward; FP4 is taken to be "
        f"{number(speed.forward, 3)} × as fast as FP8 forward and "
        f"{number(speed.backward, 3)} × backward. FP8 is assumed lossless."
    )


def _together_words(derived: Derived) -> str:
    found = derived.of(TOGETHER)
    if found is None:
        return ""
    if not found.runs:
        return " No run had both schemes together: that their efficiencies hold at once is assumed."
    runs = f"{found.runs} run{'s' if found.runs > 1 else ''}"
    if found.excess is None or found.excess_interval is None:
        return (
            f" {runs} had both schemes together, too few, or without runs of each alone, to say "
            "whether their efficiencies hold at once."
        )
    low, high = (0.0 if end is None else end for end in found.excess_interval)
    lies = (
        f"{percent(found.excess, sign=True)} of the loss (95 % interval {percent(low, sign=True)} "
        f"to {percent(high, sign=True)}) beyond what the two say apart"
    )
    if low <= 0 <= high:
        return f" {runs} had both schemes together and lie {lies}: no interaction can be told."
    return f" {runs} had both schemes together and lie {lies}: the passes interact."


def _measured_words(derived: Derived) -> str:
    speeds = derived.of(MEASURED)
    if speeds is None:
        return ""
    both = number(speeds.training["FP4:FP4"], 3)
    return (
        f" As measured: training in FP4:FP4 is {both} × as fast as in FP8:FP8 "
        f"({speeds.source}), serving {number(speeds.serving, 3)} ×."
    )


def _map_note(rows: object, derived: Derived) -> str:
    return (
        "At the budget of an FP8:FP8 run of that size and length. "
        f"{_schemes_words(derived)}{_measured_words(derived)}{_together_words(derived)} A faster "
        "forward pass serves a larger model at the same cost; faster training sees more tokens."
    )


def _ratio_words(row: Crossover) -> str:
    value = row.tokens_per_param
    return "never" if value is None else "always" if value == 0 else number(value, 3)


def _measured_shares(row: Choice) -> str | None:
    return None if row.measured_shares is None else share_words(row.measured_shares)


_CrossoverCol = Column[Crossover]
_ChoiceCol = Column[Choice]
FORWARD = Conclusion("forward", str, _scheme(0))
"""The most efficient scheme of the forward pass."""
BACKWARD = Conclusion("backward", str, _scheme(1))
"""The most efficient scheme of the backward pass."""
SPEEDUPS = Conclusion("speedups", Speedups, _speedups)
"""The speed-ups assumed for the passes."""
MEASURED = Conclusion("measured_speeds", MeasuredSpeeds, _measured)
"""The measured speeds beside them."""
TOGETHER = Conclusion("together", Together, _together)
"""Whether what the two passes cost can be set beside each other."""
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
                _ChoiceCol("best as measured", lambda row: row.measured, number=False),
                _ChoiceCol("share of draws", _measured_shares, number=False),
            ),
            _map_note,
        ),
    ),
    missing="No map of which precision wins: it needs a scheme for each pass and a fit whose "
    "parameters the data determine.",
)
PRECISION_MAP = (FORWARD, BACKWARD, SPEEDUPS, MEASURED, TOGETHER, CROSSOVERS, MAP)
"""All of them."""
