"""How much slower a Llama of Hugging Face trains than the built-in model of equal shape.

One thread; whole steps of both on the same batch, in turns, by CPU time, as `bench_train.py` does
for recipes.  The Llama has three products where the built-in model has one fused (queries, keys and
values) and two for its other one (gate and up).

    python benchmarks/bench_models.py
    python benchmarks/bench_models.py --recipes none quartet_v4 --hidden 256 --rounds 31
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable

import torch

from experiments.config.schema import TrainConfig
from experiments.configure import configure
from experiments.models.build import build, shape_of
from experiments.optim import make_optimizer
from experiments.run.process import use_cpus

BATCH, LENGTH, LAYERS = 8, 256, 4
GOAL = 1.10


def configuration(kind: str, recipe: str, hidden: int) -> TrainConfig:
    """The built-in model or the Llama, of the same matrices."""
    words = [f"recipe={recipe}", "precision=mxfp4", f"batch_size={BATCH}"]
    words += [f"data.seq_len={LENGTH}"]
    if kind == "built-in":
        sizes = {"hidden": hidden, "ffn": 3 * hidden, "heads": hidden // 64, "layers": LAYERS}
        return configure(*words, *(f"model.{key}={value}" for key, value in sizes.items()))
    values = {
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": 3 * hidden,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": hidden // 64,
        "num_key_value_heads": hidden // 64,
        "vocab_size": 256,
        "tie_word_embeddings": "true",
    }
    keys = (f"model.config.{key}={value}" for key, value in values.items())
    return configure("model=hf", *words, *keys)


def stepper(config: TrainConfig, batch: torch.Tensor) -> Callable[[], None]:
    """One optimizer step of a model of its own."""
    model = build(config.model, config.recipe, config.precision.build(), config.seed)
    optimizer = make_optimizer(model, config.optim, config.seed)

    def step() -> None:
        torch.autograd.backward(model.loss(batch))
        optimizer.step()
        optimizer.zero_grad()
        model.clock.counter += 1

    return step


def main() -> None:
    """Print a line a recipe and width."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    recipes = ["none", "nearest", "nvidia_nvfp4", "quartet_v4"]
    parser.add_argument("--recipes", nargs="+", default=recipes, metavar="NAME")
    parser.add_argument("--hidden", nargs="+", type=int, default=[64, 128, 256])
    parser.add_argument("--rounds", type=int, default=15, help="steps of each (default: 15)")
    given = parser.parse_args()
    use_cpus(1)
    print(f"{os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f}")
    batch = torch.randint(256, (BATCH, LENGTH + 1), generator=torch.Generator().manual_seed(0))
    for hidden in given.hidden:
        for recipe in given.recipes:
            configs = {k: configuration(k, recipe, hidden) for k in ("built-in", "llama")}
            counts = {shape_of(config.model).parameters.block for config in configs.values()}
            assert len(counts) == 1, "the shapes differ"
            steps = {kind: stepper(config, batch) for kind, config in configs.items()}
            seconds: dict[str, list[float]] = {kind: [] for kind in steps}
            for turn in range(given.rounds + 1):  # the first one warms up
                for kind, step in steps.items():
                    start = time.process_time()
                    step()
                    if turn:
                        seconds[kind].append(time.process_time() - start)
            ours, theirs = (statistics.median(each) for each in seconds.values())
            ratio = theirs / ours
            said = "met" if ratio <= GOAL else "MISSED"
            print(
                f"{recipe:<16} {hidden:>6} {1e3 * ours:8.1f} ms {1e3 * theirs:8.1f} ms "
                f"{ratio:6.2f}  {said}, {GOAL:.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
