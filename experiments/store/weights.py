"""The weights of a run: `weights.safetensors`, believed only where they are those of its record.

The format, safetensors, holds names, shapes and numbers and nothing that could be executed.  The
names are those of the run's `state_dict`, so that the hash of what the file holds is the record's
`weights_sha256`.  A tensor that has several names, as a tied head has, is stored under the first;
the file's metadata lead from the others to it, as those of safetensors' own `save_model` do.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from fitting.entry.errors import first_line
from fitting.files.atomic import write_atomic
from fitting.files.own_json import DamagedError

WEIGHTS = "weights.safetensors"
TORCH = {"format": "pt"}
"""Metadata by which readers know whose tensors a file holds."""
_REMEDY = "restore it from a copy, or train the run again with another runs=FOLDER"


def sha256_of_weights(state: Mapping[str, Tensor]) -> str:
    """Hash of all weights, names and bits."""
    digest = hashlib.sha256()
    for name, value in sorted(state.items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def write_weights(state: Mapping[str, Tensor], folder: Path) -> None:
    """Write the weights into a run's folder, whole or not at all.

    Raises:
        OSError: They cannot be written; nothing is left behind.
    """
    stored: dict[str, Tensor] = {}
    names: dict[tuple[object, ...], str] = {}
    metadata = dict(TORCH)
    for name, value in state.items():
        place = (value.device, value.data_ptr(), value.dtype, value.shape, value.stride())
        if value.numel() and (first := names.setdefault(place, name)) != name:
            metadata[name] = first
        else:
            stored[name] = value.detach().cpu().contiguous()
    write_atomic(safetensors.torch.save(stored, metadata), folder / WEIGHTS)


def read_weights(folder: Path, sha256: str) -> dict[str, Tensor]:
    """The weights in a run's folder, by the names of its `state_dict`.

    Args:
        folder: The run's.
        sha256: What `sha256_of_weights` gives for them, by the run's record.

    Raises:
        FileNotFoundError: There are none.
        DamagedError: They are not the record's.
    """
    path = folder / WEIGHTS
    if not os.path.lexists(path):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    if not path.is_file():  # reading a pipe would wait forever
        raise DamagedError(path, "not a regular file", _REMEDY)
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise DamagedError(path, first_line(error), _REMEDY) from error
    state |= {name: state[first] for name, first in metadata.items() if first in state}
    found = sha256_of_weights(state)
    if found != sha256:
        why = f"its weights have sha256 {found[:12]} where the record has {sha256[:12]}"
        raise DamagedError(path, why, _REMEDY)
    return state
