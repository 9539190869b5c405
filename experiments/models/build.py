"""The model that a configuration names, and what is known of it beforehand."""

from __future__ import annotations

from experiments.models.config import ModelConfig
from experiments.models.foreign import ForeignModel, foreign_shape
from experiments.models.language import refuse_unless_causal
from experiments.models.next_token import NextToken
from experiments.models.shape import Shape
from experiments.models.transformer import Transformer, transformer_shape
from experiments.quant.formats import Precision
from experiments.quant.recipe import RecipeConfig


def build(
    config: ModelConfig,
    recipe: RecipeConfig,
    precision: Precision,
    seed: int,
    causal: bool = True,
) -> NextToken:
    """A model with its weights drawn, or read.

    Args:
        config: Which model.
        recipe: Which operands of which layers are quantized.
        precision: The format to which they are quantized.
        seed: Seed of the weights, the rounding noise and the random signs.
        causal: Whether it must not see what comes after a token: it is to predict it.

    Raises:
        ModelError: Somebody else's model cannot be made, or sees what it is to predict.
    """
    if config.foreign:
        foreign = ForeignModel(config, recipe, precision, seed)
        if causal:
            refuse_unless_causal(foreign)
        return foreign
    model = Transformer(config, recipe, precision, seed)
    model.initialize(seed)
    return model


def shape_of(config: ModelConfig) -> Shape:
    """A model's matrices and sizes."""
    return foreign_shape(config) if config.foreign else transformer_shape(config)
