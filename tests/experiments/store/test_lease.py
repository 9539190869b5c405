"""Leases: one holder at a time, whoever dies, sleeps, races or has a wrong clock."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from experiments.store.lease import (
    ATTEMPTS,
    Fenced,
    Held,
    Lease,
    ask_to_stop,
    break_lease,
    holder,
    is_alive,
    unask,
)

HOLD = """
import sys, time
from pathlib import Path
offset = float(sys.argv[3])
real = time.time
time.time = lambda: real() + offset
from experiments.store.lease import Lease
with Lease(Path(sys.argv[1]), ttl=float(sys.argv[2])) as lease:
    print(lease.number, flush=True)
    sys.stdin.readline()
    lease.check()
"""


@pytest.fixture
def processes() -> Iterator[list[subprocess.Popen[str]]]:
    """Holders in other processes; what is left of them at the end is killed."""
    started: list[subprocess.Popen[str]] = []
    yield started
    for process in started:
        process.kill()
        process.communicate()


def hold(
    processes: list[subprocess.Popen[str]], folder: Path, ttl: float = 60.0, clock: float = 0.0
) -> subprocess.Popen[str]:
    """Another process takes the lease; `clock`: by how much its clock is wrong."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder), str(ttl), str(clock)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    processes.append(process)
    assert process.stdout is not None
    assert process.stdout.readline().strip().isdigit()
    return process


def leases(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.name != ATTEMPTS)


def test_a_second_holder_is_refused_and_a_later_one_counts_on(tmp_path: Path) -> None:
    with Lease(tmp_path, ttl=60) as first:
        assert leases(tmp_path) == ["lease.1.json"]
        with pytest.raises(Held, match=r"process \d+ on .* \(attempt 1\)"):
            Lease(tmp_path, ttl=60)
        first.check()
    assert leases(tmp_path) == []
    with Lease(tmp_path, ttl=60) as second:
        assert second.number == 2
    assert json.loads((tmp_path / ATTEMPTS).read_text()) == {"attempts": 2}


def test_a_killed_holder_on_this_machine_is_replaced_at_once(
    tmp_path: Path, processes: list[subprocess.Popen[str]]
) -> None:
    process = hold(processes, tmp_path, ttl=3600)
    with pytest.raises(Held):
        Lease(tmp_path, ttl=3600)
    process.kill()
    process.wait()
    began = time.monotonic()
    with Lease(tmp_path, ttl=3600) as lease:
        assert lease.number == 2
        assert leases(tmp_path) == ["lease.2.json"]
    assert time.monotonic() - began < 1


def elsewhere(folder: Path) -> None:
    """Make the lease look like one of another machine, where nobody can ask for the process."""
    who = holder(folder)
    assert who is not None
    path = folder / f"lease.{who.number}.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "machine": "another"}))


def test_a_stale_lease_of_another_machine_is_taken_over_and_its_zombie_is_fenced(
    tmp_path: Path, processes: list[subprocess.Popen[str]]
) -> None:
    """Stopped, it misses its heartbeats; woken up, it must notice before it writes."""
    process = hold(processes, tmp_path, ttl=0.6)
    elsewhere(tmp_path)
    time.sleep(1.2)
    with pytest.raises(Held):
        Lease(tmp_path, ttl=60)  # it is alive: its heart beats
    process.send_signal(signal.SIGSTOP)
    time.sleep(1.2)
    with Lease(tmp_path, ttl=60) as lease:
        process.send_signal(signal.SIGCONT)
        _, err = process.communicate("go on\n", timeout=600)
        assert "Fenced: attempt 1" in err
        assert process.returncode == 1
        lease.check()
        assert leases(tmp_path) == ["lease.2.json"], "the zombie took nothing away"


@pytest.mark.parametrize("wrong", [-3600.0, 3600.0])
def test_a_clock_an_hour_off_neither_loses_nor_keeps_a_lease(
    tmp_path: Path, processes: list[subprocess.Popen[str]], wrong: float
) -> None:
    process = hold(processes, tmp_path, ttl=1.0, clock=wrong)
    elsewhere(tmp_path)
    time.sleep(1.5)
    who = holder(tmp_path)
    assert who is not None
    assert is_alive(tmp_path, who)
    process.kill()
    time.sleep(1.5)
    assert not is_alive(tmp_path, who)


