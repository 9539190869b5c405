"""A task of the user's own: an object with data and a loss, made by a function that they name.

    class Line:
        corpus = "line-v1"  # name your data, and rename it when it changes

        def __init__(self, points: int) -> None:
            x = torch.linspace(-1, 1, points)[:, None]
            self.train = [(row, 2 * row) for row in x]
            self.validation = self.train[::10]

        def losses(self, model, batch):  # one for each example
            x, y = batch
            return (model(x) - y).square().mean(-1)

`task=custom task.factory=mine:Line task.config.points=100` trains a model on it.  `Own` says what
it may have besides.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Mapping, Sized
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.data import default_collate

from experiments.data.batches import Batches, DataConfig
from experiments.data.examples import Examples
from experiments.data.shards import DataError
from experiments.models.config import ModelConfig
from experiments.models.foreign import Work
from experiments.models.imported import ImportedError, code_digest, imported
from experiments.models.next_token import NextToken
from experiments.models.source import ModelError
from experiments.tasks.config import TaskConfig
from experiments.tasks.on_examples import COUNTED, OnExamples
from experiments.tasks.task import Score
from fitting.entry.errors import Refusal, one_line


class TaskError(Refusal):
    """A user's own task cannot be had as asked, with what would be right."""


class Sequence(Sized, Protocol):
    """Examples by number: a list, or a `torch.utils.data.Dataset` with a length.

    The same number gives the same example, always: a run is resumed by it.
    """

    def __getitem__(self, number: int, /) -> Any:
        """One example: tensors, numbers, or tuples, lists and dicts of them."""


class Own(Protocol):
    """What an object must have to be a task.

    It may have besides:

        collate(examples)       a batch of a list of examples; torch's `default_collate` if missing
        metrics(model, batch)   further measures, {name: one number for each example}; scored with
                                the validation part and recorded as `validation_NAME`
        guess                   the loss of knowing nothing: a model that ends above it counts as
                                diverged; no such limit if missing

    Call the model once for a loss: rounding noise is drawn once a step.
    """

    corpus: str
    """Name of the data and its version.  Runs on different data must differ in it."""
    train: Sequence
    validation: Sequence

    def losses(self, model: Callable[..., Any], batch: Any) -> Tensor:
        """One loss for each example, [B]; the mean is trained on, the sum is scored."""


def resolved(task: TaskConfig) -> TaskConfig:
    """The task with the hash of its factory's file filled in, in place.

    Raises:
        TaskError: There is no such factory, or it is not the one that was planned.
    """
    if task.name != "custom":
        return task
    try:
        found = code_digest("task.factory", task.factory).hex()
    except ImportedError as error:
        raise TaskError(str(error)) from error.__cause__
    if task.sha256 and task.sha256 != found:
        raise TaskError(
            f"task.sha256={task.sha256[:12]}: {task.factory} has {found[:12]} now; it was changed "
            "after the sweep was planned"
        )
    task.sha256 = found
    return task


@functools.lru_cache(maxsize=16)
def _made(factory: str, config: str, _: str) -> Own:
    """The task that a factory makes, once for all runs of a sweep."""
    values = json.loads(config)
    whose = f"task.factory={factory}"
    try:
        own: Own = imported("task.factory", factory)(**values)
    except ImportedError as error:
        raise TaskError(str(error)) from error.__cause__
    except (Exception, SystemExit) as error:
        raise TaskError(
            f"{whose}: with {values} it raised {type(error).__name__}: {one_line(error)}"
        ) from error
    for name in ("corpus", "train", "validation", "losses"):
        if not hasattr(own, name):
            raise TaskError(
                f"{whose}: returned {type(own).__name__}, which has no {name}; see "
                "experiments.tasks.custom.Own"
            )
    if not isinstance(own.corpus, str) or not own.corpus:
        raise TaskError(f"{whose}: its corpus={own.corpus!r}; must be a name of its data")
    guess = getattr(own, "guess", math.inf)
    if not isinstance(guess, float | int) or math.isnan(guess):
        raise TaskError(f"{whose}: its guess={guess!r}; must be a number")
    return own


class Custom(OnExamples):
    """A task that a user's function returns."""

    def __init__(self, task: TaskConfig, data: DataConfig, model: ModelConfig) -> None:
        super().__init__(model)
        self.task, self.data = task, data

    @property
    def own(self) -> Own:
        """What the factory returned."""
        config = json.dumps(self.task.config, sort_keys=True)
        return _made(self.task.factory, config, self.task.sha256)

    def corpus(self) -> str:
        """The name that the task gives its data."""
        return self.own.corpus

    def open(self, verify: bool = False) -> Examples:
        """The task's examples."""
        own = self.own
        parts = []
        for name, part in (("train", own.train), ("validation", own.validation)):
            try:
                parts.append((len(part), functools.partial(self._gather, name, part)))
            except TypeError:
                raise TaskError(f"{self._key}: its {name} has no length") from None
        try:
            return Examples(self.data, own.corpus, *parts)
        except DataError as error:
            whose = str(error).replace(self.data.key, self._key, 1)
            raise DataError(whose) from None

    @property
    def _key(self) -> str:
        return f"task.factory={self.task.factory}"

    def _gather(self, name: str, part: Sequence, numbers: list[int]) -> Any:
        collate = getattr(self.own, "collate", default_collate)
        try:
            return collate([part[number] for number in numbers])
        except Exception as error:  # the task's own code
            raise TaskError(
                f"{self._key}: a batch of its {name}, numbers {str(numbers[:3])[1:-1]}, ..., "
                f"raises {type(error).__name__}: {one_line(error)}"
            ) from error

    def check(self, data: Batches, steps: int, batch_size: int) -> None:
        """Refuse too few examples, and a loss that fails or is not one number for each."""
        assert isinstance(data, Examples)
        data.check(steps, batch_size)
        if (found := self.cost().returned) != (COUNTED,):
            raise TaskError(
                f"{self._key}: losses returns {list(found)} for a batch of {COUNTED}; must be one "
                "loss for each example"
            )

    def work(self) -> Work:
        """The task's own losses on its first examples."""
        own, gather = self.own, functools.partial(self._gather, "train", self.own.train)
        key = f"{self.task.factory} {json.dumps(self.task.config, sort_keys=True)}"

        def forward(module: nn.Module) -> Tensor:
            numbers = [place % len(own.train) for place in range(COUNTED)]
            losses = own.losses(module, gather(numbers))
            if not isinstance(losses, Tensor):
                raise ModelError(
                    f"{self._key}: losses returns {type(losses).__name__}; must be a tensor"
                )
            return losses

        return Work(f"examples of {key}", COUNTED, forward)

    def loss(self, model: NextToken, batch: Any) -> Tensor:
        """Mean over examples."""
        return self.own.losses(model, batch).float().mean()

    def score(self, model: NextToken, batch: Any) -> Score:
        """Sums over examples, the task's own measures among them."""
        losses = self.own.losses(model, batch).double()
        measure: Callable[..., Mapping[str, Tensor]] | None = getattr(self.own, "metrics", None)
        measured = {} if measure is None else measure(model, batch)
        sums = {}
        for name, values in measured.items():
            each = torch.as_tensor(values).double()
            if each.shape != losses.shape:
                raise TaskError(
                    f"{self._key}: its metric {name} has the shape {list(each.shape)}; must be one "
                    f"number for each example, {list(losses.shape)}"
                )
            sums[name] = each.sum().item()
        return Score(losses.sum().item(), len(losses), sums)

    def ceiling(self, data: Batches) -> float:
        """The task's `guess`."""
        return float(getattr(self.own, "guess", math.inf))
