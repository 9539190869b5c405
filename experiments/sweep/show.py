"""Output of a sweep: first the plan, then a status line with the time left, then the results."""

from __future__ import annotations

import math
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from experiments.accounting import count_parameters
from experiments.run.identity import numerics_version
from experiments.store.curve import duration
from experiments.store.progress import Progress, RunState
from experiments.sweep.plan import Plan, PlannedRun, Resources
from fitting.results.record import RunRecord

console = Console(width=None if sys.stdout.isatty() else 120)
_PLAIN_STATUS_SECONDS = 30.0
_SHOWN_RUNS = 16
"""Runs at work that are shown; a cluster may have hundreds."""


def show_plan(plan: Plan, capacity: Resources, max_parallel: int | None, full: bool) -> None:
    """Counts, cost and time; every run if `full`."""
    to_do = plan.to_do
    done = sum(run.done for run in plan.runs)
    damaged = [run for run in plan.runs if run.damaged]
    skipped = sum(run.failed_before for run in plan.runs) if not plan.sweep.retry_failed else 0
    if full:
        table = Table(title=f"study {plan.runs[0].config.study.name}: the plan", box=box.SIMPLE)
        table.add_column("run", overflow="fold")
        for column in ("N", "tokens", "FLOPs", "GiB", "seconds"):
            table.add_column(column, justify="right", no_wrap=True)
        table.add_column("state", no_wrap=True)
        for run in plan.runs:
            state = "done" if run.done else "failed before" if run.failed_before else "to do"
            state = "damaged" if run.damaged else state
            table.add_row(
                run.run_id,
                f"{count_parameters(run.config.model).block:,}",
                f"{run.config.steps * run.config.batch_tokens:,}",
                f"{run.flops:.2e}",
                f"{run.gibibytes:.1f}",
                f"{plan.seconds(run):.0f}",
                state,
            )
        console.print(table)
        for run in damaged:
            console.print(f"damaged: {run.damaged}", soft_wrap=True, highlight=False, markup=False)
    parts = [f"{len(plan.runs)} runs", f"{done} done", f"{len(to_do)} to do"]
    if plan.duplicates:
        parts.append(f"{plan.duplicates} duplicates dropped")
    if damaged:
        parts.append(f"{len(damaged)} damaged and left alone")
    if skipped:
        parts.append(f"{skipped} failed before (retry_failed=true runs them again)")
    flops, hours = sum(run.flops for run in to_do), plan.device_hours()
    price = plan.sweep.budget.price
    cost = f", {hours * price:.2f} at {price:g} an hour" if price else ""
    kind = "GPU" if any(run.takes.gpus for run in to_do) else "core"
    console.print(
        f"study [bold]{plan.runs[0].config.study.name}[/]: {', '.join(parts)}; "
        f"{flops:.2e} FLOPs, {hours:.2g} {kind} hours{cost}, "
        f"about {duration(plan.makespan(capacity, max_parallel))} on {capacity} "
        f"({plan.speeds.basis})",
        soft_wrap=True,
        highlight=False,
    )
    show_older(plan)
    if lacking := sum(run.lacks_weights for run in plan.runs):
        console.print(
            f"{lacking} of the runs done did not keep their weights; with another runs=FOLDER they "
            "are trained again, to the same bits",
            soft_wrap=True,
            highlight=False,
        )


def show_older(plan: Plan) -> None:
    """Say in a line why runs that were done before are trained again."""
    older = [run.older for run in plan.to_do if run.older]
    if older:
        versions = " and ".join(map(str, sorted(set(older))))
        current = sorted({numerics_version(run.config) for run in plan.to_do if run.older})
        now = " and ".join(map(str, current))
        console.print(
            f"{len(older)} of the runs to do were done under numerics version {versions}; version "
            f"{now} gives them new addresses and trains them again; a fit then counts the new ones "
            "alone",
            soft_wrap=True,
            highlight=False,
        )


