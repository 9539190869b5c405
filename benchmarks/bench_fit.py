"""How fast fitting is: CPU seconds of a fit and 4,000 bootstrap draws, on one thread.

For Chinchilla's form against the field's standard procedure (Besiroglu et al. 2404.10102, after
Hoffmann et al.), re-typed here: scipy's L-BFGS-B on the same Huber objective, from each of 4,500
points of a grid, then from the optimum for each of 4,000 resampled tables.  It takes minutes, so
every round times a random sample of its searches and multiplies; `--full` runs them all, once.
Both take turns, round by round, and the best round counts.  Our objective must never be the higher
one, neither of the fit nor of any draw, or this ends with an error.

    python benchmarks/bench_fit.py [--full]
"""

from __future__ import annotations

import os

os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")

import itertools
import sys
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.optimize import minimize

from experiments.quant.normal_error import error_of
from fitting.fit.bootstrap import bootstrap, resample
from fitting.fit.evidence import evidence
from fitting.fit.result import Fit
from fitting.fit.search import fit
from fitting.laws.published import BESIROGLU_2024, QUARTET_2025, SUN_2025
from fitting.laws.synthetic import make_table, sun_cells
from fitting.results.format_errors import ERRORS
from fitting.results.table import load

Array = npt.NDArray[np.float64]

DRAWS = 4_000
ROUNDS = 5
SAMPLE = 40
"""One search in this many is run of the standard procedure, unless all are."""
SLACK = 1e-6
"""Share by which our draws' objectives may be higher: they stop at 1e-7 of the objective."""
QUARTET = Path(__file__).parents[2] / "shared" / "data" / "quartet.csv"


def chinchilla_table() -> pd.DataFrame:
    """240 runs of the sizes and compute of Hoffmann et al., 0.5 % noise."""
    rng = np.random.default_rng(0)
    params = np.exp(rng.uniform(np.log(5e7), np.log(1.6e10), 240))
    flops = np.exp(rng.uniform(np.log(6e18), np.log(3e21), 240))
    design = pd.DataFrame({"params": params, "tokens": flops / (6 * params)})
    return make_table("chinchilla", BESIROGLU_2024, design, 5e-3, 0)


def floating_point_table() -> pd.DataFrame:
    """366 runs of 1,600 cells, 0.5 % noise."""
    return make_table("floating_point", SUN_2025, sun_cells(366, seed=0), 5e-3, 0)


def unified_table() -> pd.DataFrame:
    """366 runs of ten formats, the forward pass alone, inputs not always, 0.5 % noise."""
    rng = np.random.default_rng(0)
    names = ("none", "E4M3", "E3M2", "E2M3", "E2M1", "E1M2", "E1M1", "mxfp4", "nvfp4", "int4")
    errors = [error_of(name) for name in names]
    design = pd.DataFrame(dict.fromkeys(ERRORS, 0.0), index=range(366))
    design["params"] = rng.choice(np.geomspace(2e7, 2e9, 8), 366)
    design["tokens"] = rng.choice(np.geomspace(5e9, 2e11, 8), 366)
    design["err_weight"] = rng.choice(errors, 366)
    design["err_input"] = design["err_weight"].where(rng.random(366) < 0.7, 0.0)
    truth = {"A": 1e4, "alpha": 0.5, "B": 2e4, "beta": 0.45, "gamma": 0.6, "E": 1.6, "c": 25.0}
    return make_table("unified", truth, design, 5e-3, 0)


def many_schemes_table() -> pd.DataFrame:
    """600 runs of Quartet's law with 15 forward and 14 backward schemes: 35 parameters."""
    rng = np.random.default_rng(0)
    schemes = {"forward": [f"F{i}" for i in range(15)], "backward": [f"B{i}" for i in range(14)]}
    design = pd.DataFrame(
        {
            "params": rng.choice(np.geomspace(3e7, 5e8, 6), 600),
            "tokens": rng.choice(np.geomspace(1e9, 5e10, 6), 600),
        }
    )
    truth = {n: v for n, v in QUARTET_2025.items() if not n.startswith("eff")}
    for column, prefix in (("forward", "eff_N"), ("backward", "eff_D")):
        design[column] = rng.choice([*schemes[column], "BF16"], 600)
        truth |= {f"{prefix}[{n}]": float(rng.uniform(0.3, 0.9)) for n in schemes[column]}
    return make_table("quartet", truth, design, 3e-3, 0)


