"""Weights & Biases: a mirror of a run, offline by default, never a reason to fail.

Offline, W&B leaves one `run-<id>.wandb` file and nothing else readable; `read_offline` reads it
back without a server.
"""

from __future__ import annotations

import json
import logging
import struct
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from experiments.config import TrainConfig

_LOG = logging.getLogger(__name__)
_INIT_TIMEOUT_SECONDS = 20
_BLOCK_BYTES = 32 * 1024
_FILE_HEADER_BYTES = 7
_RECORD_HEADER = struct.Struct("<IHB")  # checksum, length, type
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4


def tags(config: TrainConfig) -> list[str]:
    """What one filters runs by: recipe, format, model."""
    found = [config.recipe.name, config.model.name]
    if config.recipe.quantized:
        found += [f"E{config.precision.exponent}M{config.precision.mantissa}"]
        found += [config.precision.granularity]
    return found


def start(config: TrainConfig, run_id: str, folder: Path, attempt: int) -> Any | None:
    """A W&B run for one of ours, or None if tracking is off or W&B cannot be started.

    Group is the study, job type "train".  An offline file cannot be resumed, so a second attempt
    writes its own file under `<run_id>-a<attempt>`.
    """
    if config.tracking.mode == "none":
        return None
    import wandb

    offline = config.tracking.mode == "offline"
    try:
        run = wandb.init(
            project=config.tracking.project,
            name=run_id,
            id=run_id if attempt == 1 or not offline else f"{run_id}-a{attempt}",
            resume=None if offline else "allow",
            dir=folder,
            mode="offline" if offline else "online",
            group=config.study.name,
            job_type="train",
            tags=tags(config),
            config=asdict(config),
            settings=wandb.Settings(
                console="off",
                silent=True,
                init_timeout=_INIT_TIMEOUT_SECONDS,
                x_disable_stats=True,
                x_disable_meta=True,
                disable_git=True,
            ),
        )
        run.define_metric("tokens")
        run.define_metric("*", step_metric="tokens")
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        _LOG.warning(
            "tracking.mode=%s: W&B did not start (%s); the run goes on without it",
            config.tracking.mode,
            reason,
        )
        finish(exit_code=1)
        return None
    return run


def log(run: Any | None, row: dict[str, float]) -> None:
    """Send one row of metrics; a W&B that breaks down later costs that row, not the run."""
    if run is None:
        return
    try:
        run.log(row)
    except Exception as error:
        _LOG.warning("W&B dropped a row (%s)", error)


def finish(exit_code: int) -> None:
    """End the W&B run of this process, if there is one: the next run here gets its own."""
    import wandb

    if wandb.run is not None:
        try:
            wandb.finish(exit_code=exit_code)
        except Exception as error:
            _LOG.warning("W&B did not finish (%s)", error)


@dataclass
class OfflineRun:
    """What one offline W&B file holds."""

    run_id: str = ""
    group: str = ""
    job_type: str = ""
    project: str = ""
    tags: list[str] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    exit_code: int | None = None
    """None: the run was killed before it could say."""


def read_offline(path: Path) -> OfflineRun:
    """Read a `run-<id>.wandb` file.

    Args:
        path: The file, or a folder with exactly one such file below it.

    Returns:
        Identity, config and every row of the loss curve, as far as the file is whole.

    Raises:
        FileNotFoundError: No such file, or not exactly one.
    """
    from wandb.proto import wandb_internal_pb2

    if path.is_dir():
        files = sorted(path.rglob("run-*.wandb"))
        if len(files) != 1:
            raise FileNotFoundError(f"{path}: {len(files)} W&B files below it, not one")
        path = files[0]
    found = OfflineRun()
    for data in _records(path.read_bytes()):
        record = wandb_internal_pb2.Record.FromString(data)  # type: ignore[attr-defined]
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run = record.run
            found.run_id, found.group, found.job_type = run.run_id, run.run_group, run.job_type
            found.project, found.tags = run.project, list(run.tags)
            _update(found.config, run.config.update)
        elif kind == "config":
            _update(found.config, record.config.update)
        elif kind == "history":
            row: dict[str, Any] = {}
            _update(row, record.history.item)
            found.history.append(row)
        elif kind == "exit":
            found.exit_code = record.exit.exit_code
    return found


def _update(into: dict[str, Any], items: Any) -> None:
    for item in items:
        name = item.key or ".".join(item.nested_key)
        into[name] = json.loads(item.value_json)


def _records(data: bytes) -> Iterator[bytes]:
    """The records of a LevelDB log, cut to fit 32 KiB blocks; a torn tail is dropped."""
    position, parts = _FILE_HEADER_BYTES, b""
    while position + _RECORD_HEADER.size <= len(data):
        left_in_block = _BLOCK_BYTES - position % _BLOCK_BYTES
        if left_in_block < _RECORD_HEADER.size:
            position += left_in_block
            continue
        _, length, kind = _RECORD_HEADER.unpack_from(data, position)
        position += _RECORD_HEADER.size
        chunk = data[position : position + length]
        if kind not in (_FULL, _FIRST, _MIDDLE, _LAST) or len(chunk) < length:
            return
        position += length
        parts = chunk if kind in (_FULL, _FIRST) else parts + chunk
        if kind in (_FULL, _LAST):
            yield parts
