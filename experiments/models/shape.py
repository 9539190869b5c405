"""What plans, checks and records know of a model before it is trained."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

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
    layer: str = ""
    """The name of its layer, if that holds several matrices; else it is called as its layer is."""
    copies: int = 1
    """How many of its shape the layer holds, one for each expert."""
    adapts: bool = True
    """Whether an adapter can stand beside its layer: a product with one matrix."""
    share: float = 1.0
    """The share of the tokens that each of them sees on average."""


@dataclass(frozen=True)
class Shape:
    """A model's matrices and sizes."""

    matrices: Mapping[str, Matrix]
    """Those that a recipe may quantize, by name, in the model's order."""
    blocks: int
    """How many numbered blocks there are."""
    vocab_size: int
    parameters: ParameterCount
    attention: Mapping[str, int | None] = field(default_factory=dict)
    """The attention whose products a recipe may quantize, by name, with its block's number."""
    unreached: Mapping[str, str] = field(default_factory=dict)
    """Attention whose products it cannot, by name, and why."""

    def attended(self, recipe: RecipeConfig) -> list[str]:
        """The attention whose products a recipe quantizes."""
        if not recipe.attention.quantized:
            return []
        return [n for n, block in self.attention.items() if not recipe.keeps(n, block, self.blocks)]

    def kept(self, recipe: RecipeConfig) -> frozenset[str]:
        """The names of the layers that a recipe keeps in high precision."""
        return frozenset(
            layer
            for layer, matrix in self._layers()
            if recipe.keeps(layer, matrix.block, self.blocks)
        )

    def quantized(self, recipe: RecipeConfig) -> dict[str, Matrix]:
        """The matrices that a recipe does not keep."""
        kept = self.kept(recipe)
        return {n: m for n, m in self.matrices.items() if (m.layer or n) not in kept}

    def layers(self) -> list[str]:
        """The names of the layers that hold the matrices."""
        return list(dict.fromkeys(layer for layer, _ in self._layers()))

    def _layers(self) -> Iterator[tuple[str, Matrix]]:
        for name, matrix in self.matrices.items():
            yield matrix.layer or name, matrix


@dataclass(frozen=True)
class Cost:
    """What a model costs that no formula of ours knows, counted on tensors without values."""

    flops_per_token: float
    """FLOPs of training: forward and backward, multiply and add counted as two."""
    saved_per_token: float
    """Bytes that a forward pass keeps for the backward one."""
    probabilities_per_token: float
    """Bytes of all attention's probabilities, which are there at once where it is written out."""
