"""How much of the unquantized training speed each recipe keeps, and where the rest goes.

One thread; whole steps (forward, backward, optimizer) of the recipes and of `none` on the same
batch, taking turns, so that a machine that is slow for a while is slow for all; the median step of
each.  The profile is of the time beyond `none`'s, by what the layers do with their operands;
`--diagnostics` adds what one of their measurements costs.

    make bench-train
    python benchmarks/bench_train.py --recipes sun quartet_v4 --hidden 128 --profile
    python benchmarks/bench_train.py --compute-dtype bfloat16 --hidden 64 --rounds 5
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile

from experiments.config.schema import COMPUTE_DTYPES, TrainConfig
from experiments.configure import configure
from experiments.models.transformer import Transformer
from experiments.optim import make_optimizer
from experiments.run.module import LanguageModel
from experiments.run.process import use_cpus

TARGETS = {"nearest": 0.75, "sun": 0.75, "nvidia_nvfp4": 0.75, "quartet_v4": 0.6}
"""Least share of the unquantized speed; 0.6 where gradients are rotated and rounded anew."""
BASELINE = "none"
BATCH, LENGTH = 8, 256
SHAPES = {64: 1, 128: 2, 256: 4}
"""Heads by width, of 64 features each."""


def configuration(recipe: str, hidden: int, layers: int, dtype: str) -> TrainConfig:
    """As `lowbit-train recipe=...` makes it; every recipe with its own formats, or else MXFP4."""
    overrides = [
        f"recipe={recipe}",
        "precision=mxfp4",
        f"model.hidden={hidden}",
        f"batch_size={BATCH}",
        f"compute_dtype={dtype}",
    ]
    overrides += [f"model.ffn={hidden * 3}", f"model.heads={SHAPES[hidden]}"]
    overrides += [f"model.layers={layers}", f"data.seq_len={LENGTH}"]
    return configure(*overrides)


def stepper(config: TrainConfig, batch: torch.Tensor) -> Callable[[], None]:
    """One optimizer step of a model of its own."""
    model = Transformer(config.model, config.recipe, config.precision.build(), config.seed)
    model.initialize(config.seed)
    optimizer = make_optimizer(model, config.optim, config.seed)

    def step() -> None:
        with torch.autocast(
            "cpu", dtype=torch.bfloat16, enabled=config.compute_dtype == "bfloat16"
        ):
            loss = model.loss(batch)
        torch.autograd.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        model.clock.counter += 1

    return step


def compare(
    recipes: list[str], hidden: int, layers: int, rounds: int, dtype: str
) -> dict[str, float]:
    """Median seconds per step, by recipe, `none` included."""
    batch = torch.randint(256, (BATCH, LENGTH + 1), generator=torch.Generator().manual_seed(0))
    steps = {
        name: stepper(configuration(name, hidden, layers, dtype), batch)
        for name in [BASELINE, *recipes]
    }
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(rounds + 1):  # the first one warms up
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def diagnose(recipe: str, hidden: int, layers: int, rounds: int, dtype: str) -> None:
    """Print what one measurement of the diagnostics costs, in passes forward and backward."""
    batch = torch.randint(256, (BATCH, LENGTH + 1), generator=torch.Generator().manual_seed(0))
    module = LanguageModel(configuration(recipe, hidden, layers, dtype))
    passes: list[float] = []
    measurements: list[float] = []
    for turn in range(rounds + 1):  # the first one warms up
        start = time.perf_counter()
        torch.autograd.backward(module.model.loss(batch))
        middle = time.perf_counter()
        module.measure(batch)
        end = time.perf_counter()
        if turn:
            passes.append(middle - start)
            measurements.append(end - middle)
    ratio = statistics.median(measurements) / statistics.median(passes)
    print(f"{recipe:<16} {hidden:>6} a measurement takes as long as {ratio:.1f} steps")


def explain(recipe: str, hidden: int, layers: int, dtype: str) -> None:
    """Print the operations that take most of a step's own time."""
    batch = torch.randint(256, (BATCH, LENGTH + 1), generator=torch.Generator().manual_seed(0))
    step = stepper(configuration(recipe, hidden, layers, dtype), batch)
    step()
    with profile(activities=[ProfilerActivity.CPU]) as measured:
        for _ in range(3):
            step()
    events = sorted(measured.key_averages(), key=lambda e: -e.self_cpu_time_total)
    whole = sum(event.self_cpu_time_total for event in events)
    print(f"\n{recipe}, hidden {hidden}: share of a step, own time")
    for event in events[:12]:
        print(f"  {event.self_cpu_time_total / whole:6.1%}  {event.key[:60]}")


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--recipes", nargs="+", default=[*TARGETS], metavar="NAME")
    parser.add_argument("--hidden", nargs="+", type=int, choices=SHAPES, default=[*SHAPES])
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=15, help="steps of each (default: 15)")
    parser.add_argument("--compute-dtype", default="float32", choices=COMPUTE_DTYPES)
    parser.add_argument("--diagnostics", action="store_true", help="and what a measurement costs")
    parser.add_argument("--profile", action="store_true", help="and where a step's time goes")
    return parser.parse_args()


def main() -> None:
    """Print a line a recipe and width."""
    given = arguments()
    use_cpus(1)
    load = os.getloadavg()[0]
    print(f"{os.cpu_count()} cores, load average {load:.1f}; {BATCH} x {LENGTH} tokens per step")
    print(f"{'recipe':<16} {'hidden':>6} {'tokens/s':>9} {'of none':>8}")
    for hidden in given.hidden:
        seconds = compare(given.recipes, hidden, given.layers, given.rounds, given.compute_dtype)
        for name, median in seconds.items():
            share = seconds[BASELINE] / median
            line = f"{name:<16} {hidden:>6} {BATCH * LENGTH / median:>9,.0f} {share:>8.2f}"
            if name in TARGETS and given.compute_dtype == "float32":
                line += f"  {'met' if share >= TARGETS[name] else 'MISSED'}, {TARGETS[name]:.2f}"
            print(line, flush=True)
        if given.diagnostics:
            for name in given.recipes:
                diagnose(name, hidden, given.layers, given.rounds, given.compute_dtype)
    if given.profile:
        for name in given.recipes:
            explain(name, given.hidden[-1], given.layers, given.compute_dtype)


if __name__ == "__main__":
    main()
