"""Quantize = scale a block, round its elements to the format's grid, scale back.

The plain PyTorch definition: a faster backend must return the same bits.
"""

from __future__ import annotations

import torch
from torch import Tensor

from experiments.quant.formats import FloatFormat, Precision, ScaleFormat
from experiments.quant.rounding import round_nearest_even, round_stochastic

BACKEND = "torch"
"""What quantized; every run record names it."""

_SMALLEST_NORMAL = 2.0**-126
_MAX_SCALED_EXPONENT = 64


def block_scale(amax: Tensor, element: FloatFormat, scale: ScaleFormat) -> Tensor:
    """The scale of blocks whose largest magnitudes are `amax`: value = scale * element.

    Args:
        amax: Non-negative, float32, any shape.
        element: Format of the elements.
        scale: FP32 maps amax to the element's max.  E8M0 is OCP MX v1.0's floor rule, exponent
            within -127..127.

    Returns:
        Float32, the shape of `amax`.  A block of zeros gets a scale that keeps it zero; a NaN
        or infinite amax gives NaN, so the whole block becomes NaN.
    """
    if scale is ScaleFormat.E8M0:
        # frexp gives amax = m * 2^e with m in [0.5, 1), so floor(log2 amax) = e - 1, exactly.
        exponent = (torch.frexp(amax).exponent - 1 - element.emax).clamp_(-127, 127)
        result = torch.ldexp(torch.ones_like(amax), exponent)
    else:
        # The top of an E8 format lies beyond float32.  Moving the block down by a power of two
        # changes nothing but the subnormals, which lie below float32 there.
        shift = max(0, element.emax - _MAX_SCALED_EXPONENT)
        result = (amax / (element.max * 2.0**-shift)).clamp_(min=_SMALLEST_NORMAL)
    return torch.where(amax.isfinite(), result, torch.nan)


def quantize(x: Tensor, precision: Precision, noise: Tensor | None = None) -> Tensor:
    """Fake-quantize `x`: each value becomes s * round(x / s), s the scale of its block.

    The result holds only values that `precision` can represent, but in `x`'s own dtype.

    Args:
        x: [..., K], float32, bfloat16 or float16.  The last axis must be the one that the GEMM
            sums over; for granularity "block" K must be a multiple of the block size.
        precision: Element format, who shares a scale, and the scale's format.
        noise: None rounds to nearest, ties to even.  Otherwise rounds stochastically with these
            uniform draws from [0, 1), the shape of `x`.

    Returns:
        A tensor of `x`'s shape and dtype.  Values beyond s * element.max saturate to it.  A block
        of zeros stays zero.  A block with a NaN or an infinity becomes all NaN.

    Raises:
        ValueError: Wrong dtype, K no multiple of the block size, or `noise` of another shape.

    Source:
        Sun et al. 2501.02423, section 3 (FP32 scales); OCP MX v1.0, section 6.3 (E8M0).

    >>> mx = Precision(FloatFormat(2, 1), "block", 4, ScaleFormat.E8M0)
    >>> quantize(torch.tensor([[0.9, -2.6, 5.1, 7.5]]), mx)
    tensor([[ 1., -3.,  6.,  6.]])
    """
    if x.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise ValueError(f"quantize takes float32, bfloat16 or float16, got {x.dtype}")
    if noise is not None and noise.shape != x.shape:
        raise ValueError(f"noise has shape {tuple(noise.shape)}, x has {tuple(x.shape)}")
    blocks = x.float().reshape(_block_shape(x.shape, precision))
    # aminmax would not allocate, but along an axis it is scalar code: seven times slower.
    amax = blocks.abs().amax(dim=-1, keepdim=True)
    scale = block_scale(amax, precision.element, precision.scale)
    scaled = blocks / scale
    if noise is None:
        rounded = round_nearest_even(scaled, precision.element)
    else:
        rounded = round_stochastic(scaled, precision.element, noise.reshape(blocks.shape))
    return rounded.mul_(scale).reshape(x.shape).to(x.dtype)


def _block_shape(shape: torch.Size, precision: Precision) -> tuple[int, ...]:
    if precision.granularity == "tensor":
        return (1, shape.numel())
    if precision.granularity == "row":
        return tuple(shape)
    if shape[-1] % precision.block_size:
        raise ValueError(
            f"block_size={precision.block_size}: the summed axis of {tuple(shape)} "
            "is no multiple of it"
        )
    return (*shape[:-1], shape[-1] // precision.block_size, precision.block_size)
