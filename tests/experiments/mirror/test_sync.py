"""`lowbit-sync` brings each run to the server once, whole, in bounded time, and says so."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from experiments.config.schema import TrainConfig
from experiments.mirror import sync, tracking
from experiments.mirror.files import is_synced, run_files
from experiments.store.lease import Lease
from fitting.entry.errors import UsageError
from tests.support.wandb_server import KEY, WandbServer

ROWS = 6


@pytest.fixture
def study(
    composed: Callable[..., TrainConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Path]:
    """`study("a", range(6))` is the folder of run a of study s after an attempt at these steps."""
    monkeypatch.chdir(tmp_path)
    config = composed("tracking=offline", "study.name=s", "model=ladder/a")

    def attempt(name: str, steps: range, torn: int = 0, exit_code: int = 0) -> Path:
        folder = Path("runs/s", name).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        mirror = tracking.start(config, name, folder, attempt=1)
        for step in steps:
            tracking.log(mirror, {"step": step, "tokens": 10 * step, "train/loss": 1 / (step + 1)})
        tracking.finish(exit_code)
        tracking.shut_down()  # its settings are not those of lowbit-sync's process
        if torn:
            newest = run_files(folder)[-1]
            newest.write_bytes(newest.read_bytes()[:-torn])
        return folder

    return attempt


def steps_of(server: WandbServer, name: str) -> list[int]:
    return [row["step"] for row in server.runs[name].rows()]


def wandb_of(pid: int) -> list[str]:
    """Processes of W&B that serve the process `pid`."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(FileNotFoundError):
            words = (process / "cmdline").read_bytes().split(b"\0")
            if b"wandb-core" in words[0] and str(pid).encode() in words:
                found.append(process.name)
    return found


