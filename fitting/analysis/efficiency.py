"""What low precision costs in efficiency, and where it pays: the map of Quartet.

Castro et al. 2505.14669: a scheme keeps a share eff_N of the parameters (forward pass) or eff_D of
the tokens (backward pass) and runs faster.  Formulas take numbers, or arrays of draws for the
parameters.  Precisions are written forward:backward, FP4 standing for the low one and FP8, taken
as lossless, for the high one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from fitting.analysis.roots import rising_root
from fitting.analysis.samples import samples, with_interval
from fitting.fit.result import Fit
from fitting.laws.curves import Array
from fitting.laws.law import FitError
from fitting.results.table import select_rows

CHOICES = ("FP8:FP8", "FP4:FP8", "FP8:FP4", "FP4:FP4")
FASTER = 2.0
"""What a pass in FP4 gains over FP8 on hardware that has it: the paper's assumption."""
RATIOS = (1e-2, 1e8)
"""Tokens per parameter between which crossovers are looked for."""


def training_speedup(forward: float, backward: float) -> float:
    """Speed-up of training from those of the passes: the backward one is two thirds of the work.

    >>> training_speedup(2, 1), training_speedup(1, 2), training_speedup(2, 2)
    (1.2, 1.5, 2.0)
    """
    return 3 / (1 / forward + 2 / backward)


def quartet_loss(
    p: Mapping[str, Any], params: Any, tokens: Any, eff_n: Any = 1.0, eff_d: Any = 1.0
) -> Any:
    """Loss in nats per token: (A/(N eff_N)^alpha + B/(D eff_D)^beta)^gamma + E."""
    size = p["A"] / np.power(np.multiply(params, eff_n), p["alpha"])
    data = p["B"] / np.power(np.multiply(tokens, eff_d), p["beta"])
    return np.power(size + data, p["gamma"]) + p["E"]


def gains(choice: str, forward: float = FASTER, backward: float = FASTER) -> tuple[float, float]:
    """How many times the parameters and the tokens a choice trains at what FP8:FP8 would cost.

    A forward pass that is faster by s serves a model s times as large as cheaply; what training
    gains beyond that goes into data: N s and D s_training/s.

    >>> [gains(choice) for choice in CHOICES]
    [(1.0, 1.0), (2.0, 0.6), (1.0, 1.5), (2.0, 1.0)]
    """
    first, second = (precision == "FP4" for precision in choice.split(":"))
    serving = forward if first else 1.0
    training = training_speedup(serving, backward if second else 1.0)
    return serving, training / serving


