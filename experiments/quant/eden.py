"""MS-EDEN: stochastic in the scales, nearest in the elements (Quartet II, 2601.22813).

Rounding each element stochastically is unbiased but triples the error.  Here the elements of
NVFP4 go to the nearest number, which shrinks or stretches a block along itself; the block's scale
is corrected by just that factor, and only the corrected scale is rounded stochastically.  Of data
rotated at random (`experiments.quant.hadamard`) the result is then asymptotically unbiased.
"""

from __future__ import annotations

import torch
from torch import Tensor

from experiments.quant.formats import ScaleFormat
from experiments.quant.kernels.dense import of_one_process, refuse_dtype
from experiments.quant.kernels.noise import uniform
from experiments.quant.layout import narrowed
from experiments.quant.rounding import round_nearest_even, round_stochastic
from experiments.quant.scale import most_scale, power_of_two, two_level, unit_exponent
from experiments.quant.scale_rules import E2M1, MS_EDEN
from experiments.quant.straight_through import straight_through

BLOCK = 16


@of_one_process
def ms_eden(x: Tensor, noise: Tensor | int) -> Tensor:
    """Fake-quantize to NVFP4 with E[<x, Q(x)>] = <x, x> in every block.

    With a block's nearest rounding r, S = <x, x> / <x, r>, and its E4M3 scale s becomes one of the
    two neighbours of S s, the upper with the probability that makes the mean S s.

    Args:
        x: [..., K], float32, bfloat16 or float16, K a multiple of 16, the axis that the GEMM sums
            over; rotated, with random signs, by the caller.
        noise: Uniform draws from [0, 1), [..., K / 16], or a key of `kernels.noise.uniform`.

    Returns:
        A contiguous tensor of `x`'s shape and dtype.  A block that rounds to zeros keeps its scale
        (S = 1).  A NaN or an infinity makes the whole tensor NaN, as two-level scales do.  The
        gradient is straight-through (`experiments.quant.straight_through`).

    Raises:
        ValueError: `x` has another dtype, K is not a multiple of 16, or `noise` has another shape.

    Source:
        2601.22813, MS-EDEN; S per block of 16 as in the paper (its repository takes it over the
        whole rotated group).

    >>> x = torch.randn(64, 128, generator=torch.Generator().manual_seed(0))
    >>> q = torch.stack([ms_eden(x, key) for key in range(64)]).mean(0)
    >>> f"{((x * q).sum() / (x * x).sum()).item():.3f}"
    '1.000'
    """
    refuse_dtype("ms_eden", x)
    if x.shape[-1] % BLOCK:
        raise ValueError(f"the summed axis of {tuple(x.shape)} must be a multiple of {BLOCK}")
    shape = (*x.shape[:-1], x.shape[-1] // BLOCK)
    if isinstance(noise, int):
        noise = uniform(noise, shape, x.device)
    if noise.shape != shape:
        raise ValueError(f"noise has shape {tuple(noise.shape)}, not {shape}")
    return straight_through(_values, x, noise, 0, None)


def _values(x: Tensor, noise: Tensor | None, signs: Tensor | None) -> Tensor:
    assert noise is not None
    x = x.clone() if x._is_zerotensor() else x  # which nothing may write to
    blocks = x.float().reshape(*x.shape[:-1], -1, BLOCK)
    amax = blocks.abs().amax(-1, keepdim=True)
    stored, tensor_scale = two_level(amax, amax.amax(), MS_EDEN)
    scale = stored * tensor_scale
    elements = round_nearest_even(blocks / scale, E2M1)
    unit = power_of_two(-unit_exponent(amax))
    own = blocks * unit
    along = (own * elements * (scale * unit)).sum(-1, keepdim=True)
    correction = own.square().sum(-1, keepdim=True) / along
    corrected = stored * torch.where(along == 0, 1.0, correction)
    scale = round_stochastic(corrected, MS_EDEN.stored, noise.unsqueeze(-1)) * tensor_scale
    result = elements * scale.clamp(max=most_scale(E2M1, ScaleFormat.E4M3))
    return narrowed(result.reshape(x.shape), x.dtype).contiguous()
