"""One run, start to end: `train(config)` -> `RunResult`, and the record on disk.

The folder `runs/<study>/<run_id>/` holds `config.json`, `metrics.jsonl` (the loss curve, the
truth of which W&B gets a copy), `checkpoints/`, and at the end `result.json` or `failure.json`.
A run that was interrupted goes on from its newest checkpoint, to the same bits.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor

from experiments import tracking
from experiments.config import ConfigError, TrainConfig, check, run_folder, run_id
from experiments.data import StepLoader, TokenData
from experiments.module import LanguageModel, lr_factor
from experiments.record import make_record
from fitting.results import FAILURE, RESULT, RunRecord, read_record, write_atomic, write_exclusive

METRICS = "metrics.jsonl"
_VALIDATION_BATCH_TOKENS = 4_096
"""Measured: activations that stay in the cache score half as fast again as at 16,384."""
_KEPT_CHECKPOINTS = 2


@dataclass(frozen=True)
class RunResult:
    """What `train` returns."""

    record: RunRecord
    folder: Path
    already_done: bool = False
    """The result was there before; nothing was trained."""


@dataclass(frozen=True)
class Progress:
    """Where a run stands, for whoever shows it."""

    step: int
    steps: int
    tokens_per_second: float
    loss: float
    phase: str = "train"


Report = Callable[[Progress], None]


class Diverged(Exception):
    """The loss is no longer a number, or worse than knowing nothing: a result, not a crash."""


def train(config: TrainConfig, report: Report | None = None) -> RunResult:
    """Train one model to the end, or go on where an earlier attempt stopped.

    Args:
        config: The run.
        report: Called with the progress every `tracking.log_every` steps.

    Returns:
        The record, finished or diverged, and where it lies.

    Raises:
        ConfigError: The configuration cannot be run; nothing was written.
        DataError: The data cannot be had; nothing was written.
        Exception: Whatever else goes wrong, after `failure.json` was written.
    """
    check(config)
    if config.resources.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("resources.device=cuda: torch sees no GPU here; use cpu")
    data = TokenData(config.data)
    data.check(config.steps, config.batch_size, config.model.vocab_size)
    identity, folder = run_id(config), run_folder(config)
    if (folder / RESULT).exists():
        record = read_record(folder)
        assert record is not None
        return RunResult(record, folder, already_done=True)
    run = _Run(config, data, identity, folder, report)
    try:
        record = run.execute()
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0]
        record = run.record("failed", None, reason=f"{type(error).__name__}: {reason}")
        write_atomic(record.to_json(), folder / FAILURE)
        raise
    return RunResult(record, folder)


class _Run:
    """The state of one attempt at a run."""

    def __init__(
        self,
        config: TrainConfig,
        data: TokenData,
        identity: str,
        folder: Path,
        report: Report | None,
    ) -> None:
        self.config, self.data, self.identity, self.folder = config, data, identity, folder
        self.report = report
        self.started = datetime.now(UTC)
        self.recorder = Recorder(self)
        folder.mkdir(parents=True, exist_ok=True)
        self.attempt = self._count_attempt()
        write_atomic(json.dumps(asdict(config), indent=1) + "\n", folder / "config.json")

    def _count_attempt(self) -> int:
        path = self.folder / "attempts.json"
        earlier = json.loads(path.read_text())["attempts"] if path.exists() else 0
        write_atomic(json.dumps({"attempts": earlier + 1}) + "\n", path)
        return int(earlier) + 1

    def execute(self) -> RunRecord:
        """Train, validate, write the result."""
        config = self.config
        torch.set_num_threads(config.resources.cpus)
        module = LanguageModel(config)
        checkpoint = self._newest_checkpoint()
        self.recorder.mirror = tracking.start(config, self.identity, self.folder, self.attempt)
        exit_code = 1
        try:
            status, reason = "finished", ""
            try:
                self._fit(module, checkpoint)
                self._validate(module)
            except Diverged as error:
                status, reason = "diverged", str(error)
            loss = module.validation_loss if math.isfinite(module.validation_loss) else None
            if loss is not None:
                self.recorder.final(loss)
            record = self.record(status, loss, reason)
            exit_code = 0
        finally:
            tracking.finish(exit_code)
        (self.folder / FAILURE).unlink(missing_ok=True)
        if not write_exclusive(record, self.folder):
            earlier = read_record(self.folder)
            assert earlier is not None
            return earlier
        for path in self._checkpoints():
            path.unlink()
        return record

    def _fit(self, module: LanguageModel, checkpoint: Path | None) -> None:
        config = self.config
        # Lightning hands the loader its position back from the checkpoint.
        loader = StepLoader(self.data, config.seed, config.batch_size, 0, config.steps)
        self.recorder.begin(0 if checkpoint is None else _step_of(checkpoint))
        with _lightning_quiet():
            self._trainer(max_steps=config.steps).fit(
                module, loader, ckpt_path=checkpoint, weights_only=True
            )

    def _validate(self, module: LanguageModel) -> None:
        size = max(1, _VALIDATION_BATCH_TOKENS // self.config.data.seq_len)
        batches = self.data.validation_batches(size)
        with _lightning_quiet():
            self._trainer().validate(module, batches, verbose=False)
        # No knowledge at all costs log(vocabulary) nats; a model above that learned nothing.
        ceiling = math.log(self.config.model.vocab_size)
        if not module.validation_loss < ceiling:
            raise Diverged(
                f"validation loss {module.validation_loss:.4g} is not below {ceiling:.4g}, "
                "that of a uniform guess"
            )

    def _trainer(self, max_steps: int = -1) -> L.Trainer:
        config = self.config
        return L.Trainer(
            accelerator="gpu" if config.resources.device == "cuda" else "cpu",
            devices=1,
            precision="bf16-mixed" if config.compute_dtype == "bfloat16" else "32-true",
            max_steps=max_steps,
            gradient_clip_val=config.optim.clip_norm,
            callbacks=[self.recorder],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            num_sanity_val_steps=0,
        )

    def _checkpoints(self) -> list[Path]:
        """Newest first."""
        return sorted((self.folder / "checkpoints").glob("step-*.ckpt"), reverse=True)

    def _newest_checkpoint(self) -> Path | None:
        """The newest one that loads: a torn file is passed over for the one before."""
        for path in self._checkpoints():
            try:
                torch.load(path, weights_only=True, map_location="cpu", mmap=True)
                return path
            except Exception as error:
                logging.getLogger(__name__).warning("%s does not load (%s)", path, error)
        return None

    def save_checkpoint(self, trainer: L.Trainer) -> None:
        """Write the state so that a crash leaves the old checkpoint or the new one."""
        folder = self.folder / "checkpoints"
        folder.mkdir(exist_ok=True)
        target = folder / f"step-{trainer.global_step:09d}.ckpt"
        temporary = target.with_suffix(".tmp")
        trainer.save_checkpoint(temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, target)
        for path in self._checkpoints()[_KEPT_CHECKPOINTS:]:
            path.unlink()

    def record(self, status: str, loss: float | None, reason: str = "") -> RunRecord:
        """The run record as of now."""
        return make_record(
            self.config,
            self.data,
            run_id=self.identity,
            status=status,
            reason=reason,
            steps=self.recorder.step,
            loss=loss,
            # A failure may lie in the very files that this would read.
            train_loss=None if status == "failed" else self.recorder.train_loss(),
            wall_seconds=self.recorder.seconds,
            attempts=self.attempt,
            metrics=self.folder / METRICS,
            started=self.started,
        )


class Recorder(L.Callback):
    """Writes the loss curve, checkpoints in time, stops a run that diverged."""

    def __init__(self, run: _Run) -> None:
        self.run = run
        self.mirror: Any | None = None
        """The W&B run, if there is one."""
        self.step = 0
        self.seconds = 0.0
        """Training time over all attempts."""
        self._losses: list[Tensor] = []  # of the steps since the last row
        self._file = run.folder / METRICS
        self._clock = self._last_row = self._last_checkpoint = time.monotonic()

    def state_dict(self) -> dict[str, Any]:
        """Part of the checkpoint."""
        return {"seconds": self.seconds, "losses": [float(x) for x in self._losses]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Back from the checkpoint."""
        self.seconds = state_dict["seconds"]
        self._losses = [torch.tensor(x) for x in state_dict["losses"]]

    def begin(self, step: int) -> None:
        """Start at `step`: rows that a later, lost part of an attempt wrote are dropped."""
        self.step = step
        rows = [row for row in self._rows() if row["step"] <= step]
        write_atomic("".join(json.dumps(row) + "\n" for row in rows), self._file)
        self._clock = self._last_row = self._last_checkpoint = time.monotonic()

    def _rows(self) -> list[dict[str, Any]]:
        if not self._file.exists():
            return []
        rows = []
        for line in self._file.read_text().splitlines():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                break  # the torn last line of a killed run
        return rows

    def train_loss(self) -> float | None:
        """Mean over the rows of the last tenth of the run."""
        steps = self.run.config.steps
        rows = [r for r in self._rows() if "train/loss" in r]
        last = [r["train/loss"] for r in rows if r["step"] > 0.9 * steps]
        return sum(last) / len(last) if last else None

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, *_: Any
    ) -> None:
        """Once a step."""
        self.step = trainer.global_step
        self._losses.append(outputs["loss"].detach())
        now = time.monotonic()
        self.seconds += now - self._clock
        self._clock = now
        config = self.run.config
        if self.step % config.tracking.log_every == 0 or self.step == config.steps:
            self._row(trainer, now)
        if now - self._last_checkpoint >= config.checkpoint_seconds and self.step < config.steps:
            self.run.save_checkpoint(trainer)
            self._last_checkpoint = time.monotonic()

    def _row(self, trainer: L.Trainer, now: float) -> None:
        losses = torch.stack([x.float().cpu() for x in self._losses])
        loss = losses.mean().item()
        if not math.isfinite(loss):
            raise Diverged(f"training loss {loss} at step {self.step} of {self.run.config.steps}")
        config = self.run.config
        speed = len(losses) * config.batch_tokens / max(now - self._last_row, 1e-9)
        self._losses, self._last_row = [], now
        rate = config.optim.lr * lr_factor(self.step - 1, config.steps, config.optim)
        row = {
            "step": self.step,
            "tokens": self.step * config.batch_tokens,
            "train/loss": loss,
            "train/lr": rate,
            "train/tokens_per_second": round(speed, 1),
        }
        self._write(row)
        if self.run.report:
            self.run.report(Progress(self.step, config.steps, speed, loss))

    def final(self, loss: float) -> None:
        """The last row: the validation loss."""
        self._write(
            {
                "step": self.step,
                "tokens": self.step * self.run.config.batch_tokens,
                "validation/loss": loss,
            }
        )

    def _write(self, row: dict[str, Any]) -> None:
        with open(self._file, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        tracking.log(self.mirror, row)

    def on_validation_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Tell whoever watches that scoring has begun."""
        if self.run.report:
            self.run.report(Progress(self.step, self.run.config.steps, 0.0, 0.0, "validate"))

    def on_exception(
        self, trainer: L.Trainer, module: L.LightningModule, exception: BaseException
    ) -> None:
        """Ctrl-C or a polite kill: keep what was computed."""
        if isinstance(exception, (KeyboardInterrupt, SystemExit)) and trainer.training:
            self.run.save_checkpoint(trainer)


@contextlib.contextmanager
def _lightning_quiet() -> Iterator[None]:
    """Keep back Lightning's remarks on what is meant here: we score once, after training."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    with warnings.catch_warnings():
        for message in (
            "You defined a `validation_step` but have no `val_dataloader`",
            "GPU available but not used",
            r"`isinstance\(treespec, LeafSpec\)` is deprecated",  # Lightning 2.6.6 on torch 2.13
        ):
            warnings.filterwarnings("ignore", message=message)
        yield


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.stem.removeprefix("step-"))
