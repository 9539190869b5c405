"""A sweep whose driver, workers and nodes are killed again and again ends as if nothing had been.

What is killed, and when, follows from a seed; when exactly a kill hits depends on the machine.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from experiments.store.checkpoint import CHECKPOINTS
from experiments.store.curve import METRICS
from experiments.store.lease import ATTEMPTS, at_work
from experiments.sweep.work import LOG
from fitting.results.record import FAILURE, RESULT, read_record
from fitting.results.study_file import STUDY

KILLS = 12
COMMAND = (sys.executable, "-c", "from experiments.command.main import train; train()")
USUAL = "batch_size: [4], tokens: [102400]"
GRIDS = (
    f"[{{recipe: [none, nearest, stochastic], seed: [0, 1, 2], {USUAL}}},"  # nine that finish,
    f" {{optim.lr: [1e9], seed: [7], {USUAL}}},"  # one that diverges,
    f" {{recipe: [nearest], seed: [8], {USUAL}}},"  # one that raises,
    " {recipe: [none], batch_size: [512], tokens: [131072], resources.memory: [0.2]}]"  # too big
)
RAISES = "nearest-*-s8-*"
SMALL = [
    "model=ladder/a",
    "data=tokens",
    "data.seq_len=64",
    "data.max_epochs=100",
    "data.validation_windows=32",
    "tracking=none",
    "tracking.log_every=10",
    "checkpoint_seconds=0.5",
]


def driver(
    folder: Path, text: Path, *arguments: str, study: str = f"study.grids={GRIDS}"
) -> subprocess.Popen[bytes]:
    """`lowbit-train` as a process of its own, what it says in <folder>/driver.txt."""
    command = [*SMALL, f"data.path={text}", f"runs={folder}", "-m", study]
    with open(folder / "driver.txt", "ab") as out:
        return subprocess.Popen(
            [*COMMAND, *command, "study.name=s", *arguments],
            stdout=out,
            stderr=out,
            cwd=folder,
        )


def break_the_raising_run(folder: Path, text: Path) -> None:
    """Its loss curve cannot be written: a folder stands in its place."""
    assert driver(folder, text, "plan_only=true").wait(timeout=1200) == 0
    plan = (folder / "driver.txt").read_text()
    [name] = {word for word in plan.split() if Path(word).match(RAISES)}
    (folder / "s" / name / METRICS).mkdir(parents=True)


def summary(folder: Path) -> dict[str, tuple[Any, ...]]:
    """Per run what must not depend on what happened to it."""
    found = {}
    for run in sorted((folder / "s").iterdir()):
        if run.is_dir():
            record = read_record(run)
            assert record is not None, f"{run.name} has no record"
            lines = (run / METRICS).read_text().splitlines() if (run / METRICS).is_file() else []
            curve = [{k: v for k, v in json.loads(x).items() if "second" not in k} for x in lines]
            found[run.name] = (record.status, record.loss, record.weights_sha256, curve)
    return found


def strays(folder: Path) -> list[str]:
    """Files of the store that a finished sweep has no use for."""
    wanted = {RESULT, FAILURE, LOG, METRICS, ATTEMPTS, STUDY, "config.json"}
    return [
        str(path)
        for path in (folder / "s").rglob("*")
        if path.is_file() and path.name not in wanted and path.parent.name != CHECKPOINTS
    ]


def processes_below(folder: Path) -> list[int]:
    """Processes that have this folder on their command line or hold a file in it open."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            words = (entry / "cmdline").read_bytes().decode(errors="replace")
            links = [os.readlink(fd) for fd in (entry / "fd").iterdir()]
        except OSError:
            continue
        if str(folder) in words or any(link.startswith(str(folder)) for link in links):
            found.append(int(entry.name))
    return found


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.filterwarnings("ignore:.*socket.*")  # Ray's own, left open by its test cluster
def test_a_sweep_that_is_killed_a_dozen_times_gives_the_same_bits(
    tmp_path: Path, text: Path
) -> None:
    from ray.cluster_utils import Cluster

    calm, stormy = tmp_path / "calm", tmp_path / "stormy"
    for folder in (calm, stormy):
        folder.mkdir()
        break_the_raising_run(folder, text)
    assert driver(calm, text).wait(timeout=1200) == 1, "two of its runs fail"
    expected = summary(calm)

    chance = random.Random(20261123)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    process = None
    killed: list[str] = []
    try:
        node = cluster.add_node(num_cpus=1)
        address = f"hydra.launcher.address={cluster.address}"
        deadline = time.monotonic() + 1200
        while len(killed) < KILLS:
            assert time.monotonic() < deadline, killed
            if process is None or process.poll() is not None:
                assert process is None or len(summary_so_far(stormy)) < len(expected), (
                    f"the sweep was over after {killed}"
                )
                process = driver(stormy, text, address)
            at_work = wait_for_workers(stormy, process)
            time.sleep(chance.uniform(0.0, 1.5))
            victim = chance.choice(["driver", "worker", "worker", "node"])
            if victim == "driver":
                process.kill()
                process.wait()
            elif victim == "worker":
                with_pid = [pid for pid in at_work if Path(f"/proc/{pid}").exists()]
                if not with_pid:
                    continue
                os.kill(chance.choice(with_pid), signal.SIGKILL)
            else:
                cluster.remove_node(node, allow_graceful=False)
                node = cluster.add_node(num_cpus=1)
            killed.append(victim)
        for _ in range(2):  # a run whose worker was killed three times in one launch is left alone
            if process.poll() is None:
                process.wait(timeout=1200)
            if len(summary_so_far(stormy)) == len(expected):
                break
            process = driver(stormy, text, address)
        assert process.wait(timeout=1200) == 1
    finally:
        if process is not None and process.poll() is None:
            process.kill()
            process.wait()
        cluster.shutdown()
    assert {"driver", "worker", "node"} <= set(killed)
    assert summary(stormy) == expected
    statuses = sorted(status for status, *_ in expected.values())
    assert statuses == ["diverged"] + 2 * ["failed"] + 9 * ["finished"]
    reasons = [r.reason for r in map(read_record, (stormy / "s").iterdir()) if r and r.reason]
    assert sum(reason.startswith("OutOfMemory: it takes more than") for reason in reasons) == 1
    assert sum("Is a directory" in reason for reason in reasons) == 1
    attempts = [json.loads(p.read_text())["attempts"] for p in stormy.glob(f"s/*/{ATTEMPTS}")]
    assert sum(attempts) > len(expected) + 5, "the kills hit runs at work"
    assert strays(stormy) == []
    deadline = time.monotonic() + 300
    while processes_below(stormy) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert processes_below(stormy) == []


