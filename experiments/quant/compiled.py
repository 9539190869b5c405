"""The quantized GEMMs as operations that `torch.compile` takes as they are.

In a compiled graph a layer is three operations: one that reads its clock, one for the output and
one for both gradients.  The compiler does not look into them.  What runs there is what runs without
it, so that the bits are the same.

- A layer is known by a number in a tensor, its handle, and the count of its clock is a tensor, too:
  neither is part of the graph, so a new step needs no new graph, and layers of one shape share one.
- Reading the clock is declared to draw random numbers, which it may: the compiler neither merges
  two readings, nor moves one past another, nor repeats it with another result.
- Only the input and the weight are kept for the backward pass.  Operands that it takes over from
  the forward product are rounded again there; the same noise gives the same values.
- The experts of a mixture are one operation: how many rows each of them has is not known before.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor
from torch.library import custom_op

from experiments.quant.gemms import Gemms
from experiments.quant.passes import backward_products, forward_product

_LAYERS: WeakValueDictionary[int, Any] = WeakValueDictionary()
_NUMBERS = itertools.count()


def handle_of(layer: Any) -> Tensor:
    """A new handle, [1], under which the operations find a layer as long as it lives.

    Args:
        layer: A `Gemms`, or another that has a clock and operations of its own.
    """
    number = next(_NUMBERS)
    _LAYERS[number] = layer
    return torch.tensor([number], device="cpu")


def layer_of(handle: Tensor) -> Any:
    """The layer of a handle."""
    return _LAYERS[int(handle)]


def compiled_products(
    input: Tensor,
    weights: Tensor,
    handles: Tensor,
    tokens: Tensor | None,
    estimated: bool,
    dtype: torch.dtype,
) -> Tensor:
    """Rows times the weights of the layers that they belong to, for `torch.compile` to trace.

    Args:
        input: [rows, in], layer by layer.
        weights: [layers, out, in].
        handles: [layers].
        tokens: How many rows each layer has, [layers]; None if there is one, which has all.
        estimated: Whether a gradient needs its own tensor.
        dtype: The compute dtype.

    Returns:
        [rows, out].
    """
    counts = clock_counts(handles, tokens)
    product: Tensor = _gemms(input, weights, handles, counts, tokens, estimated, dtype)
    return product


@custom_op("lowbit::counts", mutates_args=(), tags=torch.Tag.nondeterministic_seeded)
def clock_counts(handles: Tensor, tokens: Tensor | None) -> Tensor:
    """The counts of the layers' clocks; 0 where there are no rows, for which nothing is drawn."""
    layers = [_LAYERS[number] for number in handles.tolist()]
    used = [1] if tokens is None else tokens.tolist()
    counts = [layer.clock.counter if n else 0 for layer, n in zip(layers, used, strict=True)]
    return torch.tensor(counts, device="cpu")


@clock_counts.register_fake
def _(handles: Tensor, tokens: Tensor | None) -> Tensor:
    return torch.empty_like(handles)


# Noise is a function of numbers in the CPU's memory, which a CUDA graph would not read again.
@custom_op("lowbit::gemms", mutates_args=(), tags=torch.Tag.cudagraph_unsafe)
def _gemms(
    input: Tensor,
    weights: Tensor,
    handles: Tensor,
    counts: Tensor,
    tokens: Tensor | None,
    estimated: bool,
    dtype: torch.dtype,
) -> Tensor:
    parts = zip(_layers(handles, counts), _split(input, tokens), weights.unbind(), strict=True)
    return _joined([forward_product(*layer, x, w, dtype) for layer, x, w in parts if x.shape[0]])


@_gemms.register_fake
def _(
    input: Tensor,
    weights: Tensor,
    handles: Tensor,
    counts: Tensor,
    tokens: Tensor | None,
    estimated: bool,
    dtype: torch.dtype,
) -> Tensor:
    return input.new_empty((input.shape[0], weights.shape[1]), dtype=dtype)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    input, weights, handles, counts, tokens, estimated, ctx.dtype = inputs
    ctx.needs = for_input, for_weights = ctx.needs_input_grad[:2]
    ctx.dtypes = input.dtype, weights.dtype
    keeps_input = for_weights or (for_input and estimated)
    keeps_weights = for_input or (for_weights and estimated)
    kept = input if keeps_input else None, weights if keeps_weights else None
    ctx.save_for_backward(*kept, handles, counts, tokens)


def _backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
    found = iter(_gradients(grad_output, *ctx.saved_tensors, *ctx.needs, ctx.dtype, *ctx.dtypes))
    return *(next(found) if needed else None for needed in ctx.needs), *(None,) * 5


_gemms.register_autograd(_backward, setup_context=_keep)


@custom_op("lowbit::gradients", mutates_args=(), tags=torch.Tag.cudagraph_unsafe)
def _gradients(
    grad_output: Tensor,
    input: Tensor | None,
    weights: Tensor | None,
    handles: Tensor,
    counts: Tensor,
    tokens: Tensor | None,
    for_input: bool,
    for_weights: bool,
    dtype: torch.dtype,
    input_dtype: torch.dtype,
    weights_dtype: torch.dtype,
) -> list[Tensor]:
    needs, layers = (for_input, for_weights), _layers(handles, counts)
    rows = [None] * len(layers) if input is None else _split(input, tokens)
    matrices = [None] * len(layers) if weights is None else weights.unbind()
    of_input: list[Tensor] = []
    of_weights: list[Tensor | None] = []
    for layer, g, x, w in zip(layers, _split(grad_output, tokens), rows, matrices, strict=True):
        found = backward_products(*layer, g, x, w, dtype, needs) if g.shape[0] else (None, None)
        if found[0] is not None:
            of_input.append(found[0].to(input_dtype))
        of_weights.append(None if found[1] is None else found[1].to(weights_dtype))
    gradients = [_joined(of_input)] if for_input else []
    if for_weights:
        some = next(each for each in of_weights if each is not None)
        every = [torch.zeros_like(some) if each is None else each for each in of_weights]
        gradients.append(torch.stack(every) if len(every) > 1 else every[0].contiguous()[None])
    return gradients


@_gradients.register_fake
def _(
    grad_output: Tensor,
    input: Tensor | None,
    weights: Tensor | None,
    handles: Tensor,
    counts: Tensor,
    tokens: Tensor | None,
    for_input: bool,
    for_weights: bool,
    dtype: torch.dtype,
    input_dtype: torch.dtype,
    weights_dtype: torch.dtype,
) -> list[Tensor]:
    gradients, (rows, out_features) = [], grad_output.shape
    if for_input:
        assert weights is not None
        gradients.append(grad_output.new_empty((rows, weights.shape[2]), dtype=input_dtype))
    if for_weights:
        assert input is not None
        shape = handles.shape[0], out_features, input.shape[1]
        gradients.append(grad_output.new_empty(shape, dtype=weights_dtype))
    return gradients


def _layers(handles: Tensor, counts: Tensor) -> list[tuple[Gemms, int]]:
    """The layers, each with the count of its clock."""
    numbers = zip(handles.tolist(), counts.tolist(), strict=True)
    return [(_LAYERS[number], count) for number, count in numbers]


def _split(rows: Tensor, tokens: Tensor | None) -> Sequence[Tensor]:
    return (rows,) if tokens is None else torch.split(rows, tokens.tolist())


def _joined(parts: list[Tensor]) -> Tensor:
    return torch.cat(parts) if len(parts) > 1 else parts[0].contiguous()
