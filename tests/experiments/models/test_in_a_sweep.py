"""A model of Hugging Face from sweep to page, its driver and workers killed on the way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from experiments.store.lease import at_work
from fitting.results.record import RESULT, read_record

LLAMA = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 256,
    "max_position_embeddings": 64,
}
SWEEP = [
    *("-m", "model=hf", "model.source=tiny_llama.json", "model.config.hidden_size=16,32"),
    *("recipe=none,nvidia_nvfp4,quartet_v4", "recipe.keep_last=0", "tokens=16384,65536"),
    *("data=tokens", "data.path=text", "data.seq_len=64", "data.max_epochs=9"),
    *("optim.lr=1e-2", "tracking=none", "tracking.log_every=10", "checkpoint_seconds=0.2"),
    *("lease_seconds=5", "study.name=s", "keep=last"),
]
LORA = [
    *("-m", "model=hf", "model.source=tiny_llama.json", "adapter=lora", "recipe=nearest"),
    *("precision=nvfp4", "init_from=calm/s/none-*hidden-size32*65.5k*", "tokens=65536"),
    *("seed=0,1", "data=tokens", "data.path=text", "data.seq_len=64", "data.max_epochs=9"),
    *("model.config.hidden_size=32", "optim.lr=1e-2", "tracking=none", "tracking.log_every=10"),
    *("checkpoint_seconds=0.2", "lease_seconds=5", "study.name=s"),
]


def command(name: str, *words: str) -> list[str]:
    places = {"train": "experiments.command.main", "fit": "fitting.command.main"}
    place = places.get(name, "fitting.command.main")
    return [sys.executable, "-c", f"from {place} import {name}; {name}()", *words]


def driver(folder: Path, *words: str) -> subprocess.Popen[bytes]:
    with open(folder / "driver.txt", "ab") as out:
        return subprocess.Popen(command("train", *words), stdout=out, stderr=out, cwd=folder)


def summary(folder: Path) -> dict[str, tuple[Any, ...]]:
    found = {}
    for path in sorted(folder.glob(f"s/*/{RESULT}")):
        record = read_record(path.parent)
        assert record is not None
        found[record.run_id] = (record.loss, record.merged_loss, record.weights_sha256)
    return found


def kill(folder: Path, runs: str, words: list[str], results: int) -> None:
    """Start a sweep, and kill its driver and workers once it has some results and is at work."""
    process = driver(folder, *words, f"runs={runs}")
    deadline = time.monotonic() + 900
    while True:
        assert process.poll() is None, (folder / "driver.txt").read_text()[-2000:]
        assert time.monotonic() < deadline
        holders = [at_work(run) for run in (folder / runs / "s").glob("*-*")]
        workers = [who.pid for who in holders if who is not None]
        checkpoints = list((folder / runs).glob("s/*/checkpoints/*.ckpt"))
        if len(summary(folder / runs)) >= results and workers and checkpoints:
            break
        time.sleep(0.01)
    process.kill()
    process.wait()
    for pid in workers:
        if Path(f"/proc/{pid}").exists():
            os.kill(pid, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.ray
def test_a_sweep_over_a_model_of_hugging_face_that_is_killed_gives_the_same_bits_and_a_page(
    tmp_path: Path, text: Path
) -> None:
    pytest.importorskip("transformers", reason="needs the extra hf")
    pytest.importorskip("peft", reason="needs the extra hf")
    (tmp_path / "tiny_llama.json").write_text(json.dumps(LLAMA))
    for words, runs, count in ((SWEEP, "calm", 12), (LORA, "calm_lora", 2)):
        process = driver(tmp_path, *words, f"runs={runs}")
        assert process.wait(timeout=1200) == 0, (tmp_path / "driver.txt").read_text()[-2000:]
        assert len(summary(tmp_path / runs)) == count
    for words, runs, calm in ((SWEEP, "runs", "calm"), (LORA, "runs_lora", "calm_lora")):
        for results in (0, 1):
            kill(tmp_path, runs, words, results)
        assert driver(tmp_path, *words, f"runs={runs}").wait(timeout=1200) == 0
        assert summary(tmp_path / runs) == summary(tmp_path / calm)
    for name, more in (("fit", ["law=unified", "bootstrap=20"]), ("report", [])):
        done = subprocess.run(
            command(name, "study=s", *more),
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, done.stderr
    assert "tiny_llama" in (tmp_path / "reports" / "s" / "index.html").read_text()
