"""Signals: what a command that is told to stop leaves, says and ends with, once and twice.

Real processes throughout.  A test waits for what a process writes, never for a time; a second
signal is another one than the first, for two of a kind that wait are one.
"""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fitting.results.record import FAILURE, RESULT, read_record
from tests.support.places import ROOT
from tests.support.processes import PATIENCE, processes, wait_for

INT, TERM = signal.SIGINT, signal.SIGTERM
WORDS = {INT: "interrupted", TERM: "terminated"}
CODES = {INT: 130, TERM: 143}
SMALL = [
    *("model=ladder/a", "data=tokens", "data.seq_len=64", "data.max_epochs=200"),
    *("data.validation_windows=32", "batch_size=4", "tracking=none", "tracking.log_every=4"),
    *("optim.lr=0.001", "diagnostics.points=0", "recipe=none"),
]
LONG = "tokens=4_000_000"
REMARK = re.compile(": data.max_epochs=|^Ray did not start in time|^waiting for node")
"""What a command may say besides; the last two on a machine that is slow."""
TRAIN, FIT = (
    "from experiments.command.main import train; train()",
    "from fitting.command.main import fit; fit()",
)

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """`start(program, word, ...)`: a command as a process of its own, alone in its group."""
    root = str(ROOT)
    quiet = {**os.environ, "OMP_NUM_THREADS": "1"}
    with processes(tmp_path, stderr=subprocess.PIPE, env=quiet) as begin:
        yield lambda program, *words: begin(
            [sys.executable, "-c", f"import sys; sys.path.insert(0, {root!r}); {program}", *words]
        )


def ends(process: subprocess.Popen[str], code: int) -> list[str]:
    """What it says on stderr, in lines, once it has ended with this code."""
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == code, out + err
    assert "Traceback" not in err
    assert "Exception ignored" not in err
    return [line for line in err.splitlines() if not REMARK.search(line)]


def trains(folder: Path, runs: int = 1) -> Callable[[], bool]:
    """Whether so many runs below a study's folder have a loss."""
    return lambda: sum(c.stat().st_size > 0 for c in folder.glob("*/metrics.jsonl")) >= runs


@pytest.mark.parametrize("number", [pytest.param(INT, marks=pytest.mark.long), TERM])
def test_a_run_that_is_told_to_stop_says_so_and_goes_on_later(
    start: Start, tmp_path: Path, text: Path, number: signal.Signals
) -> None:
    runs = tmp_path / "runs" / "one"
    words = [*SMALL, f"data.path={text}", "study.name=one", "timeout_seconds=0"]
    run = start(TRAIN, *words, "tokens=300_000")
    wait_for(trains(runs), run)
    run.send_signal(number)
    said = ends(run, CODES[number])
    assert said == [f"lowbit-train: {WORDS[number]}; the same command goes on from here"]
    [folder] = (path for path in runs.iterdir() if path.is_dir())
    assert list(folder.glob("checkpoints/*.ckpt"))
    assert not [*folder.glob("lease.*"), *folder.glob(FAILURE), *folder.glob(RESULT)]
    again = start(TRAIN, *words, "tokens=300_000")
    assert ends(again, 0) == []
    record = read_record(folder)
    assert record is not None
    assert (record.status, record.attempts) == ("finished", 2)


@pytest.mark.parametrize(
    ("first", "second"), [(INT, TERM), pytest.param(TERM, INT, marks=pytest.mark.long)]
)
def test_a_second_signal_at_once_ends_a_run_with_a_word(
    start: Start, tmp_path: Path, text: Path, first: signal.Signals, second: signal.Signals
) -> None:
    runs = tmp_path / "runs" / "one"
    run = start(TRAIN, *SMALL, f"data.path={text}", "study.name=one", LONG)
    wait_for(trains(runs), run)
    run.send_signal(first)
    run.send_signal(second)
    run.wait(PATIENCE)
    # Python looks at waiting signals by their number, so SIGINT may be the first either way.
    assert run.returncode in {CODES[first], CODES[INT]}
    number = INT if run.returncode == 130 else TERM
    said = ends(run, run.returncode)
    assert said[0] == f"lowbit-train: {WORDS[number]}; the same command goes on from here"
    assert said[1:] in ([], ["lowbit-train: ended at once"])
    assert not list(runs.glob(f"*/{FAILURE}"))


