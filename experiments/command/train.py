"""The work of `lowbit-train`: Hydra outside, `train` or a sweep inside."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from experiments.paths import conf_dir, plugins_dir

sys.path.append(str(plugins_dir()))  # before Hydra looks for plugins

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar

from experiments.config.command_line import arrange
from experiments.config.own_files import named, with_own_files
from experiments.config.read import from_hydra, sweep_from_hydra
from experiments.config.schema import TrainConfig
from experiments.run.layers import layers_of
from experiments.store.curve import duration
from experiments.store.progress import SPEED, RunState
from experiments.store.weights import WEIGHTS
from experiments.sweep.cluster import this_machine
from experiments.sweep.estimate import probe
from experiments.sweep.plan import Resources, make_plan, write_study
from experiments.sweep.show import console, show_older, show_plan
from experiments.tasks.choose import task_of
from fitting.entry.answer import FULL_ERROR

if TYPE_CHECKING:
    from experiments.run.recorder import Progress, Report

_PLAIN_LINES = 20
"""Progress lines of a run that does not write to a terminal."""


def train_command() -> None:
    """Run the command line: one run, or with -m a sweep."""
    typed = sys.argv[1:]
    arranged, folder = arrange(typed)
    hydra_says = os.environ.get(FULL_ERROR)
    os.environ[FULL_ERROR] = "1"  # let errors through to here instead of printing them
    composed: list[DictConfig] = []

    def take(cfg: DictConfig) -> None:
        hydra_config = HydraConfig.get()
        composed.append(named(cfg, hydra_config.runtime.choices, hydra_config.overrides.task))

    sys.argv[1:] = arranged
    try:
        # Hydra composes and, with -m, sweeps; a single run starts once Hydra is out of the way.
        with with_own_files(folder):
            hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="train")(take)()
        for cfg in composed:
            _run_one(from_hydra(cfg), sweep_from_hydra(cfg).plan_only)
    finally:
        sys.argv[1:] = typed
        if hydra_says is None:
            os.environ.pop(FULL_ERROR, None)


def _run_one(config: TrainConfig, plan_only: bool) -> None:
    """One run, in this process."""
    plan = make_plan([config])
    if plan_only:
        probe([config], plan.speeds)
        cores = Resources(config.resources.cpus, config.resources.gpus)
        show_plan(plan, cores, max_parallel=1, full=True)
        console.print(str(layers_of(config)), markup=False, highlight=False, soft_wrap=True)
        return
    show_older(plan)
    for run in plan.to_do:
        run.refuse_unless_held_by([this_machine()])
    # Lightning takes seconds to import: not before a wrong request has been refused.
    from experiments.train import train as train_run

    with _progress(config) as report:
        result = train_run(config, report)
    write_study(plan)
    record = result.record
    unit = task_of(config).unit
    loss = "none" if record.loss is None else f"{record.loss:.4f} nats per {unit}"
    loss += "".join(f", {name} {value:.4g}" for name, value in record.metrics.items())
    done = " (already done)" if result.already_done else ""
    if result.already_done and not (result.folder / WEIGHTS).exists():
        done = " (already done; its weights were not kept)"
    console.print(
        f"{record.status}{done}: "
        f"loss {loss}, {record.tokens:,} {unit}s in {duration(record.wall_seconds)} "
        f"({record.tokens_per_second:,.0f} a second) {record.reason}\n{result.folder}",
        highlight=False,
        soft_wrap=True,
    )


@contextlib.contextmanager
def _progress(config: TrainConfig) -> Iterator[Report]:
    """A bar on a terminal, about twenty plain lines elsewhere."""
    state, tokens = RunState("", "running"), config.steps * config.batch_tokens
    last = -1

    def move(progress: Progress) -> None:
        nonlocal last
        if progress.phase != "train":
            bar.update(task, description="scoring the validation stream")
            return
        row = {"train/loss": progress.loss, SPEED: progress.tokens_per_second}
        state.follow({"tokens": progress.step * config.batch_tokens, **row}, tokens)
        left = (1 - state.share) / state.rate if state.rate else 0.0
        words = f"{state.text}, about {duration(left)} left" if left else state.text
        bar.update(task, completed=progress.step, description=f"{state.share:4.0%}  {words}")
        share = progress.step * _PLAIN_LINES // config.steps
        if not console.is_terminal and share > last:
            last = share
            console.print(f"step {progress.step}/{config.steps}  {state.text}", highlight=False)

    columns = (TextColumn("{task.description}"), BarColumn())
    with Bar(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("training", total=config.steps)
        yield move
