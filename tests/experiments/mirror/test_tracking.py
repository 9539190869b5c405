"""W&B mirrors a run to the last row, and nothing that W&B does fails a run or holds it up."""

import contextlib
import json
import logging
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from experiments.config.schema import TrainConfig
from experiments.mirror import tracking
from experiments.mirror.files import is_synced, read_run, run_files
from experiments.store.curve import METRICS
from experiments.train import RunResult, train
from tests.support.wandb_server import KEY, StoredRun, WandbServer

Compose = Callable[..., TrainConfig]
STEPS = 24
OVERRIDES = [
    "model=ladder/a",
    "data=tokens",
    "data.seq_len=64",
    "batch_size=4",
    f"tokens={STEPS * 4 * 64}",
    "tracking.log_every=2",
    "study.name=mirror",
]


@pytest.fixture
def small(composed: Compose, text: Path) -> Compose:
    return lambda *overrides: composed(*OVERRIDES, f"data.path={text}", *overrides)


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No test inherits another's bad experience with a server, and none leaves a process."""
    monkeypatch.setattr(tracking, "_avoid_until", 0.0)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    yield
    tracking.shut_down()  # here, and not in the end, to see what is left
    assert not children("wandb-core")


def children(name: str) -> list[int]:
    """Processes of this name that are children of this one."""
    found = []
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(FileNotFoundError):  # it ended meanwhile
            for pid in (task / "children").read_text().split():
                status = Path(f"/proc/{pid}/status").read_text()
                if status.startswith(f"Name:\t{name}\n"):
                    found.append(int(pid))
    return found


def curve(result: RunResult) -> list[dict[str, float]]:
    """The rows that the run itself kept."""
    return [json.loads(line) for line in (result.folder / METRICS).read_text().splitlines()]


def mirrored(run: StoredRun | Path) -> list[dict[str, float]]:
    """The rows that W&B has, without its own columns."""
    rows = run.history if isinstance(run, StoredRun) else read_run(run).history
    return [{k: v for k, v in row.items() if not k.startswith("_")} for row in rows]


def untimed(rows: list[dict[str, float]]) -> list[dict[str, float]]:
    """Without what a clock wrote."""
    return [{k: v for k, v in row.items() if "per_second" not in k} for row in rows]


def at(step: int, do: Callable[[], object]) -> Callable[[Any], None]:
    """A progress report that does something, once."""
    todo = [do]

    def report(progress: Any) -> None:
        if progress.step >= step and todo:
            todo.pop()()

    return report


def ctrl_c() -> None:
    raise KeyboardInterrupt


def stopped(config: TrainConfig, step: int) -> None:
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        train(config, at(step, ctrl_c))


def test_an_offline_run_says_who_it_is_and_holds_the_loss_curve(small: Compose) -> None:
    result = train(small("tracking=offline"))
    run = read_run(result.folder)
    assert (run.group, run.job_type, run.project) == ("mirror", "train", "lowbit-scaling")
    assert (run.run_id, run.exit_code) == (result.record.run_id, 0)
    assert {"nearest", "ladder-a", "E2M1", "block"} == set(run.tags)
    assert run.config["precision"]["mantissa"] == 1
    assert mirrored(result.folder) == curve(result)
    assert len(curve(result)) == STEPS / 2 + 1


def test_an_online_run_is_on_the_server_while_it_runs(small: Compose, server: WandbServer) -> None:
    result = train(small("tracking=online"))
    run = server.runs[result.record.run_id]
    assert (run.group, run.job_type, run.project) == ("mirror", "train", "lowbit-scaling")
    assert {"nearest", "ladder-a", "E2M1", "block"} == set(run.tags)
    assert run.config["precision"]["value"]["mantissa"] == 1
    assert run.exit_code == 0
    assert mirrored(run) == curve(result)
    glob, tokens = sorted(run.config["_wandb"]["value"]["m"], key=lambda metric: "1" in metric)
    assert (glob["2"], tokens["1"]) == ("*", "tokens")
    assert glob["5"] == 1, "the x-axis of every column is the first metric, tokens"
    assert all(is_synced(file) for file in run_files(result.folder))