def test_ctrl_c_before_the_first_step_is_a_word(start: Start, tmp_path: Path, text: Path) -> None:
    """While it imports, plans and opens the data nothing is there to be kept."""
    for number in (INT, TERM):
        run = start(TRAIN, *SMALL, f"data.path={text}", f"study.name=early{number:d}", LONG)
        maps = Path(f"/proc/{run.pid}/maps")
        wait_for(lambda maps=maps: "libtorch_cpu" in maps.read_text(), run)  # type: ignore[misc]
        run.send_signal(number)
        said = ends(run, CODES[number])
        assert said == [f"lowbit-train: {WORDS[number]}; the same command goes on from here"]


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Losses of a Chinchilla law with a little noise."""
    lines = ["loss,params,tokens"]
    for size in range(4):
        for length in range(4):
            params, tokens = 10 ** (6 + size / 2), 10 ** (8 + length / 2)
            noise = 1 + 0.01 * ((7 * size + 5 * length) % 3 - 1)
            lines.append(
                f"{noise * (1.7 + 406 / params**0.34 + 410 / tokens**0.28)},{params},{tokens}"
            )
    path = tmp_path / "losses.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize("number", [INT, TERM])
def test_a_long_bootstrap_ends_with_a_word_and_writes_nothing(
    start: Start, tmp_path: Path, table: Path, number: signal.Signals
) -> None:
    words = [f"results={table}", "law=chinchilla", "out=fits", "bootstrap=1000000"]
    fit = start(FIT, *words, "evidence=false")
    maps = Path(f"/proc/{fit.pid}/maps")
    wait_for(lambda: "scipy/optimize/_lbfgsb" in maps.read_text(), fit)
    fit.send_signal(number)
    said = ends(fit, CODES[number])
    assert said == [f"lowbit-fit: {WORDS[number]}; the same command goes on from here"]
    assert not list(tmp_path.glob("fits/fit.json"))


def workers_are_gone(runs: Path) -> None:
    """No process that ran anything is left, or will be for long."""
    pids = re.findall(r"process (\d+)", "".join(p.read_text() for p in runs.glob("*/log.txt")))
    assert pids
    deadline = time.monotonic() + PATIENCE
    while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


def sweep(start: Start, text: Path) -> subprocess.Popen[str]:
    words = [*SMALL, f"data.path={text}", "study.name=many", LONG, "seed=0,1"]
    return start(TRAIN, "-m", *words, "hydra.launcher.max_parallel=1")


@pytest.mark.ray
@pytest.mark.parametrize("number", [INT, pytest.param(TERM, marks=pytest.mark.long)])
def test_a_sweep_that_is_told_to_stop_says_so(
    start: Start, tmp_path: Path, text: Path, number: signal.Signals
) -> None:
    runs = tmp_path / "runs" / "many"
    driver = sweep(start, text)
    wait_for(trains(runs), driver)
    driver.send_signal(number)
    said = ends(driver, CODES[number])
    assert said == [f"lowbit-train: {WORDS[number]}; the same command goes on from here"]
    assert list(runs.glob("*/checkpoints/*.ckpt"))
    assert not [*runs.glob("*/lease.*"), *runs.glob("*/stop.*"), *runs.glob(f"*/{FAILURE}")]
    workers_are_gone(runs)


@pytest.mark.ray
@pytest.mark.slow
def test_a_second_ctrl_c_while_a_sweep_shuts_down_ends_it_with_a_word(
    start: Start, tmp_path: Path, text: Path
) -> None:
    runs = tmp_path / "runs" / "many"
    driver = sweep(start, text)
    wait_for(trains(runs), driver)
    driver.send_signal(INT)
    wait_for(lambda: driver.poll() is not None or list(runs.glob("*/stop.*")), driver)
    driver.send_signal(INT)
    said = ends(driver, 130)
    assert said[0] == "lowbit-train: interrupted; the same command goes on from here"
    assert said[1:] in ([], ["lowbit-train: ended at once"])
    assert not list(runs.glob(f"*/{FAILURE}"))
    workers_are_gone(runs)