class Display:
    """Lines for events; below them, on a terminal, the runs at work and a status line."""

    def __init__(self, plan: Plan) -> None:
        self.states = {run.run_id: RunState(run.run_id, "waiting", run.work) for run in plan.runs}
        to_do = {run.run_id for run in plan.to_do}
        for run in plan.runs:
            if run.run_id not in to_do:
                status = run.record.status if run.record else "damaged"
                self.states[run.run_id].kind = status
        self.to_do = len(to_do)
        self.tokens = {run.run_id: run.config.steps * run.config.batch_tokens for run in plan.runs}
        self.others: set[str] = set()
        self.ended_here = 0
        self.progress = Progress(list(self.states.values()))
        self.began = self.last_plain = time.monotonic()
        self.live = Live(console=console, refresh_per_second=4, transient=True)

    def __enter__(self) -> Self:
        """Start the clock."""
        if console.is_terminal:
            self.live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Remove the status line."""
        if console.is_terminal:
            self.live.stop()

    def say(self, text: str) -> None:
        """Print a line of its own."""
        console.print(text, highlight=False, soft_wrap=True)

    def started(self, run: PlannedRun) -> None:
        """Note that a run was handed to Ray."""
        self._stands(run, "running", "starting")
        self.others.discard(run.run_id)

    def elsewhere(self, run: PlannedRun, why: str) -> None:
        """Note that somebody else is at work on a run; we wait for its outcome."""
        self._stands(run, "waiting")
        if run.run_id not in self.others:
            self.others.add(run.run_id)
            self.say(f"[cyan]waiting[/]  {run.run_id}: {why}")

    def retried(self, run: PlannedRun, why: str) -> None:
        """Note that a worker died; the run waits again."""
        self._stands(run, "waiting")
        self.say(f"[yellow]retry[/]    {run.run_id}: {why}")

    def ended(self, run: PlannedRun, record: RunRecord | None, failure: str, log: Path) -> None:
        """Note that a run ended; failures are shown at once, with their log."""
        self.others.discard(run.run_id)
        self.ended_here += 1
        if failure or record is None:
            self._stands(run, "failed")
            why = failure or "no record"
            line = f"[red]failed[/]   {run.run_id}: {escape(why)}; log: {log}"
        else:
            self._stands(run, record.status)
            colour = "green" if record.status == "finished" else "yellow"
            loss = "" if record.loss is None else f"loss {record.loss:.4f}"
            line = f"[{colour}]{record.status:<8}[/] {run.run_id}  {loss} {record.reason}"
        self.say(f"{self.ended_here:>3}/{self.to_do} {line}")

    def _stands(self, run: PlannedRun, kind: str, text: str = "") -> None:
        state = self.states[run.run_id]
        state.kind, state.text, state.rate = kind, text, 0.0

    def update(self, rows: dict[str, dict[str, Any]]) -> None:
        """Redraw from the last row of each running run's loss curve, {} where there is none."""
        for name, row in rows.items():
            self.states[name].follow(row, self.tokens[name])
        status = f"{self.progress}; {duration(time.monotonic() - self.began)} so far"
        if console.is_terminal:
            table = Table.grid(padding=(0, 2))
            running = sorted(self.progress.of(["running"]), key=lambda state: -state.share)
            for state in running[:_SHOWN_RUNS]:
                table.add_row(state.run_id, f"{state.share:4.0%}", state.text)
            self.live.update(Group(table, Text(status)))
        elif time.monotonic() - self.last_plain > _PLAIN_STATUS_SECONDS:
            self.last_plain = time.monotonic()
            self.say(status)


def show_results(records: list[RunRecord]) -> None:
    """The table of results, by model and tokens, best loss first; fits 80 columns."""
    table = Table(title="results", box=box.SIMPLE)
    for column in ("recipe", "format", "scales", "model"):
        table.add_column(column, no_wrap=True)
    for column in ("tokens", "seed", "loss", "tok/s"):
        table.add_column(column, justify="right", no_wrap=True)

    def order(record: RunRecord) -> tuple[int, int, float]:
        return record.params, record.tokens, math.inf if record.loss is None else record.loss

    for r in sorted(records, key=order):
        block = f"{r.granularity}{r.block_size:.0f}" if r.granularity == "block" else r.granularity
        loss = f"{r.loss:.4f}" if r.status == "finished" and r.loss is not None else r.status
        table.add_row(
            r.recipe,
            f"E{r.exponent}M{r.mantissa}" if r.operands else "",
            f"{r.scale} {block}" if r.operands else "",
            r.model,
            f"{r.tokens:,}",
            str(r.seed),
            loss,
            f"{r.tokens_per_second:,.0f}",
        )
    console.print(table)
