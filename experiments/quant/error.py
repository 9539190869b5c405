"""How much a quantizer errs: measures on any tensor, and the published setting on Gaussian data."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from experiments.quant.block import quantize
from experiments.quant.formats import Precision
from experiments.quant.hadamard import rotate


def relative_mse(x: Tensor, quantized: Tensor) -> float:
    """||x - Q(x)||^2 / ||x||^2, in float64."""
    exact = x.double()
    return ((exact - quantized.double()).square().sum() / exact.square().sum()).item()


def qsnr(x: Tensor, quantized: Tensor) -> float:
    """-10 log10 of the relative MSE, in dB (2510.25602)."""
    return -10.0 * math.log10(relative_mse(x, quantized))


def crest_factor(x: Tensor) -> Tensor:
    """Max |x| / root mean square along the last axis, [...] (2510.25602)."""
    return x.abs().amax(-1) / x.square().mean(-1).sqrt()


def underflown_share(x: Tensor, quantized: Tensor) -> float:
    """Share of the non-zero values that became zero."""
    nonzero = x != 0
    return ((quantized == 0) & nonzero).sum().item() / max(1, nonzero.sum().item())


@dataclass(frozen=True)
class GaussianError:
    """What a quantizer does to independent normal values."""

    mse: float
    """Relative mean squared error."""
    misalignment: float
    """1 - E[1 / S], S = <x, x> / <Hx, Q(Hx)> (2505.14669, section 4.3): 0 where unbiased."""


def gaussian_error(
    precision: Precision,
    rounding: str = "nearest_even",
    rows: int = 4096,
    columns: int = 1024,
    seed: int = 0,
    hadamard: int = 0,
) -> GaussianError:
    """Errors on normal data.

    A power-of-two scale makes the error depend on sigma within an octave: there sigma runs through
    one, log-uniformly, row by row.  Elsewhere sigma is 1.

    Args:
        precision: The quantizer's format.
        rounding: stochastic, or one of `experiments.quant.rounding.ROUNDINGS`.
        rows: Rows of data.
        columns: Values a draw; a multiple of the block size.
        seed: Of the draws.
        hadamard: Block length of a rotation with random signs before quantization; 0 for none.

    >>> mxfp4 = Precision.parse("mxfp4")
    >>> f"{gaussian_error(mxfp4, rows=512).mse:.3f}"
    '0.013'
    """
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, columns, generator=generator)
    if precision.scale.power_of_two:
        x *= 2.0 ** ((torch.arange(rows) + 0.5) / rows).unsqueeze(-1)
    if hadamard:
        signs = torch.randint(2, (columns,), generator=generator) * 2.0 - 1.0
        x = rotate(x, hadamard, signs)
    if rounding == "stochastic":
        quantized = quantize(x, precision, torch.rand(x.shape, generator=generator))
    else:
        quantized = quantize(x, precision, rounding=rounding)
    exact, rounded = x.double(), quantized.double()
    projections = (exact * rounded).sum(-1) / exact.square().sum(-1)
    return GaussianError(relative_mse(x, quantized), 1.0 - projections.mean().item())
