"""Make a layer of any model a quantized one, in place."""

from __future__ import annotations

from torch import nn

from experiments.engine.layers import QuantConv1D, QuantConv1d, QuantConv2d
from experiments.quant.formats import Precision
from experiments.quant.linear import NoiseClock, QuantizedGemms, QuantLinear
from experiments.quant.recipe import RecipeConfig

WHY = "_lowbit_why"
"""Attribute of a layer that stays in high precision: the reason."""


def quantizable(model: nn.Module) -> dict[str, nn.Module]:
    """The layers that are quantized unless somebody says otherwise, by name.

    Linear layers and convolutions whose own forward multiplies by their weights, except the output
    head of a language model.
    """
    others, heads = called_otherwise(model), output_heads(model)
    return {
        name: layer
        for name, layer in model.named_modules()
        if quantized_class(layer) is not None and layer not in others and layer not in heads
    }


def quantized_class(layer: nn.Module) -> type | None:
    """The class that a layer becomes; None if there is none for it, or it has become one."""
    exact = {nn.Linear: QuantLinear, nn.Conv1d: QuantConv1d, nn.Conv2d: QuantConv2d}
    if type(layer) in exact:
        return exact[type(layer)]
    is_gpt2s = type(layer).__name__ == "Conv1D" and "transformers" in type(layer).__module__
    return _conv1d(type(layer)) if is_gpt2s else None


def _conv1d(base: type) -> type:
    """`QuantConv1D` of the class that transformers has."""
    if base not in _CONV1D:
        _CONV1D[base] = type("QuantConv1D", (QuantConv1D, base), {"__module__": __name__})
    return _CONV1D[base]


_CONV1D: dict[type, type] = {}


def has_matrix(layer: nn.Module) -> bool:
    """Whether a layer is quantized already, or would be but for a class of its own."""
    known = isinstance(layer, QuantizedGemms | nn.Linear | nn.Conv1d | nn.Conv2d)
    return known or quantized_class(layer) is not None


def called_otherwise(model: nn.Module) -> dict[nn.Module, str]:
    """Layers whose weights are multiplied by something else than their own forward."""
    found: dict[nn.Module, str] = {}
    for module in model.modules():
        if isinstance(module, nn.MultiheadAttention):
            found[module.out_proj] = "nn.MultiheadAttention multiplies by its weights itself"
    return found


def output_heads(model: nn.Module) -> set[nn.Module]:
    """Output heads: what transformers names one, and what shares its weight with an embedding."""
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    found = {
        m for m in model.modules() if has_matrix(m) and id(getattr(m, "weight", None)) in embeddings
    }
    for module in model.modules():
        get = getattr(module, "get_output_embeddings", None)
        if callable(get) and isinstance(head := get(), nn.Module):
            found.add(head)
    return found


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
        layer: One that has a `quantized_class`, or is one already.
        recipe: Which operands, which rounding, which rotation.
        precision: The format of operands to which the recipe gives none.
        clock: The source of noise.
        number: The layer's number, part of the noise's address.
    """
    layer.__dict__.pop(WHY, None)
    if not isinstance(layer, QuantizedGemms):
        kind = quantized_class(layer)
        assert kind is not None
        layer.__class__ = kind
        assert isinstance(layer, QuantizedGemms)
    else:
        now = layer.recipe, layer.precision, layer.layer
        if now == (recipe, precision, number) and layer.clock is clock and not layer.kept:
            return
    layer.quantized_as(recipe, precision, clock, number)
