"""The driver: failures, limits, rivals and several processes per run, on a cluster of two nodes."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from experiments.config.schema import TrainConfig
from experiments.store.lease import ATTEMPTS, holder
from experiments.sweep.work import LOG
from experiments.train import train
from fitting.results.record import FAILURE, RESULT, read_record
from fitting.results.study_file import STUDY
from fitting.results.table import load
from tests.support.processes import processes, wait_for

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*socket.*"),  # Ray's own, left open by its test cluster
]
COMMAND = (sys.executable, "-c", "from experiments.command.main import train; train()")
SMALL = [
    "model=ladder/a",
    "data=tokens",
    "data.seq_len=64",
    "data.max_epochs=200",
    "data.validation_windows=32",
    "batch_size=4",
    "tokens=6144",
    "tracking=none",
    "tracking.log_every=4",
]
LONG = ["tokens=4_000_000", "optim.lr=0.001"]


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """The address of two nodes of one CPU each."""
    from ray.cluster_utils import Cluster

    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    nodes.add_node(num_cpus=1)
    yield nodes.address
    nodes.shutdown()


Launch = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def launch(tmp_path: Path, text: Path, cluster: str) -> Iterator[Launch]:
    """`launch(study, ...)`: `lowbit-train -m` as a process of its own, on the cluster."""
    with processes(tmp_path, stderr=subprocess.STDOUT) as start:
        yield lambda study, *arguments: start(
            [
                *(*COMMAND, *SMALL, f"data.path={text}", "-m", f"study.name={study}", *arguments),
                f"hydra.launcher.address={cluster}",
            ]
        )


def said(process: subprocess.Popen[str], code: int, timeout: float = 1200) -> str:
    """All that a process printed; it must have ended with this exit code."""
    out, _ = process.communicate(timeout=timeout)
    assert process.returncode == code, out
    assert "Traceback" not in out
    return out


def test_two_drivers_at_once_share_the_work_and_both_end_with_all_of_it(
    launch: Launch, tmp_path: Path, cluster: str
) -> None:
    import ray

    arguments = ["recipe=none,stochastic", "seed=0,1", "tokens=25600"]
    arguments += ["hydra.launcher.max_parallel=1"]
    drivers = [launch("shared", *arguments) for _ in range(2)]
    study = tmp_path / "runs" / "shared" / STUDY
    wait_for(lambda: list(study.parent.glob("*/lease.*")))
    # What a third driver would leave that had read it before these two wrote their plans.
    study.write_text(json.dumps(json.loads(study.read_text()) | {"planned": []}))
    outs = [said(driver, 0) for driver in drivers]
    assert len(json.loads(study.read_text())["planned"]) == 4
    assert all(len(re.findall(r"/4 finished", out)) == 4 for out in outs)
    table = load(tmp_path / "runs" / "shared")
    assert table["status"].tolist() == ["finished"] * 4
    assert table["attempts"].tolist() == [1] * 4, "no run was started twice"
    logs = "".join(path.read_text() for path in (tmp_path / "runs" / "shared").glob(f"*/{LOG}"))
    assert len(re.findall(r"process \d+ finished", logs)) == 4
    ray.init(address=cluster, log_to_driver=False)
    assert ray.cluster_resources()["CPU"] == 2, "the cluster is left running"
    ray.shutdown()


def test_a_run_past_its_time_fails_and_goes_on_when_it_is_given_more(
    launch: Launch, tmp_path: Path
) -> None:
    out = said(launch("slow", "tokens=51200", "timeout_seconds=0.1"), 1)
    assert re.search(r"failed .*TimedOut: timeout_seconds=0.1: \d+ of 200 steps are done", out)
    [run] = (tmp_path / "runs" / "slow").glob("*-*")
    match = re.search(r"(\d+) of 200", out)
    assert match
    out = said(launch("slow", "tokens=51200", "retry_failed=true"), 0)
    record = read_record(run)
    assert record is not None
    assert (record.status, record.attempts) == ("finished", 2)
    curve = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert curve == sorted(curve)
    assert not (run / FAILURE).exists()


def test_on_failure_stop_starts_nothing_more_and_keeps_what_runs(
    launch: Launch, tmp_path: Path
) -> None:
    """Two runs at a time, one fails soon: the other writes a checkpoint, two never start."""
    grids = "[{seed: [0], timeout_seconds: [2]}, {seed: [1, 2, 3]}]"
    out = said(launch("stop", f"study.grids={grids}", "on_failure=stop", *LONG), 1)
    assert re.search(r"1/4 failed ", out)
    runs = tmp_path / "runs" / "stop"
    assert len(list(runs.glob("*/log.txt"))) <= 3
    assert len(list(runs.glob(f"*/{FAILURE}"))) == 1
    begun = [p.parent for p in runs.glob("*-s[123]-*/metrics.jsonl") if p.stat().st_size]
    assert all(list(run.glob("checkpoints/*.ckpt")) for run in begun)
    assert not list(runs.glob("*/lease.*"))


@pytest.mark.parametrize(
    ("number", "code"),
    [pytest.param(signal.SIGINT, 130, marks=pytest.mark.long), (signal.SIGTERM, 143)],
)
def test_a_signal_ends_a_sweep_politely(
    launch: Launch, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    driver = launch("signal", "seed=0,1", *LONG)
    runs = tmp_path / "runs" / "signal"
    wait_for(
        lambda: len([c for c in runs.glob("*/metrics.jsonl") if c.stat().st_size]) == 2, driver
    )
    driver.send_signal(number)
    said(driver, code)
    assert len(list(runs.glob("*/checkpoints/*.ckpt"))) == 2
    left = [*runs.glob("*/lease.*"), *runs.glob("*/stop.*")]
    assert not left, "others may go on at once"
    assert not list(runs.glob(f"*/{FAILURE}"))


def test_a_run_whose_workers_die_three_times_is_left_for_the_next_launch(
    launch: Launch, tmp_path: Path
) -> None:
    driver = launch("cursed", *LONG)
    runs = tmp_path / "runs" / "cursed"
    for attempt in range(1, 4):

        def at_work(attempt: int = attempt) -> bool:
            found = [who for run in runs.glob("*-*") if (who := holder(run))]
            return bool(found) and found[0].number == attempt

        wait_for(at_work, driver)
        [who] = [who for run in runs.glob("*-*") if (who := holder(run))]
        os.kill(who.pid, signal.SIGKILL)
    out = said(driver, 1)
    assert len(re.findall("retry ", out)) == 2
    assert re.search(r"1/1 failed .*its worker died .*, 3 times", out)
    assert not list(runs.glob(f"*/{FAILURE}")), "the machine was at fault, not the run"


def test_a_store_that_refuses_the_driver_costs_no_run_what_it_has(
    launch: Launch, tmp_path: Path
) -> None:
    """A third run's result is a link that the system refuses to follow; two are at work."""
    driver = launch("refused", "seed=0,1,2", *LONG)
    runs = tmp_path / "runs" / "refused"
    wait_for(
        lambda: len([c for c in runs.glob("*/metrics.jsonl") if c.stat().st_size]) == 2, driver
    )
    planned = json.loads((runs / STUDY).read_text())["planned"]
    [third] = [runs / name for name in planned if not (runs / name).exists()]
    third.mkdir()
    (third / RESULT).symlink_to("x" * 300)
    out = said(driver, 2)
    assert f"{third / RESULT}: File name too long; choose a shorter name" in out
    assert len(list(runs.glob("*/checkpoints/*.ckpt"))) == 2, "what ran has written one"
    assert not [*runs.glob("*/lease.*"), *runs.glob("*/stop.*"), *runs.glob(f"*/{FAILURE}")]


