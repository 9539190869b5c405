"""Ray itself: a cluster of our own or one that is there already, and whether it is suitable."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
import os
import platform
import sys
import uuid
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from experiments.config.precision import ConfigError
from experiments.paths import package_dir
from experiments.sweep.own_ray import own_ray
from experiments.sweep.plan import Resources
from experiments.sweep.reach import KEY, wait_for_cluster
from fitting.files.atomic import create_exclusive

LOCAL = "local"
_ANSWER_SECONDS = 600.0
"""Seconds for a node to report what it has: Ray's workers run at the lowest priority, so that a
node that computes something else takes minutes to import us."""
_SAID_SECONDS = 30.0
"""Seconds of these that a node gets before the user is told."""
_MUST_AGREE = ("torch", "lightning", "numpy")
"""Packages whose versions change losses."""


def this_machine() -> Resources:
    """The resources that a sweep may use here, found without starting anything."""
    import torch

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    cpus = float(len(os.sched_getaffinity(0)))
    return Resources(cpus, float(torch.cuda.device_count()), memory / 2**30)


@contextlib.contextmanager
def ray_session(address: str, dashboard: bool) -> Iterator[Any]:
    """A Ray of our own, ended with us, or the user's cluster, joined and left alone.

    Raises:
        ConfigError: There is no cluster at that address, or no place for the files of our own.
        Failure: None could be started here.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")
    # By default Ray's workers yield to everything else on the machine.
    os.environ.setdefault("RAY_worker_niceness", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    # `log_to_driver` does not cover this: a lost node would print sixty lines of its log here.
    ray._private.worker.print_to_stdstream = lambda *_, **__: None
    options: dict[str, Any] = {
        "address": address,
        "log_to_driver": False,
        "logging_level": logging.ERROR,
    }
    if address == LOCAL:
        here = this_machine()
        options |= {
            "num_cpus": int(here.cpus),
            "num_gpus": int(here.gpus),
            "_memory": int(here.memory * 2**30),
            "include_dashboard": dashboard,
            "dashboard_host": "127.0.0.1",
        }
        with own_ray(ray, options):
            yield ray
        return
    try:
        wait_for_cluster(ray, address)
        ray.init(**options)
    except ConfigError:
        raise
    except (ConnectionError, ValueError, RuntimeError) as error:
        why = (str(error).splitlines() or [""])[0]
        if "InvalidAuthToken" in str(error) + str(error.__cause__):
            why = "its token is not ours: set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN as it has them"
        raise ConfigError(f"{KEY}={address}: no Ray cluster ({why})") from error
    try:
        yield ray
    finally:
        ray.shutdown()


def machines(ray: Any) -> list[Resources]:
    """The total resources of each living node."""
    found = []
    for node in ray.nodes():
        if node["Alive"]:
            has = node["Resources"]
            memory = has.get("memory", 0.0) / 2**30
            found.append(Resources(has.get("CPU", 0.0), has.get("GPU", 0.0), memory))
    return found


def capacity(address: str) -> Resources:
    """Resources of this machine, or of the cluster at `address`, all nodes together.

    Raises:
        ConfigError: There is no cluster.
    """
    if address == LOCAL:
        return this_machine()
    with ray_session(address, dashboard=False) as ray:
        return sum(machines(ray), Resources(0.0))


def check_nodes(ray: Any, folder: Path) -> None:
    """Make sure that every node sees the store and would compute what the others do.

    Args:
        ray: Joined to the cluster.
        folder: The study's, which all nodes must share.

    Raises:
        ConfigError: A node that does not; one line for each.
    """
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    nonce = uuid.uuid4().hex
    folder.mkdir(parents=True, exist_ok=True)
    probe = folder / f".nonce.{nonce}"
    create_exclusive(nonce, probe)
    try:
        remote = ray.remote(num_cpus=0, max_retries=0)(_look)
        asked = [
            (
                node["NodeManagerHostname"],
                remote.options(
                    scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
                ).remote(str(probe)),
            )
            for node in ray.nodes()
            if node["Alive"]
        ]
        here = _look(str(probe))
        found = []
        for host, reference in asked:
            try:
                if not ray.wait([reference], timeout=_SAID_SECONDS)[0]:
                    print(f"waiting for node {host}, which may be busy", file=sys.stderr)
                there = ray.get(reference, timeout=_ANSWER_SECONDS)
            except (ray.exceptions.TaskUnschedulableError, ray.exceptions.NodeDiedError):
                continue  # it has just left
            except Exception as error:
                lines = [line for line in str(error).splitlines() if line.strip()] or [""]
                found.append(f"node {host}: cannot run lowbit-scaling ({lines[-1].strip()})")
                continue
            if there["nonce"] != nonce:
                found.append(
                    f"node {host}: does not see {folder}: runs=... must be a shared folder"
                )
            for name, version in here["versions"].items():
                if there["versions"][name] != version:
                    found.append(
                        f"node {host}: has {name} {there['versions'][name]}, not {version} as here"
                    )
            if there["code"] != here["code"]:
                found.append(f"node {host}: has different code of lowbit-scaling from this machine")
    finally:
        probe.unlink(missing_ok=True)
    if found:
        raise ConfigError("\n".join(f"{KEY}: {line}" for line in found))


def _look(probe: str) -> dict[str, Any]:
    """The view and the software of a node."""
    path = Path(probe)
    return {
        "nonce": path.read_text() if path.exists() else "",
        "versions": {"Python": platform.python_version()}
        | {name: metadata.version(name) for name in _MUST_AGREE},
        "code": code_sha256(),
    }


@functools.cache
def code_sha256() -> str:
    """SHA-256 of the sources of `experiments`, Python and C: everything that computes a loss."""
    package = package_dir()
    digest = hashlib.sha256()
    for path in [*sorted(package.rglob("*.py")), *sorted(package.rglob("*.[ch]"))]:
        digest.update(str(path.relative_to(package)).encode() + path.read_bytes())
    return digest.hexdigest()
