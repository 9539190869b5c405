"""`lowbit-status`: the state of a study, from its folder alone, on any machine that sees it."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.text import Text

from experiments.store.curve import last_row
from experiments.store.lease import at_work
from experiments.store.progress import Progress, RunState
from fitting.entry import options as typed
from fitting.entry.errors import UsageError
from fitting.entry.options import command, listed, option, seconds
from fitting.files.own_json import read_object
from fitting.results.record import look_at
from fitting.results.study_file import STUDY, read_study


@dataclass(frozen=True)
class Options:
    """Options of `lowbit-status`."""

    study: str = option("", "folder below runs", "NAME")
    runs: str = option("runs", "folder of all studies' results")
    watch: float = option(0.0, "show it again and again", "SECONDS", read=seconds)

    @property
    def folder(self) -> Path:
        """The folder of the study."""
        return Path(self.runs) / self.study


HELP = """\
lowbit-status: show the state of a study, from any shell and any machine that sees its folder.

  lowbit-status study=demo              runs/demo: what is done, at work, failed, left; when it ends
  lowbit-status study=demo watch=10     again every 10 seconds, until all is done
  lowbit-status study=demo runs=/shared/runs

Reads only; it needs neither Ray nor the process that started the sweep.  Exit codes: 0 all runs are
done, 1 some are not, 2 a wrong request.

""" + listed(Options)


def read_status(folder: Path) -> tuple[str, Progress]:
    """The name of the study in `folder`, and the progress of its runs according to the store.

    Raises:
        UsageError: There is no study.
    """
    if not (folder / STUDY).is_file():
        raise UsageError(f"study={folder.name}: there is no {folder / STUDY}")
    about = read_study(folder)
    work = about["work"]  # not known of studies planned before it was written: all alike
    runs = [_state(folder / name, float(work.get(name, 1.0))) for name in about["planned"]]
    return about["name"], Progress(runs)


def _state(run: Path, work: float) -> RunState:
    state = RunState(run.name, "waiting", work)
    if not run.is_dir():
        return state
    who = at_work(run, reads_only=True)
    row = last_row(run)
    record, damaged = look_at(run)
    if damaged:
        state.kind, state.text = "damaged", damaged
    elif record is not None and (record.status != "failed" or who is None):
        finished = record.status == "finished"
        state.kind = record.status
        state.text = f"loss {record.loss:.4f}" if finished else record.reason
    elif who is not None:
        state.kind = "running"
        state.follow(row, _tokens(run))
        loss = f"{state.text}, " if state.text else ""
        where = f"process {who.pid} on {who.host}, attempt {who.number}"
        state.text = f"{state.share:4.0%}  {loss}{where}"
    elif row:
        state.kind = "interrupted"
        state.follow(row, _tokens(run))
        state.text = f"at {state.share:.0%}"
    return state


def _tokens(run: Path) -> float:
    """The number of tokens that a run trains on; 0 if its configuration does not say."""
    config = run / "config.json"
    if not config.is_file():
        return 0.0
    try:
        return float(read_object(config, "the next attempt writes it anew")["tokens"])
    except (ValueError, TypeError, KeyError, OverflowError):  # a share is not worth an error
        return 0.0


def render(name: str, status: Progress) -> str:
    """The status as text with rich's markup, one line per run that is at work or in trouble."""
    lines = [f"study [bold]{_told(name)}[/]: {status}"]
    for kind, colour in (
        ("running", "cyan"),
        ("interrupted", "yellow"),
        ("failed", "red"),
        ("damaged", "red"),
        ("diverged", "yellow"),
    ):
        lines += [
            f"  [{colour}]{kind:<11}[/] {_told(state.run_id)}  {_told(state.text)}"
            for state in status.of([kind])
        ]
    return "\n".join(lines)


def _told(text: str) -> str:
    """A text from a file in one line, without anything that rich or a terminal would interpret."""
    return escape("".join(c if c.isprintable() else " " for c in text))


def main() -> None:
    """The console script."""
    command("lowbit-status", HELP, run)


def run(arguments: list[str]) -> int:
    """Do what the arguments say and return the exit code.

    Raises:
        UsageError: They make no sense.
    """
    console = Console(width=None if sys.stdout.isatty() else 200)
    options = parse(arguments)
    name, status = read_status(options.folder)
    if not options.watch:
        console.print(render(name, status), highlight=False, soft_wrap=True)
    else:
        with Live(console=console, auto_refresh=False) as live:
            while True:
                live.update(Text.from_markup(render(name, status)), refresh=True)
                if status.done:
                    break
                time.sleep(options.watch)
                name, status = read_status(options.folder)
    return 0 if status.done else 1


def parse(arguments: list[str]) -> Options:
    """The options as typed; raises as `run` does."""
    options = typed.parse(Options, arguments)
    if not options.study:
        raise UsageError("study: missing; give study=<name>")
    return options
