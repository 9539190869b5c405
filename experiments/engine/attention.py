"""The attention of any model: where its two products can be reached, and where they cannot.

Reached are `AttentionProducts` and the attention of transformers that asks its registry for a
function (`config._attn_implementation`): there the function is ours while anything is quantized.
It finds the module's own `AttentionProducts`, and without one, or where that is kept in high
precision, calls the function that the model wrote out itself.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Hashable, Iterator, Mapping
from types import CodeType, FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import unset_fake_temporarily

from experiments.quant.attention import AttentionProducts
from fitting.entry.errors import Refusal

NAME = "lowbit"
"""Our function in the registry of transformers."""
_PRODUCTS = "_lowbit_attention"
"""Attribute of an attention of transformers: its `AttentionProducts`."""
_BEFORE = "_lowbit_attention_before"
"""Another: the name of the function that its configuration asked for before."""
_WRITTEN_OUT = "eager_attention_forward"
_REGISTRY = "ALL_ATTENTION_FUNCTIONS"
_MORE_INPUTS = ("s_aux", "position_bias", "cache")
"""What a model may give to such a function and ours does not take."""
_FUSED = {"scaled_dot_product_attention", "multi_head_attention_forward"}
_CALLS_DEEP = 3
"""Calls from `forward` on, through which functions are looked for."""


def attentions(model: nn.Module) -> dict[str, nn.Module]:
    """The modules whose attention can be quantized, by name."""
    return {name: module for name, module in model.named_modules() if _reached(module)}


def unreached(model: nn.Module) -> dict[str, str]:
    """Modules that look like attention and cannot be quantized, by name, and why."""
    reached = attentions(model)
    found: dict[str, str] = {}
    for name, module in model.named_modules():
        below = [n for n in (*reached, *found) if _is_below(name, n)]
        above = [n for n in (*reached, *found) if _is_below(n, name)]
        if name in reached or above:
            continue
        if _REGISTRY in _code_names(module):
            found[name] = "its attention is more than softmax(Q K^T) V"
        elif isinstance(module, nn.MultiheadAttention):
            found[name] = "nn.MultiheadAttention multiplies by itself"
        elif _is_attention(module, around=any(n in reached for n in below)):
            found[name] = f"{type(module).__name__} multiplies by itself"
    return found


def products_of(module: nn.Module) -> AttentionProducts | None:
    """The products of a reached attention, if it was ever quantized."""
    if isinstance(module, AttentionProducts):
        return module
    found = module.__dict__.get(_PRODUCTS)
    assert found is None or isinstance(found, AttentionProducts)
    return found


def reach(module: nn.Module) -> AttentionProducts:
    """Make an attention multiply by `AttentionProducts`, and return those."""
    found = products_of(module)
    if isinstance(module, AttentionProducts):
        return module
    config: Any = module.config
    if found is None:
        _register()
        module.__dict__[_PRODUCTS] = found = AttentionProducts()
    if config._attn_implementation != NAME:
        module.__dict__[_BEFORE] = config._attn_implementation
        config._attn_implementation = NAME
    return found


def give_back(model: nn.Module) -> None:
    """Let transformers choose its own function again where nothing is quantized any more."""
    ours = [m for m in model.modules() if _PRODUCTS in m.__dict__]
    busy = {id(m.config) for m in ours if not m.__dict__[_PRODUCTS].kept}
    before = {id(m.config): m.__dict__[_BEFORE] for m in ours if _BEFORE in m.__dict__}
    for module in ours:
        config: Any = module.config
        if id(config) not in busy and config._attn_implementation == NAME:
            config._attn_implementation = before[id(config)]


def taken_away(module: nn.Module) -> bool:
    """Whether somebody chose another function for an attention that was quantized."""
    config = getattr(module, "config", None)
    return _PRODUCTS in module.__dict__ and config._attn_implementation != NAME  # type: ignore[union-attr]


def _is_below(above: str, name: str) -> bool:
    return name != above and (not above or name.startswith(f"{above}."))


def _reached(module: nn.Module) -> bool:
    if isinstance(module, AttentionProducts):
        return True
    if not hasattr(getattr(module, "config", None), "_attn_implementation"):
        return False
    forward = inspect.unwrap(type(module).forward)
    written_out = getattr(forward, "__globals__", {}).get(_WRITTEN_OUT)
    if written_out is None or _REGISTRY not in _code_names(module):
        return False
    return _is_plain(written_out, module)


def _is_plain(written_out: Callable[..., Any], module: nn.Module) -> bool:
    """Whether a model's own attention is softmax(Q K^T) V: tried on numbers."""
    if set(inspect.signature(written_out).parameters) & set(_MORE_INPUTS):
        return False
    groups = getattr(module, "num_key_value_groups", 1)
    training = module.training
    with unset_fake_temporarily(), torch.device("cpu"), torch.no_grad():
        q, k, v = (
            torch.arange(heads * 40.0).view(1, heads, 5, 8).mul(factor).sin()
            for heads, factor in ((2 * groups, 1.0), (2, 2.3), (2, 3.1))
        )
        mask = torch.full((5, 5), -1e9).triu(1)[None, None]
        expected, _ = AttentionProducts().written_out(q, k, v, mask, scale=0.7)
        try:
            module.training = False
            found, _ = written_out(module, q, k, v, mask, scaling=0.7, dropout=0.0)
        except Exception:  # it needs what only the whole module has
            return False
        finally:
            module.training = training
        expected = expected.transpose(1, 2)
        return found.shape == expected.shape and torch.allclose(found, expected, atol=1e-5)