def test_a_process_id_that_was_used_again_is_no_holder(tmp_path: Path) -> None:
    with Lease(tmp_path, ttl=3600):
        who = holder(tmp_path)
        assert who is not None
        path = tmp_path / "lease.1.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "born": "1"}))
        again = holder(tmp_path)
        assert again is not None
        assert again.pid == os.getpid()
        assert not is_alive(tmp_path, again)


def test_only_the_starter_of_an_attempt_can_break_its_lease(tmp_path: Path) -> None:
    with Lease(tmp_path, ttl=3600, token="secret") as lease:
        break_lease(tmp_path, "guess")
        lease.check()
        break_lease(tmp_path, "secret")
        with pytest.raises(Fenced):
            lease.check()


def test_an_attempt_counts_that_died_before_it_could_say_so(tmp_path: Path) -> None:
    """Killed between the creation of its lease and the note of the number: two files."""
    Lease(tmp_path, ttl=3600, token="secret")
    (tmp_path / ATTEMPTS).unlink()
    break_lease(tmp_path, "secret")
    assert Lease(tmp_path, ttl=3600).number == 2


def test_a_dead_attempts_lease_goes_where_its_number_cannot_be_kept(tmp_path: Path) -> None:
    Lease(tmp_path, ttl=3600, token="secret")
    (tmp_path / ATTEMPTS).write_text("{")
    break_lease(tmp_path, "secret")
    assert leases(tmp_path) == []


def test_only_the_starter_of_an_attempt_can_ask_it_to_stop(tmp_path: Path) -> None:
    ask_to_stop(tmp_path / "not begun", "secret")
    with Lease(tmp_path, ttl=3600, token="secret") as lease:
        ask_to_stop(tmp_path, "guess")
        assert not lease.stop.wait(0.6)
        ask_to_stop(tmp_path, "secret")
        assert lease.stop.wait(5)
    assert leases(tmp_path) == ["stop.guess"]
    ask_to_stop(tmp_path, "next")
    with Lease(tmp_path, ttl=3600, token="next") as lease:
        assert leases(tmp_path) == ["lease.2.json", "stop.next"], "what is stale is tidied up"
        assert lease.stop.wait(5), "asked before it began"
    ask_to_stop(tmp_path, "third")
    unask(tmp_path, "third")
    assert leases(tmp_path) == []


def test_the_heart_beats_while_the_main_thread_is_busy(tmp_path: Path) -> None:
    with Lease(tmp_path, ttl=1.0) as lease:
        who = holder(tmp_path)
        assert who is not None
        elsewhere(tmp_path)
        deadline = time.monotonic() + 2.5
        while time.monotonic() < deadline:
            sum(range(10_000))
        assert is_alive(tmp_path, who)
        lease.check()
    assert not [t for t in threading.enumerate() if t.name == "lease"]


def race(folder: str, barrier: "multiprocessing.synchronize.Barrier", rounds: int) -> None:
    """Try for the lease of one run after another; leave a mark where it was won."""
    for number in range(rounds):
        run = Path(folder) / str(number)
        barrier.wait()
        try:
            with Lease(run, ttl=60) as lease:
                (run / f"won.{os.getpid()}").write_text(str(lease.number))
                barrier.wait()
        except Held:
            barrier.wait()


@pytest.mark.parametrize("stale", [False, True])
def test_of_eight_racers_exactly_one_wins(tmp_path: Path, stale: bool) -> None:
    """60 races; `stale`: for the lease of a dead holder, which all of them want to take over."""
    rounds, racers = 60, 8
    for number in range(rounds):
        run = tmp_path / str(number)
        run.mkdir()
        if stale:
            dead = {"number": 1, "token": "t", "host": "h", "machine": "m", "pid": 1, "born": "1"}
            (run / "lease.1.json").write_text(json.dumps({**dead, "ttl": 0.0}))
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(racers, timeout=600)
    started = [
        context.Process(target=race, args=(str(tmp_path), barrier, rounds)) for _ in range(racers)
    ]
    for process in started:
        process.start()
    for process in started:
        process.join(120)
        assert process.exitcode == 0
    for number in range(rounds):
        files = sorted(p.name for p in (tmp_path / str(number)).iterdir())
        assert len([name for name in files if name.startswith("won.")]) == 1, files
        assert not [name for name in files if name.startswith(("lease", "."))], files
