"""What plans, checks and records know of a model before it is trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from experiments.quant.recipe import RecipeConfig


@dataclass(frozen=True)
class ParameterCount:
    """Parameters by where they are.

    block: matrices that a recipe quantizes or keeps; in the built-in model those inside the
        blocks, L * (4 h^2 + 3 h f): the papers' N (Sun et al. 2501.02423, Table 1).
    head: the output matrix; zero extra parameters if it is tied, but every token multiplies it.
    """

    block: int
    head: int
    embedding: int
    norm: int
    total: int


@dataclass(frozen=True)
class Matrix:
    """A weight matrix that a recipe quantizes or keeps."""

    in_features: int
    out_features: int
    block: int | None
    """The number of the block that it is in; None outside the numbered blocks."""
    linear: bool = True
    """Whether its layer is an `nn.Linear`."""


@dataclass(frozen=True)
class Shape:
    """A model's matrices and sizes."""

    matrices: Mapping[str, Matrix]
    """Those that a recipe may quantize, by the layer's name, in the model's order."""
    blocks: int
    """How many numbered blocks there are."""
    vocab_size: int
    parameters: ParameterCount

    def kept(self, recipe: RecipeConfig) -> frozenset[str]:
        """The names of the layers that a recipe keeps in high precision."""
        return frozenset(
            name
            for name, matrix in self.matrices.items()
            if recipe.keeps(name, matrix.block, self.blocks)
        )

    def quantized(self, recipe: RecipeConfig) -> dict[str, Matrix]:
        """The matrices that a recipe does not keep."""
        kept = self.kept(recipe)
        return {name: matrix for name, matrix in self.matrices.items() if name not in kept}


@dataclass(frozen=True)
class Cost:
    """What a model costs that no formula of ours knows, counted on tensors without values."""

    flops_per_token: float
    """Of training: forward and backward, multiply and add counted as two."""
    saved_per_token: float
    """Bytes that a forward pass keeps for the backward one."""
