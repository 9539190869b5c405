"""Adapters beside or in the frozen layers of a model, and what becomes of them when merged.

The layers stay the quantized ones that the recipe made of them; each is wrapped.  LoRA is `peft`'s,
the others are those of `experiments.finetune.sparse`.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from experiments.finetune.config import LOW_RANK, AdapterConfig
from experiments.finetune.rounded import RoundedLinear, weight_error
from experiments.finetune.sparse import SparseAdapter, sparse
from experiments.models.foreign import FOREIGN
from experiments.models.next_token import NextToken
from experiments.models.shape import Shape
from experiments.models.source import ModelError
from experiments.quant.linear import QuantLinear

_NAME = "default"
"""What peft calls the only adapter of a layer."""


def attach(model: NextToken, shape: Shape, adapter: AdapterConfig, seed: int) -> None:
    """Freeze a model and give its layers adapters, in place; without one, do nothing.

    Args:
        model: Its weights are those of the base.
        shape: The model's, whose matrices may get one.
        adapter: Which.
        seed: Seed of what is drawn for the adapters.

    Raises:
        ModelError: `peft` is not installed, or cannot do it.
    """
    if not adapter.there:
        return
    chosen = adapter.matrices(shape)
    names = [name for name, _ in model.named_modules() if name.removeprefix(FOREIGN) in chosen]
    model.requires_grad_(False)
    if adapter.name in LOW_RANK:
        _attach_low_rank(model, names, adapter, seed)
        return
    generator = torch.Generator().manual_seed(seed)
    for name in names:
        layer = model.get_submodule(name)
        assert isinstance(layer, QuantLinear)
        _put(model, name, sparse(layer, adapter, generator))


def _attach_low_rank(
    model: NextToken, names: Sequence[str], adapter: AdapterConfig, seed: int
) -> None:
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise ModelError(
            f"adapter.name={adapter.name}: needs peft; pip install 'lowbit-scaling[hf]'"
        ) from None
    config = LoraConfig(
        r=adapter.r,
        lora_alpha=adapter.lora_alpha,  # type: ignore[arg-type]
        use_rslora=adapter.use_rslora,
        target_modules=[*names],
    )
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "fan_in_fan_out is set to False")  # GPT-2: it knows
        torch.manual_seed(seed)
        try:
            inject_adapter_in_model(config, model)
        except (ValueError, TypeError) as error:
            raise ModelError(f"adapter.name={adapter.name}: {error}") from error
    for layer in adapted(model).values():
        a, b = layer.lora_A[_NAME], layer.lora_B[_NAME]
        if adapter.init == "error":
            _begin_with_the_error(layer, adapter)
        if adapter.precision:
            RoundedLinear.become(a, adapter.precision, columns=False)
            RoundedLinear.become(b, adapter.precision, columns=True)


@torch.no_grad()
def _begin_with_the_error(layer: Any, adapter: AdapterConfig) -> None:
    """Give A and B the product of rank r that is nearest to what the quantized weight lacks.

    The truncated singular value decomposition, each factor with the root of the singular values:
    INT2.1 (2306.08162) and the first step of LoftQ (2310.08659), whose alternation is left out.
    """
    base = layer.base_layer
    error = weight_error(base, base.weight.t() if layer.fan_in_fan_out else base.weight)
    if error is None:
        return
    a, b = layer.lora_A[_NAME].weight, layer.lora_B[_NAME].weight
    left, values, right = torch.linalg.svd(error / adapter.scaling, full_matrices=False)
    rank = min(adapter.r, len(values))
    root = values[:rank].sqrt()
    b[:, :rank], a[:rank] = left[:, :rank] * root, root[:, None] * right[:rank]


def adapted(model: nn.Module) -> dict[str, Any]:
    """The wrapped layers by name, each with its `base_layer`."""
    return {
        name: layer
        for name, layer in model.named_modules()
        if hasattr(layer, "lora_A") or isinstance(layer, SparseAdapter)
    }


@torch.no_grad()
def merge(model: nn.Module) -> None:
    """Put the layers back, with what their adapters added in their weights; for good."""
    for name, layer in adapted(model).items():
        layer.base_layer.weight += _delta(layer)
        _put(model, name, layer.base_layer)


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
            _put(model, name, layer)


def _put(model: nn.Module, name: str, layer: nn.Module) -> None:
    above, _, own = name.rpartition(".")
    setattr(model.get_submodule(above), own, layer)


def _delta(layer: Any) -> Tensor:
    """What an adapter adds to the weight of its layer, in the shape that this is stored in.

    Of LoRA the sum that it computes for each unit vector: rounded matrices are taken rounded.
    """
    if isinstance(layer, SparseAdapter):
        return layer.delta()
    unit = torch.eye(layer.lora_A[_NAME].in_features, device=layer.base_layer.weight.device)
    rows: Tensor = layer.lora_B[_NAME](layer.lora_A[_NAME](unit)) * layer.scaling[_NAME]
    return rows if layer.fan_in_fan_out else rows.t()
