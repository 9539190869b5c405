"""The two products of attention with quantized operands, as `experiments.quant.slots` names them.

Attention is written out where an operand is rounded: all scores are there at once.  Both products
and the softmax are in float32 (float64 for float64 tensors), on the values as they were rounded,
and the output is rounded to the compute dtype once.  Operands that the recipe leaves out are cast
to the compute dtype, as in any layer.  Axes that a block or tile does not divide are filled up with
zeros, which changes no sum and no largest value.

Shapes: B batch, H query heads, G key heads (H is a multiple), T queries, S keys, K = head_dim.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.quant.block import quantize_as
from experiments.quant.compiled import clock_counts, handle_of, layer_of
from experiments.quant.formats import Precision
from experiments.quant.gemms import STREAMS, NoiseClock
from experiments.quant.gradient import rounding_gradient
from experiments.quant.operand import Operand
from experiments.quant.recipe import RecipeConfig


class AttentionProducts(nn.Module):
    """softmax(Q K^T) V, its operands quantized as a recipe says; no parameters.

    In a model of your own, what `F.scaled_dot_product_attention` is; `quantize_` finds it there.
    Without anything to round it calls that function.
    """

    clock: NoiseClock

    def __init__(self) -> None:
        super().__init__()
        self.precisions: dict[str, Precision] = {}
        """Formats of the quantized operands, by name."""
        self.values_by_token = True
        """Whether values are quantized along head_dim, and not along the keys."""
        self.kept = True
        """Whether it is in high precision."""

    def quantized_as(
        self, recipe: RecipeConfig, precision: Precision, clock: NoiseClock, layer: int
    ) -> None:
        """Set what is quantized, and how.

        Args:
            recipe: Which operands, which rounding.
            precision: Format of operands to which the recipe gives no format of their own.
            clock: The source of noise.
            layer: Number of this attention in the model, part of the noise's address.
        """
        self.recipe, self.precision = recipe, precision
        self.precisions = recipe.attention.precisions(precision)
        self.roundings = recipe.attention.roundings()
        self.estimators = recipe.attention.estimators()
        self.values_by_token = recipe.attention.value_along == "head_dim"
        self.clock, self.layer = clock, layer
        self.kept = not self.precisions
        self.handle = handle_of(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take the state of another one, of which this is a copy, but not its handle."""
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        if "handle" in state:
            self.handle = handle_of(self)

    @property
    def rounds(self) -> bool:
        """Whether a pass now rounds anything."""
        return not self.kept and self.clock.quantizing

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None = None,
        dropout: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
    ) -> Tensor:
        """The output, [B, H, T, K]; arguments as for `F.scaled_dot_product_attention`.

        Args:
            query: [B, H, T, K].
            key: [B, G, S, K].
            value: [B, G, S, K].
            mask: True where a query sees a key, or what is added to the scores, [..., T, S].
            dropout: Share of the probabilities that become zero.
            is_causal: Whether query t sees keys 0 to t only.
            scale: Factor of the scores; None for K^-0.5.
        """
        if not self.rounds or query.is_meta:
            shared = query.shape[1] != key.shape[1]
            return F.scaled_dot_product_attention(
                query, key, value, mask, dropout, is_causal, scale=scale, enable_gqa=shared
            )
        if is_causal:
            seen = query.new_ones(query.shape[-2], key.shape[-2], dtype=torch.bool).tril()
            mask = seen if mask is None else _both(seen, mask)
        return self.written_out(query, key, value, mask, dropout, scale)[0]

    def written_out(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None = None,
        dropout: float = 0.0,
        scale: float | None = None,
        softcap: float | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The output and the probabilities that it was made from, [B, H, T, S], rounded.

        Args:
            query: As for `forward`.
            key: As there; rounded before heads of queries share it, as a cache would hold it.
            value: As there; likewise.
            mask: As there.
            dropout: As there.
            scale: As there.
            softcap: Bound of the scores, before the mask: c tanh(s / c); None for no bound.
        """
        device = query.device.type
        dtype = torch.promote_types(torch.promote_types(query.dtype, key.dtype), value.dtype)
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
        count: Tensor | int = 0
        if self.precisions and torch.compiler.is_compiling():
            count = clock_counts(self.handle, None)
        elif self.precisions:
            count = self.clock.counter
        with torch.autocast(device, enabled=False):
            q = self._operand("query", query, dtype, count)
            k = self._operand("key", key, dtype, count)
            if self.values_by_token:
                v = self._operand("value", value, dtype, count)
            else:
                v = self._operand("value", value.mT, dtype, count).mT
            groups = query.shape[1] // key.shape[1]
            if groups > 1:
                k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
            scores = q @ k.mT * (query.shape[-1] ** -0.5 if scale is None else scale)
            if softcap is not None:
                scores = (scores / softcap).tanh() * softcap
            if mask is None or mask.dtype is not torch.bool:
                probabilities = (scores if mask is None else scores + mask).softmax(-1)
            else:  # not infinity: a query that sees nothing gets zeros, and zeros as gradients
                lowest = torch.finfo(scores.dtype).min
                probabilities = scores.masked_fill(~mask, lowest).softmax(-1)
                probabilities = probabilities.masked_fill(~mask, 0.0)
            probabilities = F.dropout(probabilities, dropout, dropout > 0)
            probabilities = self._operand("probabilities", probabilities, dtype, count)
            return (probabilities @ v).to(dtype), probabilities.to(dtype)

    def _operand(self, label: str, x: Tensor, dtype: torch.dtype, count: Tensor | int) -> Tensor:
        """An operand as its product takes it, its quantized axis last."""
        wide = torch.promote_types(dtype, torch.float32)
        if label not in self.precisions:
            return x.to(dtype).to(wide)
        if isinstance(count, Tensor):
            rounded: Tensor = _rounded_operator(x, self.handle, count, label)
        else:
            rounded = _Rounded.apply(x, self, label, count)  # type: ignore[no-untyped-call]
        return rounded.to(wide)

    def rounded(self, label: str, x: Tensor, count: int) -> Tensor:
        """The values of an operand's format, in float32, without their gradient.

        Args:
            label: Which operand.
            x: [..., size], the axis along which it is quantized last.
            count: The clock's count when the layer ran forward.
        """
        rounding, filled = self.roundings[label], self._filled(label, x)
        key = self.clock.key(count, self.layer, STREAMS[label]) if rounding.draws else None
        values = quantize_as(filled, self.precisions[label], rounding, key)
        values = values[..., : x.shape[-2], : x.shape[-1]]
        if self.clock.watch is not None:
            self.clock.watch(
                self, label, Operand(x.flatten(0, -2)), Operand(values.flatten(0, -2), True)
            )
        return values

    def passed_back(self, label: str, gradient: Tensor, x: Tensor | None) -> Tensor:
        """From the gradient of the rounded values to that of the operand."""
        estimator = self.estimators.get(label)
        if estimator is None or x is None:
            return gradient
        factor = rounding_gradient(self._filled(label, x), self.precisions[label], estimator)
        return gradient * factor[..., : x.shape[-2], : x.shape[-1]].to(gradient.dtype)

    def _filled(self, label: str, x: Tensor) -> Tensor:
        """In float32, with zeros up to a multiple of the block, or of the tile both ways."""
        precision = self.precisions[label]
        columns = -x.shape[-1] % precision.divisor
        rows = -x.shape[-2] % (precision.tile or 1)
        x = x.detach().float().contiguous()
        return F.pad(x, (0, columns, 0, rows)) if rows or columns else x


class _Rounded(torch.autograd.Function):
    """The rounding of one operand and the gradient's way through it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, products: AttentionProducts, label: str, count: int) -> Tensor:
        ctx.products, ctx.label, ctx.dtype = products, label, x.dtype
        ctx.save_for_backward(x if label in products.estimators else None)
        return products.rounded(label, x, count).to(_wide(x))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        return ctx.products.passed_back(ctx.label, gradients[0], x).to(ctx.dtype), None, None, None


# As in `experiments.quant.compiled`: a layer is known by its handle, and a count is no constant.
@torch.library.custom_op(
    "lowbit::attention_operand", mutates_args=(), tags=torch.Tag.cudagraph_unsafe
)
def _rounded_operator(x: Tensor, handle: Tensor, count: Tensor, label: str) -> Tensor:
    products: AttentionProducts = layer_of(handle)
    return products.rounded(label, x, int(count)).to(_wide(x)).contiguous()


@_rounded_operator.register_fake
def _(x: Tensor, handle: Tensor, count: Tensor, label: str) -> Tensor:
    return x.new_empty(x.shape, dtype=_wide(x))


@torch.library.custom_op(
    "lowbit::attention_gradient", mutates_args=(), tags=torch.Tag.cudagraph_unsafe
)
def _gradient_operator(gradient: Tensor, x: Tensor, handle: Tensor, label: str) -> Tensor:
    products: AttentionProducts = layer_of(handle)
    # An operator returns no tensor that it was given.
    return products.passed_back(label, gradient, x).to(x.dtype, copy=True).contiguous()


@_gradient_operator.register_fake
def _(gradient: Tensor, x: Tensor, handle: Tensor, label: str) -> Tensor:
    return x.new_empty(x.shape)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, handle, _, ctx.label = inputs
    ctx.save_for_backward(x, handle)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    x, handle = ctx.saved_tensors
    return _gradient_operator(gradient, x, handle, ctx.label), None, None, None


_rounded_operator.register_autograd(_backward, setup_context=_keep)


def _wide(x: Tensor) -> torch.dtype:
    """The dtype in which an operand's values are exact, and its gradient arrives."""
    return torch.promote_types(x.dtype, torch.float32)


def _both(seen: Tensor, mask: Tensor) -> Tensor:
    """What a causal query sees of a mask."""
    if mask.dtype is torch.bool:
        return seen & mask
    return mask.masked_fill(~seen, -torch.inf)
