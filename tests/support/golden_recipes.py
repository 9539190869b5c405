"""Ten steps of every recipe, and the file of losses that `test_recipes.py` holds them to.

A change that must not change numbers leaves golden_recipes.json alone.  One that must, or a new
recipe, makes it anew, and says so in the CHANGELOG:

    .venv/bin/python -m tests.support.golden_recipes            # golden_recipes.json, float32
    .venv/bin/python -m tests.support.golden_recipes bfloat16   # golden_bfloat16.json

Each file names the machine on which its losses are exact.
"""

from __future__ import annotations

import json
import platform
import sys
from pathlib import Path

import torch

from experiments.config.schema import TrainConfig
from experiments.configure import configure
from experiments.paths import conf_dir
from experiments.run.module import LanguageModel

GOLDEN = {
    "float32": Path(__file__).with_name("golden_recipes.json"),
    "bfloat16": Path(__file__).with_name("golden_bfloat16.json"),
}
RECIPES = sorted(path.stem for path in (conf_dir() / "recipe").glob("*.yaml"))
STEPS = 10


def machine() -> dict[str, str]:
    """What decides in which order a GEMM adds, and so the last bits of every loss."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    model = next((line.split(": ")[1] for line in lines if line.startswith("model name")), "")
    return {
        "cpu": model or platform.processor(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
    }


def configuration(recipe: str, dtype: str = "float32") -> TrainConfig:
    """The recipe's file on the smallest model; E2M1 with blocks of 32 where it leaves that open."""
    small = ("model=ladder/a", "data.seq_len=64", "batch_size=4", f"tokens={STEPS * 256}")
    return configure(f"recipe={recipe}", f"compute_dtype={dtype}", *small)


def losses(recipe: str, steps: int = STEPS, dtype: str = "float32") -> list[float]:
    """Training losses of the first steps, in nats: AdamW on tokens that follow each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    config = configuration(recipe, dtype)
    module = LanguageModel(config)
    optimizer = torch.optim.AdamW(module.parameters(), lr=4e-3)
    generator = torch.Generator().manual_seed(1)
    found = []
    for step in range(steps):
        start = torch.randint(256, (4, 1), generator=generator)
        stride = torch.randint(1, 4, (4, 65), generator=generator)
        module.model.clock.counter = step
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == "bfloat16"):
            loss = module.model.loss((start + stride.cumsum(1)) % 256)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    torch.set_num_threads(threads)
    return found


if __name__ == "__main__":
    [dtype] = sys.argv[1:] or ["float32"]
    table = {recipe: losses(recipe, dtype=dtype) for recipe in RECIPES}
    GOLDEN[dtype].write_text(json.dumps({"machine": machine(), "losses": table}, indent=1) + "\n")