def _is_attention(module: nn.Module, around: bool) -> bool:
    """Whether a module seems to multiply queries by keys itself.

    Args:
        module: Any.
        around: Whether an attention that can be reached is inside.
    """
    theirs = type(module).__module__.startswith("transformers.")
    if not (around and theirs) and _FUSED & _code_names(module):
        return True
    return not around and "attention" in type(module).__name__.lower() and any(module.children())


def _code_names(module: nn.Module) -> frozenset[str]:
    return _names_in(type(module))  # type: ignore[arg-type]


@functools.cache
def _names_in(kind: Hashable) -> frozenset[str]:
    """The names that a class's `forward` and what it calls speak of."""
    assert isinstance(kind, type)
    return frozenset(_spoken(kind, inspect.unwrap(kind.forward), _CALLS_DEEP))  # type: ignore[attr-defined]


def _spoken(kind: type, function: Any, calls: int) -> Iterator[str]:
    if not isinstance(function, FunctionType):
        return
    names = set(_in_code(function.__code__))
    yield from names
    for name in names if calls else ():
        called = inspect.unwrap(function.__globals__.get(name) or getattr(kind, name, None) or str)
        if isinstance(called, FunctionType) and not called.__module__.startswith("torch."):
            yield from _spoken(kind, called, calls - 1)


def _in_code(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _in_code(constant)


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    **more: Any,
) -> tuple[Tensor, Tensor]:
    """What transformers calls: the output, [B, T, H, K], and the probabilities."""
    products = getattr(module, _PRODUCTS, None)
    if products is None or not products.rounds or query.is_meta:
        if softcap is not None:
            more["softcap"] = softcap
        if scaling is not None:
            more["scaling"] = scaling
        written_out = inspect.unwrap(type(module).forward).__globals__[_WRITTEN_OUT]
        found: tuple[Tensor, Tensor] = written_out(
            module, query, key, value, attention_mask, dropout=dropout, **more
        )
        return found
    refuse_more(more)
    output, probabilities = products.written_out(
        query, key, value, attention_mask, dropout, scaling, softcap
    )
    return output.transpose(1, 2).contiguous(), probabilities


def refuse_more(more: Mapping[str, Any]) -> None:
    """Refuse inputs without which the result would be another.

    Raises:
        Refusal: There is one.
    """
    for name in _MORE_INPUTS:
        if more.get(name) is not None:
            raise Refusal(f"{name}: attention that takes it cannot be quantized")


@functools.cache
def _register() -> None:
    """Enter our function, with masks that are added to the scores, in transformers' registries."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import eager_mask

    AttentionInterface.register(NAME, _attend)
    AttentionMaskInterface.register(NAME, eager_mask)
