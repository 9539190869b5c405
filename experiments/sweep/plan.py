"""What a sweep would run: composed once, checked, addressed, estimated, before anything starts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from experiments.accounting import flops_per_token
from experiments.config import ConfigError, TrainConfig, run_folder, run_id
from experiments.data import TokenData
from fitting.results import STUDY, RunRecord, read_record, write_atomic

_ASSUMED_FLOPS_PER_SECOND = 3e10
"""Of one core on a small model, where nothing has been run yet to measure it."""


@dataclass
class PlannedRun:
    """One run of a sweep."""

    config: TrainConfig
    run_id: str
    folder: Path
    flops: float
    """Of training."""
    scoring: float
    """FLOPs of the validation pass: a third of training's a token."""
    record: RunRecord | None = None
    """What an earlier launch left."""

    @property
    def work(self) -> float:
        """FLOPs of the whole run, by which time is estimated."""
        return self.flops + self.scoring

    @property
    def done(self) -> bool:
        """Whether there is a result already."""
        return self.record is not None and self.record.status != "failed"

    @property
    def failed_before(self) -> bool:
        """Whether an earlier attempt raised."""
        return self.record is not None and self.record.status == "failed"


@dataclass
class Plan:
    """A checked sweep."""

    runs: list[PlannedRun]
    duplicates: int
    """Requests that meant a run already in the list."""
    retry_failed: bool
    flops_per_second: float = _ASSUMED_FLOPS_PER_SECOND
    measured: bool = field(default=False)
    """Whether the speed comes from finished runs of this study."""

    @property
    def to_do(self) -> list[PlannedRun]:
        """Longest first, so that no long run is left for the end."""
        wanted = [r for r in self.runs if not r.done and (self.retry_failed or not r.failed_before)]
        return sorted(wanted, key=lambda run: -run.work)

    def seconds(self, run: PlannedRun) -> float:
        """Expected time of one run."""
        return run.work / self.flops_per_second / run.config.resources.cpus

    def makespan(self, slots: int) -> float:
        """Expected time of the whole, in seconds, with `slots` runs at a time."""
        ends = [0.0] * max(1, slots)
        for run in self.to_do:
            ends[ends.index(min(ends))] += self.seconds(run)
        return max(ends)


def make_plan(configs: Sequence[TrainConfig]) -> Plan:
    """Address every configuration, drop the doubles, look up what is done.

    Raises:
        ConfigError: Nothing to run, or runs of more than one study.
        DataError: A run that its data cannot feed.
    """
    if not configs:
        raise ConfigError("study: this sweep is empty")
    studies = sorted({config.study.name for config in configs})
    if len(studies) > 1:
        raise ConfigError(f"study={','.join(studies)}: a sweep belongs to one study")
    opened: dict[str, TokenData] = {}
    runs: dict[str, PlannedRun] = {}
    for config in configs:
        key = repr(config.data)
        if key not in opened:
            opened[key] = TokenData(config.data)
        opened[key].check(config.steps, config.batch_size, config.model.vocab_size)
        identity = run_id(config)
        if identity in runs:
            continue
        folder = run_folder(config)
        a_token = flops_per_token(config.model, config.data.seq_len)
        flops = config.steps * config.batch_tokens * a_token
        scoring = len(opened[key].validation) * config.data.seq_len * a_token / 3
        runs[identity] = PlannedRun(config, identity, folder, flops, scoring, read_record(folder))
    plan = Plan(
        list(runs.values()),
        duplicates=len(configs) - len(runs),
        retry_failed=configs[0].retry_failed,
    )
    speeds = [
        run.record.flops / run.record.wall_seconds / run.config.resources.cpus
        for run in plan.runs
        if run.done and run.record is not None and run.record.wall_seconds > 0
    ]
    if speeds:
        plan.flops_per_second, plan.measured = float(np.median(speeds)), True
    return plan


def write_study(plan: Plan) -> Path:
    """Leave `study.json` beside the runs: what the study is, what was planned, how to fit it.

    Runs planned by earlier launches stay planned, so that a study can be extended.
    """
    study = plan.runs[0].config.study
    folder = plan.runs[0].folder.parent
    path = folder / STUDY
    folder.mkdir(parents=True, exist_ok=True)
    earlier = json.loads(path.read_text())["planned"] if path.exists() else []
    planned = dict.fromkeys([*earlier, *(run.run_id for run in plan.runs)])
    content = {
        "name": study.name,
        "title": study.title or study.name,
        "description": study.description,
        "fit": study.fit,
        "planned": list(planned),
    }
    write_atomic(json.dumps(content, indent=1) + "\n", path)
    return path
