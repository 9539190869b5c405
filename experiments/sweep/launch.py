"""Run a plan on Ray: one task a run, failures isolated, progress shown, nothing lost.

The driver decides what starts when; Ray only executes.  A run that raises has failed and is not
retried; one whose worker died is, from its checkpoint, up to `_MAX_ATTEMPTS` times.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
import traceback
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from experiments.config import ConfigError, from_dict, run_folder
from experiments.sweep.plan import Plan, PlannedRun
from experiments.sweep.show import Display
from experiments.train import METRICS, train
from fitting.results import RunRecord, read_record

_MAX_ATTEMPTS = 3
_POLL_SECONDS = 0.5
_GRACE_SECONDS = 10.0
"""What interrupted runs get to write a checkpoint in."""
LOG = "log.txt"


@dataclass
class Outcome:
    """What became of a sweep."""

    wanted: int
    """Runs of the plan."""
    records: list[RunRecord] = field(default_factory=list)
    interrupted: bool = False

    @property
    def exit_code(self) -> int:
        """0 all done, 1 some failed or left nothing, 130 interrupted."""
        if self.interrupted:
            return 130
        done = sum(record.status != "failed" for record in self.records)
        return 0 if done == self.wanted else 1


def available(address: str) -> tuple[float, float]:
    """CPUs and GPUs that a sweep may use here, without starting anything.

    For a cluster that is already there this is known only once it was joined.
    """
    if address == "local":
        return float(len(os.sched_getaffinity(0))), float(torch.cuda.device_count())
    return float("inf"), float("inf")


@contextlib.contextmanager
def ray_session(address: str) -> Iterator[Any]:
    """A Ray of our own, ended with us, or the user's cluster, joined and left alone."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    options: dict[str, Any] = {
        "address": address,
        "log_to_driver": False,
        "logging_level": logging.ERROR,
    }
    if address == "local":
        cpus, gpus = available(address)
        options |= {"num_cpus": int(cpus), "num_gpus": int(gpus), "include_dashboard": False}
    ray.init(**options)
    try:
        yield ray
    finally:
        ray.shutdown()


def execute(config: dict[str, Any]) -> str:
    """In the worker: one run, its log in its folder, its failure as a value.

    Returns:
        "" or, for a run that raised, the one line that says why.
    """
    checked = from_dict(config)
    folder = run_folder(checked)
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / LOG, "a", encoding="utf-8") as log:
        handler = logging.StreamHandler(log)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        logging.getLogger().addHandler(handler)
        try:
            with contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
                log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} start, process {os.getpid()}\n")
                log.flush()
                result = train(checked)
                log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {result.record.status}\n")
            return ""
        except Exception as error:
            traceback.print_exc(file=log)
            return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        finally:
            logging.getLogger().removeHandler(handler)


def launch(plan: Plan, address: str = "local", max_parallel: int | None = None) -> Outcome:
    """Run what is to do and return the records of the whole plan.

    Raises:
        ConfigError: A run asks for more than there is; nothing was started.
    """
    to_do = plan.to_do
    cpus, gpus = available(address)
    for run in to_do:
        wanted = run.config.resources
        if wanted.cpus > cpus or wanted.gpus > gpus:
            raise ConfigError(
                f"resources: {run.run_id} wants {wanted.cpus} CPUs and {wanted.gpus:g} GPUs, "
                f"there are {cpus:g} and {gpus:g}"
            )
    outcome = Outcome(wanted=len(plan.runs))
    if to_do:
        with Display(plan) as display, ray_session(address) as ray:
            outcome.interrupted = _drive(ray, to_do, display, max_parallel)
    for run in plan.runs:
        record = read_record(run.folder) if run.folder.exists() else None
        if record is not None:
            outcome.records.append(record)
    return outcome


def _drive(ray: Any, to_do: list[PlannedRun], display: Display, max_parallel: int | None) -> bool:
    """The loop; True if it was interrupted."""
    remote = ray.remote(max_retries=0)(execute)
    waiting = list(to_do)
    running: dict[Any, PlannedRun] = {}
    deaths: dict[str, int] = {}
    total = ray.cluster_resources()
    free = {"CPU": total.get("CPU", 0.0), "GPU": total.get("GPU", 0.0)}
    try:
        while waiting or running:
            for run in list(waiting):
                wants = run.config.resources
                if max_parallel is not None and len(running) >= max_parallel:
                    break
                if wants.cpus <= free["CPU"] and wants.gpus <= free["GPU"]:
                    waiting.remove(run)
                    free["CPU"] -= wants.cpus
                    free["GPU"] -= wants.gpus
                    options = remote.options(num_cpus=wants.cpus, num_gpus=wants.gpus)
                    running[options.remote(asdict(run.config))] = run
                    display.started(run)
            if not running:
                raise ConfigError("resources: nothing that is left to run fits this cluster")
            ready, _ = ray.wait(list(running), num_returns=1, timeout=_POLL_SECONDS)
            for reference in ready:
                run = running.pop(reference)
                free["CPU"] += run.config.resources.cpus
                free["GPU"] += run.config.resources.gpus
                try:
                    failure = ray.get(reference)
                except ray.exceptions.RayError as error:  # the worker is gone, not the run
                    deaths[run.run_id] = deaths.get(run.run_id, 0) + 1
                    if deaths[run.run_id] < _MAX_ATTEMPTS:
                        display.retried(run, type(error).__name__)
                        waiting.insert(0, run)
                        continue
                    failure = f"{type(error).__name__}: its worker died {_MAX_ATTEMPTS} times"
                display.ended(run, read_record(run.folder), failure, run.folder / LOG)
            display.update({run.run_id: _tokens_done(run.folder) for run in running.values()})
    except KeyboardInterrupt:
        for reference in running:
            ray.cancel(reference, force=False)  # SystemExit in the worker: it checkpoints
        if running:
            ray.wait(list(running), num_returns=len(running), timeout=_GRACE_SECONDS)
        return True
    return False


def _tokens_done(folder: Path) -> int:
    """Tokens a running run has reported, from the end of its loss curve."""
    path = folder / METRICS
    if not path.is_file():
        return 0
    with open(path, "rb") as file:
        file.seek(0, os.SEEK_END)
        file.seek(max(0, file.tell() - 1024))
        lines = file.read().splitlines()
    for line in reversed(lines):
        with contextlib.suppress(ValueError, KeyError):
            return int(json.loads(line)["tokens"])
    return 0
