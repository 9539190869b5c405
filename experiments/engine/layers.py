"""Layers other than `nn.Linear` whose products are the same three GEMMs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from experiments.quant.linear import QuantizedGemms

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
        weight = self.weight.movedim(1, -1).flatten(1)  # [out, taps x channels of a group]
        outputs = []
        for group, matrix in enumerate(weight.chunk(groups)):
            columns = windows[..., group * width : (group + 1) * width]
            bias = None if self.bias is None else self.bias.chunk(groups)[group]
            outputs.append(self.transform(columns.flatten(1 + dims), matrix, bias))
        output = torch.cat(outputs, dim=-1).movedim(-1, 1).contiguous()
        return output if input.ndim == dims + 2 else output.squeeze(0)

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
