"""`lowbit-status`: how a study stands, from its folder alone, on any machine that sees it."""

from __future__ import annotations

import math
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.text import Text

from experiments.store.curve import duration, last_row
from experiments.store.lease import at_work
from fitting.entry import options as typed
from fitting.entry.errors import UsageError
from fitting.entry.options import command, listed, option, seconds
from fitting.files.own_json import read_object
from fitting.results.record import RunRecord, look_at
from fitting.results.study_file import STUDY, read_study


@dataclass(frozen=True)
class Options:
    """Options of `lowbit-status`."""

    study: str = option("", "folder below runs", "NAME")
    runs: str = option("runs", "folder of all studies' results")
    watch: float = option(0.0, "show it again and again", "SECONDS", read=seconds)

    @property
    def folder(self) -> Path:
        """Where the study lies."""
        return Path(self.runs) / self.study


HELP = """\
lowbit-status: how a study stands, from any shell and any machine that sees its folder.

  lowbit-status study=demo              runs/demo: what is done, at work, failed, left; when it ends
  lowbit-status study=demo watch=10     again every 10 seconds, until all is done
  lowbit-status study=demo runs=/shared/runs

Reads only; it needs neither Ray nor the process that started the sweep.  Exit codes: 0 all runs are
done, 1 some are not, 2 a wrong request.

""" + listed(Options)
RATE = "train/tokens_per_second"


@dataclass
class State:
    """Of one run."""

    run_id: str
    kind: str
    """finished, diverged, failed, damaged, running, interrupted or waiting."""
    work: float
    """FLOPs of the whole run."""
    share: float = 0.0
    """Of its tokens that are done."""
    rate: float = 0.0
    """Shares a second, of a running one."""
    text: str = ""
    """What there is to say: a loss, a reason, who is at work."""


@dataclass
class Status:
    """Of a study."""

    name: str
    states: list[State] = field(default_factory=list)

    def count(self, *kinds: str) -> int:
        """Runs of these kinds."""
        return sum(state.kind in kinds for state in self.states)

    @property
    def share(self) -> float:
        """Of all work that is done, weighted by FLOPs; a diverged run's is done."""
        total = sum(state.work for state in self.states)
        done = sum(s.work * (1.0 if _ended(s) else s.share) for s in self.states)
        return done / total if total else 1.0

    @property
    def eta(self) -> float | None:
        """Seconds left if runs go on as they do now; None if none is at work."""
        speed = sum(state.work * state.rate for state in self.states)
        left = sum(s.work * (1 - s.share) for s in self.states if not _ended(s))
        return left / speed if speed else None


def _ended(state: State) -> bool:
    return state.kind in ("finished", "diverged", "failed")


def read_status(folder: Path) -> Status:
    """What the store says about the study in `folder`.

    Raises:
        UsageError: There is no study.
    """
    if not (folder / STUDY).is_file():
        raise UsageError(f"study={folder.name}: there is no {folder / STUDY}")
    about = read_study(folder)
    work = about["work"]  # not known of studies planned before it was written: all alike
    states = [_state(folder / name, float(work.get(name, 1.0))) for name in about["planned"]]
    return Status(about["name"], states)


def _state(run: Path, work: float) -> State:
    if not run.is_dir():
        return State(run.name, "waiting", work)
    who = at_work(run, reads_only=True)
    row = last_row(run)
    record, damaged = look_at(run)
    if damaged:
        return State(run.name, "damaged", work, text=damaged)
    if record is None or record.status == "failed":
        share, rate = _progress(run, row)
        if who is not None:
            loss = f"loss {row['train/loss']:.4f}, " if "train/loss" in row else ""
            text = f"{share:4.0%}  {loss}process {who.pid} on {who.host}, attempt {who.number}"
            return State(run.name, "running", work, share, rate, text)
        if record is None:
            kind = "interrupted" if row else "waiting"
            return State(run.name, kind, work, share, 0.0, f"at {share:.0%}" if row else "")
    return State(run.name, record.status, work, 1.0, 0.0, _said(record))


def _said(record: RunRecord) -> str:
    if record.status == "finished":
        return f"loss {record.loss:.4f}"
    return record.reason


def _progress(run: Path, row: dict[str, Any]) -> tuple[float, float]:
    """Share of a run that is done, and shares a second."""
    config = run / "config.json"
    if not row or not config.is_file():
        return 0.0, 0.0
    try:
        tokens = max(1, int(read_object(config, "the next attempt writes it anew")["tokens"]))
        share, rate = float(row["tokens"]) / tokens, float(row.get(RATE, 0.0)) / tokens
        if not (share >= 0 and 0 <= rate < math.inf):
            return 0.0, 0.0
        return min(1.0, share), rate
    except (ValueError, TypeError, KeyError, OverflowError):  # a share is not worth an error
        return 0.0, 0.0


def render(status: Status) -> str:
    """As text with rich's markup, one line a run that is at work or in trouble."""
    parts = [f"{status.count('finished', 'diverged')} of {len(status.states)} runs done"]
    for kind in ("diverged", "running", "interrupted", "failed", "damaged", "waiting"):
        if number := status.count(kind):
            parts.append(f"{number} {kind}")
    eta = f", about {duration(status.eta)} left" if status.eta is not None else ""
    name, share = _told(status.name), status.share
    lines = [f"study [bold]{name}[/]: {', '.join(parts)}; {share:.0%} of the work{eta}"]
    for kind, colour in (
        ("running", "cyan"),
        ("interrupted", "yellow"),
        ("failed", "red"),
        ("damaged", "red"),
        ("diverged", "yellow"),
    ):
        lines += [
            f"  [{colour}]{kind:<11}[/] {_told(state.run_id)}  {_told(state.text)}"
            for state in status.states
            if state.kind == kind
        ]
    return "\n".join(lines)


def _told(text: str) -> str:
    """A text from a file: in one line, and nothing that rich or a terminal would obey."""
    return escape("".join(c if c.isprintable() else " " for c in text))


def main() -> None:
    """The console script."""
    command("lowbit-status", HELP, run)


def run(arguments: list[str]) -> int:
    """Do what the arguments say and return the exit code.

    Raises:
        UsageError: They cannot be meant.
    """
    console = Console(width=None if sys.stdout.isatty() else 200)
    options = parse(arguments)
    status = read_status(options.folder)
    if not options.watch:
        console.print(render(status), highlight=False, soft_wrap=True)
    else:
        with Live(console=console, auto_refresh=False) as live:
            while True:
                live.update(Text.from_markup(render(status)), refresh=True)
                if status.count("finished", "diverged") == len(status.states):
                    break
                time.sleep(options.watch)
                status = read_status(options.folder)
    return 0 if status.count("finished", "diverged") == len(status.states) else 1


def parse(arguments: list[str]) -> Options:
    """The options as typed; raises as `run` does."""
    options = typed.parse(Options, arguments)
    if not options.study:
        raise UsageError("study: missing; give study=<name>")
    return options
