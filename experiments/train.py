"""One run, start to end: `train(config)` -> `RunResult`, and the record on disk.

The folder `runs/<study>/<run_id>/` holds `config.json`, `metrics.jsonl` (the loss curve, the
truth of which W&B gets a copy), `checkpoints/`, a lease while somebody is at work, and at the end
`weights.safetensors`, if they are kept, and `result.json`; or `failure.json`.  A run that was
interrupted goes on from its newest checkpoint, to the same bits; a checkpoint holds everything that
takes, the loss curve so far included.

The first process of a run on several tells the others, before it does anything or leaves, whether
there is something to do: they wait for that word, and would wait for ever for one that left.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import logging
import math
import signal
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from lightning.fabric.plugins.environments.lightning import LightningEnvironment

from experiments.config.check import check
from experiments.config.precision import ConfigError
from experiments.config.schema import KEPT, TrainConfig
from experiments.data.batches import Batches, StepLoader
from experiments.finetune.adapters import merged
from experiments.measure.ptq import quantized
from experiments.mirror import tracking
from experiments.quant.product import full_precision
from experiments.run.callbacks import made_callbacks
from experiments.run.identity import run_folder, run_id
from experiments.run.module import LanguageModel
from experiments.run.out_of_memory import named_if_of_memory, wants_memory
from experiments.run.process import held_to, use_cpus
from experiments.run.record import Scored, columns, finite, make_record
from experiments.run.recorder import Diverged, Recorder, Report, Stopped
from experiments.store.checkpoint import CHECKPOINTS
from experiments.store.curve import METRICS
from experiments.store.lease import Fenced, Lease
from experiments.store.weights import WEIGHTS, sha256_of_weights, write_weights
from experiments.tasks.choose import task_of
from fitting.entry.errors import Failure, first_line
from fitting.files.atomic import write_atomic
from fitting.results.record import FAILURE, RESULT, RunRecord, read_record, write_exclusive


@dataclass(frozen=True)
class RunResult:
    """What `train` returns."""

    record: RunRecord
    folder: Path
    already_done: bool = False
    """The result was there before; nothing was trained."""
    module: LanguageModel | None = field(default=None, repr=False, compare=False)
    """The model with its last weights; None if nothing was trained."""


class _Trainer(L.Trainer):
    """Leaves SIGTERM to the run: Lightning would end at a step of its choice and save nothing."""

    @property
    def received_sigterm(self) -> bool:
        """False, so that it goes on until the recorder stops it."""
        return False


def train(config: TrainConfig, report: Report | None = None, token: str = "") -> RunResult:
    """Train one model to the end, or go on where an earlier attempt stopped.

    Args:
        config: The run.
        report: Called with the progress every `tracking.log_every` steps.
        token: Token of the lease, for a caller that wants to break it should this process die.

    Returns:
        The record, finished or diverged, and where it lies.

    Raises:
        ConfigError: The configuration cannot be run, or asks for the weights of a run that is done
            and did not keep them; nothing was written.
        DataError: The data cannot be obtained; nothing was written.
        KeyboardInterrupt: On SIGINT (Ctrl-C) or SIGTERM in the main thread, or on request through
            the lease, after a checkpoint at the end of this step; at once on a second signal.
        Held: Somebody else is training this run; nothing was written.
        Fenced: Somebody else took it over meanwhile; nothing more was written.
        Exception: Whatever else goes wrong, after `failure.json` was written.
    """
    check(config)
    if config.resources.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("resources.device=cuda: torch sees no GPU here; use cpu")
    if config.trainer.num_workers > 1 and not dist.is_initialized():
        raise ConfigError(
            f"trainer.num_workers={config.trainer.num_workers}: needs -m, which starts processes"
        )
    with _others_told(config) as go_on:
        task = task_of(config)
        data = task.open()
        task.check(data, config.steps, config.batch_size)
        made_callbacks(config.trainer)  # to be refused before any work
        folder = run_folder(config)
        folder.mkdir(parents=True, exist_ok=True)
        # Asked again under the lease: its last holder may have finished just now.
        if (done := _result(config, folder)) is not None:
            return done
        with Lease(folder, config.lease_seconds, token) as lease:
            if (done := _result(config, folder)) is not None:
                return done
            go_on()
            return _lead(_Run(config, data, folder, lease, report))


def _lead(run: _Run) -> RunResult:
    """One attempt; errors in it are recorded in the run's folder."""
    try:
        with _politely(run.recorder.stop):
            return RunResult(run.lead(), run.folder, module=run.module)
    except Stopped:
        raise KeyboardInterrupt from None
    except Fenced:
        raise
    except Exception as error:
        named = named_if_of_memory(error, run.config)
        if not _of_the_machine(error):
            reason = (str(named).splitlines() or [""])[0]
            run.write_failure(f"{type(named).__name__}: {reason}")
        if named is error:
            raise
        raise named from error


