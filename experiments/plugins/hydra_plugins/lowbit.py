"""Hydra plugins, a thin shell over `experiments.sweep`: which runs, and where they run.

`lowbit_files`, beside this module, says how Hydra finds them.
"""

from __future__ import annotations

import itertools
import re
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from experiments.config.command_line import check_overrides
from experiments.config.compose import Composer, checked_grids, compose_all
from experiments.config.precision import ConfigError
from experiments.config.read import sweep_from_hydra
from experiments.config.schema import SWEEP_KEYS
from experiments.sweep.estimate import probe
from experiments.sweep.plan import make_plan, write_table
from experiments.sweep.show import console, show_plan, show_results

_SPECIAL, _ESCAPED = re.compile(r"[\\:()\[\]{}=, ]"), r"\\\g<0>"
"""What in a key of a mapping Hydra reads as itself only behind a backslash."""


class GridSweeper(BasicSweeper):
    """The union of a study's grids, each a product of choices; the command line wins.

    `study.grids` is a list of {key: [values]}.  A key swept on the command line replaces that key
    in every grid, or joins every product.
    """

    def sweep(self, arguments: list[str]) -> Any:
        """Expand everything and launch it as one batch: planning needs to see it whole."""
        assert self.config is not None
        assert self.launcher is not None
        assert self.hydra_context is not None
        if self.params or self.max_batch_size is not None:
            raise ConfigError(
                "hydra.sweeper: has no effect here; a sweep is typed with -m key=a,b or written "
                "as study.grids, and hydra.launcher.max_parallel limits how many run at once"
            )
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        choices = _choices(parser, arguments)
        own = [k for k, v in choices.items() if k.partition(".")[0] in SWEEP_KEYS and len(v) == 1]
        typed = {key: values for key, values in choices.items() if key not in own}
        jobs = []
        for grid in checked_grids(self.config) or [{}]:
            swept = [f"{key}={','.join(map(_written, values))}" for key, values in grid.items()]
            check_overrides(swept, several=True)
            product = {**_choices(parser, swept), **typed}
            jobs += [list(choice) for choice in itertools.product(*product.values())]
        return [self.launcher.launch(jobs, initial_job_idx=0)]


def _written(value: object) -> str:
    """A value of a grid as it is written on the command line."""
    if isinstance(value, str) and not re.fullmatch(r"[\w./+-]+", value):
        text = value.replace("\\", "\\\\").replace("'", "\\'")
        return f"'{text}'"
    if isinstance(value, dict):
        pairs = (f"{_SPECIAL.sub(_ESCAPED, str(k))}: {_written(v)}" for k, v in value.items())
        return f"{{{', '.join(pairs)}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(_written, value))}]"
    return "null" if value is None else str(value)


def _choices(parser: OverridesParser, arguments: Sequence[str]) -> dict[str, list[str]]:
    """Key -> the overrides from which a run gets one; for a key typed twice, the last."""
    found: dict[str, list[str]] = {}
    for word in parser.parse_overrides(list(arguments)):
        try:
            batch = BasicSweeper.split_arguments([word], None)[0]
        except HydraException as error:
            raise ConfigError(f"{word.input_line}: cannot be swept ({error})") from None
        if not batch:
            raise ConfigError(f"{word.input_line}: matches nothing, so there is nothing to run")
        overrides = list(dict.fromkeys(override for [override] in batch))
        check_overrides(overrides, several=False)
        found[overrides[0].partition("=")[0]] = overrides
    return found


class RayLauncher(Launcher):
    """Plan, show the plan, run whatever is not yet done, show the results."""

    def __init__(
        self, address: str = "local", max_parallel: int | None = None, dashboard: bool = False
    ) -> None:
        self.address, self.max_parallel, self.dashboard = address, max_parallel, dashboard

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Take over from Hydra."""
        self.hydra_context, self.config = hydra_context, config

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Run the sweep.

        Raises:
            ConfigError: Before anything is started.
            SystemExit: With the exit code, if not all runs are done at the end.
            KeyboardInterrupt: By its name, the signal that ended it.
        """
        if self.max_parallel is not None and (
            not isinstance(self.max_parallel, int) or self.max_parallel < 1
        ):
            raise ConfigError(
                f"hydra.launcher.max_parallel={self.max_parallel}: must be 1 or more, or null"
            )
        composer = Composer(self.hydra_context.config_loader, self.config)
        sweep = sweep_from_hydra(self.config)
        plan = make_plan(compose_all(composer, job_overrides), sweep)
        if not plan.speeds.measured and (sweep.plan_only or sweep.budget.hours):
            probe((run.config for run in plan.to_do), plan.speeds)
        # Lightning takes seconds to import: not before a wrong request has been refused.
        from experiments.sweep.cluster import capacity
        from experiments.sweep.launch import launch

        show_plan(plan, capacity(self.address), self.max_parallel, full=sweep.plan_only)
        if sweep.plan_file:
            write_table(plan, Path(sweep.plan_file))
        plan.refuse_over_budget()
        if sweep.plan_only:
            return []
        outcome = launch(plan, self.address, self.max_parallel, self.dashboard)
        show_results(outcome.records)
        console.print(f"records: {plan.study_folder}", soft_wrap=True, highlight=False)
        if outcome.signal:
            raise KeyboardInterrupt(signal.Signals(outcome.signal).name)
        if outcome.exit_code:
            raise SystemExit(outcome.exit_code)
        return []
