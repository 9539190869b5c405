"""Quantize = scale a block, round its elements to the format's grid, scale back.

`quantize_plain` is the definition, in PyTorch.  A compiled kernel, or on a GPU one of Triton's,
does the same to the bit, if it was built or is installed and knows the precision.
"""

from __future__ import annotations

import torch
from torch import Tensor

from experiments.quant.eden import ms_eden
from experiments.quant.formats import (
    PRECISIONS,
    ElementFormat,
    Precision,
    ScaleFormat,
    parse_element,
)
from experiments.quant.hadamard import check_rotation, rotate, rotate_plain
from experiments.quant.kernels import cpu, gpu
from experiments.quant.kernels.dense import dense, of_one_process, on_device, refuse_dtype
from experiments.quant.kernels.noise import uniform
from experiments.quant.layout import check_axes, from_blocks, lying_as, narrowed, to_blocks, turned
from experiments.quant.modes import Direction, Rounding
from experiments.quant.rounding import few_bits, round_stochastic, round_to
from experiments.quant.scale import (
    block_scale,
    four_over_six_scale,
    pairwise_sum,
    power_of_two,
    saturation,
    unit_exponent,
)
from experiments.quant.straight_through import differentiated, straight_through


def backend(precision: Precision, device: str = "cpu") -> str:
    """The backend that quantizes to `precision` on `device`; every run record names it."""
    probe = torch.empty(0, device=device)
    if cpu.NAME and cpu.supports(probe, precision):
        return cpu.NAME
    if gpu.NAME and gpu.supports(probe, precision):
        return gpu.NAME
    return "torch"


@of_one_process
def quantize(
    x: Tensor,
    precision: Precision,
    noise: Tensor | int | None = None,
    rounding: Direction = Direction.NEAREST_EVEN,
    hadamard: int = 0,
    signs: Tensor | None = None,
) -> Tensor:
    """Fake-quantize `x`: each value becomes s * round(x / s), s the scale of its block.

    The result holds only values that `precision` can represent, where `x` is float32.  A bfloat16
    or float16 `x` gets them rounded once more, to its own dtype.  That leaves alone what it holds:
    scales that are powers of two (not 4/3) and elements of at most 8 or 11 significant bits.  With
    FP32 or two-level scales most values move; quantize `x.float()` to have the values.

    Its gradient is straight-through on every backend (`experiments.quant.straight_through`).

    Args:
        x: [..., K], float32, bfloat16 or float16.  The last axis must be the one that the GEMM
            sums over; for granularity "block" K must be a multiple of the block size, for "tile"
            the last two axes must.
        precision: Element format, what shares a scale, and the scale's format.
        noise: Rounds stochastically with these uniform draws from [0, 1), the shape of `x`, or
            with those that `kernels.noise.uniform` makes of this key; None rounds as `rounding`
            says.
        rounding: The direction of rounding.
        hadamard: Rotates `x`, in float32, before all else: `experiments.quant.hadamard.rotate` by
            blocks of this size; 0 for none.
        signs: Signs of the rotation.

    Returns:
        Of `x`'s shape and dtype; contiguous, but on a CPU the transpose of a contiguous matrix
        gives another one.  Values beyond s * element.max saturate to it.  A block of zeros stays
        zero.  A block with a NaN or an infinity becomes all NaN; with a two-level scale the whole
        tensor does.

    Raises:
        ValueError: Wrong dtype, an axis not a multiple of the block size or `hadamard`, `noise` of
            another shape, or no such direction.

    Source:
        Sun et al. 2501.02423, section 3 (FP32 scales); OCP MX v1.0, section 6.3 (E8M0); the others
        as `ScaleFormat` says.

    >>> from experiments.quant.formats import FloatFormat
    >>> mx = Precision(FloatFormat(2, 1), "block", 4, ScaleFormat.E8M0)
    >>> quantize(torch.tensor([[0.9, -2.6, 5.1, 7.5]]), mx)
    tensor([[ 1., -3.,  6.,  6.]])
    """
    _check(x, noise)
    check_axes(x.shape, precision)
    if hadamard:
        check_rotation(x.shape, hadamard)
    draws, key = _draws_and_key(noise)
    known = cpu.supports(x, precision, hadamard) and cpu.readable(draws, signs)
    if known and not differentiated(x, draws, signs):
        return cpu.quantize(x, precision, noise, rounding, hadamard, signs)
    name, way = named(precision), named(rounding)

    def values(x: Tensor, draws: Tensor | None, signs: Tensor | None) -> Tensor:
        if _stands_for_another(x, draws, signs):
            made: Tensor = _quantize_operator(x, name, draws, key, way, hadamard, signs)
            return made
        return _quantized(x, precision, draws, key, rounding, hadamard, signs)

    return straight_through(values, x, draws, hadamard, signs)


