"""Lack of memory, in whatever error it shows, as one error that says what would help."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from experiments.config.schema import TrainConfig
from experiments.tasks.choose import task_of
from fitting.entry.errors import Failure


class OutOfMemory(Failure):
    """A run's need for more memory than there is, or than it was given."""


def named_if_of_memory(error: Exception, config: TrainConfig) -> Exception:
    """The error itself or, if memory ran out, one that says so and what would help."""
    if not wants_memory(error):
        return error
    task = task_of(config)
    needed = task.training_bytes(config.rows, config.recipe, config.trainer.checkpointing)
    given = config.resources.memory
    limit = f"more than resources.memory={given:g} GiB" if given else "more memory than there is"
    return OutOfMemory(
        f"it takes {limit} (about {needed / 2**30:.1f} GiB by our count, plus the process itself); "
        f"lower batch_size={config.batch_size}, or raise accumulate={config.accumulate}"
        + (f" or data.seq_len={config.data.seq_len}" if task.unit == "token" else "")
        + (", or raise resources.memory" if given else "")
    )


def wants_memory(error: Exception) -> bool:
    """Whether lack of memory is the cause of an error."""
    return any(_is_want_of_memory(each) for each in _chain(error))


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error and its causes: where memory is short, handling an error may fail too."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _is_want_of_memory(error: BaseException) -> bool:
    texts = (
        *("can't allocate memory", "out of memory", "Cannot allocate memory"),  # torch, system
        *("bad_alloc", "could not create a memory", "failed to map segment"),  # C++, oneDNN, loader
    )
    known = isinstance(error, (MemoryError, torch.OutOfMemoryError))
    return known or any(text in str(error) for text in texts)
