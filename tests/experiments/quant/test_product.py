"""Products of a run add in float32, and the program around it keeps its settings."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from experiments.config.schema import TrainConfig
from experiments.quant.product import full_precision
from experiments.run.recorder import Progress
from experiments.train import train

Compose = Callable[..., TrainConfig]

SETTINGS = {
    "as torch starts": "",
    "tf32": "torch.set_float32_matmul_precision('high')",
    "bfloat16": "torch.set_float32_matmul_precision('medium')",
    "the older flag": "matmul.allow_tf32 = True",
    "the newer one": "matmul.fp32_precision = 'tf32'",
    "a CPU's": "torch.backends.mkldnn.matmul.fp32_precision = 'bf16'",
    "no reductions": "matmul.allow_bf16_reduced_precision_reduction = False",
    "no splits": "matmul.allow_fp16_reduced_precision_reduction = (False, False)",
    "16-bit sums": "matmul.allow_fp16_accumulation = True",
}
PROGRAM = """
import json, os, sys
import torch
from experiments.quant.product import full_precision
matmul = torch.backends.cuda.matmul
NAMES = "allow_bf16_reduced_precision_reduction allow_fp16_reduced_precision_reduction".split()
NAMES += [f"{name}_split_k" for name in NAMES]
def settings():
    older = []
    for ask in (torch.get_float32_matmul_precision, lambda: matmul.allow_tf32):
        try:
            older.append(ask())
        except RuntimeError:  # torch does not tell where only the newer flag is set
            older.append("mixed")
    flags = [getattr(matmul, name) for name in NAMES]
    accumulate = matmul.allow_fp16_accumulation
    on_cpu = torch.backends.mkldnn.matmul.fp32_precision
    return older, flags, accumulate, matmul.fp32_precision, on_cpu
def tried(setting):
    exec(setting)
    before = settings()
    try:
        with full_precision():
            older, (bf16, fp16, *_), accumulate, cuda, cpu = settings()
            assert older == ["highest", False], older
            assert not (bf16 or fp16 or accumulate)
            assert cuda == cpu == "ieee", (cuda, cpu)
            raise KeyError
    except KeyError:
        pass
    assert settings() == before, (settings(), before)
for name, setting in json.loads(sys.argv[1]).items():
    if not (child := os.fork()):
        tried(setting)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, name
    print(name)
"""


def test_settings_hold_inside_and_come_back() -> None:
    """Each in a process of its own: torch has no way to forget that a flag was ever set."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM, json.dumps(SETTINGS)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == list(SETTINGS)


def test_a_run_computes_so(composed: Compose, text: Path) -> None:
    import torch

    matmul = torch.backends.cuda.matmul
    seen = []

    def report(progress: Progress) -> None:
        seen.append(matmul.allow_bf16_reduced_precision_reduction)

    small = ["model=ladder/a", "data=tokens", "data.seq_len=64", "batch_size=4", "tokens=2048"]
    config = composed(*small, f"data.path={text}", "tracking=none", "tracking.log_every=1")
    assert matmul.allow_bf16_reduced_precision_reduction, "torch's default"
    record = train(config, report).record
    assert seen
    assert not any(seen)
    assert matmul.allow_bf16_reduced_precision_reduction
    assert record.operand_values == "exact"


def test_it_can_be_nested() -> None:
    with full_precision(), full_precision():
        pass
