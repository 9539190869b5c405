"""The console script `lowbit-sync`: offline W&B runs to the server, one curve per run.

A run's files are only read, so nothing can be lost here.  The server receives what a resumed online
run would have sent: the rows that it does not have yet, of all attempts together.  `wandb sync`
would let a later attempt overwrite an earlier one, give up at a torn file, report a refused upload
as done, and wait for ever.

Each run is pushed by a process of its own, so that a time limit can be enforced.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import threading
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from experiments.mirror import tracking
from experiments.mirror.files import inside, is_synced, mark_synced, read_run, run_files
from experiments.paths import package_dir
from experiments.store.lease import at_work
from fitting.entry import options as typed
from fitting.entry.errors import UsageError, one_line
from fitting.entry.options import command, listed, option, seconds


@dataclass(frozen=True)
class Options:
    """Options of `lowbit-sync`."""

    study: tuple[str, ...] = option(
        (), "stands for the folder NAME below runs; may be given more than once", "NAME",
        several=True,
    )  # fmt: skip
    runs: str = option("runs", "folder of all studies' results")
    timeout: float = option(
        60.0,
        "seconds for one run to arrive; a server that is down ends the command",
        read=seconds,
    )
    dry_run: bool = option(False, "true: only say what would be done")


HELP = """\
lowbit-sync: push the offline W&B runs of a study, continuing the curves of resumed runs.

  lowbit-sync study=precision_grid                  every run below runs/precision_grid
  lowbit-sync study=precision_grid dry_run=true     what would be pushed; asks no server
  lowbit-sync runs/demo/nearest-E2M1-... timeout=300
  WANDB_BASE_URL=http://wandb.lab:8080 lowbit-sync study=demo

Prints one line per run: pushed, repaired+pushed (an attempt was killed and its file is torn, or
there were several), already pushed, running (left alone), failed (why).  May be run again at any
time, also while the sweep goes on; what the server has is not sent again.

Log in once with `wandb login`, or set WANDB_API_KEY.  Exit code: 0 all complete runs are pushed,
1 some failed, 2 a wrong request or no key.

  PATH ...             folders of runs or of studies, wherever they are
""" + listed(Options)
_AT_ONCE = 4
_ANSWER_SHARE = 0.7
"""Share of the time limit for the server's first answer; the rest is time to report an error."""
_PROBE_SECONDS = 5.0
_LINE_CHARACTERS = 500
NO_KEY = (
    "no W&B key: log in with `wandb login`, or set WANDB_API_KEY "
    "(and WANDB_BASE_URL for a server of your own)"
)


_Found = TypeVar("_Found")


@dataclass(frozen=True)
class Outcome:
    """The outcome of one run."""

    state: str
    """pushed, repaired+pushed, already pushed, running, empty, failed or not tried."""
    detail: str = ""
    ends_all: str = ""
    """The reason why no other run can be pushed either."""


def main() -> None:
    """Entry point of `lowbit-sync`."""
    command("lowbit-sync", HELP, run)


def run(arguments: Sequence[str]) -> int:
    """Do what the arguments say and return the exit code.

    Raises:
        UsageError: They make no sense.
    """
    options, paths = parse(arguments)
    folders = find_runs(paths)
    if not folders:
        where = ", ".join(str(path) for path in paths)
        raise UsageError(f"{where}: no W&B files below it; was it trained with tracking=none?")
    states: Counter[str] = Counter()
    if options.dry_run:
        for folder in folders:
            outcome = _unharmed(_in_a_dry_run, folder)
            _say(folder, outcome)
            states[outcome.state] += 1
        return 1 if states["failed"] else 0
    ends_all = ""
    for folder, outcome in push_all(folders, options.timeout, server()):
        _say(folder, outcome)
        states[outcome.state] += 1
        ends_all = ends_all or outcome.ends_all
    sys.stdout.write(", ".join(f"{count} {state}" for state, count in states.items()) + "\n")
    if ends_all:
        sys.stderr.write(f"lowbit-sync: {ends_all}\n")
    if ends_all == NO_KEY:
        return 2
    return 1 if states["failed"] or states["not tried"] else 0


