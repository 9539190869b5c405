"""docs/clusters.md and its files: what can be run here is run, the rest is at least accepted."""

import contextlib
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from experiments.config.schema import SWEEP_KEYS, TrainConfig
from experiments.mirror.sync import parse
from experiments.store.curve import METRICS
from fitting.results.record import RESULT
from tests.support.places import ROOT

PAGE = (ROOT / "docs" / "clusters.md").read_text()
SLURM = ROOT / "docs" / "clusters" / "slurm.sh"
KUBERAY = ROOT / "docs" / "clusters" / "kuberay.yaml"
SCRIPTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
BLOCKS = re.findall(r"^```sh\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
ELSEWHERE = "# needs: "
SMALL = (
    "model=ladder/a",
    "data=tokens",
    "data.seq_len=64",
    "data.max_epochs=100",
    "data.validation_windows=32",
)


def words(blocks: list[str]) -> list[list[str]]:
    """Commands, without comments and variables set before them."""
    found = []
    for line in "".join(blocks).splitlines():
        command = shlex.split(line, comments=True)
        while command and re.match(r"[A-Z_]+=", command[0]):
            command = command[1:]
        if command:
            found.append(command)
    return found


def overrides(command: list[str]) -> list[str] | None:
    """What reaches lowbit-train, in whatever way; None: the command does not end there."""
    for start in ("lowbit-train", "docs/clusters/slurm.sh"):
        if start in command:
            return [
                word
                for word in command[command.index(start) + 1 :]
                if word not in ("-m", "...") and word.partition("=")[0] not in SWEEP_KEYS
            ]
    return None


def constraint(package: str) -> str:
    """The version that we are tested with."""
    pins = dict(
        line.split("==") for line in (ROOT / "constraints.txt").read_text().split() if "==" in line
    )
    return pins[package]


# ---- The page ----


@pytest.mark.ray
@pytest.mark.slow
def test_commands_that_need_no_cluster_run(tmp_path: Path, text: Path) -> None:
    """As they stand, but for shorter runs on a smaller text."""
    ran = []
    for command in words([block for block in BLOCKS if not block.startswith(ELSEWHERE)]):
        small = [*SMALL, f"data.path={text}", "tokens=4096"] if command[0] == "lowbit-train" else []
        module, _, function = SCRIPTS[command[0]].partition(":")
        script = f"from {module} import {function}; {function}()"
        done = subprocess.run(
            [sys.executable, "-c", script, *command[1:], *small],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=1200,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        ran.append(command[0])
    assert ran == ["lowbit-train", "lowbit-train", "lowbit-status", "lowbit-sync"]


def test_commands_for_clusters_are_accepted(
    composed: Callable[..., TrainConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = [given for command in words(BLOCKS) if (given := overrides(command)) is not None]
    assert len(asked) >= 9
    for study in ("smoke", "demo"):
        (tmp_path / "runs" / study).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    for given in asked:
        composed(*given)
    for command in words(BLOCKS):
        if command[0] == "lowbit-sync":
            here = [word.replace("/shared/", "") for word in command[1:]]
            assert len(parse(here)[1]) == 1


def test_settings_in_the_text_exist_and_stated_defaults_are_the_defaults(
    composed: Callable[..., TrainConfig],
) -> None:
    named = [word for code in re.findall(r"`([^`\n]+)`", PAGE) for word in code.split()]
    settings = [
        word for word in named if re.fullmatch(r"[a-z_.]+=[\w./]+", word) and "watch" not in word
    ]
    assert len(settings) >= 10
    composed(*dict.fromkeys(settings))
    default = composed()
    assert f"`lease_seconds={default.lease_seconds:g}`" in PAGE
    assert f"`checkpoint_seconds={default.checkpoint_seconds:g}`" in PAGE


def test_files_that_the_page_names_exist() -> None:
    links = re.findall(r"\]\(([^)]+)\)", PAGE)
    assert len(links) >= 4
    for link in links:
        assert (ROOT / "docs" / link).is_file(), link
    for named in re.findall(r"\bdocs/[\w/.]+\w", PAGE):
        assert (ROOT / named).is_file(), named


def test_the_image_has_the_pinned_torch() -> None:
    [pin] = re.findall(r"torch==[\d.]+\d", PAGE)
    assert pin in (ROOT / "constraints.txt").read_text().splitlines()


# ---- Kubernetes ----

RAY_JOB = {
    "activeDeadlineSeconds",
    "backoffLimit",
    "entrypoint",
    "rayClusterSpec",
    "shutdownAfterJobFinishes",
    "submissionMode",
    "ttlSecondsAfterFinished",
}
RAY_CLUSTER = {"authOptions", "headGroupSpec", "rayVersion", "workerGroupSpecs"}
HEAD_GROUP = {"rayStartParams", "template"}
WORKER_GROUP = HEAD_GROUP | {"groupName", "maxReplicas", "minReplicas", "replicas"}
"""Fields of KubeRay's API ray.io/v1 (KubeRay 1.5.1, docs.ray.io "KubeRay CRD API reference")."""


def kuberay() -> tuple[dict[str, Any], dict[str, Any], list[dict[str, Any]]]:
    """The volume claim, the job, and its groups of pods."""
    claim, job = yaml.safe_load_all(KUBERAY.read_text())
    cluster = job["spec"]["rayClusterSpec"]
    return claim, job, [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


def test_the_ray_job_has_only_fields_that_kuberay_knows() -> None:
    claim, job, (head, *workers) = kuberay()
    assert (claim["apiVersion"], claim["kind"]) == ("v1", "PersistentVolumeClaim")
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    assert set(job["spec"]) <= RAY_JOB
    cluster = job["spec"]["rayClusterSpec"]
    assert set(cluster) <= RAY_CLUSTER
    assert set(head) == HEAD_GROUP
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["rayVersion"] == constraint("ray")
    for group in workers:
        assert set(group) == WORKER_GROUP
        assert group["replicas"] == group["minReplicas"] == group["maxReplicas"]
    for group in (head, *workers):
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())


def test_all_pods_have_one_image_and_the_shared_folder_that_runs_go_to(
    composed: Callable[..., TrainConfig],
) -> None:
    claim, job, groups = kuberay()
    command = shlex.split(job["spec"]["entrypoint"])
    assert command[:2] == ["lowbit-train", "-m"]
    config = composed(*command[2:])
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    pods = [group["template"]["spec"] for group in groups]
    assert len({pod["containers"][0]["image"] for pod in pods}) == 1
    for pod in pods:
        [volume], [container] = pod["volumes"], pod["containers"]
        assert volume["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
        [mount] = container["volumeMounts"]
        assert mount["name"] == volume["name"]
        assert config.runs.startswith(mount["mountPath"] + "/")
        assert container["resources"]["requests"] == container["resources"]["limits"]
    limits = pods[1]["containers"][0]["resources"]["limits"]
    own, gpus = config.resources, int(limits["nvidia.com/gpu"])
    assert gpus / own.gpus * own.cpus <= int(limits["cpu"]), "all GPUs can be used at a time"


# ---- Slurm ----


def test_the_slurm_file_is_a_shell_file_without_slips() -> None:
    subprocess.run(["bash", "-n", SLURM], check=True)
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed")
    done = subprocess.run(["shellcheck", SLURM], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def free_ports(number: int) -> list[int]:
    """Ports of the loopback device that were free a moment ago."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@pytest.fixture
def slurm(tmp_path: Path) -> Iterator[dict[str, str]]:
    """A Slurm of two nodes on this machine, as the environment in which its commands find it."""
    missing = [name for name in ("munged", "slurmctld", "slurmd") if shutil.which(name) is None]
    if missing or os.geteuid() != 0:
        pytest.skip(f"needs root and {', '.join(missing) or 'Slurm'} (Debian: slurm-wlm)")
    folder = tmp_path / "slurm"
    host = socket.gethostname().partition(".")[0]
    for name in ("state", "spool.node1", "spool.node2"):
        (folder / name).mkdir(parents=True)
    (folder / "key").write_bytes(os.urandom(128))
    (folder / "key").chmod(0o400)
    controller, *nodes = free_ports(3)
    config = folder / "slurm.conf"
    config.write_text(
        f"ClusterName=here\nSlurmctldHost={host}(127.0.0.1)\nSlurmUser=root\n"
        f"AuthInfo=socket={folder}/munge\nProctrackType=proctrack/linuxproc\nTaskPlugin=task/none\n"
        f"CommunicationParameters=NoInAddrAny,NoCtldInAddrAny\n"
        f"SlurmctldPort={controller}\nStateSaveLocation={folder}/state\n"
        f"SlurmctldPidFile={folder}/slurmctld.pid\nSlurmdPidFile={folder}/slurmd.%n.pid\n"
        f"SlurmdSpoolDir={folder}/spool.%n\nSlurmdParameters=config_overrides\nKillWait=10\n"
        + "".join(
            f"NodeName=node{n} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=1\n"
            for n, port in enumerate(nodes, 1)
        )
        + "PartitionName=main Nodes=node1,node2 Default=YES MaxTime=INFINITE State=UP\n"
    )
    environment = os.environ | {"SLURM_CONF": str(config), "HOME": str(tmp_path)}
    commands = [
        [
            "munged",
            "--foreground",
            "--force",
            f"--socket={folder}/munge",
            f"--key-file={folder}/key",
        ]
        + [f"--{name}-file={folder}/munge.{name}" for name in ("pid", "seed", "log")],
        ["slurmctld", "-D"],
        ["slurmd", "-D", "-N", "node1"],
        ["slurmd", "-D", "-N", "node2"],
    ]
    with contextlib.ExitStack() as stack:
        out = stack.enter_context(open(folder / "out.txt", "wb"))
        for command in commands:
            daemon = stack.enter_context(
                subprocess.Popen(command, stdout=out, stderr=out, env=environment)
            )
            stack.callback(daemon.terminate)
            time.sleep(1)
        yield environment
        subprocess.run(["scancel", "--user=root"], env=environment, check=True)
        for _ in range(60):  # a job of a test that failed must not outlive the daemons
            if not subprocess.check_output(["squeue", "-h"], env=environment):
                break
            time.sleep(1)


@pytest.mark.ray
@pytest.mark.slow
def test_a_slurm_job_at_its_time_limit_writes_checkpoints_queues_again_and_goes_on(
    tmp_path: Path, text: Path, slurm: dict[str, str]
) -> None:
    (tmp_path / ".venv").symlink_to(sys.prefix)
    sweep = [*SMALL, f"data.path={text}", "tokens=409600", "batch_size=4", "study.name=s"]
    once = ["checkpoint_seconds=3600", "tracking=none", "tracking.log_every=10", "seed=0,1"]

    def run(*command: str | Path) -> str:
        return subprocess.run(
            command, env=slurm, cwd=tmp_path, capture_output=True, text=True, check=True
        ).stdout

    def wait(until: Callable[[], bool], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not until():
            said = [path.read_text() for path in sorted(tmp_path.glob("lowbit-*.out"))]
            assert time.monotonic() < deadline, "\n".join(said)
            assert state(job) != "FAILED", "\n".join(said)
            time.sleep(0.5)

    def state(job: str) -> str:
        return run("squeue", "-h", "-t", "all", "-j", job, "-o", "%T").strip()

    job = run("sbatch", "--parsable", "--time=30", SLURM, *sweep, *once).strip()
    runs = tmp_path / "runs" / "s"
    wait(lambda: len(list(runs.glob("*/metrics.jsonl"))) == 2, 300)
    run("scancel", "--batch", "--signal=USR1", job)  # what --signal in the file does
    wait(lambda: state(job) == "PENDING", 90)
    assert len(list(runs.glob("*/checkpoints/*.ckpt"))) == 2
    assert not list(runs.glob("*/lease.*"))
    run("scontrol", "update", f"JobId={job}", "StartTime=now")  # it would wait two minutes
    wait(lambda: state(job) == "COMPLETED", 400)
    records = [json.loads(path.read_text()) for path in runs.glob(f"*/{RESULT}")]
    assert [(record["status"], record["attempts"]) for record in records] == [("finished", 2)] * 2
    for record in records:
        curve = (runs / record["run_id"] / METRICS).read_text().splitlines()
        steps = [row["step"] for row in map(json.loads, curve) if "train/loss" in row]
        assert steps == list(range(10, 1601, 10)), "no step is missing or was trained twice"
