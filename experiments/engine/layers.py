"""Layers other than `nn.Linear` whose products are the same three GEMMs, and the embedding."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from experiments.quant.block import quantize_as
from experiments.quant.gemms import STREAMS, filled
from experiments.quant.linear import QuantizedGemms
from experiments.quant.operand import Operand

if TYPE_CHECKING:
    _Module = nn.Module
else:
    _Module = object


class QuantConv1D(QuantizedGemms, _Module):
    """transformers' `Conv1D` (GPT-2): a linear layer whose weight is stored [in, out]."""

    weight: Tensor
    bias: Tensor | None

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] to [..., out]."""
        return self.transform(x, self.weight.t(), self.bias)

    def matrices(self) -> list[Tensor]:
        """[out, in]."""
        return [self.weight.t()]

    def of_matrices(self, matrices: list[Tensor]) -> Tensor:
        """[in, out]."""
        [weight] = matrices
        return weight.t()


class _QuantConv(QuantizedGemms, _ConvNd):
    """A convolution as a GEMM over taps and channels, channels last: what a block holds lies there.

    Each output position is a row, each channel of each tap a column.  Blocks run along the
    channels of one tap if a block divides their number.
    """

    def forward(self, input: Tensor) -> Tensor:
        """[N, C, ...] to [N, out, ...], or both without N."""
        if self.kept or not self.clock.quantizing:
            output: Tensor = super().forward(input)  # of nn.Conv1d or nn.Conv2d
            return output
        dims = len(self.kernel_size)
        batch = input if input.ndim == dims + 2 else input.unsqueeze(0)
        windows = self._windows(self._padded(batch))
        groups, width = self.groups, self.in_channels // self.groups
        outputs = []
        for group, matrix in enumerate(self.matrices()):
            columns = windows[..., group * width : (group + 1) * width]
            bias = None if self.bias is None else self.bias.chunk(groups)[group]
            outputs.append(self.transform(columns.flatten(1 + dims), matrix, bias))
        output = torch.cat(outputs, dim=-1).movedim(-1, 1).contiguous()
        return output if input.ndim == dims + 2 else output.squeeze(0)

    def matrices(self) -> list[Tensor]:
        """[out, taps x channels] of each group."""
        return list(self.weight.movedim(1, -1).flatten(1).chunk(self.groups))

    def of_matrices(self, matrices: list[Tensor]) -> Tensor:
        """[out, channels, taps...]."""
        weight = torch.cat(matrices)
        return weight.view(len(weight), *self.kernel_size, -1).movedim(-1, 1)

    def _windows(self, x: Tensor) -> Tensor:
        """What each output sees: [N, C, ...] to [N, positions..., taps..., C]."""
        dims = len(self.kernel_size)
        for axis in range(dims):
            span = self.dilation[axis] * (self.kernel_size[axis] - 1) + 1
            x = x.unfold(2 + axis, span, self.stride[axis])
        for axis in range(-dims, 0):  # every dilation-th of a span is a tap
            taps = torch.arange(0, x.shape[axis], self.dilation[axis], device=x.device)
            x = x if self.dilation[axis] == 1 else x.index_select(axis, taps)
        return x.movedim(1, -1)

    def _padded(self, x: Tensor) -> Tensor:
        """The input with its border, as the layer's `padding` and `padding_mode` say."""
        if self.padding == "valid":
            return x
        mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
        return F.pad(x, self._reversed_padding_repeated_twice, mode=mode)


class QuantConv1d(_QuantConv, nn.Conv1d):
    """`nn.Conv1d` as quantized GEMMs."""


class QuantConv2d(_QuantConv, nn.Conv2d):
    """`nn.Conv2d` as quantized GEMMs."""


class QuantEmbedding(QuantizedGemms, nn.Embedding):
    """`nn.Embedding` whose rows are rounded as its recipe rounds a weight (P2), each along itself.

    There is no product, so nothing else of the recipe has an effect: no rotation, no input, and the
    gradient passes straight through.  A table that is a head's matrix, too, is rounded here for
    the rows that are looked up, and there for the product.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Indices [...] to rows [..., embedding_dim]."""
        if self.kept or not self.clock.quantizing or input.is_meta:
            return super().forward(input)
        if self._rows_are_independent:
            found: Tensor = super().forward(input)
            rows: Tensor = _RoundedRows.apply(found.flatten(0, -2), self)  # type: ignore[no-untyped-call]
            return rows.view_as(found)
        table: Tensor = _RoundedRows.apply(self.weight, self)  # type: ignore[no-untyped-call]
        return F.embedding(input, table, self.padding_idx)

    @property
    def _rows_are_independent(self) -> bool:
        """Whether a row is rounded to the same values whatever other rows there are."""
        precision = self.precisions["P2"]
        of_all = precision.granularity == "tensor" or precision.scale.two_level
        return not (of_all or precision.tile or self.roundings["P2"].draws)

    def rounded(self, rows: Tensor) -> Tensor:
        """Rows of the table, [rows, embedding_dim], as their format has them."""
        precision, rounding = self.precisions["P2"], self.roundings["P2"]
        counter = self.clock.counter
        key = self.clock.key(counter, self.layer, STREAMS["P2"]) if rounding.draws else None
        x = filled(rows.float(), precision.tile or 1, precision.divisor)
        values = quantize_as(x, precision, rounding, key)[: rows.shape[0], : rows.shape[1]]
        if self.clock.watch is not None:
            self.clock.watch(self, "P2", Operand(rows), Operand(values, True))
        return values.to(rows.dtype)


class _RoundedRows(torch.autograd.Function):
    """Rounded rows; the gradient passes straight through."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, embedding: QuantEmbedding) -> Tensor:
        return embedding.rounded(rows)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None
