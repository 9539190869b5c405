"""One run: the numbers are those of a bare loop, and no interruption changes them."""

import contextlib
import json
import math
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
import safetensors.torch
import torch

from experiments.config.precision import ConfigError
from experiments.config.schema import TrainConfig
from experiments.data.batches import TokenData
from experiments.data.shards import DataError
from experiments.optim import lr_factor
from experiments.quant.block import backend
from experiments.quant.kernels import cpu
from experiments.run.identity import run_folder
from experiments.run.module import LanguageModel
from experiments.run.recorder import Progress
from experiments.store.checkpoint import CHECKPOINTS
from experiments.store.weights import WEIGHTS
from experiments.train import train
from fitting.results.record import FAILURE, RESULT, RunRecord, read_record
from tests.support.small_runs import SMALL, STEPS, Stop, rows, small

Compose = Callable[..., TrainConfig]
__all__ = ["small"]  # a fixture


def bare_loop(config: TrainConfig) -> float:
    """The same run without Lightning: its validation loss."""
    torch.set_num_threads(config.resources.cpus)
    module, data, optim = LanguageModel(config), TokenData(config.data), config.optim
    decayed = [p for p in module.parameters() if p.ndim > 1]
    others = [p for p in module.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": optim.weight_decay}, {"params": others}],
        betas=(optim.beta1, optim.beta2),
        eps=optim.eps,
        weight_decay=0.0,
    )
    for step in range(config.steps):
        for group in optimizer.param_groups:
            group["lr"] = optim.lr * lr_factor(step, config.steps, optim)
        module.model.clock.counter = step
        batch = data.batch(step, config.batch_size, config.seed)
        optimizer.zero_grad()
        module.model.loss(batch).backward()
        torch.nn.utils.clip_grad_norm_(decayed + others, optim.clip_norm)
        optimizer.step()
    module.eval()
    total = count = 0.0
    with torch.no_grad():
        for index, batch in enumerate(data.validation_batches(4_096 // 64)):
            module.model.clock.counter = 2**40 + index
            total += module.model.loss(batch, reduction="sum").double().item()
            count += batch[:, 1:].numel()
    return total / count


@pytest.mark.parametrize("recipe", ["none", "nearest", "stochastic", "hadamard", "sun"])
def test_a_run_is_the_bare_loop_bit_for_bit(small: Compose, recipe: str) -> None:
    config = small(f"recipe={recipe}")
    assert train(config).record.loss == bare_loop(config)


@pytest.mark.skipif(cpu.NAME is None, reason="the library was not built")
@pytest.mark.parametrize("granularity", ["block", "row", "tensor"])
@pytest.mark.parametrize("recipe", ["nearest", "stochastic", "hadamard", "sun"])
def test_the_backend_does_not_change_a_run(
    small: Compose, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, recipe: str, granularity: str
) -> None:
    """To the last bit; with 1,024 rows of 64, where a GEMM's sums depend on its memory layout."""
    overrides = [f"recipe={recipe}", f"precision.granularity={granularity}", "model=ladder/b"]
    overrides += ["batch_size=8", "data.seq_len=128", "tokens=16384"]
    compiled = train(small(*overrides)).record
    monkeypatch.setattr(cpu, "_library", None)
    plain = train(small(*overrides, f"runs={tmp_path / 'plain'}")).record
    assert (compiled.quantize_backend, plain.quantize_backend) == (cpu.NAME, "torch")
    assert compiled.loss == plain.loss
    assert compiled.run_id == plain.run_id


def test_the_record_says_what_was_run(small: Compose) -> None:
    config = small("precision=mxfp4", "seed=3", "study.name=mine")
    result = train(config)
    r = result.record
    assert (r.status, r.study, r.recipe, r.seed) == ("finished", "mine", "nearest", 3)
    assert (r.exponent, r.mantissa, r.bits, r.block_size, r.scale) == (2, 1, 4, 32, "e8m0")
    assert r.bits_with_scales == 4.25
    assert (r.params, r.tokens, r.operands) == (26_624, STEPS * 256, "P1 P2 P3 P4 P5 P6")
    assert r.loss is not None
    assert r.bits_per_byte == pytest.approx(r.loss / math.log(2))
    assert r.config["precision"]["mantissa"] == 1
    assert r.provenance["threads"] == 1
    assert r.quantize_backend == backend(config.precision.build())
    assert RunRecord.from_json((result.folder / RESULT).read_text()) == r
    assert not list((result.folder / "checkpoints").glob("*")), "a finished run needs none"


def test_row_and_tensor_scales_record_the_mean_number_of_sharers(small: Compose) -> None:
    """sun, per row, ladder a (h 32, f 96, 2 layers, 256 rows per step): P2 shares over in_features
    32 32 32 96, P4 over out_features 96 32 192 32, P6 over 256 rows each.
    """
    r = train(small("recipe=sun", "precision.granularity=row")).record
    sharers = [32, 32, 32, 96, 96, 32, 192, 32, 256, 256, 256, 256]
    assert math.log2(r.block_size) == pytest.approx(sum(map(math.log2, sharers)) / 12)


def test_training_lowers_the_loss(small: Compose) -> None:
    result = train(small())
    curve = [row["train/loss"] for row in rows(result.folder) if "train/loss" in row]
    assert curve[-1] < curve[0] - 1
    assert result.record.loss is not None
    assert result.record.loss < math.log(256) - 1


def test_a_finished_run_is_not_run_again(small: Compose) -> None:
    first = train(small())
    before = (first.folder / RESULT).stat().st_mtime_ns
    again = train(small())
    assert again.already_done
    assert again.record == first.record
    assert (first.folder / RESULT).stat().st_mtime_ns == before


@pytest.mark.parametrize("recipe", ["none", "stochastic", "hadamard"])
def test_a_run_stopped_and_resumed_gives_the_same_bits(
    small: Compose, tmp_path: Path, recipe: str
) -> None:
    undisturbed = train(small(f"recipe={recipe}", f"runs={tmp_path / 'undisturbed'}"))
    config = small(f"recipe={recipe}")
    for step in (8, 16):
        with pytest.raises(KeyboardInterrupt):
            train(config, Stop(step))
        assert list((run_folder(config) / "checkpoints").glob("*.ckpt"))
    resumed = train(config)
    assert resumed.record.loss == undisturbed.record.loss
    assert rows(resumed.folder) == rows(undisturbed.folder)
    assert resumed.record.attempts == 3
    assert resumed.record.run_id == undisturbed.record.run_id


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_within_the_last_step_stops_like_any(
    small: Compose, tmp_path: Path, number: int
) -> None:
    undisturbed = train(small(f"runs={tmp_path / 'undisturbed'}"))
    with pytest.raises(KeyboardInterrupt):
        train(small(), Stop(small().steps, number=number))
    resumed = train(small())
    assert resumed.record.attempts == 2
    assert resumed.record.weights_sha256 == undisturbed.record.weights_sha256


def test_signals_at_any_moment_change_no_bit(small: Compose, tmp_path: Path) -> None:
    """Eight at random moments (seeded; where they hit is the machine's choice), either signal.

    In the middle of a step a batch is drawn and not yet learned from: to save then loses it.
    """
    overrides = ["recipe=stochastic", "tokens=204800", "data.max_epochs=100"]
    undisturbed = train(small(*overrides, f"runs={tmp_path / 'undisturbed'}"))
    config, chance = small(*overrides), random.Random(5)
    late = {n: signal.signal(n, lambda *_: None) for n in (signal.SIGINT, signal.SIGTERM)}
    stopped = 0
    try:
        while not (run_folder(config) / RESULT).exists():
            kind = chance.choice(list(late)) if stopped < 8 else 0  # 0 is no signal
            timer = threading.Timer(chance.uniform(0.1, 0.4), os.kill, (os.getpid(), kind))
            timer.start()
            with contextlib.suppress(KeyboardInterrupt):
                train(config)
            timer.join()
            stopped += 1
    finally:
        for number, handler in late.items():
            signal.signal(number, handler)
    resumed = train(config)
    assert resumed.record.attempts >= 4
    assert resumed.record.weights_sha256 == undisturbed.record.weights_sha256
    assert rows(resumed.folder) == rows(undisturbed.folder)


def test_a_torn_checkpoint_is_passed_over_for_the_one_before(
    small: Compose, tmp_path: Path
) -> None:
    undisturbed = train(small(f"runs={tmp_path / 'undisturbed'}"))
    config = small("checkpoint_seconds=0")
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        train(config, Stop(16))
    newest = sorted((run_folder(config) / "checkpoints").glob("*.ckpt"))[-1]
    newest.write_bytes(newest.read_bytes()[:1000])
    assert train(config).record.loss == undisturbed.record.loss


def test_a_killed_process_resumes_to_the_same_bits(small: Compose, tmp_path: Path) -> None:
    """Kill -9 while it trains; a checkpoint after every step, 160 steps to be killed in."""
    longer = "tokens=40_960"
    undisturbed = train(small(longer, f"runs={tmp_path / 'undisturbed'}"))
    config = small(longer, "checkpoint_seconds=0")
    folder = run_folder(config)
    arguments = [*SMALL, f"data.path={tmp_path / 'text'}", f"runs={config.runs}", longer]
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "from experiments.command.main import train; train()",
            *arguments,
            "checkpoint_seconds=0",
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 1200
    while not list(folder.glob("checkpoints/*.ckpt")) and time.monotonic() < deadline:
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (folder / RESULT).exists(), "it was killed in time"
    resumed = train(config)
    assert resumed.record.attempts == 2
    assert resumed.record.loss == undisturbed.record.loss
    assert rows(resumed.folder) == rows(undisturbed.folder)


def test_divergence_is_a_result(small: Compose) -> None:
    result = train(small("optim.lr=1e20", "optim.clip_norm=1e30"))
    assert result.record.status == "diverged"
    assert result.record.reason
    assert read_record(result.folder) == result.record
    assert train(small("optim.lr=1e20", "optim.clip_norm=1e30")).already_done


def test_a_failure_leaves_its_reason_and_can_be_run_again(small: Compose) -> None:
    config = small()
    with pytest.raises(RuntimeError, match="stopped here"):
        train(config, Stop(8, RuntimeError))
    failure = RunRecord.from_json((run_folder(config) / FAILURE).read_text())
    assert (failure.status, failure.reason) == ("failed", "RuntimeError: stopped here")
    assert failure.loss is None
    assert train(config).record.status == "finished"
    assert not (run_folder(config) / FAILURE).exists()


def test_bfloat16_compute_trains(small: Compose) -> None:
    """bfloat16 keeps 8 bits: the loss agrees with float32's to a few percent, not to the bit."""
    exact, brain = train(small()).record, train(small("compute_dtype=bfloat16")).record
    assert exact.loss is not None
    assert brain.loss is not None
    assert brain.loss != exact.loss
    assert brain.loss == pytest.approx(exact.loss, rel=0.05)


def test_requests_that_cannot_run_say_so_before_any_work(small: Compose) -> None:
    with pytest.raises(DataError, match="data.max_epochs=1: "):
        train(small("tokens=10_000_000"))
    with pytest.raises(DataError, match="model.vocab_size=200: must be at least 256"):
        train(small("model.vocab_size=200"))
    with pytest.raises(DataError, match="data.path=/nowhere: no such file"):
        train(small("data.path=/nowhere"))
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="resources.device=cuda: torch sees no GPU"):
            train(small("resources.device=cuda"))
    assert not Path(small().runs).exists()


FULL_DISK = """
import os, sys
from pathlib import Path
from experiments.command.main import train as _  # plugins
from experiments.config.read import from_dict
from experiments.train import train
import json
config = from_dict(json.loads(sys.argv[1]))
folder = Path(config.runs)
filler = folder / "filler"

def fill(progress):
    # At the given moment nothing fits any more.
    if progress.phase == sys.argv[2] and progress.step >= 12:
        with open(filler, "ab", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(4096))
            except OSError:
                pass

try:
    train(config, fill)
except OSError as error:
    print("refused:", error.strerror)
left = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
print("left:", [p for p in left if p != "filler"])
filler.unlink()
print("loss:", train(config).record.loss)
left = sorted(p.name for p in folder.rglob("*") if p.is_file())
print("at the end:", left)
"""


@pytest.mark.parametrize("phase", ["validate", "train"])
def test_a_full_disk_costs_no_result_and_leaves_no_half_of_one(
    small: Compose, tmp_path: Path, phase: str
) -> None:
    """A real one, of 2 MiB: full when the record is to be written, or in the middle of training."""
    expected = train(small("recipe=none")).record.loss
    disk = tmp_path / "disk"
    disk.mkdir()
    config = asdict(small("recipe=none", f"runs={disk}", "checkpoint_seconds=0"))
    mount = f'mount -t tmpfs -o size=2m none {disk} && exec $0 -c "$1" "$2" {phase}'
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", mount, sys.executable, FULL_DISK, json.dumps(config)],
        capture_output=True,
        text=True,
        timeout=1200,
    )
    if "unshare" in done.stderr and done.returncode:
        pytest.skip(f"needs mount namespaces: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    said = dict(line.split(": ", 1) for line in done.stdout.splitlines())
    assert said["refused"] == "No space left on device"
    assert RESULT not in said["left"]
    assert FAILURE not in said["left"], "the run is not failed, only not done"
    assert "/." not in said["left"], "nothing half written"
    assert "tmp" not in said["left"]
    assert "ckpt" in said["left"], "what could be kept was kept"
    assert float(said["loss"]) == expected
    names = ["attempts.json", "config.json", "metrics.jsonl", RESULT, WEIGHTS]
    assert said["at the end"] == str(names)


def test_a_checkpoint_and_a_record_load_without_executing_anything(small: Compose) -> None:
    """What `weights_only` refuses could run code; the rest of a run's folder is text."""

    def stop(progress: Progress) -> None:
        if progress.step == 12:
            os.kill(os.getpid(), signal.SIGINT)

    config = small("recipe=stochastic")
    with pytest.raises(KeyboardInterrupt):
        train(config, stop)
    [checkpoint] = (run_folder(config) / CHECKPOINTS).glob("*.ckpt")
    assert torch.load(checkpoint, weights_only=True)["global_step"] == 12
    folder = train(config).folder
    assert safetensors.torch.load_file(folder / WEIGHTS)
    for path in folder.rglob("*"):
        if path.is_file() and path.name != WEIGHTS:
            path.read_text(encoding="utf-8")
    assert json.loads((folder / RESULT).read_text())["weights_sha256"]