def test_a_study_is_pushed_once(
    study: Callable[..., Path], server: WandbServer, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = [study(name, range(ROWS)) for name in ("a", "b")]
    assert sync.run(["study=s"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert sorted(said[:2]) == [f"pushed           {name}  6 rows" for name in ("a", "b")]
    assert said[2:] == ["2 pushed"]
    for name in ("a", "b"):
        run = server.runs[name]
        assert run.rows() == [
            {"step": step, "tokens": 10 * step, "train/loss": 1 / (step + 1)}
            for step in range(ROWS)
        ]
        assert (run.group, run.job_type, run.project) == ("s", "train", "lowbit-scaling")
        assert set(run.tags) == {"nearest", "ladder-a", "E2M1", "block"}
        assert run.config["precision"]["value"]["mantissa"] == 1
        assert run.exit_code == 0
    asked = len(server.requests)
    assert sync.run([str(folders[0]), "runs/s/b"]) == 0
    assert "2 already pushed" in capsys.readouterr().out
    assert len(server.requests) == asked


def test_times_of_day_and_the_duration_are_those_of_the_training(
    study: Callable[..., Path], server: WandbServer
) -> None:
    """Half a second of training, pushed seconds later; W&B adds how long it takes to push."""
    before = time.time()
    config_folder = study("a", range(ROWS))
    after = time.time()
    time.sleep(3.0)
    pushed = time.time()
    assert sync.run(["study=s"]) == 0
    lasted = after - before + time.time() - pushed
    history = server.runs["a"].history
    assert all(before <= row["_timestamp"] <= after for row in history)
    assert 0 <= server.runs["a"].summary["_runtime"] < lasted + 1
    assert config_folder.exists()


def test_attempts_of_a_killed_run_arrive_as_one_curve(
    study: Callable[..., Path], server: WandbServer, capsys: pytest.CaptureFixture[str]
) -> None:
    """Killed at step 5, its file torn; resumed from a checkpoint at step 3; pushed in between."""
    folder = study("a", range(6), torn=400)
    [first] = run_files(folder)
    torn = first.read_bytes()
    assert sync.run(["study=s"]) == 0
    assert capsys.readouterr().out.startswith("repaired+pushed  a  ")
    arrived = steps_of(server, "a")
    assert 2 < len(arrived) < 6
    assert arrived == list(range(len(arrived)))
    assert server.runs["a"].exit_code == 1, "not finished, as far as W&B can be told"

    study("a", range(3, 9))
    assert sync.run(["study=s", "dry_run=true"]) == 0
    assert "would be repaired+pushed  a  9 rows, 2 attempts joined" in capsys.readouterr().out
    assert steps_of(server, "a") == arrived
    assert sync.run(["study=s"]) == 0
    assert steps_of(server, "a") == list(range(9))
    assert [row["_step"] for row in server.runs["a"].history] == list(range(9))
    assert server.runs["a"].exit_code == 0
    assert first.read_bytes() == torn, "files are read, not changed"
    assert list(server.runs) == ["a"]


@pytest.mark.slow
def test_a_run_killed_for_real_arrives_whole(
    study: Callable[..., Path], server: WandbServer, tmp_path: Path
) -> None:
    """A process that logs is killed with SIGKILL; what it logged half a second before is there."""
    folder = study("a", range(0))
    program = f"""
import time
import wandb
run = wandb.init(project="p", id="a", dir={str(folder)!r}, mode="offline",
                 settings=wandb.Settings(silent=True, x_transaction_log_flush_interval=0.2))
for step in range(10_000):
    run.log({{"step": step}})
    print(step, flush=True)
    time.sleep(0.002)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", program], cwd=tmp_path, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line == "300\n":
            break
    os.kill(process.pid, signal.SIGKILL)
    logged, _ = process.communicate(timeout=600)
    deadline = time.monotonic() + 600
    while wandb_of(process.pid):
        assert time.monotonic() < deadline, "W&B's own process ends by itself"
        time.sleep(0.1)
    # The kill may fall between a step's log and its line, never inside a line: it is one write.
    reached = int(logged.split()[-1]) if logged else 300
    assert sync.run(["study=s"]) == 0
    arrived = steps_of(server, "a")
    assert arrived == list(range(len(arrived)))
    assert len(arrived) > reached - 300


def test_a_running_run_is_left_alone(
    study: Callable[..., Path], server: WandbServer, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = study("a", range(ROWS))
    with Lease(folder, ttl=60.0):
        assert sync.run(["study=s"]) == 0
    assert "running          a  on " in capsys.readouterr().out
    assert not server.runs
    assert sync.run(["study=s"]) == 0
    assert steps_of(server, "a") == list(range(ROWS))


def test_a_run_killed_before_its_first_row_is_no_failure(
    study: Callable[..., Path], server: WandbServer, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = study("a", range(1))
    [file] = run_files(folder)
    file.write_bytes(file.read_bytes()[:20])
    assert sync.run(["study=s"]) == 0
    assert "empty            a" in capsys.readouterr().out
    assert not server.runs


def test_one_damaged_run_does_not_keep_the_others(
    study: Callable[..., Path], server: WandbServer, capsys: pytest.CaptureFixture[str]
) -> None:
    [file] = run_files(study("a", range(ROWS)))
    file.write_text("something else altogether")
    study("b", range(ROWS))
    assert sync.run(["study=s"]) == 1
    said = capsys.readouterr().out
    assert f"failed           a  {file}: not a W&B file" in said
    assert "1 failed" in said
    assert steps_of(server, "b") == list(range(ROWS))


@pytest.mark.parametrize(
    ("behaviour", "timeout", "reason"),
    [
        ({"stream_status": 403}, 60, "did not take all"),
        ({"stall": True}, 4, "no answer within 4 s"),
    ],
)
def test_an_upload_that_does_not_arrive_is_a_failure(
    study: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    behaviour: dict[str, Any],
    timeout: int,
    reason: str,
) -> None:
    folder = study("a", range(ROWS))
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    with WandbServer(**behaviour) as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        started = time.monotonic()
        assert sync.run(["study=s", f"timeout={timeout}"]) == 1
        assert time.monotonic() - started < timeout + 10
    assert reason in capsys.readouterr().out
    assert not any(is_synced(file) for file in run_files(folder))


@pytest.mark.slow
def test_a_server_that_is_down_ends_the_command_within_the_timeout(
    study: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Nine runs, four at once: without the probe they would take three times the limit."""
    for number in range(9):
        study(f"r{number}", range(1))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    started = time.monotonic()
    assert sync.run(["study=s", "timeout=6"]) == 1
    assert time.monotonic() - started < 2 * 6
    said = capsys.readouterr()
    assert said.out.endswith("4 failed, 5 not tried\n")
    assert said.err == (
        "lowbit-sync: http://127.0.0.1:9 does not answer; nothing was lost, try again\n"
    )


def test_a_refused_key_is_said_once(
    study: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    study("a", range(1))
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    with WandbServer(status=401) as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        assert sync.run(["study=s"]) == 1
        said = capsys.readouterr()
        assert said.err == (
            f"lowbit-sync: {server.url} refuses the key: log in again with `wandb login`\n"
        )
    assert KEY not in said.out + said.err


def test_without_a_key_one_line_says_how_to_log_in(
    study: Callable[..., Path],
    server: WandbServer,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    study("a", range(1))
    monkeypatch.delenv("WANDB_API_KEY")
    monkeypatch.delenv("NETRC", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert sync.run(["study=s"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("lowbit-sync: no W&B key: log in with `wandb login`")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["study=none"], "study=none: there is no folder .*/runs/none"),
        (["study=s", "timeout=0"], "timeout=0: must be a number of seconds, more than 0"),
        (["study=s", "timeout=soon"], "timeout=soon: must be a number of seconds"),
        (["study=s", "dry_run=yes"], "dry_run=yes: must be true or false"),
        (
            ["study=s", "force=1"],
            "force=1: no such option; there are study, runs, timeout, dry_run",
        ),
        (["nowhere"], "nowhere: must be key=value or a folder or file that exists"),
        (["timeout=3"], "study: missing; give study=<name> or folders"),
        (["study=s"], "runs/s: no W&B files below it; was it trained with tracking=none?"),
    ],
)
def test_a_wrong_request_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], message: str
) -> None:
    (tmp_path / "runs/s").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=message):
        sync.run(words)


def test_the_installed_command_teaches_and_exits_as_it_says(tmp_path: Path) -> None:
    def command(*words: str) -> subprocess.CompletedProcess[str]:
        program = "from experiments.mirror.sync import main; main()"
        return subprocess.run(
            [sys.executable, "-c", program, *words], capture_output=True, text=True, cwd=tmp_path
        )

    helped = command("--help")
    assert helped.returncode == 0
    assert "lowbit-sync study=precision_grid" in helped.stdout
    wrong = command("study=s")
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("lowbit-sync: study=s: there is no folder")


def test_no_key_is_written_by_a_push(
    study: Callable[..., Path], server: WandbServer, tmp_path: Path
) -> None:
    study("a", range(ROWS))
    assert sync.run(["study=s"]) == 0
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or KEY.encode() not in path.read_bytes(), path
    assert KEY not in json.dumps(server.runs["a"].config)