@pytest.mark.long  # nodes die in the test above, too
@pytest.mark.ray
@pytest.mark.filterwarnings("ignore:.*socket.*")  # Ray's own, left open by its test cluster
def test_the_smoke_study_ends_right_on_a_cluster_that_loses_a_node(
    tmp_path: Path, text: Path
) -> None:
    """Its runs made eight times as long, seconds: the node must die while one is at work on it."""
    from ray.cluster_utils import Cluster

    longer = "tokens=262144"
    alone, together = tmp_path / "alone", tmp_path / "together"
    for folder in (alone, together):
        folder.mkdir()
    assert driver(alone, text, longer, study="study=smoke").wait(timeout=1200) == 0
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    process = None
    try:
        node = cluster.add_node(num_cpus=1)
        address = f"hydra.launcher.address={cluster.address}"
        process = driver(together, text, address, longer, study="study=smoke")
        while len(wait_for_workers(together, process)) < 2:
            assert process.poll() is None, (together / "driver.txt").read_text()
        cluster.remove_node(node, allow_graceful=False)
        assert process.wait(timeout=1200) == 0
    finally:
        if process is not None and process.poll() is None:
            process.kill()
            process.wait()
        cluster.shutdown()
    assert "retry" in (together / "driver.txt").read_text()
    assert len(summary(alone)) == 10
    assert summary(together) == summary(alone)
    assert strays(together) == []


def summary_so_far(folder: Path) -> list[str]:
    """Runs that have a record."""
    return [p.parent.name for name in (RESULT, FAILURE) for p in folder.glob(f"s/*/{name}")]


def wait_for_workers(folder: Path, process: subprocess.Popen[bytes]) -> list[int]:
    """Process ids of all that are at work on a run, once some are or the driver has ended."""
    while process.poll() is None:
        found = []
        for run in (folder / "s").glob("*-*"):
            if (who := at_work(run)) is not None:
                found.append(who.pid)
        if found:
            return found
        time.sleep(0.05)
    return []
