"""What every model that is trained on text has: a loss of the next token, and a source of noise."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable

import torch.nn.functional as F
from torch import Tensor, nn

from experiments.engine.convert import attend, become, do_not_attend
from experiments.engine.kinds import BASE_LAYER
from experiments.models.shape import Shape
from experiments.quant.formats import Precision
from experiments.quant.linear import NoiseClock, QuantizedGemms, QuantLinear
from experiments.quant.recipe import RecipeConfig


class NextToken(nn.Module, ABC):
    """Token ids to next-token logits, with quantized layers that one clock tells the step.

    Args:
        seed: Seed of the stochastic rounding and the random signs (not of the weights: those come
            from `initialize`).
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.clock = NoiseClock(seed)
        self._kept: frozenset[QuantizedGemms] = frozenset()

    @abstractmethod
    def initialize(self, seed: int) -> None:
        """Draw the weights: a function of the seed and the shapes alone, whatever the recipe."""

    def keep(self, names: Iterable[str]) -> None:
        """Leave quantized layers in high precision, as the recipe says, by name."""
        kept = [self.get_submodule(name) for name in names]
        self._kept = frozenset(layer for layer in kept if isinstance(layer, QuantizedGemms))
        assert len(self._kept) == len(kept)
        for layer in self._kept:
            layer.kept = True

    def treat(
        self, shape: Shape, recipe: RecipeConfig, precision: Precision, prefix: str = ""
    ) -> None:
        """Leave layers in high precision, and do what a recipe's overrides and attention ask for.

        Args:
            shape: The model's.
            recipe: The run's; those layers that it quantizes by default are quantized already.
            precision: The run's.
            prefix: What stands before the names of the shape in this model.
        """
        self.keep(f"{prefix}{name}" for name in shape.kept(recipe))
        for number, (name, treated) in enumerate(shape.treated(recipe).items()):
            if treated.own:
                assert treated.recipe is not None
                how = treated.recipe, treated.format_of(precision), self.clock
                become(self.get_submodule(f"{prefix}{name}"), *how, number)
        for number, (name, treated) in enumerate(shape.attended(recipe).items()):
            module = self.get_submodule(f"{prefix}{name}")
            if treated.recipe is None:
                do_not_attend(module, treated.why)
            else:
                how = treated.recipe, treated.format_of(precision), self.clock
                attend(module, *how, number)

    def recompute_blocks(self) -> None:
        """Recompute each block's activations in the backward pass; where `Shape.recomputes`."""
        raise NotImplementedError

    def extend_tables(self, length: int) -> None:
        """Make tables of positions long enough for sequences of `length`, if there are any."""

    def quantizable(self) -> dict[str, QuantizedGemms]:
        """The layers that the recipe does not keep in high precision, by name.

        A layer that an adapter was put beside is called what it was called before.
        """
        return {
            name.replace(BASE_LAYER, ""): layer
            for name, layer in self.named_modules()
            if isinstance(layer, QuantizedGemms) and layer not in self._kept
        }

    def linears(self) -> dict[str, QuantLinear]:
        """The layers of `quantizable`, by name, in a model where all of them are `nn.Linear`.

        Raises:
            TypeError: One is another layer; a configuration that would need this is refused before.
        """
        found = {}
        for name, layer in self.quantizable().items():
            if not isinstance(layer, QuantLinear):
                raise TypeError(f"{name} is a {type(layer).__name__}, no nn.Linear")
            found[name] = layer
        return found

    def loss(self, batch: Tensor, reduction: str = "mean") -> Tensor:
        """Cross-entropy in nats of each position's next token, in float32.

        Args:
            batch: [B, T + 1] token ids.
            reduction: As for `torch.nn.functional.cross_entropy`.
        """
        logits = self(batch[:, :-1])
        return F.cross_entropy(
            logits.flatten(0, 1).float(), batch[:, 1:].flatten(), reduction=reduction
        )
