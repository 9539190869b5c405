"""Errors of a quantizer: measures on any tensor, and the published setting on Gaussian data."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from experiments.quant.block import quantize_as
from experiments.quant.eden import BLOCK
from experiments.quant.formats import Precision
from experiments.quant.hadamard import rotate
from experiments.quant.kernels.dense import of_one_process
from experiments.quant.layout import to_blocks
from experiments.quant.modes import NEAREST, Rounding
from experiments.quant.scale import block_scale, power_of_two, unit_exponent

_ROUNDING_OF_THE_SCALE = 2.0**-20
"""Values this little beyond scale * max lie there because x / max was rounded: not clipped."""


@of_one_process
def relative_mse(x: Tensor, quantized: Tensor) -> float:
    """||x - Q(x)||^2 / ||x||^2, in float64."""
    exact = x.double()
    return ((exact - quantized.double()).square().sum() / exact.square().sum()).item()


@of_one_process
def qsnr(x: Tensor, quantized: Tensor) -> float:
    """-10 log10 of the relative MSE, in dB (2510.25602)."""
    return -10.0 * math.log10(relative_mse(x, quantized))


@of_one_process
def misalignment(x: Tensor, quantized: Tensor) -> float:
    """1 - E[1 / S], S = <x, x> / <x, Q(x)>, over the rows of x (2505.14669, section 4.3).

    Zero where Q is unbiased; positive where it shrinks what it quantizes.  Rows of zeros, which
    have no direction, do not count.
    """
    exact = x.double()
    squares = exact.square().sum(-1)
    some = squares > 0
    projections = (exact * quantized.double()).sum(-1)[some] / squares[some]
    return 1.0 - projections.mean().item()


@of_one_process
def shrinkage(x: Tensor, quantized: Tensor) -> float:
    """<x, Q(x)> / <x, x> - 1 of all values as one vector, in float64 (2606.20381).

    Zero where Q is unbiased; negative where it shrinks what it quantizes, which adds up over the
    layers.
    """
    exact = x.double()
    return ((exact * quantized.double()).sum() / exact.square().sum() - 1.0).item()


@of_one_process
def cosine(x: Tensor, quantized: Tensor) -> float:
    """<x, Q(x)> / (||x|| ||Q(x)||) of all values as one vector, in float64; NaN if one is zero."""
    a, b = x.double(), quantized.double()
    product = (a * b).sum()
    return (product / (a.square().sum() * b.square().sum()).sqrt()).item()


@of_one_process
def norm_ratio(x: Tensor, quantized: Tensor) -> float:
    """||Q(x)|| / ||x||, in float64."""
    return (quantized.double().square().sum() / x.double().square().sum()).sqrt().item()


@of_one_process
def crest_factor(x: Tensor) -> Tensor:
    """Max |x| / root mean square along the last axis, [...] (2510.25602)."""
    amax = x.abs().amax(-1)
    scaled = x * power_of_two(-unit_exponent(amax)).unsqueeze(-1)
    return scaled.abs().amax(-1) / scaled.square().mean(-1).sqrt()


@of_one_process
def underflown_share(x: Tensor, quantized: Tensor) -> float:
    """Share of the non-zero values that became zero."""
    nonzero = x != 0
    return ((quantized == 0) & nonzero).sum().item() / max(1, nonzero.sum().item())


@of_one_process
def clipped_share(x: Tensor, precision: Precision) -> float:
    """Share of the values that lie beyond the largest number of their block, scale * max.

    >>> clipped_share(torch.tensor([[7.0] + [1.0] * 31]), Precision.parse("mxfp4"))
    0.03125
    """
    element = precision.element
    blocks = to_blocks(x.float(), precision)
    beyond = 1.0 + _ROUNDING_OF_THE_SCALE
    scaled = blocks / block_scale(blocks, element, precision.scale)
    outside = (scaled > element.max * beyond) | (scaled < element.lowest * beyond)
    return outside.double().mean().item()


@dataclass(frozen=True)
class OperandError:
    """The errors of rounding one tensor.

    A measure that is not defined is NaN: crest factor, shrinkage and scales of nothing but zeros,
    clipping under scales that do not follow from the rule alone.  QSNR is infinite where Q(x) = x.
    """

    qsnr: float
    """In dB."""
    crest: float
    """Mean crest factor of the values that share a scale, blocks of zeros aside."""
    clipped: float
    """Share of the values beyond the largest number of their block."""
    underflown: float
    """Share of the non-zero values that became zero."""
    scale_range: float
    """log2 of the largest over the smallest scale of a block, blocks of zeros aside."""
    shrinkage: float
    """<x, Q(x)> / <x, x> - 1: negative where rounding shrinks the values."""


@of_one_process
def operand_error(
    x: Tensor, quantized: Tensor, precision: Precision, scales: bool = True
) -> OperandError:
    """All measures of one tensor in few passes over it.

    Args:
        x: [rows, K], float32, as it was before rounding: rotated if there was a rotation.
        quantized: The result of rounding it.
        precision: The format.
        scales: Whether `precision` gives the scales; False for a rounding that moves them.

    >>> from experiments.quant.block import quantize
    >>> x = torch.tensor([[7.0] + [1.0] * 31, [0.1] + [0.0] * 31])
    >>> mxfp4 = Precision.parse("mxfp4")
    >>> operand_error(x, quantize(x, mxfp4), mxfp4).scale_range
    6.0
    """
    blocks = to_blocks(x, precision)
    amax = blocks.abs().amax(-1)
    nonzero = amax > 0
    # In units of a power of two near the largest value no square leaves float32 unnoticed.
    unit = torch.ldexp(amax.new_ones(()), torch.frexp(amax.amax()).exponent)
    scaled = x / unit
    rms = torch.linalg.vector_norm(to_blocks(scaled, precision), dim=-1) / blocks.shape[-1] ** 0.5
    clipped = scale_range = math.nan
    if scales:
        element, beyond = precision.element, 1.0 + _ROUNDING_OF_THE_SCALE
        scale = block_scale(blocks, element, precision.scale).squeeze(-1)
        some = amax > scale * (min(element.max, -element.lowest) * beyond)
        values, limit = blocks[some], scale[some].unsqueeze(-1) * beyond
        outside = (values > limit * element.max) | (values < limit * element.lowest)
        clipped = outside.sum().item() / x.numel()
        scale_range = (_largest(scale[nonzero]) / -_largest(-scale[nonzero])).log2().item()
    lost = (x - quantized).div_(unit)
    signal, noise = _energy(scaled), _energy(lost)
    qsnr = 10.0 * (signal / noise).log10().item() if noise else math.inf
    # <x, Q(x)> / <x, x> - 1 = -<x, x - Q(x)> / <x, x>, which does not cancel.
    shrunk = -(torch.linalg.vecdot(scaled, lost).double().sum() / signal).item()
    # A value that is not zero was not zero before.
    left = quantized.count_nonzero() / x.count_nonzero()
    crest = (amax / unit / rms)[rms > 0].mean().item()
    return OperandError(qsnr, crest, clipped, 1.0 - left.item(), scale_range, shrunk)


def _energy(x: Tensor) -> Tensor:
    """Sum of squares: float32 along a row, float64 over the rows."""
    rows: Tensor = torch.linalg.vector_norm(x, dim=-1)
    return rows.double().square().sum()


def _largest(x: Tensor) -> Tensor:
    """The largest value; NaN if there is none."""
    return x.amax() if x.numel() else x.new_tensor(math.nan)


@dataclass(frozen=True)
class GaussianError:
    """The errors of a quantizer on independent normal values."""

    mse: float
    """Relative mean squared error; over an octave of sigma, the mean of those at each."""
    misalignment: float
    crest: float
    """Mean crest factor of the values that share a scale."""
    clipped: float | None
    """Share of the values beyond the largest number; None where the rounding moves scales."""
    underflown: float
    """Share of the values that became zero."""

    @property
    def qsnr(self) -> float:
        """-10 log10 of the relative mean squared error, in dB."""
        return -10.0 * math.log10(self.mse)


def gaussian_error(
    precision: Precision,
    rounding: Rounding = NEAREST,
    rows: int = 4096,
    columns: int = 1024,
    seed: int = 0,
    hadamard: int = 0,
    sigma: float | None = None,
) -> GaussianError:
    """Errors on normal data.

    Args:
        precision: The quantizer's format.
        rounding: The rounding; one that moves scales is for NVFP4 only.
        rows: Rows of data.
        columns: Values per draw; a multiple of the block size.
        seed: Seed of the draws.
        hadamard: Block length of a rotation with random signs before quantization; 0 for none.
        sigma: Standard deviation of the data.  A power-of-two scale makes the error depend on it
            within an octave; None lets it run through one there, log-uniformly, row by row, and
            is 1 elsewhere.

    Raises:
        ValueError: A rounding that is not for the format, or sizes that do not divide.

    >>> mxfp4 = Precision.parse("mxfp4")
    >>> f"{gaussian_error(mxfp4, rows=512).mse:.3f}"
    '0.013'
    """
    if columns % precision.divisor:
        raise ValueError(f"columns={columns}: must be a multiple of {precision.divisor}")
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, columns, generator=generator)
    spread = torch.full((rows, 1), 1.0 if sigma is None else sigma)
    if sigma is None and precision.scale.power_of_two:
        spread = 2.0 ** ((torch.arange(rows) + 0.5) / rows).unsqueeze(-1)
    x *= spread
    if hadamard:
        signs = torch.randint(2, (columns,), generator=generator) * 2.0 - 1.0
        x = rotate(x, hadamard, signs)
    noise = None
    if rounding.draws:
        draws = columns // BLOCK if rounding.moves_scales else columns
        noise = torch.rand(rows, draws, generator=generator)
    quantized = quantize_as(x, precision, rounding, noise)
    return GaussianError(
        # In units of its sigma every row weighs the same; the upper end of the octave has more.
        relative_mse(x.double() / spread, quantized.double() / spread),
        misalignment(x, quantized),
        crest_factor(to_blocks(x, precision)).double().mean().item(),
        None if rounding.moves_scales else clipped_share(x, precision),
        underflown_share(x, quantized),
    )
