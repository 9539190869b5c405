"""The stated gradient of rounding: straight through, the same for every backend.

A rounding is a staircase, so its own derivative is zero almost everywhere.  By the field's
convention (Bengio et al., 1308.3432) its gradient is that of the identity: what arrives is passed
on as it is, saturated values included, and scales are constants.  A rotation before it is linear;
its gradient is the transposed rotation.  Both hold in every derivative, forward and backward.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from experiments.quant.hadamard import rotate, unrotate

Values = Callable[[Tensor, Tensor | None, Tensor | None], Tensor]
"""A function from x, its noise and the signs of its rotation to the rounded values."""


def straight_through(
    values: Values, x: Tensor, noise: Tensor | None, hadamard: int, signs: Tensor | None
) -> Tensor:
    """values(x, noise, signs), with the gradient above.

    Args:
        values: Rotates by blocks of `hadamard`, then rounds; its own gradient is not used.
        x: The tensor that has a gradient.
        noise: Passed on.
        hadamard: Block length of the rotation; 0 for none.
        signs: Those of the rotation.

    Raises:
        ValueError: `noise` or `signs` require a gradient; they have none.
    """
    for name, tensor in (("noise", noise), ("signs", signs)):
        if tensor is not None and tensor.requires_grad:
            raise ValueError(f"{name} has no gradient here: detach it")
    if not differentiated(x, noise, signs):
        return values(x, noise, signs)
    compiling = torch.compiler.is_dynamo_compiling()  # it takes neither jvp nor vmap
    function = _StraightThrough if compiling else _WithTransforms
    result: Tensor = function.apply(x, noise, signs, values, hadamard)  # type: ignore[no-untyped-call]
    return result


def differentiated(x: Tensor, noise: Tensor | None, signs: Tensor | None) -> bool:
    """Whether autograd, forward mode or torch.func differentiates or maps here."""
    if x.requires_grad and torch.is_grad_enabled():
        return True
    if torch.compiler.is_dynamo_compiling():
        return False
    if forward_ad._current_level >= 0 or _transformed(x):
        return True
    if noise is None and signs is None:
        return False
    return any(
        tensor.requires_grad or _transformed(tensor)
        for tensor in (noise, signs)
        if tensor is not None
    )


def _transformed(x: Tensor) -> bool:
    functorch = torch._C._functorch
    return functorch.is_functorch_wrapped_tensor(x) and (
        functorch.is_batchedtensor(x) or functorch.is_gradtrackingtensor(x)
    )


def passed_back(
    gradient: Tensor, hadamard: int, signs: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """From the gradient of the rounded values to that of x, which is of `dtype`."""
    if not hadamard:
        return gradient.to(dtype)
    return unrotate(gradient.float(), hadamard, signs).to(dtype)


class _StraightThrough(torch.autograd.Function):
    """Forward as `values` says, the gradient as the module does."""

    @staticmethod
    def forward(
        x: Tensor, noise: Tensor | None, signs: Tensor | None, values: Values, hadamard: int
    ) -> Tensor:
        return values(x, noise, signs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, _, signs, _, ctx.hadamard = inputs
        ctx.dtype = x.dtype
        ctx.save_for_backward(signs)
        ctx.save_for_forward(signs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None, None]:
        (signs,) = ctx.saved_tensors
        return passed_back(gradients[0], ctx.hadamard, signs, ctx.dtype), None, None, None, None


class _WithTransforms(_StraightThrough):
    """The same for forward mode and torch.func."""

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        tangent: Tensor = tangents[0]
        (signs,) = ctx.saved_tensors
        if ctx.hadamard:
            tangent = rotate(tangent.float(), ctx.hadamard, signs).to(ctx.dtype)
        return tangent.clone() if tangent is tangents[0] else tangent

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[int | None, ...],
        x: Tensor,
        noise: Tensor | None,
        signs: Tensor | None,
        values: Values,
        hadamard: int,
    ) -> tuple[Tensor, int]:
        """One by one: the scales and draws of one tensor do not depend on the others."""

        def each(tensor: Tensor | None, axis: int | None, number: int) -> Tensor | None:
            return tensor if tensor is None or axis is None else tensor.select(axis, number)

        results = []
        for number in range(info.batch_size):
            own, draws, turns = (
                each(tensor, axis, number)
                for tensor, axis in zip((x, noise, signs), in_dims[:3], strict=True)
            )
            assert own is not None
            results.append(straight_through(values, own, draws, hadamard, turns))
        return torch.stack(results), 0
