"""L-Mul: products by addition of mantissas (2410.00907), a whole GEMM at a time.

With x = +-(1 + xm) 2^xe and y = +-(1 + ym) 2^ye, Eq. 1 of the paper leaves the product of the
mantissas out and puts a constant in its place:

    L-Mul(x, y) = +-(1 + xm + ym + c) 2^(xe + ye),    c = 2^-l(m)

for m mantissa bits.  As written there: a sum xm + ym + c of 1 or more is not carried into the
exponent, as an adder of whole bit patterns would, which gives 2 (xm + ym + c) instead.  A zero
makes the product zero.  A subnormal number of the format is a number like any other, with the
power of two below it as 2^xe.

Written with the powers p = +-2^xe and q = +-2^ye the product is x q + p y + (c - 1) p q, so that

    L-Mul(x, y) = (x + (c - 1) p) q + p y

and sums of it over k are two exact GEMMs: no emulation of single products is needed.
"""

from __future__ import annotations

import torch
from torch import Tensor

from experiments.quant.kernels.dense import of_one_process
from experiments.quant.product import has_wide_product, wide_product

_SIGN_AND_EXPONENT = -0x00800000
"""Mask of a float32's bits, 0xFF800000: all but the mantissa."""


def offset(mantissa: int) -> float:
    """The constant 2^-l(m): l(m) is m up to 3 bits, 3 for 4 bits, 4 for more (2410.00907, Eq. 1).

    >>> [offset(m) for m in (1, 2, 3, 4, 5, 7)]
    [0.5, 0.25, 0.125, 0.125, 0.0625, 0.0625]
    """
    return 2.0 ** -(mantissa if mantissa <= 3 else 3 if mantissa == 4 else 4)


@of_one_process
def lmul(left: Tensor, right: Tensor, mantissa: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Sums over k of L-Mul(left[i, k], right[j, k]).

    Args:
        left: [rows, K], float32; numbers of `mantissa` bits times powers of two.
        right: [columns, K], the same.
        mantissa: Bits of both.
        dtype: The result's; the sums are in float32 and rounded to it once.  Where a GEMM of
            bfloat16 stores float32, it multiplies numbers of up to 6 bits, which are exact in it.

    Returns:
        [rows, columns] in `dtype`.

    >>> lmul(torch.tensor([[1.5]]), torch.tensor([[1.5]]), 3)
    tensor([[2.1250]])
    """
    powers, other_powers = _powers(left), _powers(right)
    shifted = torch.add(left, powers, alpha=offset(mantissa) - 1.0)
    with torch.autocast(left.device.type, enabled=False):
        if dtype is torch.bfloat16 and mantissa <= 6 and has_wide_product(left.device):
            shifted, powers, right, other_powers = (
                each.to(dtype) for each in (shifted, powers, right, other_powers)
            )
            return (wide_product(shifted, other_powers) + wide_product(powers, right)).to(dtype)
        product = shifted @ other_powers.t()
        return torch.addmm(product, powers, right.t()).to(dtype)


def _powers(x: Tensor) -> Tensor:
    """+-2^floor(log2 |x|), with the sign of x; zero of zero and of float32's subnormals."""
    return (x.view(torch.int32) & _SIGN_AND_EXPONENT).view(torch.float32)
