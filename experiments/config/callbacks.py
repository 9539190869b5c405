"""Callbacks of the user's own, by import path, and the hash that they are known by."""

from __future__ import annotations

import hashlib

from experiments.config.precision import ConfigError
from experiments.config.running import TrainerConfig
from experiments.models.imported import ImportedError, code_digest

CALLBACKS = "trainer.callbacks"


def problems(trainer: TrainerConfig) -> list[str]:
    """Errors, each as "key=value: what would be right"."""
    twice = [path for path in trainer.callbacks if trainer.callbacks.count(path) > 1]
    found = [f"{CALLBACKS}={path}: is there twice" for path in dict.fromkeys(twice)]
    if trainer.callbacks_sha256 and not trainer.callbacks:
        found.append(
            f"trainer.callbacks_sha256={trainer.callbacks_sha256[:12]}: is filled in from "
            f"{CALLBACKS}, which is empty"
        )
    return found


def resolve_callbacks(trainer: TrainerConfig) -> None:
    """Fill in the hash of the functions' files, in place.

    Raises:
        ConfigError: There is no such function, or it is not the one that was planned.
    """
    if not trainer.callbacks:
        return
    digest = hashlib.sha256()
    try:
        for path in trainer.callbacks:
            digest.update(code_digest(CALLBACKS, path))
    except ImportedError as error:
        raise ConfigError(str(error)) from error.__cause__
    found = digest.hexdigest()
    if trainer.callbacks_sha256 and trainer.callbacks_sha256 != found:
        raise ConfigError(
            f"trainer.callbacks_sha256={trainer.callbacks_sha256[:12]}: "
            f"{', '.join(trainer.callbacks)} has {found[:12]} now; it was changed after the sweep "
            "was planned"
        )
    trainer.callbacks_sha256 = found
