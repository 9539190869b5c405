"""What plans, checks and records know of a model before it is trained."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from experiments.engine.kinds import EMBEDDING
from experiments.quant.overrides import Treatment, treatment
from experiments.quant.recipe import SLOTS, RecipeConfig


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
    conv: bool = False
    """Whether its layer is a convolution, of which this is the matrix of one group."""
    layer: str = ""
    """The name of its layer, if that holds several matrices; else it is called as its layer is."""
    copies: int = 1
    """How many of its shape the layer holds, one for each expert."""
    adapts: bool = True
    """Whether an adapter can stand beside its layer: a product with one matrix."""
    share: float = 1.0
    """The share of the tokens that each of them sees on average."""
    left_out: str = ""
    """What its layer is (output head, router, embedding), if only a name or a pattern among the
    overrides quantizes it."""

    @property
    def labels(self) -> tuple[str, ...]:
        """Its operands: all six, or, as rows of an embedding are looked up, its own alone."""
        return ("P2",) if self.left_out == EMBEDDING else tuple(SLOTS)


@dataclass(frozen=True)
class Shape:
    """A model's matrices and sizes."""

    matrices: Mapping[str, Matrix]
    """Those that a recipe may quantize, by name, in the model's order."""
    blocks: int
    """How many numbered blocks there are."""
    vocab_size: int
    parameters: ParameterCount
    others: Mapping[str, Matrix] = field(default_factory=dict)
    """Matrices that a recipe's overrides may quantize by name, those that have `left_out`."""
    attention: Mapping[str, int | None] = field(default_factory=dict)
    """The attention whose products a recipe may quantize, by name, with its block's number."""
    unreached: Mapping[str, str] = field(default_factory=dict)
    """Attention whose products it cannot, by name, and why."""
    recomputes: bool = False
    """Whether it has blocks whose activations can be recomputed in the backward pass."""

    def attended(self, recipe: RecipeConfig) -> dict[str, Treatment]:
        """How a recipe treats each attention, if anything of it asks for any."""
        if not recipe.attends:
            return {}
        found = {}
        for name, block in self.attention.items():
            treated = treatment(recipe, name, block, self.blocks)
            if treated.recipe is not None and not treated.recipe.attention.quantized:
                treated = Treatment(None, why="recipe without attention")
            found[name] = treated
        return found

    def treated(self, recipe: RecipeConfig) -> dict[str, Treatment]:
        """How a recipe treats each layer that it may quantize, by the layer's name."""
        found = {}
        for layer, matrix in self._layers():
            treated = treatment(recipe, layer, matrix.block, self.blocks, matrix.left_out)
            of_it = treated.recipe.quantized if treated.recipe is not None else ()
            if treated.recipe is not None and not set(matrix.labels) & set(of_it):
                treated = Treatment(None, why="recipe none")
            found[layer] = treated
        return found

    def kept(self, recipe: RecipeConfig) -> frozenset[str]:
        """The names of the layers that a recipe keeps in high precision, of its usual ones."""
        found = set()
        for layer, matrix in self._layers():
            how = treatment(recipe, layer, matrix.block, self.blocks)
            nothing = how.recipe is None or (how.own and not how.recipe.quantized)
            if nothing and not matrix.left_out:
                found.add(layer)
        return frozenset(found)

    def quantized(self, recipe: RecipeConfig) -> dict[str, tuple[Matrix, Treatment]]:
        """The matrices that a recipe or its overrides quantize, and how."""
        treated = self.treated(recipe)
        every = {**self.matrices, **self.others}
        found = {name: (matrix, treated[matrix.layer or name]) for name, matrix in every.items()}
        return {name: pair for name, pair in found.items() if pair[1].recipe is not None}

    def layers(self) -> list[str]:
        """The names of the layers that hold the matrices."""
        return list(dict.fromkeys(m.layer or name for name, m in self.matrices.items()))

    def _layers(self) -> Iterator[tuple[str, Matrix]]:
        for name, matrix in {**self.matrices, **self.others}.items():
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
    recomputed_per_token: float
    """Bytes kept if blocks are recomputed: their inputs, what is outside, and the largest block."""
    rows_per_token: Mapping[str, float]
    """By layer: rows of its product, over which a quantized operand's scales may extend."""
    returned: tuple[int, ...]
    """The shape of what it returned where it was counted."""