@of_one_process
def quantize_as(
    x: Tensor,
    precision: Precision,
    rounding: Rounding,
    noise: Tensor | int | None = None,
    hadamard: int = 0,
    signs: Tensor | None = None,
) -> Tensor:
    """Fake-quantize with a rounding of any kind.

    Args:
        x: As for `quantize`.
        precision: As there; nvfp4 for a rounding that moves scales.
        rounding: The rounding.
        noise: For a rounding that draws: as for `quantize`, or as for
            `experiments.quant.eden.ms_eden` where it moves scales.
        hadamard: As for `quantize`.
        signs: As there.

    Raises:
        ValueError: As for those two, or a precision other than nvfp4.
    """
    if not rounding.draws:
        return quantize(x, precision, None, rounding.direction, hadamard, signs)
    assert noise is not None
    if rounding.moves_scales:
        if precision != PRECISIONS["nvfp4"]:
            raise ValueError(f"rounding={rounding}: is defined for nvfp4, not {precision}")
        return ms_eden(rotate(x, hadamard, signs) if hadamard else x, noise)
    if rounding.few_bits:
        draws = uniform(noise, x.shape, x.device) if isinstance(noise, int) else noise
        noise = few_bits(draws, rounding.random_bits)
    return quantize(x, precision, noise, hadamard=hadamard, signs=signs)


def _quantized(
    x: Tensor,
    precision: Precision,
    draws: Tensor | None,
    key: int | None,
    rounding: Direction,
    hadamard: int,
    signs: Tensor | None,
) -> Tensor:
    """The values, from the fastest backend that supports them."""
    noise = key if draws is None else draws
    if cpu.supports(x, precision, hadamard) and cpu.readable(draws, signs):
        return cpu.quantize(x, precision, noise, rounding, hadamard, signs)
    if gpu.supports(x, precision, hadamard):
        return gpu.quantize(x, precision, noise, rounding, hadamard, signs)
    if hadamard:
        rotated = rotate(x.float(), hadamard, signs)
        rounded = _quantized(rotated, precision, draws, key, rounding, 0, None)
        return lying_as(x, narrowed(rounded, x.dtype))
    return quantize_plain(x, precision, noise, rounding)


@torch.library.custom_op("lowbit::quantize", mutates_args=())
def _quantize_operator(
    x: Tensor,
    precision: str,
    draws: Tensor | None,
    key: int | None,
    rounding: str,
    hadamard: int,
    signs: Tensor | None,
) -> Tensor:
    """`_quantized` for compilers, modes and wrappers, which see one operator."""
    to, way = Precision.parse(precision), Direction(rounding)
    return _quantized(x, to, draws, key, way, hadamard, signs)


@_quantize_operator.register_fake
def _(x: Tensor, *others: object) -> Tensor:
    return x.new_empty(x.t().shape).t() if turned(x) else x.new_empty(x.shape)


@of_one_process
def quantize_plain(
    x: Tensor,
    precision: Precision,
    noise: Tensor | int | None = None,
    rounding: Direction = Direction.NEAREST_EVEN,
    hadamard: int = 0,
    signs: Tensor | None = None,
) -> Tensor:
    """The definition: the values `quantize` returns, not their gradient; arguments as there."""
    draws = uniform(noise, x.shape, x.device) if isinstance(noise, int) else noise
    values = rotate_plain(x.float(), hadamard, signs) if hadamard else x.float()
    blocks = to_blocks(values, precision)
    noises = None if draws is None else to_blocks(draws, precision)
    scale = block_scale(blocks, precision.element, precision.scale)
    values = _round_scaled(blocks, scale, precision, noises, rounding)
    if precision.scale is ScaleFormat.E4M3_4_6:
        scale = four_over_six_scale(blocks)
        other = _round_scaled(blocks, scale, precision, noises, rounding)
        values = torch.where(_errs_less(other, values, blocks), other, values)
    return lying_as(x, narrowed(from_blocks(values, x.shape, precision), x.dtype))