def parse(arguments: Sequence[str]) -> tuple[Options, list[Path]]:
    """The options as typed, and the folders to look into.

    Raises:
        UsageError: Names the word, and what would be right.
    """
    known = typed.keys(Options)
    words = [w for w in arguments if w.partition("=")[0] in known or not Path(w).exists()]
    options = typed.parse(Options, words, "a folder or file that exists")
    paths = [Path(word) for word in arguments if word not in words]
    paths += [Path(options.runs, study) for study in options.study]
    if not paths:
        raise UsageError("study: missing; give study=<name> or folders")
    for path in paths:
        if not path.exists():
            raise UsageError(f"study={path.name}: there is no folder {path.absolute()}")
        if path.is_file() and not path.match("run-*.wandb"):
            raise UsageError(f"{path}: must be a folder, or a file of W&B's, run-<id>.wandb")
    return options, paths


def find_runs(paths: Iterable[Path]) -> list[Path]:
    """The folders of the runs below some paths that have W&B files."""
    files = {
        file.absolute()
        for path in paths
        for file in ([path] if path.is_file() else path.rglob("run-*.wandb"))
        if inside(file, path)
    }
    # <run>/wandb/[offline-]run-<time>-<id>/run-<id>.wandb
    return sorted({file.parents[2] for file in files})


def server() -> str:
    """The address that W&B is set to use."""
    import wandb
    from wandb.sdk import wandb_setup

    try:
        return str(wandb_setup.singleton().settings.base_url)
    finally:
        wandb.teardown()


def push_all(folders: Sequence[Path], timeout: float, url: str) -> Iterator[tuple[Path, Outcome]]:
    """Push runs to the server at `url`, a few at once.

    Yields:
        Each run's folder with its outcome, as soon as that is known.
    """
    hopeless = threading.Event()

    def one(folder: Path) -> Outcome:
        if (outcome := _unharmed(_without_pushing, folder)) is not None:
            return outcome
        if hopeless.is_set():
            return Outcome("not tried")
        outcome = _unharmed(lambda folder: _in_a_process(folder, timeout, url), folder)
        if outcome.ends_all:
            hopeless.set()
        return outcome

    pool = ThreadPoolExecutor(_AT_ONCE)
    try:
        jobs = {pool.submit(one, folder): folder for folder in folders}
        for job in as_completed(jobs):
            yield jobs[job], job.result()
    finally:  # Ctrl-C: the processes get it too
        pool.shutdown(cancel_futures=True)


def push(folder: Path, timeout: float) -> dict[str, Any]:
    """Push one run from this process.

    Args:
        folder: The run's.
        timeout: Seconds for the rows to arrive, most of it for the server's first answer.

    Returns:
        `rows`, `attempts` and `torn` bytes of what was pushed.

    Raises:
        tracking.TrackingError: It did not arrive.
        ValueError: A file is not W&B's.
    """
    sizes = {file: file.stat().st_size for file in run_files(folder)}
    found = read_run(folder, folder.name)
    if found.history:
        found.config.pop("_wandb", None)
        with tempfile.TemporaryDirectory(prefix="lowbit-sync-") as scratch:
            rows = found.history
            tracking.connect(found, Path(scratch), rows, _ANSWER_SHARE * timeout, timeout)
            # W&B has no state "stopped": a run without an end has failed, until it is resumed.
            if not tracking.finish(1 if found.exit_code is None else found.exit_code):
                raise tracking.TrackingError("the server did not take all of its rows")
        for file, size in sizes.items():
            mark_synced(file, size)
    return {"rows": len(found.history), "attempts": found.attempts, "torn": found.torn}


