"""What low precision costs in efficiency, and where it pays: Quartet's map, Kumar's optimum.

Quartet (Castro et al. 2505.14669): a scheme keeps a share eff_N of the parameters (forward pass)
or eff_D of the tokens (backward pass) and runs faster.  Kumar et al. 2411.04330: P bits keep a
share of the parameters; post-training quantization costs more the more data the model saw.

Formulas take numbers, or arrays of draws for the parameters.  Precisions are written
forward:backward, FP4 standing for the low one and FP8, taken as lossless, for the high one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from fitting.curves import Array
from fitting.fit import Fit, select_rows
from fitting.law import FitError
from fitting.laws import OPERANDS
from fitting.uncertainty import samples, with_interval

CHOICES = ("FP8:FP8", "FP4:FP8", "FP8:FP4", "FP4:FP4")
FASTER = 2.0
"""What a pass in FP4 gains over FP8 on hardware that has it: the paper's assumption."""
RATIOS = (1e-2, 1e8)
"""Tokens per parameter between which crossovers are looked for."""
BITS_RANGE = (1.0, 64.0)
"""Bits between which the optimum is looked for."""


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

    A forward pass that is faster by s serves a model s times as large as cheaply; what training
    gains beyond that goes into data: loss at N s and D s_training/s.

    Args:
        p: Parameters of `quartet`.
        eff_n: Parameter efficiency of the FP4 forward pass.
        eff_d: Data efficiency of the FP4 backward pass.
        params: N of the FP8:FP8 run.
        tokens: D of the FP8:FP8 run.
        forward: Speed-up of the FP4 forward pass over FP8.
        backward: Speed-up of the FP4 backward pass over FP8.

    Returns:
        Loss in nats per token by choice, as in `CHOICES`.
    """
    losses = {}
    for choice in CHOICES:
        first, second = (precision == "FP4" for precision in choice.split(":"))
        serving = forward if first else 1.0
        training = training_speedup(serving, backward if second else 1.0)
        losses[choice] = quartet_loss(
            p,
            np.multiply(params, serving),
            np.multiply(tokens, training / serving),
            eff_n if first else 1.0,
            eff_d if second else 1.0,
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
    return _rising_root(advantage, low, high, np.exp, p)


def kumar_capacity(p: Mapping[str, Any], bits: Mapping[str, float]) -> Any:
    """N_eff/N = prod_x (1 - exp(n_x - P_x/gamma_x)) over the operands in `bits`, of `precision`.

    Raises:
        FitError: It is not positive: the law is not defined for so few bits.

    >>> from fitting.laws import KUMAR_2024
    >>> round(kumar_capacity(KUMAR_2024, {"w": 8, "a": 8, "kv": 8}), 5)
    0.82776
    """
    share: Any = 1.0
    for x, count in bits.items():
        kept = -np.expm1(np.subtract(p[f"n_{x}"], np.divide(count, p[f"gamma_{x}"])))
        if np.any(kept <= 0):
            raise FitError(
                f"bits_{x}={count:g}: N_eff would not be positive, the law holds above "
                f"gamma_{x} n_{x} = {np.max(np.multiply(p[f'gamma_{x}'], p[f'n_{x}'])):.3g} bits"
            )
        share = share * kept
    return float(share) if np.ndim(share) == 0 else share


def kumar_optimal_bits(p: Mapping[str, Any]) -> Any:
    """Bits of weights, activations and cache alike of least loss at any cost C = k P N D.

    Where N, P and D are all chosen the optimum does not depend on the cost: sum over operands of
    (P/gamma_x) y_x/(1 - y_x) = 1 with y_x = exp(n_x - P/gamma_x).

    >>> from fitting.laws import KUMAR_2024
    >>> round(kumar_optimal_bits(KUMAR_2024), 4)
    7.0021
    """

    def condition(bits: Array) -> Array:
        total = np.zeros(np.shape(bits))
        for x in OPERANDS:
            scaled = bits / p[f"gamma_{x}"]
            exponent = scaled - p[f"n_{x}"]
            # Below the law's domain bits are worth anything.
            worth = np.where(exponent > 0, scaled / np.expm1(np.maximum(exponent, 1e-300)), np.inf)
            total = total + worth
        return 1 - total

    return _rising_root(condition, *BITS_RANGE, lambda bits: bits, p)


def ptq_critical_tokens(p: Mapping[str, Any], params: float, bits_post: float) -> Any:
    """Training tokens beyond which more data raise the loss after quantizing the weights.

    D_crit = (beta B N^gamma_N exp(P/gamma_post)/(gamma_D C_T))^(1/(gamma_D + beta)) (Kumar et al.,
    Eq. 13), of `ptq`.
    """
    log = np.log(np.divide(np.multiply(p["beta"], p["B"]), np.multiply(p["gamma_D"], p["C_T"])))
    log = log + np.multiply(p["gamma_N"], math.log(params)) + np.divide(bits_post, p["gamma_post"])
    tokens = np.exp(log / np.add(p["gamma_D"], p["beta"]))
    return float(tokens) if np.ndim(tokens) == 0 else tokens


def capacity_after(p: Mapping[str, Any], params: Any, penalty: Any) -> Any:
    """N_eff/N of a run that a penalty (nats per token) has made worse, in a law with A/N^alpha.

    (A/(A + penalty N^alpha))^(1/alpha), the effective parameter multiplier of Chen et al.
    2505.14302.
    """
    share = 1 + np.multiply(penalty, np.power(params, p["alpha"])) / p["A"]
    return share ** (-1 / np.asarray(p["alpha"], float))


def compressed_capacity(p: Mapping[str, Any], gmse: float) -> Any:
    """N_eff/N = L tanh(F log_{1/4} GMSE)^C of `compressed` (Panferov et al. 2506.01863).

    Capacities of several compressions at once multiply.
    """
    return p["L"] * np.tanh(np.multiply(p["F"], -math.log(gmse) / math.log(4))) ** p["C"]


def quartet_table(fit: Fit, draws: pd.DataFrame | None, table: pd.DataFrame) -> dict[str, Any]:
    """Where which precision pays, for the best schemes of a table.

    Args:
        fit: Of the law `quartet`.
        draws: From `fitting.uncertainty.bootstrap`; None leaves out intervals and shares.
        table: The fitted table.

    Returns:
        `cost_of_precision`: by scheme, how many times the parameters (`params_factor`) or the
        tokens (`tokens_factor`) make up for it, with intervals.  Where the table has a scheme for
        either pass, also `forward` and `backward`, the most efficient ones; `crossovers` by
        `params`: tokens per parameter from which FP4 in both passes beats FP4 in the backward one
        (0: always, None: never), with `interval`; and `map`, by `params` and `tokens`, the `best`
        choice at that FP8:FP8 budget and the `shares` of draws in which each wins.  `extrapolated`
        where a size or a ratio of tokens to parameters, at the budget or as then trained, lies
        outside those of the table.
    """
    schemes: dict[str, list[str]] = {
        prefix: [n for n in fit.parameters if n.startswith(prefix)] for prefix in ("eff_N", "eff_D")
    }
    costs: list[dict[str, Any]] = []
    values = samples(fit, draws)
    for prefix, factor in (("eff_N", "params_factor"), ("eff_D", "tokens_factor")):
        for name in schemes[prefix]:
            value, interval = with_interval([1 / np.asarray(s[name]) for s in values])
            costs.append({"scheme": name, factor: value, f"{factor}_interval": interval})
    result: dict[str, Any] = {"cost_of_precision": costs}
    if not all(schemes.values()) or set(fit.flat):
        return result
    best = {
        prefix: max(names, key=lambda n: fit.parameters[n]) for prefix, names in schemes.items()
    }
    rows = select_rows(table)[0]
    ratio = rows["tokens"] / rows["params"]
    sizes = sorted(map(float, rows["params"].unique()))
    pairs = [(s, s[best["eff_N"]], s[best["eff_D"]]) for s in values]
    crossovers = []
    for size in sizes:
        value, interval = with_interval([crossover(*pair, size) for pair in pairs])
        # FP4:FP4 trains twice the size on as many tokens: half the ratio.
        outside = value is None or not ratio.min() <= value / FASTER <= value <= ratio.max()
        outside = outside or size * FASTER > sizes[-1]
        crossovers.append(
            {
                "params": size,
                "tokens_per_param": value,
                "interval": interval,
                "extrapolated": bool(outside),
            }
        )
    budgets = rows[["params", "tokens"]].drop_duplicates().sort_values(["params", "tokens"])
    result["forward"], result["backward"] = best["eff_N"], best["eff_D"]
    result["crossovers"] = crossovers
    result["map"] = [
        _map_entry(pairs, float(size), float(tokens), sizes[-1], float(ratio.min()))
        for size, tokens in budgets.itertuples(index=False, name=None)
    ]
    return result


def kumar_table(fit: Fit, draws: pd.DataFrame | None, table: pd.DataFrame) -> dict[str, Any]:
    """Optimal bits with their interval, and whether they are among the table's.

    Args:
        fit: Of the law `precision`.
        draws: From `fitting.uncertainty.bootstrap`; None leaves out the interval.
        table: The fitted table.

    Returns:
        `optimal_bits` as a dict of `value`, `interval` (95 %) and `extrapolated`; empty where the
        table does not hold a parameter of the capacity.
    """
    if {f"{kind}_{x}" for kind in ("gamma", "n") for x in OPERANDS} & set(fit.flat):
        return {}
    value, interval = with_interval([kumar_optimal_bits(s) for s in samples(fit, draws)])
    rows = select_rows(table)[0]
    inside = value is not None and all(
        rows[f"bits_{x}"].min() <= value <= rows[f"bits_{x}"].max() for x in OPERANDS
    )
    return {"optimal_bits": {"value": value, "interval": interval, "extrapolated": not inside}}


def _map_entry(
    pairs: Sequence[tuple[Mapping[str, Any], Any, Any]],
    size: float,
    tokens: float,
    largest: float,
    lowest_ratio: float,
) -> dict[str, Any]:
    """One budget of the map: the best choice, its shares of the draws, and how far it reaches."""
    best = best_precision(*pairs[0], size, tokens)
    shares = {}
    if len(pairs) > 1:
        losses = np.stack(list(budget_losses(*pairs[1], size, tokens).values()))
        wins = np.bincount(losses.argmin(axis=0), minlength=len(CHOICES)) / losses.shape[1]
        shares = {CHOICES[i]: float(wins[i]) for i in (-wins).argsort(kind="stable") if wins[i]}
    larger = FASTER if best.startswith("FP4") else 1.0
    outside = size * larger > largest or tokens / size / larger < lowest_ratio
    return {
        **{"params": size, "tokens": tokens, "best": best, "shares": shares},
        "extrapolated": bool(outside),
    }


def _rising_root(
    function: Callable[[Array], Array],
    low: float,
    high: float,
    back: Callable[[Array], Array],
    p: Mapping[str, Any],
) -> Any:
    """Where a function turns positive, for each draw: zero if always, infinite if never."""
    shape = np.shape(next(iter(p.values())))
    ends = np.full(shape, low), np.full(shape, high)
    at_low, at_high = (function(end) > 0 for end in ends)
    below, above = ends
    for _ in range(80):  # halves the bracket to below rounding
        middle = (below + above) / 2
        positive = function(middle) > 0
        below, above = np.where(positive, below, middle), np.where(positive, middle, above)
    root = np.where(at_low, 0.0, np.where(at_high, back(above), np.inf))
    return float(root) if root.ndim == 0 else root