@of_one_process
def round_elements(
    x: Tensor,
    element: ElementFormat,
    noise: Tensor | int | None = None,
    rounding: Direction = Direction.NEAREST_EVEN,
) -> Tensor:
    """Fake-quantize without any scale: each value to the grid of `element` itself.

    Args:
        x: Float32, bfloat16 or float16, any shape.
        element: The target format.
        noise: As for `quantize`.
        rounding: As for `quantize`.

    Returns:
        A contiguous tensor of `x`'s shape and dtype.  Beyond the largest number a value saturates;
        NaN and the infinities become NaN.

    Raises:
        ValueError: Wrong dtype, `noise` of another shape, or no such direction.

    >>> from experiments.quant.formats import FloatFormat
    >>> round_elements(torch.tensor([0.3, -1.3, 7.0, -0.1]), FloatFormat(2, 1))
    tensor([ 0.5000, -1.5000,  6.0000, -0.0000])
    """
    _check(x, noise)
    draws, key = _draws_and_key(noise)
    if cpu.rounds(x) and cpu.readable(draws) and not differentiated(x, draws, None):
        return cpu.round_elements(x, element, noise, rounding)
    name, way = named(element), named(rounding)

    def values(x: Tensor, draws: Tensor | None, signs: Tensor | None) -> Tensor:
        if _stands_for_another(x, draws):
            made: Tensor = _round_elements_operator(x, name, draws, key, way)
            return made
        return _rounded(x, element, draws, key, rounding)

    return straight_through(values, x, draws, 0, None)


def _rounded(
    x: Tensor, element: ElementFormat, draws: Tensor | None, key: int | None, rounding: Direction
) -> Tensor:
    """The values, from the fastest backend available."""
    noise = key if draws is None else draws
    if cpu.rounds(x) and cpu.readable(draws):
        return cpu.round_elements(x, element, noise, rounding)
    if gpu.rounds(x):
        return gpu.round_elements(x, element, noise, rounding)
    return round_elements_plain(x, element, noise, rounding)


@torch.library.custom_op("lowbit::round_elements", mutates_args=())
def _round_elements_operator(
    x: Tensor, element: str, draws: Tensor | None, key: int | None, rounding: str
) -> Tensor:
    """`_rounded` for compilers, modes and wrappers."""
    return _rounded(x, parse_element(element), draws, key, Direction(rounding))


@_round_elements_operator.register_fake
def _(x: Tensor, *others: object) -> Tensor:
    return x.new_empty(x.shape)


@of_one_process
def round_elements_plain(
    x: Tensor,
    element: ElementFormat,
    noise: Tensor | int | None = None,
    rounding: Direction = Direction.NEAREST_EVEN,
) -> Tensor:
    """The definition: the values that `round_elements` returns; arguments as there."""
    draws = uniform(noise, x.shape, x.device) if isinstance(noise, int) else noise
    return narrowed(_round(x.float(), element, draws, rounding), x.dtype).contiguous()


def _round(x: Tensor, element: ElementFormat, noise: Tensor | None, rounding: Direction) -> Tensor:
    if noise is None:
        return round_to(x, element, rounding)
    return round_stochastic(x, element, noise)


def _round_scaled(
    blocks: Tensor, scale: Tensor, precision: Precision, noise: Tensor | None, rounding: Direction
) -> Tensor:
    rounded = _round(blocks / scale, precision.element, noise, rounding)
    if precision.element.exponent == 8:  # scaled to the part of the format that float32 has
        rounded = rounded.clamp_(*saturation(precision.element, scaled=True))
    return rounded.mul_(scale)


def _errs_less(other: Tensor, values: Tensor, blocks: Tensor) -> Tensor:
    """Whether `other` has the smaller sum of squared errors in each block, [..., 1]."""
    unit = power_of_two(-unit_exponent(blocks.abs().amax(-1, keepdim=True)))
    errors = [pairwise_sum(((q - blocks) * unit).square()) for q in (other, values)]
    return errors[0] < errors[1]


def _draws_and_key(noise: Tensor | int | None) -> tuple[Tensor | None, int | None]:
    """Noise as an array or as a key, the key in the 64 bits from which it is mixed."""
    if not isinstance(noise, int):
        return noise, None
    return None, noise if -(2**63) <= noise < 2**63 else (noise + 2**63) % 2**64 - 2**63


def named(value: Precision | ElementFormat | Direction) -> str:
    """The name of a format or a direction, a constant for a compiler."""
    return str(value)


# What torch.compiler.assume_constant_result does; importing that would import the compiler: two
# seconds of every command, for a mark.
named._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _stands_for_another(*tensors: Tensor | None) -> bool:
    """Whether one of these is not a tensor in memory, or a compiler or a mode is at work."""
    return not all(t is None or dense(t) or (t.is_cuda and on_device(t)) for t in tensors)


def _check(x: Tensor, noise: Tensor | int | None) -> None:
    refuse_dtype("quantize", x)
    if isinstance(noise, Tensor) and noise.shape != x.shape:
        raise ValueError(f"noise has shape {tuple(noise.shape)}, x has {tuple(x.shape)}")
