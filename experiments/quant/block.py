"""Quantize = scale a block, round its elements to the format's grid, scale back.

`quantize_plain` is the definition, in PyTorch; a compiled kernel does the same, to the bit, where
it was built and knows the precision.
"""

from __future__ import annotations

import torch
from torch import Tensor

from experiments.quant.formats import Precision, ScaleFormat
from experiments.quant.kernels import cpu
from experiments.quant.kernels.noise import uniform
from experiments.quant.rounding import ROUNDINGS, round_stochastic, round_to
from experiments.quant.scale import block_scale, four_over_six_scale


def backend(precision: Precision, device: str = "cpu") -> str:
    """What quantizes to `precision` on `device` here; every run record names it."""
    probe = torch.empty(0, device=device)
    return cpu.NAME if cpu.NAME and cpu.supports(probe, precision) else "torch"


def quantize(
    x: Tensor,
    precision: Precision,
    noise: Tensor | int | None = None,
    rounding: str = "nearest_even",
) -> Tensor:
    """Fake-quantize `x`: each value becomes s * round(x / s), s the scale of its block.

    The result holds only values that `precision` can represent, but in `x`'s own dtype.

    Args:
        x: [..., K], float32, bfloat16 or float16.  The last axis must be the one that the GEMM
            sums over; for granularity "block" K must be a multiple of the block size, for "tile"
            the last two axes must.
        precision: Element format, who shares a scale, and the scale's format.
        noise: Rounds stochastically with these uniform draws from [0, 1), the shape of `x`, or
            with those that `kernels.noise.uniform` makes of this key; None rounds as `rounding`
            says.
        rounding: One of `experiments.quant.rounding.ROUNDINGS`.

    Returns:
        A contiguous tensor of `x`'s shape and dtype.  Values beyond s * element.max saturate to
        it.  A block of zeros stays zero.  A block with a NaN or an infinity becomes all NaN; with
        a two-level scale the whole tensor does.

    Raises:
        ValueError: Wrong dtype, an axis no multiple of the block size, `noise` of another shape,
            or no such rounding.

    Source:
        Sun et al. 2501.02423, section 3 (FP32 scales); OCP MX v1.0, section 6.3 (E8M0); the others
        as `ScaleFormat` says.

    >>> from experiments.quant.formats import FloatFormat
    >>> mx = Precision(FloatFormat(2, 1), "block", 4, ScaleFormat.E8M0)
    >>> quantize(torch.tensor([[0.9, -2.6, 5.1, 7.5]]), mx)
    tensor([[ 1., -3.,  6.,  6.]])
    """
    if x.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise ValueError(f"quantize takes float32, bfloat16 or float16, got {x.dtype}")
    if isinstance(noise, Tensor) and noise.shape != x.shape:
        raise ValueError(f"noise has shape {tuple(noise.shape)}, x has {tuple(x.shape)}")
    if rounding not in ROUNDINGS:
        raise ValueError(f"rounding={rounding}: must be one of {', '.join(ROUNDINGS)}")
    _check_axes(x.shape, precision)
    if cpu.supports(x, precision):
        return cpu.quantize(x, precision, noise, rounding)
    return quantize_plain(x, precision, noise, rounding)


def quantize_plain(
    x: Tensor,
    precision: Precision,
    noise: Tensor | int | None = None,
    rounding: str = "nearest_even",
) -> Tensor:
    """The definition: what `quantize` returns, whoever computes it; arguments as there."""
    draws = uniform(noise, x.shape, x.device) if isinstance(noise, int) else noise
    blocks = _to_blocks(x.float(), precision)
    noises = None if draws is None else _to_blocks(draws, precision)
    scale = block_scale(blocks, precision.element, precision.scale)
    values = _round_scaled(blocks, scale, precision, noises, rounding)
    if precision.scale is ScaleFormat.E4M3_4_6:
        scale = four_over_six_scale(blocks)
        other = _round_scaled(blocks, scale, precision, noises, rounding)
        error = (values - blocks).square().sum(dim=-1, keepdim=True)
        other_error = (other - blocks).square().sum(dim=-1, keepdim=True)
        values = torch.where(other_error < error, other, values)
    # Contiguous whatever x was: the layout decides in which order a GEMM adds, so it is part of
    # what two backends must have in common.
    return _from_blocks(values, x.shape, precision).to(x.dtype).contiguous()


def _round_scaled(
    blocks: Tensor, scale: Tensor, precision: Precision, noise: Tensor | None, rounding: str
) -> Tensor:
    scaled = blocks / scale
    if noise is None:
        rounded = round_to(scaled, precision.element, rounding)
    else:
        rounded = round_stochastic(scaled, precision.element, noise)
    return rounded.mul_(scale)


def _check_axes(shape: torch.Size, precision: Precision) -> None:
    size = precision.block_size
    if precision.granularity in ("row", "tensor"):
        return
    divided = shape[-2:] if precision.granularity == "tile" else shape[-1:]
    if any(axis % size for axis in divided):
        what = "the last two axes" if precision.granularity == "tile" else "the summed axis"
        raise ValueError(f"block_size={size}: {what} of {tuple(shape)} must be a multiple of it")


def _to_blocks(x: Tensor, precision: Precision) -> Tensor:
    """[..., K] to [..., elements that share a scale]."""
    size = precision.block_size
    if precision.granularity == "tensor":
        return x.reshape(1, -1)
    if precision.granularity == "row":
        return x
    if precision.granularity == "block":
        return x.unflatten(-1, (-1, size))  # type: ignore[no-untyped-call, no-any-return]
    *outer, rows, columns = x.shape
    tiles = x.reshape(*outer, rows // size, size, columns // size, size).transpose(-3, -2)
    return tiles.reshape(*outer, rows // size, columns // size, size * size)


def _from_blocks(blocks: Tensor, shape: torch.Size, precision: Precision) -> Tensor:
    """The inverse of `_to_blocks`."""
    if precision.granularity == "tile":
        size = precision.block_size
        *outer, rows, columns = shape
        tiles = blocks.reshape(*outer, rows // size, columns // size, size, size)
        blocks = tiles.transpose(-3, -2)
    return blocks.reshape(shape)
