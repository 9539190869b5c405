"""The work of a worker: one run, its log in its folder, its end as a value, never an exception."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import socket
import tempfile
import time
import traceback
from typing import Any, TextIO

from experiments.config.read import from_dict
from experiments.run.identity import run_folder
from experiments.store.lease import Fenced, Held
from fitting.entry.errors import Refusal, of_the_system

LOG = "log.txt"
DONE, FAILED, ELSEWHERE, STOPPED = "done", "failed", "elsewhere", "stopped"
"""The ways in which a run may end for a worker; elsewhere: somebody else is at work on it."""


def execute(config: dict[str, Any], token: str) -> tuple[str, str]:
    """One run.

    Args:
        config: `asdict` of a `TrainConfig`.
        token: Token of the lease, by which the driver breaks it should this worker die.

    Returns:
        The way it ended and, unless it is done, one line that says why.
    """
    from experiments.train import train  # takes seconds, and the driver does not need it

    try:
        checked = from_dict(config)
        folder = run_folder(checked)
    except Refusal as error:  # what the driver has and this machine has not: code of the user's
        return FAILED, _said_here(error)
    with contextlib.ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            log = _Log(open(folder / LOG, "a", encoding="utf-8", buffering=1))  # noqa: SIM115
        except OSError as error:
            return FAILED, _said(error)
        stack.enter_context(log)
        handler = logging.StreamHandler(log)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        logging.getLogger().addHandler(handler)

        def note(text: str) -> None:
            log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} process {os.getpid()} {text}\n")

        note("start")
        try:
            with contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
                result = train(checked, token=token)
            note("was done already" if result.already_done else result.record.status)
            return DONE, ""
        except (Held, Fenced) as error:
            note(str(error))
            return ELSEWHERE, str(error)
        except KeyboardInterrupt:
            note("stopped")
            return STOPPED, "stopped from outside"
        except Exception as error:
            traceback.print_exc(file=log)
            return FAILED, _said(error)
        finally:
            logging.getLogger().removeHandler(handler)
            note("end")


class _Log(io.TextIOBase):
    """A log that loses lines on a full disk, but never stops the run that writes to it."""

    encoding = "utf-8"

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def fileno(self) -> int:
        """The file's descriptor, for code that prints without Python."""
        return self._file.fileno()

    def writable(self) -> bool:
        """Always true."""
        return True

    def write(self, text: str) -> int:
        """Write all of the text, or nothing."""
        with contextlib.suppress(OSError):
            self._file.write(text)
        return len(text)

    def flush(self) -> None:
        """Write everything that waits."""
        with contextlib.suppress(OSError):
            self._file.flush()

    def close(self) -> None:
        """Close the file; text that it could not take before is dropped."""
        super().close()
        with contextlib.suppress(OSError):
            self._file.close()


def _said(error: Exception) -> str:
    """The cause of a failure in one line; for an error of the system, the file and the remedy."""
    if isinstance(error, OSError):
        return of_the_system(error)
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def _said_here(error: Exception) -> str:
    """The reason for which a worker refuses what its driver took, in one line."""
    return f"on the worker {socket.gethostname()}: {_said(error)}"


class _Ended(Exception):
    """The end of a run's first process, for the others to stop, and for the driver."""


def execute_together(config: dict[str, Any], token: str) -> tuple[str, str]:
    """One run on several processes, which Ray Train starts, connects and watches.

    This task itself only waits.  Arguments and result are those of `execute`.

    Raises:
        RuntimeError: A process died: the run can go on from its checkpoint.
    """
    from ray.train import RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchConfig, TorchTrainer

    try:
        checked = from_dict(config)
    except Refusal as error:
        return FAILED, _said_here(error)
    own, trainer = checked.resources, checked.trainer
    each = {"CPU": own.cpus, "GPU": own.gpus, "memory": own.memory * 2**30}
    with tempfile.TemporaryDirectory() as storage:  # Ray Train wants one; nothing of ours is there
        together = TorchTrainer(
            _process,
            train_loop_config={"config": config, "token": token},
            torch_config=TorchConfig(backend="nccl" if own.device == "cuda" else "gloo"),
            scaling_config=ScalingConfig(
                num_workers=trainer.num_workers,
                use_gpu=own.gpus > 0,
                resources_per_worker={name: amount for name, amount in each.items() if amount},
                placement_strategy="STRICT_SPREAD" if trainer.spread else "STRICT_PACK",
            ),
            run_config=RunConfig(name="run", storage_path=storage),
        )
        try:
            together.fit()
        except TrainingFailedError as error:
            failures = getattr(error, "worker_failures", {})
            ended = [e for e in failures.values() if isinstance(_cause(e), _Ended)]
            if not ended:
                raise RuntimeError((str(error).splitlines() or [""])[0]) from None
            how, why = _cause(ended[0]).args
            return how, why
    return DONE, ""


def _cause(error: Exception) -> Exception:
    """The exception that a process raised, without Ray's wrapping."""
    return getattr(error, "cause", None) or error


def _process(task: dict[str, Any]) -> None:
    """One process of several."""
    import ray.train

    from experiments.train import follow

    if ray.train.get_context().get_world_rank() > 0:
        try:
            checked = from_dict(task["config"])
        except Refusal as error:
            raise _Ended(FAILED, _said_here(error)) from None
        follow(checked)
        return
    how, why = execute(task["config"], task["token"])
    if how != DONE:
        raise _Ended(how, why)
