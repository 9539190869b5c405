"""A cluster's address at which nobody answers, or somebody who is not Ray: named, and soon."""

import contextlib
import functools
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from experiments.config.precision import ConfigError
from experiments.sweep import reach
from experiments.sweep.reach import wait_for_cluster

COMMAND = (sys.executable, "-c", "from experiments.command.main import train; train()")


@pytest.fixture
def ray() -> Any:
    """The package."""
    return pytest.importorskip("ray")


@contextlib.contextmanager
def listener(says: bytes | None) -> Iterator[int]:
    """The port of somebody who says this to everyone, or None: nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        held = []

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    held.append(connection)
                    if says is not None:
                        with contextlib.suppress(OSError):  # who has heard enough may be gone
                            connection.sendall(says)
                            connection.shutdown(socket.SHUT_WR)

        threading.Thread(target=serve, daemon=True).start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
        for connection in held:
            connection.close()


@contextlib.contextmanager
def deaf() -> Iterator[int]:
    """A port that is taken and not listened at."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


class Clock:
    """A clock that only sleep moves, so that a slow machine is no failure."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        """Seconds slept."""
        return self.now

    def sleep(self, seconds: float) -> None:
        """At once."""
        self.now += seconds


@pytest.mark.parametrize(
    ("who", "why"),
    [
        (deaf, "Connection refused"),
        (functools.partial(listener, None), "timed out"),
        (functools.partial(listener, b"SSH-2.0-OpenSSH_9.2\r\n"), "what listens there is not Ray"),
        (functools.partial(listener, b""), "what listens there is not Ray"),
    ],
    ids=["deaf", "silent", "ssh", "mute"],
)
@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_nobody_answers(
    ray: Any,
    who: Any,
    why: str,
    scheme: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    silent = why == "timed out"  # to be waited for indeed
    if not silent:
        monkeypatch.setattr(reach, "time", Clock())
    with who() as port:
        address = f"{scheme}127.0.0.1:{port}"
        with pytest.raises(ConfigError) as refused:
            wait_for_cluster(ray, address, patience=1.0 if silent else 30.0)
    assert f"hydra.launcher.address={address}: no Ray cluster answers at" in str(refused.value)
    assert why in str(refused.value)
    assert "waiting for Ray at 127.0.0.1" in capsys.readouterr().err


@pytest.mark.parametrize("address", ["nowhere", "1.2.3.4", "h:0", "h:99999", ":6379", "ray://h"])
def test_an_address_that_is_none(ray: Any, address: str) -> None:
    with pytest.raises(ConfigError, match=r"must be local, auto, HOST:PORT or ray://HOST:PORT"):
        wait_for_cluster(ray, address)


def test_a_name_that_is_nobodys_is_not_waited_for(ray: Any) -> None:
    with pytest.raises(ConfigError, match=r"hydra.launcher.address=no.such.host.invalid:6379: "):
        wait_for_cluster(ray, "no.such.host.invalid:6379", patience=3600.0)


@pytest.mark.slow
def test_a_sweep_says_what_it_waits_for_and_ends(tmp_path: Path, text: Path) -> None:
    with listener(None) as port:
        size = ["model=ladder/a", "data.seq_len=64", "tokens=2048", "batch_size=4"]
        size += ["data=tokens", f"data.path={text}", "data.validation_windows=32"]
        done = subprocess.run(
            [*COMMAND, "-m", "study.name=s", *size, f"hydra.launcher.address=127.0.0.1:{port}"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 2
    waits, refused = done.stderr.splitlines()
    assert waits.startswith(f"waiting for Ray at 127.0.0.1:{port} (timed out), for up to 30 s")
    assert refused.startswith(f"lowbit-train: hydra.launcher.address=127.0.0.1:{port}: no Ray ")
    assert not (tmp_path / "runs").exists()
