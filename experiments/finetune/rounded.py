"""Rounded weights: the two matrices of an adapter, and what the base loses by its own rounding.

Each component of the adapter is a column of B times a row of A, and both are rounded along
themselves: A [r, in] along its rows, B [out, r] along its columns, where blocks have room and a
scale is shared by many.  Rounded to nearest; the gradient passes straight through.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.finetune.config import SIGN
from experiments.quant.block import quantize
from experiments.quant.formats import Precision
from experiments.quant.linear import QuantizedGemms
from experiments.quant.straight_through import straight_through


class RoundedLinear(nn.Linear):
    """A linear layer that multiplies by its rounded weight; one of an adapter becomes this."""

    precision: str
    """The format: a name that `Precision.parse` reads, or `SIGN`."""
    columns: bool
    """Whether scales are shared along columns, not rows."""

    @staticmethod
    def become(layer: nn.Linear, precision: str, columns: bool) -> None:
        """Make a linear layer one of these, in place."""
        layer.__class__ = RoundedLinear
        assert isinstance(layer, RoundedLinear)
        layer.precision, layer.columns = precision, columns

    def forward(self, input: Tensor) -> Tensor:
        """[..., in] to [..., out]."""
        rounded = straight_through(lambda x, *_: self._values(x), self.weight, None, 0, None)
        return F.linear(input, rounded, self.bias)

    def _values(self, weight: Tensor) -> Tensor:
        lines = weight.float().t() if self.columns else weight.float()
        values = _rounded(lines, self.precision)
        return (values.t() if self.columns else values).to(weight.dtype)


@torch.no_grad()
def weight_error(layer: QuantizedGemms, weight: Tensor) -> Tensor | None:
    """What the forward product loses of a layer's weight, W - Q(W), rounded to nearest, [out, in].

    Args:
        layer: Says to which format; None is returned where it loses nothing.
        weight: As it multiplies, [out, in].
    """
    precision = layer.precisions.get("P2")
    if precision is None or layer.kept:
        return None
    return weight.float() - _rounded(weight.float(), str(precision))


def _rounded(x: Tensor, to: str) -> Tensor:
    """The rows of a matrix rounded; blocks that do not divide them are filled up with zeros.

    Sign: XNOR-Net's binary weights, the sign times the row's mean magnitude (1603.05279, Eq. 6);
    zero counts as positive.
    """
    if to == SIGN:
        return x.abs().mean(dim=1, keepdim=True) * (2.0 * (x >= 0) - 1.0)
    precision = Precision.parse(to)
    length = x.shape[1]
    padded = F.pad(x, (0, -length % precision.divisor)).contiguous()
    return quantize(padded, precision)[:, :length]
