"""Both passes through a layer's GEMMs, and what the backward one takes from the forward one.

A backward operand may be what the forward product multiplied.  Where that was rotated, so is the
gradient that comes out, which is then rotated back (Quartet 2505.14669, Algorithm 1).

Axes that a block, a tile or a rotation does not divide are filled up with zeros, which changes no
sum and no largest value.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from experiments.quant.gemms import Gemms, filled
from experiments.quant.hadamard import Rotation
from experiments.quant.operand import Operand
from experiments.quant.recipe import OperandConfig


class _Saved(NamedTuple):
    """What the backward products take from the forward pass; None where they take nothing."""

    rows: Tensor | None
    matrix: Tensor | None
    left: Tensor | None
    """Rows as the forward product multiplied them."""
    right: Tensor | None
    left_factor: Tensor | float | None
    """Shared by all rows: one per row has no meaning once the product sums over the other axis."""
    right_factor: Tensor | float | None


class QuantizedProducts(torch.autograd.Function):
    """The three GEMMs of a linear layer and the gradients' way through the rounding."""

    @staticmethod
    def forward(
        ctx: Any, input: Tensor, weight: Tensor, layer: Gemms, dtype: torch.dtype
    ) -> Tensor:
        ctx.layer, ctx.counter, ctx.compute_dtype = layer, layer.clock.counter, dtype
        ctx.shape, ctx.dtypes = input.shape, (input.dtype, weight.dtype)
        output, rows, left, right = _forward(layer, input, weight, ctx.counter, dtype)
        saved = _saved(layer, rows, weight, left, right, ctx.needs_input_grad[:2])
        ctx.save_for_backward(*saved[:4])
        ctx.factors = saved[4:]
        return output

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            # Not `once_differentiable`, which drops a term where the input is reached another way.
            raise RuntimeError(
                "create_graph=True: a quantized layer has no second derivatives, as a rounding's "
                "gradient is an estimate; set clock.quantizing=False, or quantize fewer layers"
            )
        saved, needs = _Saved(*ctx.saved_tensors, *ctx.factors), ctx.needs_input_grad[:2]
        grad_input, grad_weight = _backward(
            ctx.layer, grad_outputs[0], ctx.shape[-1], saved, ctx.counter, ctx.compute_dtype, needs
        )
        grad_input = None if grad_input is None else grad_input.to(ctx.dtypes[0])
        grad_weight = None if grad_weight is None else grad_weight.to(ctx.dtypes[1])
        return grad_input, grad_weight, None, None


def forward_product(
    layer: Gemms, counter: int, input: Tensor, weight: Tensor, dtype: torch.dtype
) -> Tensor:
    """Y = x W^T, [..., in] and [out, in] to [..., out], with nothing kept for the gradients."""
    return _forward(layer, input, weight, counter, dtype)[0]


