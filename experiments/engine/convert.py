"""Make a layer of any model a quantized one, in place."""

from __future__ import annotations

from torch import nn

from experiments.engine.attention import products_of, reach
from experiments.engine.kinds import by_default_not, kind, not_its_own
from experiments.quant.formats import Precision
from experiments.quant.linear import NoiseClock, QuantizedGemms
from experiments.quant.recipe import RecipeConfig

WHY = "_lowbit_why"
"""Attribute of a layer that stays in high precision: the reason."""


def quantizable(model: nn.Module) -> dict[str, nn.Module]:
    """The layers that are quantized unless somebody says otherwise, by name."""
    left_out = {*not_its_own(model), *by_default_not(model)}
    return {
        name: layer
        for name, layer in model.named_modules()
        if kind(layer) is not None and layer not in left_out
    }


def attend(
    module: nn.Module, recipe: RecipeConfig, precision: Precision, clock: NoiseClock, number: int
) -> None:
    """Quantize the products of an attention.

    Args:
        module: One of `experiments.engine.attention.attentions`.
        recipe: Which operands, which rounding.
        precision: The format of operands to which the recipe gives none.
        clock: The source of noise.
        number: The attention's number, part of the noise's address.
    """
    products = reach(module)
    products.__dict__.pop(WHY, None)
    now = (products.recipe, products.precision, products.layer) if products.precisions else None
    if now != (recipe, precision, number) or products.clock is not clock or products.kept:
        products.quantized_as(recipe, precision, clock, number)


def do_not_attend(module: nn.Module, why: str = "") -> None:
    """Leave an attention in high precision, or take it back there, and note the reason."""
    if (products := products_of(module)) is None:
        return
    products.kept = True
    if why:
        products.__dict__[WHY] = why
    else:
        products.__dict__.pop(WHY, None)


def multiply_by_layers(model: nn.Module) -> None:
    """Keep torch's encoder layers from going past their linear layers.

    In evaluation they have a fused path that multiplies by the weights itself, unquantized.
    """
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer):
            module.activation_relu_or_gelu = 0  # by which that path is taken


def keep(layer: nn.Module, why: str) -> None:
    """Leave a layer in high precision, or take it back there, and note the reason."""
    if isinstance(layer, QuantizedGemms):
        layer.kept = True
    layer.__dict__[WHY] = why


def become(
    layer: nn.Module, recipe: RecipeConfig, precision: Precision, clock: NoiseClock, number: int
) -> None:
    """Make a layer a quantized one.

    Args:
        layer: One that has a `kind`, or is one already.
        recipe: Which operands, which rounding, which rotation.
        precision: The format of operands to which the recipe gives none.
        clock: The source of noise.
        number: The layer's number, part of the noise's address.
    """
    layer.__dict__.pop(WHY, None)
    if not isinstance(layer, QuantizedGemms):
        becomes = kind(layer)
        assert becomes is not None
        layer.__class__ = becomes
        assert isinstance(layer, QuantizedGemms)
    else:
        now = layer.recipe, layer.precision, layer.layer
        if now == (recipe, precision, number) and layer.clock is clock and not layer.kept:
            return
    layer.quantized_as(recipe, precision, clock, number)
