"""The tensors that a kernel may read by their address.

Not those that stand for something else: fake and meta tensors, wrappers, lazily negated or zero
views, sparse ones, and all that a transform of torch.func or a tracing mode handles.  Their address
is null, or what lies there is not their value.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor, nn

_P = ParamSpec("_P")
_R = TypeVar("_R")
_REFUSED = {
    "DTensor": "is spread over processes: give each process its own, x.to_local(), of whole blocks",
    "MaskedTensor": "has values that are not there: fill them, x.to_tensor(0)",
    "NestedTensor": "has rows of unequal length: give one after the other, x.unbind()",
}
"""Wrappers by class, and why they have no values that can be read."""


def of_one_process(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Make a function refuse tensors whose values are not all present, before it touches them.

    Raises:
        ValueError: One of the tensors is spread over processes, masked, without memory, or not
            dense.
    """

    @functools.wraps(function)
    def checked(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        if not torch.compiler.is_dynamo_compiling():
            for value in args if not kwargs else (*args, *kwargs.values()):
                refuse_unless_there(function.__name__, value)
        return function(*args, **kwargs)

    return checked


def refuse_unless_there(what: str, value: object) -> None:
    """Refuse a tensor whose values are not all here, in rows; anything else is let through.

    Raises:
        ValueError: As `of_one_process`.
    """
    kind = type(value)
    if kind is Tensor or kind is nn.Parameter:
        assert isinstance(value, Tensor)
        if torch._C._dispatch_keys(value).raw_repr() not in _DENSE:
            if why := _not_dense(value):
                raise ValueError(f"{what} got a tensor which {why}")
        elif not value.data_ptr() and value.numel():
            raise ValueError(f"{what} got a tensor whose memory was freed (its storage is empty)")
    elif isinstance(value, Tensor):
        for base in kind.__mro__:
            if base.__name__ in _REFUSED:
                raise ValueError(f"{what} got a {kind.__name__}, which {_REFUSED[base.__name__]}")


def refuse_dtype(what: str, x: Tensor) -> None:
    """Refuse values of a dtype that is not rounded.

    Raises:
        ValueError: `x` is neither float32 nor bfloat16 nor float16.
    """
    if x.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise ValueError(f"{what} takes float32, bfloat16 or float16, got {x.dtype}")


def _not_dense(x: Tensor) -> str:
    """The reason why a tensor's values do not lie in rows, and the remedy; "" if they do."""
    if x.is_nested:
        return _REFUSED["NestedTensor"]
    if x.is_quantized:
        return f"holds {x.dtype}: give its values, x.dequantize()"
    if x.layout is not torch.strided:
        return f"has the layout {x.layout}: make it dense, x.to_dense()"
    return ""


def _keys(x: Tensor) -> int:
    return int(torch._C._dispatch_keys(x).raw_repr())


with torch.inference_mode():
    _DENSE = {_keys(torch.empty(0))}
_DENSE.add(_keys(torch.empty(0)))
"""The dispatch keys of dense CPU tensors, made in inference mode or not; all else has others."""


def dense(x: Tensor) -> bool:
    """Whether `x` is an ordinary tensor in the CPU's memory, and no mode wants to see its use.

    >>> dense(torch.ones(2)), dense(torch._neg_view(torch.ones(2))), dense(torch.ones(2).to("meta"))
    (True, False, False)
    """
    return (
        tracing_nothing()
        and _ordinary(x)
        and torch._C._dispatch_keys(x).raw_repr() in _DENSE  # not by `_keys`: time counts
    )


def on_device(x: Tensor) -> bool:
    """Whether `x` is an ordinary tensor in an accelerator's memory, by what it must not be."""
    lazy = x.is_neg() or x.is_conj() or x._is_zerotensor() or torch._is_functional_tensor(x)
    wrapped = torch._C._functorch.is_functorch_wrapped_tensor(x)
    return (
        tracing_nothing() and _ordinary(x) and x.layout is torch.strided and not (lazy or wrapped)
    )


def _ordinary(x: Tensor) -> bool:
    return type(x) is Tensor or type(x) is nn.Parameter


def tracing_nothing() -> bool:
    """Whether neither a compiler nor a mode is at work, so that a new tensor is an ordinary one."""
    return not torch.compiler.is_dynamo_compiling() and not torch._C._len_torch_dispatch_stack()


def address(x: Tensor) -> int:
    """The address of the values of `x`.

    Raises:
        TypeError: It is not a `dense` tensor.
    """
    if not dense(x):
        raise TypeError(f"the compiled kernel takes dense CPU tensors, got {describe(x)}")
    return x.data_ptr()


def describe(x: Tensor) -> str:
    """Type, layout and device of a tensor, for a message."""
    return f"a {type(x).__name__} of layout {str(x.layout).removeprefix('torch.')} on {x.device}"
