"""Checkpoints on disk, trusted only if they are known to be whole and of this very run.

Beside `step-000000040.ckpt` lies `step-000000040.json`, its seal: the SHA-256 of the file, the run
that wrote it and the step.  A file can be damaged and load all the same: torch checks no sum of
what it reads.  So a run goes on from a checkpoint only if the seal is this run's and holds, and if
what is in it suits the model; otherwise from the one before, or from its start: each gives the
same bits.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, cast

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from torch import Tensor

from fitting.entry.errors import first_line
from fitting.files.atomic import write_atomic
from fitting.files.own_json import DamagedError, read_object

CHECKPOINTS = "checkpoints"
_LOG = logging.getLogger(__name__)
_KEPT = 2
_PARTS = ("state_dict", "optimizer_states", "lr_schedulers", "loops", "callbacks", "global_step")
"""Parts that Lightning puts into a checkpoint and without which a run cannot go on."""


class CheckpointStore(TorchCheckpointIO):
    """The checkpoints of one run's folder: Lightning writes and reads through this.

    Args:
        folder: The run's.
        run_id: The run's address, which its seals carry.
    """

    def __init__(self, folder: Path, run_id: str) -> None:
        self.folder, self.run_id = folder / CHECKPOINTS, run_id
        self.error: OSError | None = None
        """Why the last checkpoint could not be written; None if it was."""
        self._trusted: list[Path] = []  # oldest first: what this attempt began from, or wrote
        self._passed_over: set[Path] = set()

    def path(self, step: int) -> Path:
        """The path of the checkpoint after a step."""
        return self.folder / f"step-{step:09d}.ckpt"

    def files(self) -> list[Path]:
        """All checkpoints, newest first, trusted or not."""
        return sorted(self.folder.glob("step-*.ckpt"), reverse=True)

    def newest(self, weights: Mapping[str, Tensor], stepped: Sequence[Tensor]) -> Path | None:
        """The newest one that can be trusted; one log line for each that is passed over.

        Args:
            weights: The state of the model that is to go on, for names and shapes.
            stepped: The parameters as its optimizer numbers them.
        """
        for path in self.files():
            if path in self._passed_over:
                continue
            try:
                problem = self._problem(path, weights, stepped)
            except Exception as error:  # torch's reader has no class for a file that is damaged
                problem = f"does not load ({first_line(error)})"
            if not problem:
                self._trusted = [path]
                return path
            self.pass_over(path, problem)
        return None

    def pass_over(self, path: Path, problem: str) -> None:
        """Log why a checkpoint is not used; the next one that is written takes its place."""
        _LOG.warning("checkpoint %s %s; it is passed over", path, problem)
        self._passed_over.add(path)
        self._trusted = []

    def remove_all(self) -> None:
        """Remove all checkpoints at the end of a run: a finished one needs none."""
        self._remove_but([])

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        """Write so that a crash leaves either the old checkpoint or the new one; for Lightning.

        Several processes meet after this, so an error must not leave it: it is kept in `error`.
        """
        path = Path(path)
        temporary = path.with_suffix(".tmp")
        self.error = None
        try:
            self.folder.mkdir(exist_ok=True)
            with open(temporary, "wb") as file:
                hashed = _HashedFile(file)
                torch.save(checkpoint, cast(IO[bytes], hashed))
                hashed.finish()
            seal = {
                "sha256": hashed.sha256.hexdigest(),
                "run_id": self.run_id,
                "step": int(checkpoint["global_step"]),
            }
            # The seal first: at no moment is there a checkpoint without one.
            write_atomic(json.dumps(seal) + "\n", _seal(path))
            os.replace(temporary, path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            self.error = error
            return
        self._trusted = [*(p for p in self._trusted if p != path), path][-_KEPT:]
        self._remove_but(self._trusted)

    def _remove_but(self, kept: list[Path]) -> None:
        names = {path.stem for path in kept}
        for path in self.folder.glob("step-*"):
            if path.stem not in names:
                path.unlink(missing_ok=True)

    def _problem(self, path: Path, weights: Mapping[str, Tensor], stepped: Sequence[Tensor]) -> str:
        """The reason why a run cannot go on from a checkpoint; "" if it can."""
        try:
            seal = read_object(_seal(path), "")
            belongs, step, expected = seal["run_id"], seal["step"], seal["sha256"]
        except FileNotFoundError:
            return f"has no {_seal(path).name} beside it to say what it is"
        except (DamagedError, KeyError):
            return f"has a damaged {_seal(path).name}"
        if belongs != self.run_id:
            return f"belongs to the run {belongs}"
        if path != self.path(step):
            return f"was written after step {step}"
        with open(path, "rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != expected:
            return f"is damaged: it has sha256 {found[:12]} where {str(expected)[:12]} was written"
        held = torch.load(path, weights_only=True, map_location="cpu", mmap=True)
        return _misfit(held, step, weights, stepped)


class _HashedFile:
    """A file that is hashed as it is written; an error of the disk is kept until `finish`.

    Torch's writer is C++ and turns an exception of Python into one of its own, without a number.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self.sha256 = hashlib.sha256()
        self._file = file
        self._error: OSError | None = None

    def write(self, data: bytes | memoryview) -> int:
        """Write all of it."""
        if self._error is None:
            try:
                self._file.write(data)
                self.sha256.update(data)
            except OSError as error:
                self._error = error
        return memoryview(data).nbytes

    def flush(self) -> None:
        """Do nothing: `finish` does it."""

    def finish(self) -> None:
        """Make sure that all is on the disk.

        Raises:
            OSError: It is not.
        """
        if self._error is not None:
            raise self._error
        self._file.flush()
        os.fsync(self._file.fileno())


def _seal(path: Path) -> Path:
    return path.with_suffix(".json")


def _misfit(held: Any, step: int, weights: Mapping[str, Tensor], stepped: Sequence[Tensor]) -> str:
    """The reason why a checkpoint's content does not suit a model; "" if it does."""
    missing = [part for part in _PARTS if part not in held]
    if missing:
        return f"does not suit this run: it has no {missing[0]}"
    if held["global_step"] != step:
        return f"does not suit this run: it is of step {held['global_step']}, not {step}"
    state = held["state_dict"]
    if state.keys() != weights.keys():
        other = min(state.keys() ^ weights.keys())
        return f"does not suit this model: {other} is in one and not in the other"
    for name, value in state.items():
        shape, right = tuple(value.shape), tuple(weights[name].shape)
        if (shape, value.dtype) != (right, weights[name].dtype):
            return f"does not suit this model: {name} is {shape} where {right} is right"
    [optimizer] = held["optimizer_states"]
    moments = []
    for index, right_one in enumerate(stepped):
        for name, value in optimizer["state"][index].items():
            label = f"{name} of parameter {index}"
            if value.shape not in ((), right_one.shape):
                shape, right = tuple(value.shape), tuple(right_one.shape)
                return f"does not suit this model: {label} is {shape} where {right} is right"
            moments.append((label, value))
    for name, value in [*state.items(), *moments]:
        if value.is_floating_point() and bool(torch.isnan(value).any()):
            return f"holds no numbers: there are NaN in {name}"
    return ""
