"""The two matrices of an adapter, rounded in the forward pass.

Each component of the adapter is a column of B times a row of A, and both are rounded along
themselves: A [r, in] along its rows, B [out, r] along its columns, where blocks have room and a
scale is shared by many.  Rounded to nearest; the gradient passes straight through.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from experiments.finetune.config import SIGN
from experiments.quant.block import quantize
from experiments.quant.formats import Precision


class RoundedLinear(nn.Linear):
    """A linear layer that multiplies by its rounded weight; one of an adapter becomes this."""

    precision: str
    columns: bool
    """Whether scales are shared along columns, not rows."""

    def become(self, precision: str, columns: bool) -> None:
        """Set the format, and along what scales are shared."""
        self.precision, self.columns = precision, columns

    def forward(self, input: Tensor) -> Tensor:
        """[..., in] to [..., out]."""
        weight = self.weight
        rounded = weight + (self.rounded() - weight).detach()
        return F.linear(input, rounded, self.bias)

    def rounded(self) -> Tensor:
        """The weight as it multiplies, [out, in], float32."""
        weight = self.weight.detach().float()
        return (
            _rounded(weight.t(), self.precision).t()
            if self.columns
            else _rounded(weight, self.precision)
        )


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
