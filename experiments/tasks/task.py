"""What a training run asks of a task."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from experiments.data.batches import Batches
from experiments.models.next_token import NextToken
from experiments.quant.recipe import RecipeConfig


@dataclass(frozen=True)
class Score:
    """What scoring one batch of the validation part gives, to be summed over batches."""

    loss: float
    """Sum of the losses."""
    count: int
    """What it is the sum over: tokens, or examples."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Sums of other measures by name, over the same."""


class Task(ABC):
    """A loss, metrics, data, and the cost of training.

    `token` below is an example where a task does not learn from text.
    """

    causal = False
    """Whether a model must not see what comes after a token."""
    unit = "example"
    """What a loss is the mean over."""

    @abstractmethod
    def corpus(self) -> str:
        """The identity of the data, known without reading it where that is possible."""

    @abstractmethod
    def open(self, verify: bool = False) -> Batches:
        """The data, made or imported first if necessary; `verify` as for `TokenData`."""

    @abstractmethod
    def check(self, data: Batches, steps: int, batch_size: int) -> None:
        """Refuse, before any work, a run that its data cannot feed or its model cannot take."""

    @abstractmethod
    def loss(self, model: NextToken, batch: Any) -> Tensor:
        """The mean loss of a training batch, a scalar."""

    @abstractmethod
    def score(self, model: NextToken, batch: Any) -> Score:
        """The summed loss and measures of a validation batch."""

    @property
    @abstractmethod
    def scored_at_once(self) -> int:
        """Windows, or examples, in a validation batch."""

    @abstractmethod
    def ceiling(self, data: Batches) -> float:
        """The loss of knowing nothing: a model that ends above it has diverged."""

    @abstractmethod
    def flops_per_token(self) -> float:
        """FLOPs of training: forward and backward, multiply and add counted as two."""

    @abstractmethod
    def training_bytes(self, rows: int, recipe: RecipeConfig, recomputed: bool = False) -> int:
        """An upper bound on memory in training, `rows` tokens a step and process."""

    def rows_per_token(self, matrix: str) -> float:
        """Rows of a matrix' product for each token; of text one."""
        return 1.0