def test_isolated_runs_have_a_process_each(launch: Launch, tmp_path: Path) -> None:
    pids = {}
    for isolate in ("none", "process"):
        arguments = [f"resources.isolate={isolate}", "seed=0,1,2"]
        said(launch(isolate, *arguments, "hydra.launcher.max_parallel=1"), 0)
        logs = (tmp_path / "runs" / isolate).glob(f"*/{LOG}")
        pids[isolate] = {re.findall(r"process (\d+) start", log.read_text())[0] for log in logs}
    assert len(pids["process"]) == 3
    assert len(pids["none"]) < 3, "warm workers are used again"


def test_a_run_on_two_nodes_sees_the_same_batches_and_has_the_same_loss(
    launch: Launch, composed: Callable[..., TrainConfig], text: Path, tmp_path: Path
) -> None:
    """Two processes add a batch's gradients in another order: last bits differ.

    Unquantized, 24 small steps keep that below 1e-5.  Quantized, a last bit moves a value over a
    rounding boundary now and then: the first row agrees as well, the curve to half a percent.
    """
    for recipe in ("recipe=none", "recipe=nearest"):
        words = (*SMALL, f"data.path={text}", "study.name=alone", "optim.lr=0.001", recipe)
        train(composed(*words))
    two = ["trainer.num_workers=2", "trainer.spread=true", "checkpoint_seconds=0"]
    said(launch("two", "recipe=none,nearest", "optim.lr=0.001", *two), 0)
    alone, together = load(tmp_path / "runs" / "alone"), load(tmp_path / "runs" / "two")
    assert together["run_id"].tolist() == alone["run_id"].tolist()
    for run in alone["run_id"]:
        curves = []
        for study in ("alone", "two"):
            path = tmp_path / "runs" / study / run / "metrics.jsonl"
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            curves.append([row.get("train/loss") or row["validation/loss"] for row in rows])
        assert len(curves[0]) == len(curves[1]) == 7
        assert curves[1][0] == pytest.approx(curves[0][0], rel=1e-5)
        tolerance = 1e-5 if run.startswith("none") else 5e-3
        assert curves[1] == pytest.approx(curves[0], rel=tolerance)


