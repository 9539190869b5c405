"""Adapters beside the frozen layers of a model, put there by `peft`, and merged into them.

The layers stay the quantized ones that the recipe made of them; `peft` wraps each, and what the
adapter computes is added to what the layer returns.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from experiments.engine.layers import QuantConv1D
from experiments.finetune.config import AdapterConfig
from experiments.finetune.rounded import RoundedLinear
from experiments.models.next_token import NextToken
from experiments.models.source import ModelError
from experiments.quant.linear import QuantLinear

_NAME = "default"
"""What peft calls the only adapter of a layer."""


def attach(model: NextToken, adapter: AdapterConfig, seed: int) -> None:
    """Freeze a model and put adapters beside its layers, in place; without one, do nothing.

    Args:
        model: Its weights are those of the base.
        adapter: Which.
        seed: Seed of the adapters' weights: A is drawn, B is zero, so that nothing is added yet.

    Raises:
        ModelError: `peft` is not installed, or cannot do it.
    """
    if not adapter.there:
        return
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise ModelError(
            f"adapter.name={adapter.name}: needs peft; pip install 'lowbit-scaling[hf]'"
        ) from None
    names = [name for name, layer in model.named_modules() if _can_have_one(layer)]
    config = LoraConfig(
        r=adapter.r,
        lora_alpha=adapter.lora_alpha,  # type: ignore[arg-type]
        use_rslora=adapter.use_rslora,
        target_modules=[name for name in names if adapter.targets(name)],
    )
    model.requires_grad_(False)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "fan_in_fan_out is set to False")  # GPT-2: it knows
        torch.manual_seed(seed)
        try:
            inject_adapter_in_model(config, model)
        except (ValueError, TypeError) as error:
            raise ModelError(f"adapter.name={adapter.name}: {error}") from error
    for layer in adapted(model).values():
        for matrix, columns in ((layer.lora_A[_NAME], False), (layer.lora_B[_NAME], True)):
            if adapter.precision:
                matrix.__class__ = RoundedLinear
                matrix.become(adapter.precision, columns)


def _can_have_one(layer: nn.Module) -> bool:
    """Whether a layer is one that a recipe may quantize, and a product with one matrix."""
    return isinstance(layer, QuantLinear | QuantConv1D)


def adapted(model: nn.Module) -> dict[str, Any]:
    """The wrapped layers by name: each with its `base_layer`, `lora_A` and `lora_B`."""
    return {name: layer for name, layer in model.named_modules() if hasattr(layer, "lora_A")}


@torch.no_grad()
def merge(model: nn.Module) -> None:
    """Put the layers back, with what their adapters added in their weights; for good."""
    for name, layer in adapted(model).items():
        base = layer.base_layer
        base.weight += _delta(layer)
        above, _, own = name.rpartition(".")
        setattr(model.get_submodule(above), own, base)


@contextlib.contextmanager
def merged(model: nn.Module) -> Iterator[None]:
    """Scope in which a model is merged; its adapters and weights come back bit for bit."""
    layers = adapted(model)
    weights = [layer.base_layer.weight.detach().clone() for layer in layers.values()]
    try:
        merge(model)
        yield
    finally:
        for (name, layer), weight in zip(layers.items(), weights, strict=True):
            with torch.no_grad():
                layer.base_layer.weight.copy_(weight)
            above, _, own = name.rpartition(".")
            setattr(model.get_submodule(above), own, layer)


def _delta(layer: Any) -> Tensor:
    """What an adapter adds to the weight of its layer, in the shape that this is stored in.

    The sum that the adapter computes for each unit vector: rounded matrices are taken rounded.
    """
    unit = torch.eye(layer.lora_A[_NAME].in_features, device=layer.base_layer.weight.device)
    rows: Tensor = layer.lora_B[_NAME](layer.lora_A[_NAME](unit)) * layer.scaling[_NAME]
    return rows if layer.fan_in_fan_out else rows.t()