@contextlib.contextmanager
def _others_told(config: TrainConfig) -> Iterator[Callable[[], None]]:
    """Tells a run's other processes whether to go on; if left without a word, not to."""
    said = False

    def say(go: bool) -> None:
        nonlocal said
        if config.trainer.num_workers > 1 and not said:
            said = True
            dist.broadcast_object_list([go], src=0)

    try:
        yield lambda: say(True)
    finally:
        say(False)


@contextlib.contextmanager
def _politely(stop: threading.Event) -> Iterator[None]:
    """Turn the first SIGINT or SIGTERM into a request to stop; only the main thread can."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    received: list[int] = []

    def ask(number: int, _: object) -> None:
        received.append(number)
        if stop.is_set():
            raise KeyboardInterrupt(signal.Signals(number).name)
        stop.set()

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    except (Stopped, KeyboardInterrupt, SystemExit):  # Lightning makes the last of a second signal
        if received:
            raise KeyboardInterrupt(signal.Signals(received[0]).name) from None
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def follow(config: TrainConfig) -> None:
    """Take part in a run on several processes as one other than its first: writes nothing."""
    check(config)
    word = [False]
    dist.broadcast_object_list(word, src=0)
    if not word[0]:  # done, or held by others, or the first process says what is wrong
        return
    run = _Run(config, task_of(config).open(), run_folder(config), None, None)
    with contextlib.suppress(Diverged, Stopped), run.held():
        run.fit()


def _result(config: TrainConfig, folder: Path) -> RunResult | None:
    if not (folder / RESULT).exists():
        return None
    if config.keep in KEPT and not (folder / WEIGHTS).exists():
        raise ConfigError(
            f"keep={config.keep}: {folder} is done and its weights were not kept; "
            "runs=FOLDER trains it again elsewhere, to the same bits"
        )
    record = read_record(folder)
    assert record is not None
    return RunResult(record, folder, already_done=True)


_TROUBLES = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.EROFS, errno.EFBIG),
    *(errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE),
)
"""Errors of the system that the same run might not have elsewhere, or later."""


def _of_the_machine(error: Exception) -> bool:
    """Whether disk, permissions or limits are to blame: the run is unfinished, not failed."""
    return isinstance(error, OSError) and error.errno in _TROUBLES


class _Run:
    """One attempt at a run, in one of its processes.

    Args:
        config: The run.
        data: Opened.
        folder: The run's.
        lease: The right to write there; None for a process that is not the run's first.
        report: As `train` takes it.
    """

    def __init__(
        self,
        config: TrainConfig,
        data: Batches,
        folder: Path,
        lease: Lease | None,
        report: Report | None,
    ) -> None:
        self.config, self.data, self.folder, self.lease = config, data, folder, lease
        self.started = datetime.now(UTC)
        self.recorder = Recorder(config, folder, lease, report)
        self.weights_sha256 = ""
        self.metrics: dict[str, float] = {}
        """The task's other measures of the validation part, by name."""
        self.ptq: dict[str, Scored] = {}
        """Validation loss and measures by format of the weights after training."""
        self.merged_loss: float | None = None
        use_cpus(config.resources.cpus)

    @functools.cached_property
    def module(self) -> LanguageModel:
        """The model, built at first use, within the memory that the run may take."""
        return LanguageModel(self.config)

    def lead(self) -> RunRecord:
        """Train, validate and write the result, in the run's first process."""
        assert self.lease is not None
        half_written = [*self.folder.glob(".*"), *(self.folder / CHECKPOINTS).glob("*.tmp")]
        # Without a result, weights are those of an attempt that was killed before it gave one.
        for path in [*half_written, self.folder / WEIGHTS]:
            path.unlink(missing_ok=True)
        write_atomic(json.dumps(asdict(self.config), indent=1) + "\n", self.folder / "config.json")
        self.lease.check()
        recorder, attempt, identity = self.recorder, self.lease.number, run_id(self.config)
        recorder.mirror = tracking.start(
            self.config, identity, self.folder, attempt, columns(self.config)
        )
        exit_code = 1
        try:
            status, reason, loss = "finished", "", None
            try:
                with self.held():
                    self.fit()
                    loss = self._score()
                    self.metrics = finite(self.module.validation_metrics)
                    self._check_that_it_learned(loss)
                    self._score_quantized()
                    self._score_merged()
            except Diverged as error:
                status, reason = "diverged", str(error)
            if loss is not None:
                recorder.final(loss, self.metrics, self.ptq, self.merged_loss)
            recorder.write_curve()
            weights = self.module.state_dict()
            self.weights_sha256 = sha256_of_weights(weights)
            record = self.record(status, loss, reason)
            exit_code = 0
        finally:
            tracking.finish(exit_code)
        self.lease.check()
        if self.config.keep != "none":  # before the result, which says that the run is done
            write_weights(weights, self.folder)
            self.lease.check()
        (self.folder / FAILURE).unlink(missing_ok=True)
        if not write_exclusive(record, self.folder):
            earlier = read_record(self.folder)
            assert earlier is not None
            return earlier
        if self.config.keep != "all":
            recorder.checkpoints.remove_all()
        return record

    def write_failure(self, reason: str) -> None:
        """Leave `failure.json`, unless others took over or the disk refuses it."""
        assert self.lease is not None
        with contextlib.suppress(Fenced, OSError):
            self.lease.check()
            write_atomic(self.record("failed", None, reason).to_json(), self.folder / FAILURE)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Scope for everything that computes, and so takes memory in proportion to the run."""
        resources = self.config.resources
        memory = resources.memory if resources.device == "cpu" else 0.0
        with full_precision(), held_to(memory):
            yield

    def fit(self) -> None:
        """Train from the newest checkpoint that suits, or from the start, to the end."""
        config, world = self.config, self.config.trainer.num_workers
        rank = dist.get_rank() if world > 1 else 0
        while True:
            checkpoint = self._checkpoint()
            # Lightning hands the loader its position back from the checkpoint.
            how = self.data, config.seed, config.batch_size, 0, config.steps
            loader = StepLoader(*how, rank=rank, world=world, accumulate=config.accumulate)
            self.recorder.loader = loader
            try:
                with _lightning_quiet():
                    self._trainer(world, made_callbacks(config.trainer), config.steps).fit(
                        self.module, loader, ckpt_path=checkpoint, weights_only=True
                    )
            except Exception as error:
                if checkpoint is None or self.recorder.begun or wants_memory(error):
                    raise
                reason = first_line(error)
            else:
                self._refuse_an_early_end()
                return
            # It may be half restored: take the one before, with everything as it was at first.
            self.recorder.checkpoints.pass_over(checkpoint, f"does not suit this run ({reason})")
            self.recorder.forget()
            del self.module

    def _refuse_an_early_end(self) -> None:
        step, steps = self.recorder.step, self.config.steps
        if step < steps:
            raise Failure(
                f"trainer.callbacks={','.join(self.config.trainer.callbacks)}: one ended training "
                f"after step {step} of {steps}; a run is trained on all of its tokens"
            )

    def _checkpoint(self) -> Path | None:
        """The checkpoint that the run's first process found, in all of its processes."""
        found = None
        if self.lease is not None:
            groups = self.module.configure_optimizers()["optimizer"].param_groups
            stepped = [parameter for group in groups for parameter in group["params"]]
            found = self.recorder.checkpoints.newest(self.module.state_dict(), stepped)
        if self.config.trainer.num_workers > 1:
            chosen = [found]
            dist.broadcast_object_list(chosen, src=0)
            [found] = chosen
        return found

    def _score(self) -> float | None:
        """Validation loss, in the run's first process only: it does not depend on their number."""
        batches = self.data.validation_batches(self.module.task.scored_at_once)
        with _lightning_quiet():
            self._trainer(1).validate(self.module, batches, verbose=False)
        loss = self.module.validation_loss
        return loss if math.isfinite(loss) else None

    def _score_quantized(self) -> None:
        """Validation loss with the weights quantized after training, for each requested format."""
        ptq, model = self.config.ptq, self.module.model
        for name, precision in ptq.precisions().items():
            with quantized(model.quantizable().values(), precision, ptq.operands):
                self.ptq[name] = Scored(self._score(), finite(self.module.validation_metrics))

    def _score_merged(self) -> None:
        """Validation loss with the adapter in the weights, which the recipe then quantizes."""
        if self.config.adapter.there:
            with merged(self.module.model):
                self.merged_loss = self._score()

    def _check_that_it_learned(self, loss: float | None) -> None:
        ceiling = self.module.task.ceiling(self.data)
        if loss is None or not loss < ceiling:
            found = self.module.validation_loss
            raise Diverged(
                f"validation loss {found:.4g} is not below {ceiling:.4g}, that of a uniform guess"
            )

    def _trainer(
        self, world: int, theirs: Sequence[L.Callback] = (), max_steps: int = -1
    ) -> L.Trainer:
        config = self.config
        # Named, or Lightning takes a run within a Slurm job for one process of many.
        store = self.recorder.checkpoints
        together: dict[str, Any] = {"plugins": [LightningEnvironment(), store]}
        if world > 1:
            from ray.train import lightning as ray_lightning

            strategy: Any = ray_lightning.RayDDPStrategy
            place: Any = ray_lightning.RayLightningEnvironment
            together = {"strategy": strategy(), "plugins": [place(), store]}
        return _Trainer(
            accelerator="gpu" if config.resources.device == "cuda" else "cpu",
            devices="auto" if world > 1 else 1,
            precision="bf16-mixed" if config.compute_dtype == "bfloat16" else "32-true",
            max_steps=max_steps,
            gradient_clip_val=config.optim.clip_norm,
            accumulate_grad_batches=config.accumulate,
            callbacks=[*theirs, self.recorder],  # ours last: its checkpoint has what they did
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            num_sanity_val_steps=0,
            **together,
        )

    def record(self, status: str, loss: float | None, reason: str = "") -> RunRecord:
        """The run record as of now."""
        assert self.lease is not None
        return make_record(
            self.config,
            self.data,
            run_id=run_id(self.config),
            status=status,
            reason=reason,
            steps=self.recorder.step,
            loss=loss,
            # The failure may lie in the very files that this would read.
            train_loss=None if status == "failed" else self.recorder.train_loss(),
            wall_seconds=self.recorder.seconds,
            attempts=self.lease.number,
            curve=self.folder / METRICS,
            weights_sha256=self.weights_sha256,
            started=self.started,
            diagnostics=self.recorder.diagnostics(),
            metrics=self.metrics,
            ptq=self.ptq,
            merged_loss=self.merged_loss,
        )


@contextlib.contextmanager
def _lightning_quiet() -> Iterator[None]:
    """Suppress Lightning's warnings about what is intended here: we score once, after training."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    with warnings.catch_warnings():
        for message in (
            "You defined a `validation_step` but have no `val_dataloader`",
            "GPU available but not used",
            "The `srun` command is available",  # it is Ray that starts processes
            r"`isinstance\(treespec, LeafSpec\)` is deprecated",  # Lightning 2.6.6 on torch 2.13
        ):
            warnings.filterwarnings("ignore", message=message)
        yield