def test_two_processes_accumulate_what_one_sees_at_once(
    launch: Launch, composed: Callable[..., TrainConfig], text: Path, tmp_path: Path
) -> None:
    """Unquantized, four passes on one sequence each are one on four but for last bits."""
    words = (*SMALL, f"data.path={text}", "study.name=alone", "optim.lr=0.001", "recipe=none")
    alone = train(composed(*words)).folder
    two = ["trainer.num_workers=2", "accumulate=2", "trainer.spread=true"]
    said(launch("two", "recipe=none", "optim.lr=0.001", *two), 0)
    [together] = (tmp_path / "runs" / "two").glob("none-*")
    curves = []
    for folder in (alone, together):
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        curves.append([row.get("train/loss") or row["validation/loss"] for row in rows])
    assert len(curves[0]) == len(curves[1]) == 7
    assert curves[1] == pytest.approx(curves[0], rel=1e-5)


def test_a_run_on_two_nodes_survives_a_signal_and_the_death_of_a_process(
    launch: Launch, tmp_path: Path
) -> None:
    """Stopped behind a checkpoint it goes on from there; a killed process is a retry from one."""
    two = ["trainer.num_workers=2", "trainer.spread=true", "tokens=51200", "optim.lr=0.001"]
    driver = launch("pair", *two)
    runs = tmp_path / "runs" / "pair"
    wait_for(lambda: [c for c in runs.glob("*/metrics.jsonl") if c.stat().st_size], driver)
    driver.send_signal(signal.SIGTERM)
    said(driver, 143)
    checkpoints = list(runs.glob("*/checkpoints/*.ckpt"))
    assert len(checkpoints) == 1
    assert not [*runs.glob("*/lease.*"), *runs.glob("*/stop.*"), *runs.glob(f"*/{FAILURE}")]
    driver = launch("pair", *two, "checkpoint_seconds=0")
    wait_for(lambda: set(runs.glob("*/checkpoints/*.ckpt")) - set(checkpoints), driver)
    [who] = [who for run in runs.glob("*-*") if (who := holder(run))]
    os.kill(who.pid, signal.SIGKILL)
    assert "retry " in said(driver, 0)
    [log] = runs.glob(f"*/{LOG}")
    assert len(re.findall("stopped", log.read_text())) == 1
    assert load(runs)["attempts"].tolist() == [3]


def may_unshare() -> bool:
    """Whether this user may hide a folder from a process."""
    tried = ["unshare", "-rm", "mount", "-t", "tmpfs", "none", "/mnt"]
    try:
        return subprocess.run(tried, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not may_unshare(), reason="needs mount namespaces")
def test_a_node_that_does_not_see_the_store_is_named_before_anything_starts(
    launch: Launch, tmp_path: Path, cluster: str
) -> None:
    import ray

    hidden = tmp_path / "runs"
    hidden.mkdir()
    node = f"{Path(sys.executable).parent}/ray start --address={cluster} --num-cpus=1 --block"
    ray.init(address=cluster, log_to_driver=False)
    try:
        before = alive()
        with processes(tmp_path, stderr=subprocess.STDOUT) as start:
            command = ["unshare", "-rm", "sh", "-c", f"mount -t tmpfs none {hidden} && exec {node}"]
            blind = start(command)

            def joined() -> bool:
                nonlocal blind
                if blind.poll() is not None:  # Ray gives a node 30 s, however busy the machine
                    blind = start(command)
                return bool(alive() - before)

            wait_for(joined)
            out = said(launch("blind"), 2)
            os.killpg(blind.pid, signal.SIGKILL)
        assert re.search(
            r"node \S+: does not see .*/runs/blind: runs=... must be a shared folder", out
        )
        assert not list(hidden.glob("blind/*-*")), "nothing was started"
        assert not list(hidden.glob("blind/.nonce*"))
    finally:
        ray.shutdown()


def alive() -> set[str]:
    """The nodes of the cluster that this process is connected to."""
    import ray

    return {node["NodeID"] for node in ray.nodes() if node["Alive"]}


def test_the_last_run_of_a_dead_driver_is_waited_for_and_not_doubled(
    launch: Launch, tmp_path: Path
) -> None:
    """Workers outlive a SIGKILLed driver by seconds; the next driver comes at once."""
    arguments = ["tokens=102400", "checkpoint_seconds=0.2", "recipe=stochastic"]
    first = launch("again", *arguments)
    runs = tmp_path / "runs" / "again"
    wait_for(lambda: list(runs.glob("*/checkpoints/*.ckpt")), first)
    first.kill()
    second = launch("again", *arguments)
    said(second, 0)
    said(launch("calm", *arguments), 0)
    again, calm = load(runs), load(tmp_path / "runs" / "calm")
    assert again["weights_sha256"].tolist() == calm["weights_sha256"].tolist()
    assert len(list(runs.glob(f"*/{RESULT}"))) == 1
    assert json.loads(next(runs.glob(f"*/{ATTEMPTS}")).read_text())["attempts"] >= 2
    assert not [t for t in threading.enumerate() if t.name == "lease"]
