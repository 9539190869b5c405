"""The user's callbacks of one attempt at a run, made by the functions that they named."""

from __future__ import annotations

import io

import lightning as L
import torch
from lightning.pytorch.callbacks import Checkpoint

from experiments.config.callbacks import CALLBACKS
from experiments.config.precision import ConfigError
from experiments.config.running import TrainerConfig
from experiments.models.imported import ImportedError, imported
from fitting.entry.errors import one_line


def made_callbacks(trainer: TrainerConfig) -> list[L.Callback]:
    """New ones, in the order in which they are named.

    Raises:
        ConfigError: A function cannot be called, or returns something that cannot take part.
    """
    found: list[L.Callback] = []
    for path in trainer.callbacks:
        key = f"{CALLBACKS}={path}"
        try:
            callback = imported(CALLBACKS, path)()
        except ImportedError as error:
            raise ConfigError(str(error)) from error.__cause__
        except (Exception, SystemExit) as error:
            raise ConfigError(f"{key}: raises {type(error).__name__}: {one_line(error)}") from error
        if not isinstance(callback, L.Callback):
            raise ConfigError(
                f"{key}: returned {type(callback).__name__}; must be a lightning.Callback"
            )
        if isinstance(callback, Checkpoint):
            raise ConfigError(
                f"{key}: returned {type(callback).__name__}; a run writes its checkpoints itself, "
                "every checkpoint_seconds"
            )
        if callback.state_key in {other.state_key for other in found}:
            raise ConfigError(
                f"{key}: has the state_key of another one, {callback.state_key}; give it its own"
            )
        _refuse_unless_resumable(key, callback)
        found.append(callback)
    return found


def _refuse_unless_resumable(key: str, callback: L.Callback) -> None:
    """Make sure that a checkpoint with its state can be read again, which runs no code."""
    file = io.BytesIO()
    try:
        torch.save(callback.state_dict(), file)
        file.seek(0)
        torch.load(file, weights_only=True)
    except Exception as error:  # of pickle, of torch, of the callback itself
        raise ConfigError(
            f"{key}: its state_dict cannot be part of a checkpoint, which holds tensors, numbers, "
            "text, and lists and dicts of them"
        ) from error
