"""Layout: how values lie in memory and which of them share a scale, the same for every backend."""

from __future__ import annotations

import torch
from torch import Tensor

from experiments.quant.formats import Precision


def check_axes(shape: torch.Size, precision: Precision) -> None:
    """Refuse a shape that the blocks do not divide.

    Raises:
        ValueError: The summed axis, or with tiles one of the last two, is not a multiple of the
            block size.
    """
    size = precision.divisor
    if size > 1 and (shape[-1] % size or (precision.tile and shape[-2] % size)):
        what = "the last two axes" if precision.tile else "the summed axis"
        raise ValueError(f"block_size={size}: {what} of {tuple(shape)} must be a multiple of it")


def to_blocks(x: Tensor, precision: Precision) -> Tensor:
    """[..., K] to [..., elements that share a scale]."""
    if precision.granularity == "tensor":
        return x.reshape(1, -1)
    if precision.granularity == "row":
        return x
    size = precision.block_size
    if not precision.tile:
        return x.unflatten(-1, (-1, size))  # type: ignore[no-untyped-call, no-any-return]
    *outer, rows, columns = x.shape
    tiles = x.reshape(*outer, rows // size, size, columns // size, size).transpose(-3, -2)
    return tiles.reshape(*outer, rows // size, columns // size, size * size)


def from_blocks(blocks: Tensor, shape: torch.Size, precision: Precision) -> Tensor:
    """The inverse of `to_blocks`, for a tensor of this shape."""
    if size := precision.tile:
        *outer, rows, columns = shape
        tiles = blocks.reshape(*outer, rows // size, columns // size, size, size)
        blocks = tiles.transpose(-3, -2)
    return blocks.reshape(shape)


def turned(x: Tensor) -> bool:
    """Whether x is the transpose of a contiguous matrix, and not contiguous itself."""
    return x.ndim == 2 and not x.is_contiguous() and x.t().is_contiguous()


def lying_as(x: Tensor, result: Tensor) -> Tensor:
    """`result`, of x's shape, transposed in memory if x is `turned`, else contiguous.

    The layout decides in which order a GEMM adds, so backends must agree on it.
    """
    return result.t().contiguous().t() if turned(x) else result.contiguous()


def narrowed(result: Tensor, dtype: torch.dtype) -> Tensor:
    """Float32 values in `dtype`; values that would overflow saturate.  May change `result`."""
    if result.dtype is dtype:
        return result
    limit = torch.finfo(dtype).max
    return result.clamp_(-limit, limit).to(dtype)
