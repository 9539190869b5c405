"""A sweep's own Ray: who can reach it while it lives, and that nothing of it is left."""

import contextlib
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from experiments.config.precision import ConfigError
from experiments.sweep.cluster import LOCAL, ray_session
from experiments.sweep.own_ray import _private_folder
from tests.support.processes import PATIENCE, processes, wait_for

COMMAND = (sys.executable, "-c", "from experiments.command.main import train; train()")


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where Ray's files go; short, for the names of sockets."""
    folder = Path(tempfile.mkdtemp(prefix="l", dir="/tmp"))
    monkeypatch.setenv("RAY_TMPDIR", str(folder))
    yield folder
    shutil.rmtree(folder)


def _beneath(pid: int) -> list[Any]:
    """A process and those that it and they started."""
    psutil = pytest.importorskip("ray")._private.services.psutil  # Ray brings its own
    me = psutil.Process(pid)
    return [me, *me.children(recursive=True)]


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.long)]
)
def test_a_sweep_is_reached_by_nobody_else_and_leaves_nothing_when_it_is_stopped(
    tmp_path: Path, text: Path, place: Path, number: signal.Signals
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    environment = {k: v for k, v in os.environ.items() if k != "RAY_AUTH_MODE"}
    size = ["model=ladder/a", "data.seq_len=64", "data.max_epochs=500", "batch_size=4"]
    size += ["data.validation_windows=32", "tokens=8_000_000", "optim.lr=0.001"]
    size += ["data=tokens", "tracking=none", "tracking.log_every=4"]
    options = {"env": environment | {"HOME": str(home)}, "stderr": subprocess.STDOUT}
    with processes(tmp_path, **options) as start:
        driver = start([*COMMAND, "-m", "study.name=s", "seed=0,1", *size, f"data.path={text}"])
        curves = tmp_path / "runs" / "s"
        wait_for(lambda: [c for c in curves.glob("*/metrics.jsonl") if c.stat().st_size], driver)
        [folder] = place.iterdir()
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        its_own = _beneath(driver.pid)
        heard = {
            connection.laddr.ip.removeprefix("::ffff:")
            for process in its_own
            for connection in process.net_connections("inet")
            if connection.status == "LISTEN"
        }
        assert heard == {"127.0.0.1"}
        [raylet] = [process for process in its_own if process.name() == "raylet"]
        assert raylet.environ()["RAY_AUTH_MODE"] == "token"
        token = raylet.environ()["RAY_AUTH_TOKEN"]
        assert len(token) == 64
        for path in [*folder.rglob("*"), *home.rglob("*")]:
            if path.is_file():
                assert token.encode() not in path.read_bytes(), path
        driver.send_signal(number)
        out, _ = driver.communicate(timeout=PATIENCE)
        assert driver.returncode == 128 + number, out
        assert "Traceback" not in out
        assert not [process for process in its_own if process.is_running()]
        assert not list(place.iterdir())
        assert not (home / ".ray").exists()
        assert len(list(curves.glob("*/checkpoints/*.ckpt"))) >= 1


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*socket.*")
def test_each_ray_has_a_token_of_its_own_and_the_environment_is_as_before(place: Path) -> None:
    before = dict(os.environ)
    tokens = []
    for error in (contextlib.nullcontext(), pytest.raises(RuntimeError, match="inside")):
        with error, ray_session(LOCAL, dashboard=False) as ray:
            tokens.append(os.environ["RAY_AUTH_TOKEN"])
            assert ray.get(ray.remote(os.getenv).remote("RAY_AUTH_TOKEN")) == tokens[-1]
            if len(tokens) == 2:
                raise RuntimeError("inside")
        assert not list(place.iterdir())
        for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_TMPDIR"):
            assert os.environ.get(name) == before.get(name)
    assert len(set(tokens)) == 2


def test_what_a_killed_sweep_left_goes_at_the_next_start_and_what_lives_stays(place: Path) -> None:
    program = (
        "import time\nfrom experiments.sweep.own_ray import _private_folder\n"
        "with _private_folder() as folder:\n"
        "    (folder / '1').mkdir()\n    (folder / '1' / 'log').write_text('x')\n"
        "    print(folder, flush=True)\n    time.sleep(600)\n"
    )
    (place / "lowbit-12345678").mkdir()  # nobody's: without a sign of an owner
    (place / "another's").mkdir()
    other = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None
        left = Path(other.stdout.readline().strip())
        with _private_folder() as mine:
            assert (left / "1" / "log").exists(), "its owner lives"
            assert stat.S_IMODE(mine.stat().st_mode) == 0o700
        assert not mine.exists()
    finally:
        other.kill()
        other.communicate()
    assert (left / "1" / "log").exists()
    with _private_folder():
        assert not left.exists()
    assert sorted(path.name for path in place.iterdir()) == ["another's", "lowbit-12345678"]


def test_a_place_that_will_not_do_is_named_with_what_would(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = tmp_path / ("n" * 60)
    long.mkdir()
    monkeypatch.setenv("RAY_TMPDIR", str(long))
    with pytest.raises(ConfigError, match=r"RAY_TMPDIR=\S+n: too long, .*; at most 2\d characters"):
        _private_folder().__enter__()
    monkeypatch.setenv("RAY_TMPDIR", "/proc/nowhere")
    with pytest.raises(ConfigError, match=r"RAY_TMPDIR=/proc/nowhere: .*cannot be put there \(No "):
        _private_folder().__enter__()
    monkeypatch.delenv("RAY_TMPDIR")
    monkeypatch.setenv("TMPDIR", str(long))
    with _private_folder() as folder:
        assert folder.parent == Path("/tmp")


@pytest.mark.ray
@pytest.mark.slow
def test_ray_that_does_not_start_is_one_line(tmp_path: Path, text: Path, place: Path) -> None:
    """A Ray whose own programs cannot open files enough."""
    few = ["sh", "-c", 'ulimit -n 24; exec "$@"', "sh"]
    size = ["model=ladder/a", "data.seq_len=64", "tokens=2048", "batch_size=4", "tracking=none"]
    size += ["data=tokens", f"data.path={text}", "data.validation_windows=32"]
    done = subprocess.run(
        [*few, *COMMAND, "-m", "study.name=s", "seed=0,1", *size],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    last = done.stderr.splitlines()[-1]
    assert done.returncode in (1, 2), done.stderr
    assert last.startswith("lowbit-train: "), done.stderr
    assert "open files" in last, done.stderr
    assert "a bug of" not in done.stderr
    assert not list(place.iterdir())
    assert not list((tmp_path / "runs").glob("*/*/result.json"))