def backward_products(
    layer: Gemms,
    counter: int,
    grad_output: Tensor,
    input: Tensor | None,
    weight: Tensor | None,
    dtype: torch.dtype,
    needs: tuple[bool, bool],
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients of input and weight, with nothing but both kept from the forward pass.

    Operands taken over from there are rounded again, by the same noise and so to the same values.

    Args:
        layer: The layer.
        counter: The clock's count when the layer ran forward.
        grad_output: [..., out].
        input: [..., in]; None if only its own gradient is needed, straight through its rounding.
        weight: [out, in]; None likewise.
        dtype: The compute dtype.
        needs: Whether the gradients of input and weight are needed.
    """
    rows = None if input is None else input.reshape(-1, input.shape[-1])
    (takes_left, takes_right), left, right = _takes_over(layer, needs), None, None
    if takes_left:
        assert rows is not None
        left = layer.forward_operand("P1", rows, counter, dtype)
    if takes_right:
        assert weight is not None
        right = layer.forward_operand("P2", weight, counter, dtype)
    saved = _saved(layer, rows, weight, left, right, needs)
    either = rows if weight is None else weight
    assert either is not None
    return _backward(layer, grad_output, either.shape[1], saved, counter, dtype, needs)


def _forward(
    layer: Gemms, input: Tensor, weight: Tensor, counter: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Operand, Operand]:
    """The output, [..., out], the input's rows, [rows, in], and both operands."""
    rows = input.reshape(-1, input.shape[-1])
    by_rows, by_in, by_out = layer.steps
    # [rows, in] @ [out, in]^T -> [rows, out]
    left, right = layer.operands(
        "output",
        Operand(filled(rows, by_rows, by_in), "P1" in layer.given),
        Operand(filled(weight, by_out, by_in), "P2" in layer.given),
        counter,
        dtype,
    )
    output = layer.product("output", left, right, dtype)
    output = output[: rows.shape[0], : weight.shape[0]]
    return output.reshape(*input.shape[:-1], weight.shape[0]), rows, left, right


def _takes_over(layer: Gemms, needs: tuple[bool, bool]) -> tuple[bool, bool]:
    """Whether the backward products multiply what the forward one did: its left, its right."""
    input_grad, weight_grad = needs
    return (
        weight_grad and _of_forward(layer.recipe.grad_weight.input),
        input_grad and _of_forward(layer.recipe.grad_input.weight),
    )


def _saved(
    layer: Gemms,
    rows: Tensor | None,
    matrix: Tensor | None,
    left: Operand | None,
    right: Operand | None,
    needs: tuple[bool, bool],
) -> _Saved:
    """What the backward products need of the forward pass; both operands are there if taken."""
    (input_grad, weight_grad), estimators = needs, layer.estimators
    takes_left, takes_right = _takes_over(layer, needs)
    keeps_rows = (weight_grad and not takes_left) or (input_grad and "P1" in estimators)
    keeps_matrix = (input_grad and not takes_right) or (weight_grad and "P2" in estimators)
    return _Saved(
        rows if keeps_rows else None,
        matrix if keeps_matrix else None,
        left.values if left is not None and takes_left else None,
        right.values if right is not None and takes_right else None,
        left.shared_factor if left is not None else None,
        right.shared_factor if right is not None else None,
    )


def _backward(
    layer: Gemms,
    grad_output: Tensor,
    in_features: int,
    saved: _Saved,
    counter: int,
    dtype: torch.dtype,
    needs: tuple[bool, bool],
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients of the input, [..., in], and the weight, [out, in], where they are needed."""
    by_rows, by_in, by_out = layer.steps
    given = grad_output.reshape(-1, grad_output.shape[-1])
    count, out_features = given.shape
    gradient = filled(given, by_rows, by_out)
    rows = None if saved.rows is None else filled(saved.rows, by_rows, by_in)
    weight = None if saved.matrix is None else filled(saved.matrix, by_out, by_in)
    rotation = layer.rotation("output", in_features + -in_features % by_in, given.device, counter)
    common = rotation, counter, dtype
    grad_input = grad_weight = None
    if needs[0]:
        left = Operand(gradient)
        if row_hadamard := layer.recipe.grad_input.row_hadamard:
            by_rows_too = Rotation(row_hadamard)
            left = Operand(by_rows_too.across(gradient), across=by_rows_too)
        # [rows, out] @ [in, out]^T -> [rows, in]
        right = _turned(weight, saved.right, saved.right_factor, rotation)
        grad_input = layer.gradient("P1", left, right, rows, *common)[:count, :in_features]
        grad_input = grad_input.reshape(*grad_output.shape[:-1], in_features)
    if needs[1]:
        # [out, rows] @ [in, rows]^T -> [out, in]
        left = Operand(gradient.t())
        right = _turned(rows, saved.left, saved.left_factor, rotation)
        grad_weight = layer.gradient("P2", left, right, weight, *common)
        grad_weight = grad_weight[:out_features, :in_features]
    return grad_input, grad_weight


def _turned(
    tensor: Tensor | None,
    rounded: Tensor | None,
    factor: Tensor | float | None,
    rotation: Rotation | None,
) -> Operand:
    """The transpose of the operand that the forward product multiplied, or of the tensor itself."""
    if rounded is not None:
        return Operand(rounded, True, factor, along=rotation).t()
    assert tensor is not None
    return Operand(tensor.t())


def _of_forward(operand: OperandConfig | None) -> bool:
    return operand is not None and operand.forward