class Standard:
    """The standard procedure on one table: parameters log A, log B, log E, alpha, beta."""

    def __init__(self, table: pd.DataFrame, delta: float = 1e-3, gradient: bool = False) -> None:
        self.log_n, self.log_d, self.log_loss = (
            np.log(table[c].to_numpy(dtype=float)) for c in ("params", "tokens", "loss")
        )
        self.delta = delta
        self.gradient = gradient
        """Whether scipy is given the gradient, or differences it as the published code lets it."""
        axes = (np.arange(0, 30, 5), np.arange(0, 30, 5), np.arange(-1, 1.5, 0.5))
        exponents = np.arange(0, 2.5, 0.5)
        self.grid = np.array(list(itertools.product(*axes, exponents, exponents)), dtype=float)

    def objective(self, x: Array, weights: Array) -> Any:
        """Weighted sum of Huber's function of log residuals, and its gradient if asked for."""
        terms = np.stack(
            [
                x[0] - x[3] * self.log_n,
                x[1] - x[4] * self.log_d,
                np.broadcast_to(x[2], self.log_n.shape),
            ]
        )
        top = terms.max(axis=0)
        share = np.exp(terms - top)
        total = share.sum(axis=0)
        residual = self.log_loss - top - np.log(total)
        clipped = np.clip(residual, -self.delta, self.delta)
        value = float(weights @ (clipped * (residual - 0.5 * clipped)))
        if not self.gradient:
            return value
        share /= total
        pull = -weights * clipped * share
        slope = pull.sum(axis=1)
        return value, np.append(slope, [-pull[0] @ self.log_n, -pull[1] @ self.log_d])

    def searches(self, starts: Iterable[Array], weights: Iterable[Array]) -> list[float]:
        """The objective that each search ends at, by L-BFGS-B with scipy's own settings."""
        return [
            minimize(  # type: ignore[call-overload]  # the objective is of two kinds
                self.objective, s, args=(w,), jac=self.gradient, method="L-BFGS-B"
            ).fun
            for s, w in zip(starts, weights, strict=True)
        ]

    def value(self, parameters: dict[str, float], weights: Array) -> float:
        """The objective of a law's parameters."""
        logs = [np.log(parameters[name]) for name in ("A", "B", "E")]
        found = self.objective(np.array([*logs, parameters["alpha"], parameters["beta"]]), weights)
        return float(found[0] if self.gradient else found)


def cpu_seconds(call: Callable[..., Any], *arguments: Any) -> tuple[float, Any]:
    """CPU seconds of a call and what it returns."""
    start = time.process_time()
    result = call(*arguments)
    return time.process_time() - start, result


def ours(table: pd.DataFrame, law: str, draws: int) -> tuple[Fit, pd.DataFrame]:
    """A fit and its bootstrap."""
    fitted = fit(table, law)
    return fitted, bootstrap(table, fitted, draws, seed=0)


