"""Batches of examples, addressed by step as those of text are: batch k is a function of (seed, k).

An example is a pair of image and class, or whatever a user's own task reads.  A permutation for
(seed, epoch) orders the examples of the training part; batch k is examples [kB, (k + 1)B) of that
order.  So resuming is exact, and runs that differ in precision alone see the same batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from experiments.data.batches import DataConfig, of_step, scored
from experiments.data.shards import DataError

Gather = Callable[[list[int]], Any]
"""Numbers of examples to a batch of them."""


class Examples:
    """The examples of a task by number, in a training and a validation part.

    Args:
        config: Which data, and how much of it.
        label: What run records call the data: a name and the beginning of a hash.
        train: The number of examples to train on, and how to gather some of them.
        validation: The same of those that are scored.

    Raises:
        DataError: A part without an example, or fewer than `data.validation_windows`.
    """

    bytes_per_token: float | None = None
    """None: an example has no length in bytes to compare."""

    def __init__(
        self,
        config: DataConfig,
        label: str,
        train: tuple[int, Gather],
        validation: tuple[int, Gather],
    ) -> None:
        self.config, self.label = config, label
        self.count, self._gather = train
        there, self._gather_validation = validation
        for part, number in (("training", self.count), ("validation", there)):
            if number < 1:
                raise DataError(f"{config.key}: its {part} part has no example")
        self.validation = scored(config, there, "examples of the validation part")
        """The numbers of the examples that are scored, ascending."""

    def check(self, steps: int, batch_size: int) -> None:
        """Refuse a run that these examples cannot feed; arguments as `TokenData.check` takes them.

        Raises:
            DataError: Fewer examples than one batch, or more epochs than `max_epochs`.
        """
        config = self.config
        if batch_size > self.count:
            raise DataError(
                f"batch_size={batch_size}: must be at most {self.count:,}, the training examples "
                f"of {config.key}"
            )
        epochs = -(-steps * batch_size // self.count)
        if epochs > config.max_epochs:
            raise DataError(
                f"data.max_epochs={config.max_epochs}: {steps:,} steps of {batch_size} examples "
                f"are {steps * batch_size:,}, {self.label} has {self.count:,}; set "
                f"data.max_epochs={epochs} to repeat them, or train on fewer"
            )

    def unique_tokens(self, steps: int, batch_size: int) -> int:
        """Different training examples seen in this many steps."""
        return min(steps * batch_size, self.count)

    def batch(self, step: int, batch_size: int, seed: int, rank: int = 0, world: int = 1) -> Any:
        """The examples of one step; arguments as `TokenData.batch` takes them."""
        return self._gather(of_step(step, self.count, batch_size, seed, rank, world))

    def validation_batches(self, batch_size: int) -> Iterator[Any]:
        """The validation examples in order; the last batch may be short."""
        for start in range(0, len(self.validation), batch_size):
            yield self._gather_validation(self.validation[start : start + batch_size])
