"""A run that wants more memory than it was given fails by name, wherever memory runs out."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest

from experiments.config.schema import TrainConfig
from experiments.run.identity import run_folder
from experiments.run.process import held_to
from fitting.results.record import read_record

Compose = Callable[..., TrainConfig]
BIG = ["model=ladder/a", "data=tokens", "data.seq_len=64", "batch_size=512", "tokens=131072"]
"""Takes between 0.40 and 0.45 GiB, a good half of it in the first step."""
WORKER = """
import json, sys
from experiments.sweep.work import execute
for config in json.load(sys.stdin):
    print(json.dumps(execute(config, "token")))
"""


def test_want_of_memory_is_named(composed: Compose, text: Path) -> None:
    """In a process that has imported little: what fails may be an import, on the way out."""
    given = [0.2, 0.05, 0.0001]
    big = (*BIG, f"data.path={text}", "data.max_epochs=100", "tracking=none")
    configs = [
        composed(*big, f"resources.memory={size}", f"seed={seed}")
        for seed, size in enumerate(given)
    ]
    worker = subprocess.run(
        [sys.executable, "-c", WORKER],
        input=json.dumps([asdict(config) for config in configs]),
        capture_output=True,
        text=True,
        check=True,
    )
    ends = [json.loads(line) for line in worker.stdout.splitlines()]
    for size, config, (how, why) in zip(given, configs, ends, strict=True):
        record = read_record(run_folder(config))
        assert record is not None
        assert how == record.status == "failed"
        assert why == record.reason
        assert why.startswith(f"OutOfMemory: it takes more than resources.memory={size:g} GiB")


def test_memory_is_there_again_once_an_error_has_left() -> None:
    size = 1 << 30
    with pytest.raises(MemoryError), held_to(0.01):
        bytearray(size)
    assert len(bytearray(size)) == size