def push_alone(folder: str, timeout: float) -> None:
    """The work of one run's process: push it, and report to the parent in a line of JSON."""
    try:
        print(json.dumps(push(Path(folder), timeout)))
    except tracking.TrackingError as error:
        print(json.dumps({"error": str(error)}))
    except (ValueError, OSError) as error:
        print(json.dumps({"error": str(error), "of_a_file": True}))


def _in_a_process(folder: Path, timeout: float, url: str) -> Outcome:
    root = package_dir().parent
    program = (
        f"import sys; sys.path.insert(0, {str(root)!r}); "
        f"from experiments.mirror.sync import push_alone; push_alone({str(folder)!r}, {timeout})"
    )
    command = [sys.executable, "-P", "-c", program]  # -P: not what lies in the current folder
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout
        )
    except subprocess.TimeoutExpired:
        return _failed(f"no answer within {timeout:g} s", url)
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        return Outcome("failed", (lines or ["its process was killed"])[-1])
    said = json.loads(done.stdout.splitlines()[-1])  # W&B may have printed something, too
    if "of_a_file" in said:
        return Outcome("failed", said["error"])
    return _failed(said["error"], url) if "error" in said else _arrived(said)


def _arrived(said: dict[str, Any]) -> Outcome:
    if not said["attempts"]:
        return Outcome("empty", "killed before it logged anything")
    detail = f"{said['rows']} rows"
    if said["attempts"] > 1:
        detail += f", {said['attempts']} attempts joined"
    if said["torn"]:
        detail += f", {said['torn']} torn bytes left out"
    return Outcome("repaired+pushed" if said["attempts"] > 1 or said["torn"] else "pushed", detail)


def _failed(reason: str, url: str) -> Outcome:
    # Only W&B's own words end everything, not a run's, such as the name of its project.
    said = reason.removeprefix("W&B did not start (")
    if said.startswith("No API key"):
        return Outcome("failed", "no key", NO_KEY)
    if re.match(r"[^'\"]*(returned error 401|API key)", said):
        return Outcome("failed", reason, f"{url} refuses the key: log in again with `wandb login`")
    if ("no answer" in reason or "deadline" in reason) and not _answers(url):
        return Outcome("failed", reason, f"{url} does not answer; nothing was lost, try again")
    return Outcome("failed", reason)


def _answers(url: str) -> bool:
    """Whether the server answers at all; one slow run says nothing about the others."""
    try:
        urllib.request.urlopen(url, timeout=_PROBE_SECONDS).close()
    except urllib.error.HTTPError:
        return True
    except (OSError, ValueError):
        return False
    return True


def _unharmed(look: Callable[[Path], _Found], folder: Path) -> _Found | Outcome:
    """The outcome that a look at a run's folder gives; an error in one does not stop the others."""
    try:
        return look(folder)
    except (OSError, ValueError, MemoryError) as error:
        return Outcome("failed", one_line(error) or type(error).__name__)


def _in_a_dry_run(folder: Path) -> Outcome:
    return _without_pushing(folder, reads_only=True) or _would_push(folder)


def _without_pushing(folder: Path, reads_only: bool = False) -> Outcome | None:
    if (who := at_work(folder, reads_only)) is not None:
        return Outcome("running", f"on {who.host}; left alone")
    if all(is_synced(file) for file in run_files(folder)):
        return Outcome("already pushed")
    return None


def _would_push(folder: Path) -> Outcome:
    found = read_run(folder, folder.name)
    said = {"rows": len(found.history), "attempts": found.attempts, "torn": found.torn}
    outcome = _arrived(said)
    return Outcome(f"would be {outcome.state}", outcome.detail)


def _say(folder: Path, outcome: Outcome) -> None:
    detail = one_line(outcome.detail)
    if len(detail) > _LINE_CHARACTERS:
        detail = f"{detail[:_LINE_CHARACTERS]} ..."
    line = f"{outcome.state:<15}  {one_line(folder.name)}  {detail}"
    sys.stdout.write(line.rstrip() + "\n")
    sys.stdout.flush()
