"""What a layer is: the class that it becomes, and the part that it plays in its model."""

from __future__ import annotations

from torch import nn

from experiments.engine.experts import QuantExperts, are_experts
from experiments.engine.layers import QuantConv1D, QuantConv1d, QuantConv2d, QuantEmbedding
from experiments.quant.linear import QuantizedGemms, QuantLinear

BASE_LAYER = ".base_layer"
"""End of the name of a layer that an adapter has wrapped, in peft and here."""
EMBEDDING, HEAD = "embedding", "output head"
"""What layers are that are quantized only when they are asked for; the other is a router."""
_EXACT = {
    nn.Linear: QuantLinear,
    nn.Conv1d: QuantConv1d,
    nn.Conv2d: QuantConv2d,
    nn.Embedding: QuantEmbedding,
}
_MIXED: dict[tuple[type, type], type] = {}


def kind(layer: nn.Module) -> type | None:
    """The class that a layer becomes; None if there is none for it."""
    if type(layer) in _EXACT:
        return _EXACT[type(layer)]
    if isinstance(layer, QuantizedGemms):
        return None
    if type(layer).__name__ == "Conv1D" and "transformers" in type(layer).__module__:
        return _mixed(QuantConv1D, type(layer))
    return _mixed(QuantExperts, type(layer)) if are_experts(layer) else None


def _mixed(ours: type, base: type) -> type:
    """One of our classes with a class of transformers below it, the same for each call."""
    if (ours, base) not in _MIXED:
        _MIXED[ours, base] = type(ours.__name__, (ours, base), {"__module__": __name__})
    return _MIXED[ours, base]


def is_linear(layer: nn.Module) -> bool:
    """Whether a layer is quantized already, or would be but for a class of its own."""
    return isinstance(layer, QuantizedGemms | nn.Linear | nn.Conv1d | nn.Conv2d | nn.Embedding)


def not_its_own(model: nn.Module) -> dict[nn.Module, str]:
    """Layers whose products are not those of their own forward, and why."""
    found: dict[nn.Module, str] = {}
    for module in model.modules():
        if isinstance(module, nn.MultiheadAttention):
            found[module.out_proj] = "nn.MultiheadAttention multiplies by its weights itself"
        elif isinstance(module, nn.Embedding) and module.max_norm is not None:
            found[module] = "it renormalizes its weight as it looks rows up (max_norm)"
        elif are_experts(module) and module._is_expert_parallel:
            found[module] = "its experts are spread over processes"
    return found


def by_default_not(model: nn.Module) -> dict[nn.Module, str]:
    """Layers that are quantized only when they are asked for, and what they are."""
    embeddings = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    return (
        dict.fromkeys(embeddings, EMBEDDING)
        | dict.fromkeys(output_heads(model), HEAD)
        | dict.fromkeys(_routers(model), "router")
    )


def output_heads(model: nn.Module) -> set[nn.Module]:
    """Output heads: what transformers names one, and what shares its weight with an embedding."""
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    found = {
        module
        for module in model.modules()
        if is_linear(module) and not isinstance(module, nn.Embedding)
        if id(getattr(module, "weight", None)) in embeddings
    }
    for module in model.modules():
        get = getattr(module, "get_output_embeddings", None)
        if callable(get) and isinstance(head := get(), nn.Module):
            found.add(head)
    return found


def _routers(model: nn.Module) -> set[nn.Module]:
    """Layers beside experts that have one output for each of them."""
    found: set[nn.Module] = set()
    for module in model.modules():
        experts = getattr(module, "experts", None)
        if not isinstance(experts, nn.Module):
            continue
        inside = set(experts.modules())
        count = len(experts) if isinstance(experts, nn.ModuleList) else None
        count = getattr(experts, "num_experts", count)
        beside = (m for m in module.modules() if isinstance(m, nn.Linear) and m not in inside)
        found |= {m for m in beside if m.out_features == count}
    return found
