"""What tasks that learn from examples have in common: their cost is counted on the model itself."""

from __future__ import annotations

from abc import abstractmethod

from experiments.accounting import training_bytes_of
from experiments.models.config import ModelConfig
from experiments.models.foreign import Work, foreign_cost, foreign_shape
from experiments.models.shape import Cost
from experiments.quant.recipe import RecipeConfig
from experiments.tasks.task import Task

COUNTED = 2
"""Examples on which costs are counted: a batch norm wants more than one."""


class OnExamples(Task):
    """A task in which `tokens` counts examples.

    Args:
        model: Which model is trained.
    """

    def __init__(self, model: ModelConfig) -> None:
        self.model = model

    @abstractmethod
    def work(self) -> Work:
        """A forward pass on `COUNTED` examples."""

    def cost(self) -> Cost:
        """What an example costs.

        Raises:
            ModelError: The model fails on it, or returns something else than the task reads.
        """
        return foreign_cost(self.model, self.work())

    @property
    def scored_at_once(self) -> int:
        """Fixed: of all of them together a scale of a whole input tensor is made."""
        return 256

    def flops_per_token(self) -> float:
        """Counted product by product on tensors without values."""
        return self.cost().flops_per_token

    def training_bytes(self, rows: int, recipe: RecipeConfig, recomputed: bool = False) -> int:
        """Counted on tensors without values."""
        shape = foreign_shape(self.model)
        return training_bytes_of(shape, self.cost(), rows, recipe, recomputed)

    def rows_per_token(self, matrix: str) -> float:
        """Positions, or patches, of an example, as the layer sees them."""
        return self.cost().rows_per_token.get(matrix, 1.0)
