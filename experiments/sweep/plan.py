"""The plan of a sweep: its runs checked, addressed and estimated before anything starts."""

from __future__ import annotations

import csv
import io
import json
import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from experiments.accounting import count_parameters
from experiments.config.precision import ConfigError
from experiments.config.running import SweepConfig
from experiments.config.schema import KEPT, TrainConfig
from experiments.data.batches import Batches
from experiments.run.identity import numerics_version, off_default, run_folder, run_id
from experiments.run.record import design
from experiments.store.weights import WEIGHTS
from experiments.sweep.estimate import Speeds
from experiments.tasks.choose import task_of
from fitting.files.atomic import write_atomic
from fitting.files.own_json import DamagedError
from fitting.results.record import RunRecord, look_at
from fitting.results.study_file import STUDY, read_study

_PROCESS_BYTES = 450 * 2**20
"""Memory of a worker that has everything imported and trains nothing."""
_BYTES_PER_PARAMETER = 16
"""Float32 weights, gradients and two moments: the least that any run needs."""


@dataclass(frozen=True)
class Resources:
    """The resources of a machine, of a whole cluster, or of one run."""

    cpus: float
    gpus: float = 0.0
    memory: float = 0.0
    """GiB."""

    def holds(self, wanted: Resources) -> bool:
        """Whether `wanted` fits into these resources."""
        small = 1e-6  # fractions of a GPU are added and taken away again
        return (
            wanted.cpus <= self.cpus + small
            and wanted.gpus <= self.gpus + small
            and wanted.memory <= self.memory + small
        )

    def __add__(self, other: Resources) -> Resources:
        """Both together."""
        return Resources(self.cpus + other.cpus, self.gpus + other.gpus, self.memory + other.memory)

    def __sub__(self, other: Resources) -> Resources:
        """The resources that are left."""
        return Resources(self.cpus - other.cpus, self.gpus - other.gpus, self.memory - other.memory)

    def __str__(self) -> str:
        """The resources in words."""
        gpus = f", {self.gpus:g} GPUs" if self.gpus else ""
        memory = f", {self.memory:.3g} GiB" if self.memory else ""
        return f"{self.cpus:g} CPUs{gpus}{memory}"


@dataclass
class PlannedRun:
    """One run of a sweep."""

    config: TrainConfig
    run_id: str
    folder: Path
    flops: float
    """FLOPs of training."""
    scoring: float
    """FLOPs of the validation pass: a third of training's per token."""
    record: RunRecord | None = None
    """The record that an earlier launch left."""
    damaged: str = ""
    """The line that says what of it is damaged, and what to do; the run is left alone."""
    older: int = 0
    """The numerics version under which the same run was done before; 0: it was not."""

    @property
    def work(self) -> float:
        """FLOPs of the whole run, by which time is estimated."""
        return self.flops + self.scoring

    @property
    def done(self) -> bool:
        """Whether there is a result already."""
        return self.record is not None and self.record.status != "failed"

    @property
    def lacks_weights(self) -> bool:
        """Whether it is done and did not keep the weights that are asked for now."""
        asked = self.config.keep in KEPT
        return self.done and asked and not (self.folder / WEIGHTS).exists()

    @property
    def failed_before(self) -> bool:
        """Whether an earlier attempt raised."""
        return self.record is not None and self.record.status == "failed"

    @property
    def takes(self) -> Resources:
        """Resources that it takes of the cluster, all its processes together."""
        own, workers = self.config.resources, self.config.trainer.num_workers
        return Resources(own.cpus * workers, own.gpus * workers, own.memory * workers)

    @property
    def devices(self) -> float:
        """GPUs, or CPU cores if it takes none: the devices whose hours are paid for."""
        return self.takes.gpus or self.takes.cpus

    @property
    def gibibytes(self) -> float:
        """Memory by our count, an upper bound, process included."""
        config = self.config
        own = task_of(config).training_bytes(
            config.rows, config.recipe, config.trainer.checkpointing
        )
        return (own + _PROCESS_BYTES) / 2**30

    def refuse_unless_held_by(self, machines: Sequence[Resources]) -> None:
        """Make sure that there is a machine for this run.

        Raises:
            ConfigError: None is large enough, now or ever.
        """
        own, trainer = self.config.resources, self.config.trainer
        one = Resources(own.cpus, own.gpus, own.memory)
        needed = one if trainer.spread else self.takes
        fitting = [machine for machine in machines if machine.holds(needed)]
        if len(fitting) < (trainer.num_workers if trainer.spread else 1):
            where = f"{trainer.num_workers} machines of it each" if trainer.spread else "it"
            raise ConfigError(
                f"resources: {self.run_id} wants {needed}; there is no room for {where}: "
                f"the machines have {'; '.join(sorted({str(m) for m in machines}))}"
            )
        weights = _BYTES_PER_PARAMETER * count_parameters(self.config.model).total / 2**30
        if own.device == "cpu" and weights > max(machine.memory for machine in fitting):
            raise ConfigError(
                f"model.name={self.config.model.name}: {self.run_id} needs {weights:.0f} GiB for "
                "its weights, gradients and moments alone, more than any machine here has"
            )