def race(full: bool) -> None:
    """Chinchilla's form: ours and the standard procedure, with and without its gradient."""
    table = chinchilla_table()
    weights = resample(np.random.default_rng(0), DRAWS, len(table))
    every = np.ones(len(table))
    standards = {
        "L-BFGS-B, differenced gradient (published)": Standard(table),
        "L-BFGS-B, exact gradient": Standard(table, gradient=True),
    }
    step = 1 if full else SAMPLE
    rng = np.random.default_rng(1)
    best = dict.fromkeys(["ours", *standards], np.inf)
    lowest, excess = np.inf, -np.inf
    for _ in range(1 if full else ROUNDS):
        seconds, (fitted, draws) = cpu_seconds(ours, table, "chinchilla", DRAWS)
        best["ours"] = min(best["ours"], seconds)
        logs = [np.log(fitted.parameters[name]) for name in ("A", "B", "E")]
        optimum = np.array([*logs, fitted.parameters["alpha"], fitted.parameters["beta"]])
        for name, standard in standards.items():
            grid = rng.permutation(len(standard.grid))[::step]
            chosen = rng.permutation(DRAWS)[::step]
            alike, same = [every] * len(grid), [optimum] * len(chosen)
            first, values = cpu_seconds(standard.searches, standard.grid[grid], alike)
            second, redrawn = cpu_seconds(standard.searches, same, weights[chosen])
            best[name] = min(best[name], step * (first + second))
            lowest = min(lowest, *values)
            mine = [
                standard.value(draws.iloc[i][list(fitted.parameters)].to_dict(), weights[i])
                for i in chosen
            ]
            excess = max(excess, float(np.max(np.array(mine) / redrawn - 1)))
    share = "all" if full else f"one in {SAMPLE}"
    print(f"chinchilla, {len(table)} rows: fit and {DRAWS} draws, CPU seconds")
    for name, seconds in best.items():
        ratio = "" if name == "ours" else f"{seconds / best['ours']:7.0f}x  ({share} of 8,500 run)"
        print(f"  {name:<45}{seconds:9.3f}{ratio}")
    higher = fitted.objective.value / lowest - 1
    print(f"  objective: ours {fitted.objective.value:.10g}, theirs {lowest:.10g}")
    print(f"  draws: ours above theirs by at most {excess:.1e} of the objective")
    if higher > 1e-9 or excess > SLACK:
        sys.exit("bench_fit: our objective is the higher one")


def without_bootstrap(rows: int) -> None:
    """What `lowbit-fit bootstrap=0` computes for 24 sizes (104 rows: 8): the fit, its evidence."""
    formats = [(8, 23, 1.0)]
    formats += [(e, m, b) for e, m in ((2, 1), (3, 1), (4, 3), (1, 2)) for b in (32.0, 128.0)]
    sizes = np.geomspace(2e7, 2e9, 24)[:: 3 if rows < 1_000 else 1]
    grid = [(n, d, *f) for n in sizes for d in np.geomspace(5e9, 2e11, 8) for f in formats]
    names = ["params", "tokens", "exponent", "mantissa", "block_size"]
    cells = pd.DataFrame(grid, columns=names).sample(rows, replace=True, random_state=0)
    table = make_table("floating_point", SUN_2025, cells, 5e-3, 0)
    first, fitted = cpu_seconds(fit, table, "floating_point")
    second, _ = cpu_seconds(evidence, table, fitted)
    print(f"floating_point, {rows} rows: fit {first:.2f} s, evidence {second:.2f} s")


def main() -> None:
    """Print CPU seconds of each law's fit."""
    race("--full" in sys.argv[1:])
    for rows in (104, 2_702, 5_000):
        without_bootstrap(rows)
    for law, table in (("floating_point", floating_point_table()), ("unified", unified_table())):
        seconds, fitted = min(
            (cpu_seconds(ours, table, law, DRAWS) for _ in range(3)),
            key=lambda timed: timed[0],
        )
        agreeing = f"{fitted[0].starts.agreeing} of {fitted[0].starts.tried} starts agree"
        print(f"{law}, {len(table)} rows: fit and {DRAWS} draws, {seconds:.3f} s, {agreeing}")
    table = many_schemes_table()
    first, (many, _) = cpu_seconds(ours, table, "quartet", 1_000)
    second, _ = cpu_seconds(evidence, table, many)
    print(
        f"quartet, {len(table)} rows, {len(many.parameters)} parameters: fit and 1,000 draws "
        f"{first:.2f} s, evidence {second:.2f} s"
    )
    if QUARTET.exists():
        rows = load(QUARTET, {"params": "N", "tokens": "D"})
        rows = rows.query("in_notebook == 1 and forward == 'BF16' and backward == 'BF16'")
        seconds = min(cpu_seconds(partial(fit, delta=1e-4), rows, "quartet")[0] for _ in range(5))
        print(f"quartet, {len(rows)} rows: fit, {seconds:.3f} s")
    else:
        print(f"quartet: not timed, {QUARTET} is not here")


if __name__ == "__main__":
    main()
