"""Gradient estimators: the factors of a gradient on its way back through a rounding.

Rounding is a staircase, whose derivative is zero almost everywhere.  Straight-through estimation
replaces it by one.  The two here are the field's alternatives.
"""

from __future__ import annotations

import torch
from torch import Tensor

from experiments.quant.formats import ElementFormat, Precision
from experiments.quant.hadamard import rotate
from experiments.quant.kernels import cpu
from experiments.quant.kernels.dense import of_one_process
from experiments.quant.layout import from_blocks, to_blocks
from experiments.quant.modes import Estimator
from experiments.quant.rounding import ulp
from experiments.quant.scale import CLIPPED_BEYOND, block_scale

_STEEPEST = 3.0
"""At the middle of a step the derivative of the power staircase is infinite; cut there."""


@of_one_process
def rounding_gradient(
    x: Tensor,
    precision: Precision,
    estimator: Estimator,
    hadamard: int = 0,
    signs: Tensor | None = None,
) -> Tensor:
    """The factor of each value's gradient.

    Args:
        x: The values that were quantized, or rotated and then quantized, [..., K], float32.
        precision: Their format; one scale rule.
        estimator: Masked: 1, or 0 for a value that was clipped, because it lies beyond its scale
            times the largest element.  With a steepness: `staircase_slope` of the scaled value.
            Straight through: 1.
        hadamard: Block length of that rotation; 0 for none.
        signs: Signs of the rotation, as `experiments.quant.hadamard.rotate` takes them.

    Returns:
        The shape of `x`, float32; of the rotated values where there is a rotation.  A constant:
        no gradient passes through it.

    Source:
        Masked: the trust mask of QuEST (2502.05003) and Quartet (2505.14669, Algorithm 1), which
        drops a value of exactly scale * max, too.  DGE: 2501.17116, section 3.1.
    """
    x = x.detach()
    if estimator.masked and cpu.masks(x, precision, hadamard):
        return cpu.unclipped(x, precision, hadamard, signs)
    if hadamard:
        x = rotate(x, hadamard, signs)
    if estimator.straight_through:
        return torch.ones_like(x)
    blocks, element = to_blocks(x, precision), precision.element
    scale = block_scale(blocks, element, precision.scale)
    if estimator.steepness is not None:
        factor = staircase_slope(blocks / scale, element, estimator.steepness)
    else:
        low, high = element.lowest * CLIPPED_BEYOND, element.max * CLIPPED_BEYOND
        factor = ((blocks >= scale * low) & (blocks <= scale * high)).float()
    return from_blocks(factor, x.shape, precision)


@of_one_process
def staircase_slope(x: Tensor, element: ElementFormat, k: float) -> Tensor:
    """Slope of a smooth staircase through the grid of `element`.

    Between neighbours l and l + d of the grid it is min(|2 (x - l) / d - 1|^(1/k - 1) / k, 3):
    steep in the middle, where rounding jumps, flat at the numbers themselves; 0 beyond the largest
    and below the lowest.

    Args:
        x: Values in units of their scale, float32.
        element: The grid.
        k: 1 is straight-through; larger is nearer to the staircase (the paper: 5).

    Source:
        2501.17116, section 3.1, cut at 3 as there.

    >>> from experiments.quant.formats import FloatFormat
    >>> staircase_slope(torch.tensor([2.0, 2.25, 2.5, -2.75, 7.0]), FloatFormat(2, 1), 5.0)
    tensor([0.2000, 0.3482, 3.0000, 0.3482, 0.0000])
    """
    steps = x.abs() / ulp(x, element)
    from_middle = (2 * (steps - steps.floor()) - 1).abs()
    slope = (from_middle.pow(1 / k - 1) / k).clamp(max=_STEEPEST)
    within = (x >= element.lowest * CLIPPED_BEYOND) & (x <= element.max * CLIPPED_BEYOND)
    return torch.where(within, slope, 0.0)