@dataclass
class Plan:
    """A checked sweep."""

    runs: list[PlannedRun]
    duplicates: int
    """Requests for a run already in the list."""
    sweep: SweepConfig = field(default_factory=SweepConfig)
    speeds: Speeds = field(default_factory=Speeds)

    @property
    def to_do(self) -> list[PlannedRun]:
        """Longest first, so that no long run is left for the end."""
        wanted = [
            run
            for run in self.runs
            if not run.done
            and not run.damaged
            and (self.sweep.retry_failed or not run.failed_before)
        ]
        return sorted(wanted, key=lambda run: -self.seconds(run))

    @property
    def study_folder(self) -> Path:
        """The folder of all its runs."""
        return self.runs[0].folder.parent

    def seconds(self, run: PlannedRun) -> float:
        """Expected time of one run."""
        config = run.config
        cores = config.resources.cpus * config.trainer.num_workers
        return run.work / self.speeds(config) / cores

    def device_hours(self) -> float:
        """Expected device hours of the runs to do: the sum of hours times devices."""
        return sum(self.seconds(run) * run.devices for run in self.to_do) / 3600

    def makespan(self, capacity: Resources, max_parallel: int | None) -> float:
        """Expected time of the whole, in seconds: the driver's own order, played through."""
        waiting = [(self.seconds(run), run.takes) for run in self.to_do]
        running: list[tuple[float, Resources]] = []
        now, free = 0.0, capacity
        while waiting or running:
            for item in list(waiting):
                if max_parallel is not None and len(running) >= max_parallel:
                    break
                if free.holds(item[1]):
                    waiting.remove(item)
                    running.append((now + item[0], item[1]))
                    free -= item[1]
                elif free.cpus < 1:
                    break
            if not running:  # what is left fits nowhere: the driver refuses it
                break
            running.sort(key=lambda item: item[0])
            now, freed = running.pop(0)
            free += freed
        return now

    def refuse_over_budget(self) -> None:
        """Check the plan against `budget`.

        Raises:
            ConfigError: It needs more than it may.
        """
        budget = self.sweep.budget
        hours, flops = self.device_hours(), sum(run.flops for run in self.to_do)
        for key, limit, needed, unit in (
            ("hours", budget.hours, hours, "device hours"),
            ("flops", budget.flops, flops, "FLOPs"),
        ):
            if limit and needed > limit:
                raise ConfigError(
                    f"budget.{key}={limit:g}: the runs to do need about {needed:.3g} {unit} "
                    f"(speed: {self.speeds.basis}); raise it, or plan less"
                )