def budget_losses(
    p: Mapping[str, Any],
    eff_n: Any,
    eff_d: Any,
    params: Any,
    tokens: Any,
    forward: float = FASTER,
    backward: float = FASTER,
) -> dict[str, Any]:
    """Loss of each choice of precisions at what an FP8:FP8 run of a given size and length costs.

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
    p: Mapping[str, Any],
    eff_n: Any,
    eff_d: Any,
    params: float,
    choices: tuple[str, str] = ("FP4:FP4", "FP8:FP4"),
    forward: float = FASTER,
    backward: float = FASTER,
) -> Any:
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


def quartet_table(
    fit: Fit,
    draws: pd.DataFrame | None,
    table: pd.DataFrame,
    forward: float = FASTER,
    backward: float = FASTER,
) -> dict[str, Any]:
    """Where which precision pays, for the best schemes of a table.

    Args:
        fit: Of the law `quartet`.
        draws: From `fitting.fit.bootstrap.bootstrap`; None leaves out intervals and shares.
        table: The fitted table.
        forward: Speed-up of the FP4 forward pass over FP8.
        backward: Speed-up of the FP4 backward pass over FP8.

    Returns:
        `efficiencies`: by `scheme` and `pass`, its `efficiency` and how many times the parameters
        (`params_factor`) or the tokens (`tokens_factor`) make up for it, each with `.._interval`
        (95 %).  Where the table has a scheme for either pass, also `forward` and `backward`, the
        most efficient ones; `speedups`; `crossovers` by `params`: tokens per parameter from which
        FP4 in both passes beats FP4 in the backward one (0: always, None: never), with
        `interval`; and `map`, by `params` and `tokens`, the `best` choice at that FP8:FP8 budget
        and the `shares` of draws in which each wins.  `extrapolated` where what would then be
        trained lies outside the table's sizes or its ratios of tokens to parameters.

    Raises:
        FitError: A speed-up is not positive.
    """
    for name, speedup in (("forward", forward), ("backward", backward)):
        if not (speedup > 0 and math.isfinite(speedup)):
            raise FitError(f"speedup.{name}={speedup:g}: must be a positive number")
    values = samples(fit, draws)
    schemes: dict[str, list[str]] = {"eff_N": [], "eff_D": []}
    entries: list[dict[str, Any]] = []
    for prefix, role, factor in (
        ("eff_N", "forward", "params_factor"),
        ("eff_D", "backward", "tokens_factor"),
    ):
        known = [n for n, v in fit.parameters.items() if n not in fit.flat and 0 < v < math.inf]
        for name in (n for n in known if n.startswith(prefix)):
            schemes[prefix].append(name)
            entry: dict[str, Any] = {"scheme": name[len(prefix) + 1 : -1], "pass": role}
            for key, power in (("efficiency", 1), (factor, -1)):
                each = [np.asarray(s[name], float) ** power for s in values]
                entry[key], entry[f"{key}_interval"] = with_interval(each)
            entries.append(entry)
    result: dict[str, Any] = {"efficiencies": entries}
    if not all(schemes.values()) or set(fit.flat):
        return result
    best = {
        prefix: max(names, key=lambda n: fit.parameters[n]) for prefix, names in schemes.items()
    }
    rows = select_rows(table)[0]
    seen = _Seen(rows, forward, backward)
    pairs = [(s, s[best["eff_N"]], s[best["eff_D"]]) for s in values]
    crossovers = []
    for size in sorted(map(float, rows["params"].unique())):
        value, interval = with_interval(
            [crossover(*pair, size, forward=forward, backward=backward) for pair in pairs]
        )
        inside = value is not None and all(
            seen.holds(choice, size, size * value) for choice in ("FP4:FP4", "FP8:FP4")
        )
        crossovers.append(
            {
                "params": size,
                "tokens_per_param": value,
                "interval": interval,
                "extrapolated": not inside,
            }
        )
    budgets = rows[["params", "tokens"]].drop_duplicates().sort_values(["params", "tokens"])
    result |= {role: best[p][6:-1] for p, role in (("eff_N", "forward"), ("eff_D", "backward"))}
    result["speedups"] = {"forward": forward, "backward": backward}
    result["crossovers"] = crossovers
    result["map"] = [
        _map_entry(pairs, float(size), float(tokens), seen)
        for size, tokens in budgets.itertuples(index=False, name=None)
    ]
    return result


class _Seen:
    """The sizes, and the ratios of tokens to parameters, that a table holds."""

    def __init__(self, rows: pd.DataFrame, forward: float, backward: float) -> None:
        ratio = rows["tokens"] / rows["params"]
        self.sizes = float(rows["params"].min()), float(rows["params"].max())
        self.ratios = float(ratio.min()), float(ratio.max())
        self.forward, self.backward = forward, backward

    def holds(self, choice: str, params: float, tokens: float) -> bool:
        """Whether what a choice trains at a budget is within, up to rounding."""
        larger, longer = gains(choice, self.forward, self.backward)
        size, ratio = params * larger, tokens * longer / (params * larger)
        return all(
            low * (1 - 1e-9) <= value <= high * (1 + 1e-9)
            for value, (low, high) in ((size, self.sizes), (ratio, self.ratios))
        )


def _map_entry(
    pairs: Sequence[tuple[Mapping[str, Any], Any, Any]], size: float, tokens: float, seen: _Seen
) -> dict[str, Any]:
    """One budget of the map: the best choice, its shares of the draws, and how far it reaches."""
    speedups = (seen.forward, seen.backward)
    best = best_precision(*pairs[0], size, tokens, *speedups)
    shares = {}
    if len(pairs) > 1:
        losses = np.stack(list(budget_losses(*pairs[1], size, tokens, *speedups).values()))
        wins = np.bincount(losses.argmin(axis=0), minlength=len(CHOICES)) / losses.shape[1]
        shares = {CHOICES[i]: float(wins[i]) for i in (-wins).argsort(kind="stable") if wins[i]}
    return {
        **{"params": size, "tokens": tokens, "best": best, "shares": shares},
        "extrapolated": not seen.holds(best, size, tokens),
    }
