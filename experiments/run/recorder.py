"""Work done once per step: the loss curve, timed checkpoints, the end of a run that diverged.

A run on several processes has a recorder in each; the first writes, and decides for all.
"""

from __future__ import annotations

import json
import logging
import math
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from torch import Tensor

from experiments.config.schema import TrainConfig
from experiments.data.batches import StepLoader
from experiments.measure.diagnostics import summary
from experiments.mirror import tracking
from experiments.optim import lr_factor
from experiments.run.identity import run_id
from experiments.run.module import LanguageModel, measured_steps
from experiments.run.record import Scored
from experiments.store.checkpoint import CheckpointStore
from experiments.store.curve import METRICS
from experiments.store.lease import Lease
from fitting.entry.errors import Failure
from fitting.files.atomic import write_atomic

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Progress:
    """The progress of a run, for display."""

    step: int
    steps: int
    tokens_per_second: float
    loss: float
    phase: str = "train"


Report = Callable[[Progress], None]


class Diverged(Exception):
    """A loss that is not a number, or worse than knowing nothing: a result, not a crash."""


class TimedOut(Failure):
    """A run that took longer than it was given."""


class Stopped(Exception):
    """A stop on request, at a point from which the run can go on to the same bits."""


class Recorder(L.Callback):
    """The recorder of one attempt.

    Args:
        config: The run.
        folder: The run's.
        lease: The right to write there; None for a process that is not the run's first.
        report: Called at each row of the loss curve.
    """

    def __init__(
        self, config: TrainConfig, folder: Path, lease: Lease | None, report: Report | None
    ) -> None:
        self.config, self.folder, self.lease, self.report = config, folder, lease, report
        self.stop = lease.stop if lease else threading.Event()
        """Set to end the attempt after the step at work, with a checkpoint."""
        self.checkpoints = CheckpointStore(folder, run_id(config))
        self.begun = False
        """Whether training has begun, and so a checkpoint, if there was one, was restored."""
        self.loader: StepLoader | None = None
        """The source of batches."""
        self.mirror: Any | None = None
        """The W&B run, if there is one."""
        self.step = 0
        self.seconds = 0.0
        """Training time over all attempts."""
        self._losses: list[Tensor] = []  # of the steps since the last row
        self._parts: list[Tensor] = []  # of the micro-batches of the step at work
        self._rows: list[dict[str, Any]] = []
        self._file = folder / METRICS
        self._measured = measured_steps(config)
        self._clock = self._last_row = self._last_checkpoint = time.monotonic()

    def state_dict(self) -> dict[str, Any]:
        """The state, as part of the checkpoint."""
        losses = [float(x) for x in self._losses]
        return {"step": self.step, "seconds": self.seconds, "losses": losses, "rows": self._rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore from the checkpoint; rows that a lost part of an attempt wrote later are gone."""
        self.step = state_dict["step"]
        self.seconds, self._rows = state_dict["seconds"], state_dict["rows"]
        self._losses, self._parts = [torch.tensor(x) for x in state_dict["losses"]], []

    def forget(self) -> None:
        """The parts of a checkpoint that could not be restored."""
        self.load_state_dict({"step": 0, "seconds": 0.0, "losses": [], "rows": []})

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Begin at the checkpoint's step, or at none.

        Raises:
            ValueError: A part of it stands elsewhere: Lightning leaves at the start what a
                checkpoint does not name.
        """
        assert self.loader is not None
        schedules = [held.scheduler.last_epoch for held in trainer.lr_scheduler_configs]
        places = {self.step, trainer.global_step, self.loader.next_step, *schedules}
        if len(places) > 1:
            raise ValueError(f"its parts are of the steps {sorted(places)}")
        self.begun = True
        self.write_curve()
        self._clock = self._last_row = self._last_checkpoint = time.monotonic()

    def on_train_batch_start(
        self, trainer: L.Trainer, module: L.LightningModule, batch: Any, batch_index: int
    ) -> None:
        """Measure before some steps, in the run's first process, on its share of the batch."""
        if self.lease is None or trainer.global_step not in self._measured or self._parts:
            return
        assert isinstance(module, LanguageModel)
        with trainer.precision_plugin.train_step_context():
            measured = module.measure(batch)
        step = trainer.global_step
        self._write({"step": step, "tokens": step * self.config.batch_tokens, **measured})

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, *_: Any
    ) -> None:
        """Once per step, after its last micro-batch."""
        self._parts.append(outputs["loss"].detach())
        if len(self._parts) < self.config.accumulate:
            return
        self.step = trainer.global_step
        # Lightning has divided each by their number, as it does for the gradient.
        self._losses.append(sum(self._parts[1:], self._parts[0]))
        self._parts = []
        now = time.monotonic()
        self.seconds += now - self._clock
        self._clock = now
        config = self.config
        last = self.step == config.steps
        row = last or self.step % config.tracking.log_every == 0
        if row:
            self._row(trainer, now)
        if last or (trainer.world_size > 1 and not row):
            return  # several processes meet at the rows only
        given = config.timeout_seconds
        timed_out, checkpoint, stopped = _first_decides(
            trainer,
            bool(given and self.seconds > given),
            now - self._last_checkpoint >= config.checkpoint_seconds,
            self.stop.is_set(),
        )
        # Only here, between two steps: in the middle of one a batch is drawn and not yet learned
        # from, or half of the weights are updated.
        if timed_out or checkpoint or stopped:
            self.save_checkpoint(trainer)
            self._last_checkpoint = time.monotonic()
        if stopped:
            raise Stopped
        if timed_out:
            raise TimedOut(
                f"timeout_seconds={given:g}: {self.step} of {config.steps} steps are done; "
                "a larger one with retry_failed=true goes on from there"
            )

    def _row(self, trainer: L.Trainer, now: float) -> None:
        mean = torch.stack([x.float() for x in self._losses]).mean()
        if trainer.world_size > 1:
            dist.all_reduce(mean)
            mean /= trainer.world_size
        loss = mean.item()
        if not math.isfinite(loss):
            raise Diverged(f"training loss {loss} at step {self.step} of {self.config.steps}")
        config = self.config
        elapsed = max(now - self._last_row, 1e-9)
        speed = len(self._losses) * config.batch_tokens / elapsed
        self._losses, self._last_row = [], now
        rate = config.optim.lr * lr_factor(self.step - 1, config.steps, config.optim)
        row = {
            "step": self.step,
            "tokens": self.step * config.batch_tokens,
            "train/loss": loss,
            "train/lr": rate,
            "train/tokens_per_second": round(speed, 1),
        }
        assert isinstance(trainer.lightning_module, LanguageModel)
        for name, word_length in trainer.lightning_module.word_lengths.items():
            row[f"word_length/{name}"] = word_length.bits
        self._write(row)
        if self.report:
            self.report(Progress(self.step, config.steps, speed, loss))

    def final(
        self,
        loss: float,
        metrics: Mapping[str, float],
        ptq: Mapping[str, Scored],
        merged_loss: float | None,
    ) -> None:
        """Write the last row: what the validation part gave, and with quantized weights by format.

        Args:
            loss: The validation loss.
            metrics: The task's other measures.
            ptq: Both by format of the weights.
            merged_loss: The validation loss with the adapter merged; None if there is none.
        """
        quantized = {f"ptq/{name}": s.loss for name, s in ptq.items() if s.loss is not None}
        for name, scored in ptq.items():
            quantized |= {f"ptq/{name}/{key}": value for key, value in scored.metrics.items()}
        if merged_loss is not None:
            quantized["merged/loss"] = merged_loss
        self._write(
            {
                "step": self.step,
                "tokens": self.step * self.config.batch_tokens,
                "validation/loss": loss,
            }
            | {f"validation/{name}": value for name, value in metrics.items()}
            | quantized
        )

    def diagnostics(self) -> dict[str, Any]:
        """A summary of the measurements, for the run's record."""
        return summary(self._rows)

    def train_loss(self) -> float | None:
        """Mean over the rows of the last tenth of the run."""
        rows = [r for r in self._rows if "train/loss" in r]
        last = [r["train/loss"] for r in rows if r["step"] > 0.9 * self.config.steps]
        return sum(last) / len(last) if last else None

    def _write(self, row: dict[str, Any]) -> None:
        self._rows.append(row)
        if self.lease is None:
            return
        self.lease.check()
        try:
            with open(self._file, "a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        except OSError as error:  # the end writes the whole curve again
            _LOG.warning("a row of %s was not written (%s)", self._file, error)
        tracking.log(self.mirror, row)

    def write_curve(self) -> None:
        """Write the loss curve, as this attempt knows it, to the file."""
        if self.lease is not None:
            self.lease.check()
            write_atomic("".join(json.dumps(row) + "\n" for row in self._rows), self._file)

    def save_checkpoint(self, trainer: L.Trainer) -> None:
        """Write the state; if the disk refuses, the checkpoint is lost, not the run."""
        if self.lease is not None:
            self.lease.check()
        trainer.save_checkpoint(self.checkpoints.path(trainer.global_step))
        if (error := self.checkpoints.error) is not None:
            _LOG.warning("no checkpoint at step %d (%s); the run goes on", self.step, error)

    def on_validation_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Report that scoring has begun."""
        if self.report:
            self.report(Progress(self.step, self.config.steps, 0.0, 0.0, "validate"))

    def on_validation_batch_end(self, *_: Any) -> None:
        """Stop scoring at once if asked to; it is not resumed."""
        if self.stop.is_set():
            raise Stopped


def _first_decides(trainer: L.Trainer, *decisions: bool) -> tuple[bool, ...]:
    """The decision of the run's first process, in all of its processes."""
    if trainer.world_size == 1:
        return decisions
    flags = torch.tensor(decisions, dtype=torch.int32, device=trainer.strategy.root_device)
    dist.broadcast(flags, src=0)
    return tuple(bool(flag) for flag in flags.tolist())