def make_plan(configs: Sequence[TrainConfig], sweep: SweepConfig | None = None) -> Plan:
    """Address every configuration, drop duplicates, look up what is done.

    Raises:
        ConfigError: Nothing to run, or runs of more than one study.
        DataError: A run that its data cannot feed.
    """
    if not configs:
        raise ConfigError("study: this sweep is empty")
    studies = sorted({config.study.name for config in configs})
    if len(studies) > 1:
        raise ConfigError(f"study={','.join(studies)}: a sweep belongs to one study")
    opened: dict[str, Batches] = {}
    runs: dict[str, PlannedRun] = {}
    for config in configs:
        key, task = _data_key(config), task_of(config)
        if key not in opened:
            opened[key] = task.open(verify=True)
        task.check(opened[key], config.steps, config.batch_size)
        identity = run_id(config)
        if identity in runs:
            continue
        folder = run_folder(config)
        a_token = task.flops_per_token()
        flops = config.steps * config.batch_tokens * a_token
        scoring = len(opened[key].validation) * config.data.seq_len * a_token / 3
        runs[identity] = PlannedRun(config, identity, folder, flops, scoring, *look_at(folder))
    plan = Plan(list(runs.values()), len(configs) - len(runs), sweep or SweepConfig())
    _look_for_older(plan, {key: data.label for key, data in opened.items()})
    for run in plan.runs:
        record = run.record
        if run.done and record is not None and record.wall_seconds > 0:
            cores = run.config.resources.cpus * run.config.trainer.num_workers
            speed = record.flops / record.wall_seconds / cores
            plan.speeds.learn(run.config, speed, "measured on finished runs")
    return plan


def _look_for_older(plan: Plan, corpora: Mapping[str, str]) -> None:
    """Note the version of each run to do that was done under an older one, at another address.

    Args:
        plan: Its runs are changed in place.
        corpora: By the `_data_key` of a run its corpus, as records name it.
    """
    if not plan.study_folder.is_dir():
        return
    by_slug: dict[str, list[Path]] = defaultdict(list)
    for folder in plan.study_folder.iterdir():
        by_slug[_slug(folder.name)].append(folder)
    for run in plan.to_do:
        config = run.config
        for folder in by_slug[_slug(run.run_id)]:
            record, _ = look_at(folder) if folder != run.folder else (None, "")
            if (
                record is not None
                and record.status != "failed"
                and record.numerics_version < numerics_version(config)
                and (record.seed, record.corpus) == (config.seed, corpora[_data_key(config)])
                and record.config.get("tokens", 0) // config.batch_tokens == config.steps
                and off_default(record.config) == off_default(asdict(config))
            ):
                run.older = record.numerics_version


def _data_key(config: TrainConfig) -> str:
    """What tells the data of runs apart."""
    return repr((config.task, config.data))


def _slug(run_id: str) -> str:
    """The readable part of a run's address."""
    return run_id.rpartition("-")[0]


def write_table(plan: Plan, path: Path) -> None:
    """Write the planned runs as a results table without losses (CSV), one row per run.

    Raises:
        ConfigError: It cannot be written.
    """
    rows = [{"run_id": run.run_id, **design(run.config, run.config.steps)} for run in plan.runs]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    try:
        write_atomic(text.getvalue(), path)
    except OSError as error:
        raise ConfigError(f"plan_file={path}: cannot be written ({error.strerror})") from error


def write_study(plan: Plan) -> Path:
    """Leave `study.json` beside the runs: what the study is, what was planned, how to fit it.

    Runs planned by earlier launches stay planned, so that a study can be extended.
    """
    study = plan.runs[0].config.study
    path = plan.study_folder / STUDY
    path.parent.mkdir(parents=True, exist_ok=True)
    earlier: dict[str, Any] = {"planned": [], "work": {}}
    try:
        earlier = read_study(path.parent)
    except FileNotFoundError:
        pass
    except DamagedError as error:
        # Its entries for runs that this plan lacks are lost; their folders are not.
        if not path.is_file():
            raise
        warnings.warn(f"written anew from this plan: {error}", stacklevel=2)
    planned = dict.fromkeys([*earlier["planned"], *(run.run_id for run in plan.runs)])
    content = {
        "name": study.name,
        "title": study.title or study.name,
        "description": study.description,
        "fit": study.fit,
        "planned": list(planned),
        "work": earlier["work"] | {run.run_id: run.work for run in plan.runs},
    }
    write_atomic(json.dumps(content, indent=1) + "\n", path)
    return path