@pytest.mark.parametrize("modes", ["online online", "offline online", "online offline online"])
def test_a_resumed_run_continues_its_curve_on_the_server(
    small: Compose, server: WandbServer, tmp_path: Path, modes: str
) -> None:
    """Stopped at step 8, then 14, each time with the newest checkpoint lost: rows are repeated."""
    undisturbed = train(small("tracking=none", f"runs={tmp_path / 'undisturbed'}"))
    *earlier, last = modes.split()
    for number, mode in enumerate(earlier):
        config = small(f"tracking={mode}", "checkpoint_seconds=0")
        stopped(config, 8 + 6 * number)
        folder = Path(config.runs, "mirror", undisturbed.record.run_id)
        newest = sorted((folder / "checkpoints").glob("*.ckpt"))[-1]
        newest.unlink()
    result = train(small(f"tracking={last}"))
    run = server.runs[result.record.run_id]
    assert untimed(mirrored(run)) == untimed(curve(undisturbed))
    assert [row["_step"] for row in run.history] == list(range(len(run.history)))
    assert untimed(mirrored(result.folder)) == untimed(curve(undisturbed))
    assert run.exit_code == 0
    assert len(server.runs) == 1


BAD = {
    "down": ("http://127.0.0.1:9", {}),
    "slow": ("", {"delay": 60.0}),
    "refuses": ("", {"status": 401}),
    "broken": ("", {"status": 500}),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_server_turns_online_into_offline(
    small: Compose, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, case: str
) -> None:
    """One wait of 1 s, for the first run only: a slowed run would take a minute a request."""
    url, behaviour = BAD[case]
    monkeypatch.setattr(tracking, "_INIT_SECONDS", 1.0)
    with WandbServer(**behaviour) as server:
        monkeypatch.setenv("WANDB_BASE_URL", url or server.url)
        started = time.monotonic()
        results = [train(small("tracking=online", f"seed={seed}")) for seed in (1, 2)]
        assert time.monotonic() - started < 60
        asked = len([name for name in server.requests if "otel" not in name])
    assert asked <= (0 if url else 3)
    for result in results:
        assert result.record.status == "finished"
        assert mirrored(result.folder) == curve(result), "nothing is lost"
        assert read_run(result.folder).exit_code == 0
        assert not any(is_synced(file) for file in run_files(result.folder))
    assert caplog.text.count("the run goes on offline, push it with lowbit-sync") == 1
    assert KEY not in caplog.text


def test_without_a_key_online_is_offline_and_asks_for_none(
    small: Compose,
    server: WandbServer,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.delenv("WANDB_API_KEY")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("NETRC", raising=False)
    result = train(small("tracking=online"))
    assert mirrored(result.folder) == curve(result)
    assert "No API key configured" in caplog.text


def test_rows_that_do_not_arrive_hold_up_the_end_for_a_bounded_time(
    small: Compose, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A server that takes the run and then no row; 1 s is granted instead of 30."""
    monkeypatch.setattr(tracking, "_FINISH_SECONDS", 1.0)
    with WandbServer(stall=True) as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        started = time.monotonic()
        result = train(small("tracking=online"))
        assert time.monotonic() - started < 60
    assert result.record.status == "finished"
    assert mirrored(result.folder) == curve(result)
    assert not any(is_synced(file) for file in run_files(result.folder))
    assert "push it again with lowbit-sync" in caplog.text


def test_an_upload_that_is_refused_is_not_taken_for_done(
    small: Compose, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with WandbServer(stream_status=403) as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        result = train(small("tracking=online"))
    assert result.record.status == "finished"
    assert not any(is_synced(file) for file in run_files(result.folder))
    assert "push it again with lowbit-sync" in caplog.text


@pytest.mark.parametrize("mode", ["offline", "online"])
def test_a_hanging_wandb_is_killed_in_the_end(
    small: Compose, server: WandbServer, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    """W&B's process is stopped at step 8 and answers nothing from then on."""
    monkeypatch.setattr(tracking, "_CLOSE_SECONDS", 1.0)
    monkeypatch.setattr(tracking, "_FINISH_SECONDS", 1.0)

    def stop() -> None:
        [core] = children("wandb-core")
        os.kill(core, signal.SIGSTOP)

    started = time.monotonic()
    result = train(small(f"tracking={mode}"), at(8, stop))
    assert time.monotonic() - started < 60
    assert result.record.status == "finished"
    assert not any(is_synced(file) for file in run_files(result.folder))
    again = train(small(f"tracking={mode}", "seed=1"))
    assert mirrored(again.folder) == curve(again), "the next run has a W&B again"


def test_runs_of_one_process_share_one_process_of_wandb(small: Compose) -> None:
    found: list[int] = []
    for seed in (1, 2):
        config = small("tracking=offline", f"seed={seed}")
        result = train(config, at(8, lambda: found.extend(children("wandb-core"))))
        assert mirrored(result.folder) == curve(result)
    assert len(found) == 2
    assert len(set(found)) == 1
    assert "WANDB_SERVICE" not in os.environ, "a child process would use it too"


def test_a_wandb_that_died_between_two_runs_is_started_again(small: Compose) -> None:
    train(small("tracking=offline"))
    [core] = children("wandb-core")
    os.kill(core, signal.SIGKILL)
    result = train(small("tracking=offline", "seed=1"))
    assert mirrored(result.folder) == curve(result)


def test_wandb_ends_with_the_process_it_belongs_to(small: Compose, tmp_path: Path) -> None:
    """Killed, as Ray kills a worker: no hook of Python's runs."""
    code = (
        "import os, signal; from experiments.mirror import tracking; "
        "from experiments.mirror.files import WandbRun; from pathlib import Path; "
        "tracking._init(WandbRun(run_id='r', group='g', "
        "job_type='train', project='p', tags=[], config={}), Path('.'), 'offline', 20.0, 5.0); "
        "tracking.finish(0); print(tracking._process().pid, flush=True); "
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, timeout=600
    )
    status = Path(f"/proc/{int(done.stdout)}/status")
    for _ in range(100):
        if not status.exists() or "State:\tZ" in status.read_text():
            return
        time.sleep(0.1)
    raise AssertionError("it lives on")


def test_a_dead_wandb_is_named_once_and_the_run_goes_on(
    small: Compose, caplog: pytest.LogCaptureFixture
) -> None:
    def kill() -> None:
        [core] = children("wandb-core")
        os.kill(core, signal.SIGKILL)
        time.sleep(0.1)

    result = train(small("tracking=offline"), at(8, kill))
    assert result.record.status == "finished"
    assert len(curve(result)) == STEPS / 2 + 1
    assert caplog.text.count("W&B broke down") == 1


def test_a_full_disk_under_wandb_costs_rows_of_the_mirror_only(small: Compose) -> None:
    """W&B's process may write 8 KiB to a file; 24 rows take about 17."""

    def fill() -> None:
        [core] = children("wandb-core")
        resource.prlimit(core, resource.RLIMIT_FSIZE, (8192, 8192))

    result = train(small("tracking=offline", "tracking.log_every=1"), at(1, fill))
    assert result.record.status == "finished"
    assert len(curve(result)) == STEPS + 1
    assert 0 < len(mirrored(result.folder)) < STEPS
    assert mirrored(result.folder) == curve(result)[: len(mirrored(result.folder))]


def test_a_folder_that_cannot_be_written_costs_the_mirror_only(
    small: Compose, caplog: pytest.LogCaptureFixture
) -> None:
    """A file stands where W&B wants its folder; root is refused as everybody is."""
    config = small("tracking=offline")
    folder = Path(train(small("tracking=none")).folder)
    (folder / "result.json").unlink()
    (folder / "wandb").write_text("in the way")
    assert train(config).record.status == "finished"
    assert "the run goes on without W&B" in caplog.text


@pytest.mark.parametrize("mode", ["offline", "online"])
def test_no_file_of_a_run_and_no_message_holds_the_key(
    small: Compose, server: WandbServer, caplog: pytest.LogCaptureFixture, mode: str
) -> None:
    caplog.set_level(logging.DEBUG)
    stopped(small(f"tracking={mode}"), 8)  # a checkpoint is a file too
    result = train(small(f"tracking={mode}"))
    files = [path for path in Path(small().runs).rglob("*") if path.is_file()]
    assert len(files) > 6
    for path in files:
        assert KEY.encode() not in path.read_bytes(), path
    assert KEY not in caplog.text
    if mode == "online":
        assert KEY not in json.dumps(server.runs[result.record.run_id].config)


@pytest.mark.slow
def test_wandb_says_nothing_on_the_console(
    small: Compose, server: WandbServer, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a process of its own, without the WANDB_SILENT of these tests."""
    monkeypatch.delenv("WANDB_SILENT")
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "from experiments.command.main import train; train()",
            *OVERRIDES,
            f"data.path={text}",
            f"runs={small().runs}",
            "tracking=online",
        ],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    assert "wandb:" not in done.stdout + done.stderr
    assert len(server.runs) == 1


def test_no_tracking_starts_nothing(small: Compose) -> None:
    found: list[int] = []
    result = train(small("tracking=none"), at(8, lambda: found.extend(children("wandb-core"))))
    assert not found
    assert not (result.folder / "wandb").exists()
