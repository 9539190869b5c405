"""The Triton kernels: `experiments.quant.block` for a GPU, bit for bit, launched by gpu.py.

A program takes whole groups, a group being the values that share a scale, keeps them in registers,
finds their largest magnitude and their scale, and rounds them.  Of a group too large for that it
takes a piece, and the largest magnitude was left in memory by a launch before; so was the tensor's
where a scale has two levels.  The Hadamard rotation comes before all else, in registers, too.

Why the bits are the same: a division is `tl.div_rn` (Triton's `/` is approximate), every launch
must say `enable_fp_fusion=False` (a fused multiply-add rounds once where the definition rounds
twice), subnormals are kept (no instruction is a flushing one: a test reads them), maxima are taken
of bit patterns as integers, which no order of threads can change, and sums are written out in the
definition's order.

RULE, GRID and STORED are the `Rule` of the scales and the `Grid`s of the elements and, with two
levels, of the block's scale; all other capitals, too, are constants for the compiler.
"""

from __future__ import annotations

import triton
import triton.language as tl

_SIGN = tl.constexpr(-(2**31))
_MAGNITUDE = tl.constexpr(0x7FFFFFFF)
_EXPONENT = tl.constexpr(0x7F800000)
_SMALLEST_NORMAL = tl.constexpr(2.0**-126)
_SUBNORMAL_POWER = tl.constexpr(0x00400000)  # 2^-127
_BFLOAT16_MAX = tl.constexpr(2.0**127 * (2 - 2.0**-7))
_FLOAT16_MAX = tl.constexpr(65504.0)


@triton.jit
def _bits(x: tl.tensor) -> tl.tensor:
    return x.to(tl.int32, bitcast=True)


@triton.jit
def _float(bits: tl.tensor) -> tl.tensor:
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def _uniform(index: tl.tensor, low: tl.tensor, high: tl.tensor) -> tl.tensor:
    """`kernels.noise.uniform` at these places, from the words of the mixed key; modulo 2^32."""
    h = index.to(tl.uint32) * 0x9E3779B1 + low.to(tl.uint32, bitcast=True)
    h = ((h ^ (h >> 16)) + high.to(tl.uint32, bitcast=True)) * 0x21F0AAAD
    h = (h ^ (h >> 15)) * 0x735A2D97
    return (h >> 8).to(tl.float32) * 2.0**-24


@triton.jit
def _round(x: tl.tensor, draw: tl.tensor, GRID: tl.constexpr, ROUNDING: tl.constexpr) -> tl.tensor:
    """`rounding.round_to` and `round_stochastic`; a NaN becomes some number."""
    # In this order, because a NaN has no integer part.
    x = tl.where(x < GRID.limit, x, GRID.limit)
    x = tl.where(x > GRID.lowest, x, GRID.lowest)
    bits = _bits(x) & _MAGNITUDE
    # Either way: how many steps x is from its lower neighbour (exact, but that of the smallest
    # floats the quotient rounds to zero: hence `inexact`), and whether that one's code is odd.
    if GRID.wide:
        # Its numbers are float32's bit patterns without the lowest bits, subnormals included; a
        # carry goes where it should.
        shift: tl.constexpr = 23 - GRID.mantissa
        rest = bits & ((1 << shift) - 1)
        remainder = rest.to(tl.float32) * 2.0**-shift
        inexact = rest != 0
        odd = (bits >> shift) & 1
    else:
        power = tl.maximum(bits & _EXPONENT, GRID.emin_bits)
        ulp_bits = power - (GRID.mantissa << 23)
        ulp = _float(ulp_bits)
        steps = _float(bits) * _float(2 * 0x3F800000 - ulp_bits)  # by 1 / ulp; below 2^11
        lower = steps.to(tl.int32)
        remainder = steps - lower.to(tl.float32)
        inexact = lower.to(tl.float32) * ulp != _float(bits)
        # With a mantissa the code's last bit is that of `lower`, without the exponent's.
        odd = ((((power - GRID.emin_bits) >> 23) << GRID.mantissa) + lower) & 1
    if ROUNDING == "nearest_even":
        up = (remainder > 0.5) | ((remainder == 0.5) & (odd == 1))
    elif ROUNDING == "nearest_away":
        up = remainder >= 0.5
    elif ROUNDING == "toward_zero":
        up = remainder < 0.0  # never
    elif ROUNDING == "up":
        up = inexact & (x > 0.0)
    elif ROUNDING == "down":
        up = inexact & (x < 0.0)
    else:
        up = draw < remainder
    if GRID.wide:
        rounded = _float(bits - rest + (up.to(tl.int32) << shift))
        rounded = tl.minimum(rounded, GRID.limit)  # it may have gone up to 2^128
    else:
        rounded = (lower + up.to(tl.int32)).to(tl.float32) * ulp
    return _float(_bits(rounded) | (_bits(x) & _SIGN))


@triton.jit
def _power_of_two(exponent: tl.tensor) -> tl.tensor:
    """2^exponent, the exponent cut to -127..128; 2^128 is infinite."""
    exponent = tl.minimum(tl.maximum(exponent, -127), 128)
    return _float(tl.maximum((exponent + 127) << 23, _SUBNORMAL_POWER))


@triton.jit
def _fp32(amax_bits: tl.tensor, REACHED: tl.constexpr) -> tl.tensor:
    """A scale amax / REACHED, at least the smallest normal number; NaN without a finite amax."""
    scale = tl.div_rn(_float(amax_bits), REACHED)
    scale = tl.where(scale > _SMALLEST_NORMAL, scale, _SMALLEST_NORMAL)
    return tl.where(amax_bits >= _EXPONENT, float("nan"), scale)


@triton.jit
def _floor_log2(amax_bits: tl.tensor) -> tl.tensor:
    """floor(log2(amax)); a subnormal's bits, as a number, have its exponent."""
    normal = (amax_bits >> 23) - 127
    subnormal = (_bits(amax_bits.to(tl.float32)) >> 23) - 127 - 149
    return tl.where(amax_bits >> 23 > 0, normal, subnormal)


@triton.jit
def _scale(
    amax_bits: tl.tensor,
    tensor_scale: tl.tensor,
    REACHED: tl.constexpr,
    MOST: tl.constexpr,
    RULE: tl.constexpr,
    STORED: tl.constexpr,
) -> tl.tensor:
    """`scale.block_scale` of groups from the bits of their largest magnitudes, [groups, 1].

    Where an exponent lies outside -127..127 the power of two is cut, but so is then the result.
    """
    amax = _float(amax_bits)
    if RULE.name == "fp32":
        scale = _fp32(amax_bits, REACHED)
    elif RULE.two_level:
        wanted = tl.div_rn(tl.div_rn(amax, REACHED), tensor_scale)
        stored = _round(wanted, wanted, STORED, "nearest_even")
        scale = tl.maximum(stored, STORED.step) * tensor_scale
    else:
        exponent = _floor_log2(amax_bits) - RULE.emax
        if RULE.name == "e8m0_ceil":
            exponent += (_power_of_two(exponent) * REACHED < amax).to(tl.int32)
        elif RULE.name == "e8m0_nearest":
            scaled = amax * _power_of_two(-exponent)
            below, above = scaled < RULE.bounds[0], scaled >= RULE.bounds[1]
            exponent += above.to(tl.int32) - below.to(tl.int32)
        scale = _power_of_two(tl.minimum(exponent, 127))
        if RULE.name == "e8m0_4_3":
            scale = tl.div_rn(scale, 0.75)
    scale = tl.where(scale > MOST, MOST, scale)  # a NaN stays
    return tl.where(amax_bits >= _EXPONENT, float("nan"), scale)


@triton.jit
def _round_scaled(
    x: tl.tensor,
    scale: tl.tensor,
    draw: tl.tensor,
    RULE: tl.constexpr,
    GRID: tl.constexpr,
    ROUNDING: tl.constexpr,
) -> tl.tensor:
    scaled = x * tl.div_rn(1.0, scale) if RULE.exact_inverse else tl.div_rn(x, scale)
    return _round(scaled, draw, GRID, ROUNDING) * scale


@triton.jit
def _squared_error(
    values: tl.tensor, x: tl.tensor, unit: tl.tensor, HALVINGS: tl.constexpr
) -> tl.tensor:
    """As `block._errs_less` sums it, [groups, 2^HALVINGS] to [groups, 1]."""
    errors = (values - x) * unit
    squares = errors * errors
    for _ in tl.static_range(HALVINGS):
        a, b = tl.split(tl.reshape(squares, (squares.shape[0], squares.shape[1] // 2, 2)))
        squares = a + b
    return squares


@triton.jit
def _places(
    groups: tl.tensor,
    size: tl.tensor,
    columns: tl.tensor,
    TILE: tl.constexpr,
    GROUPS: tl.constexpr,
    WIDTH: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """What a program takes: the groups, [GROUPS, 1], the values' indices, and which exist."""
    program = tl.program_id(0).to(tl.int64)
    pieces = tl.cdiv(size, WIDTH)
    group = (program // pieces * GROUPS + tl.arange(0, GROUPS))[:, None]
    place = (program % pieces * WIDTH + tl.arange(0, WIDTH))[None, :]
    if TILE:
        across = columns // TILE
        row = group // across * TILE + place // TILE
        index = row * columns + group % across * TILE + place % TILE
    else:
        index = group * size + place
    return group, index, (group < groups) & (place < size)


@triton.jit
def _butterfly(values: tl.tensor, DISTANCE: tl.constexpr) -> tl.tensor:
    """Values a and b at this distance, counted through all groups, become a + b and a - b."""
    pairs = tl.reshape(values, (values.numel // (2 * DISTANCE), 2, DISTANCE))
    a, b = tl.split(tl.permute(pairs, (0, 2, 1)))
    return tl.reshape(tl.permute(tl.join(a + b, a - b), (0, 2, 1)), values.shape)


@triton.jit
def _load(
    x: tl.tensor,
    signs: tl.tensor,
    columns: tl.tensor,
    factor: tl.tensor,
    index: tl.tensor,
    exists: tl.tensor,
    STAGES: tl.constexpr,
) -> tl.tensor:
    """The values to quantize, as `hadamard.rotate_plain` has them; zeros where none exist.

    Of a rotation, the 2^STAGES values are neighbours in memory as in `index`.
    """
    values = tl.load(x + index, exists, other=0)
    if values.dtype == tl.int16:  # the bits of a bfloat16, the upper half of a float32's
        values = _float(values.to(tl.int32) << 16)
    else:
        values = values.to(tl.float32)
    if STAGES:
        if signs is not None:
            column = index.to(tl.uint32) % columns.to(tl.uint32)
            values *= tl.load(signs + column, exists, other=0.0)
        for stage in tl.static_range(STAGES):
            values = _butterfly(values, 1 << stage)
        values *= factor
    return values


@triton.jit
def _saturated(values: tl.tensor, LIMIT: tl.constexpr) -> tl.tensor:
    """Cut to +-LIMIT; a NaN stays."""
    values = tl.where(values > LIMIT, LIMIT, values)
    return tl.where(values < -LIMIT, -LIMIT, values)


@triton.jit
def _store(out: tl.tensor, values: tl.tensor, exists: tl.tensor) -> None:
    if out.dtype.element_ty == tl.int16:
        values = _saturated(values, _BFLOAT16_MAX)
        bits = _bits(values)
        nearest_even = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        values = tl.where((bits & _MAGNITUDE) > _EXPONENT, 0x7FC0, nearest_even)
    elif out.dtype.element_ty == tl.float16:
        values = _saturated(values, _FLOAT16_MAX)
    tl.store(out, values.to(out.dtype.element_ty), exists)


@triton.jit
def largest(
    x: tl.tensor,
    amaxes: tl.tensor,
    signs: tl.tensor,
    groups: tl.tensor,
    size: tl.tensor,
    columns: tl.tensor,
    factor: tl.tensor,
    TILE: tl.constexpr,
    STAGES: tl.constexpr,
    WIDTH: tl.constexpr,
) -> None:
    """Raise amaxes [groups], int32, to the bits of the largest magnitudes.

    A NaN's bits are larger than an infinity's, and those than all others'.
    """
    _, index, exists = _places(groups, size, columns, TILE, 1, WIDTH)
    values = _load(x, signs, columns, factor, index, exists, STAGES)
    # All at once: Triton 3.7 needs minutes to compile a rotation of which only a maximum along
    # one axis is used.
    own = tl.max(_bits(values) & _MAGNITUDE)
    tl.atomic_max(amaxes + tl.program_id(0) // tl.cdiv(size, WIDTH), own, sem="relaxed")


@triton.jit(do_not_specialize=["key_low", "key_high"])
def quantize(
    x: tl.tensor,
    out: tl.tensor,
    noise: tl.tensor,
    key_low: tl.tensor,
    key_high: tl.tensor,
    amaxes: tl.tensor,
    tensor_amax: tl.tensor,
    signs: tl.tensor,
    groups: tl.tensor,
    size: tl.tensor,
    columns: tl.tensor,
    factor: tl.tensor,
    RULE: tl.constexpr,
    GRID: tl.constexpr,
    STORED: tl.constexpr,
    ROUNDING: tl.constexpr,
    TILE: tl.constexpr,
    STAGES: tl.constexpr,
    GROUPS: tl.constexpr,
    WIDTH: tl.constexpr,
    HALVINGS: tl.constexpr,
) -> None:
    """Quantize in groups of `size` values, or tiles of TILE x TILE.

    Args:
        x: Contiguous, rows of `columns`; float32, float16, or bfloat16 as int16.
        out: Like x.
        noise: Draws, like x, float32, for ROUNDING "noise".
        key_low: And `key_high`: the mixed key, for ROUNDING "key".
        key_high: See there.
        amaxes: [groups], as `largest` leaves them; None to find them here.
        tensor_amax: [1], likewise, for a scale of two levels.
        signs: [columns], float32, or None.
        groups: How many there are.
        size: Values in each.
        columns: In a row.
        factor: Factor of the rotation, 2^(-STAGES / 2) in float32.
        RULE: See above.
        GRID: See above.
        STORED: See above.
        ROUNDING: One of `rounding.ROUNDINGS`, "noise" or "key".
        TILE: 0 for none.
        STAGES: Rotate 2^STAGES neighbours; 0 for none.
        GROUPS: A power of two: groups that a program takes.
        WIDTH: A power of two: values that it takes of each.
        HALVINGS: log2(WIDTH).
    """
    group, index, exists = _places(groups, size, columns, TILE, GROUPS, WIDTH)
    values = _load(x, signs, columns, factor, index, exists, STAGES)
    draw = values  # not used in the other modes
    if ROUNDING == "noise":
        draw = tl.load(noise + index, exists, other=0.0)
    elif ROUNDING == "key":
        draw = _uniform(index, key_low, key_high)
    if RULE.name == "none":
        result = _round(values, draw, GRID, ROUNDING)
        result = tl.where((_bits(values) & _MAGNITUDE) >= _EXPONENT, float("nan"), result)
    else:
        if amaxes is None:
            amax_bits = tl.max(_bits(values) & _MAGNITUDE, axis=1, keep_dims=True)
        else:
            amax_bits = tl.load(amaxes + group, group < groups, other=0)
        tensor_scale = 1.0
        if RULE.two_level:
            tensor_scale = _fp32(tl.load(tensor_amax), RULE.top)
        scale = _scale(amax_bits, tensor_scale, RULE.reached, RULE.most, RULE, STORED)
        result = _round_scaled(values, scale, draw, RULE, GRID, ROUNDING)
        if RULE.name == "e4m3_4_6":
            scale = _scale(amax_bits, tensor_scale, RULE.other[0], RULE.other[1], RULE, STORED)
            other = _round_scaled(values, scale, draw, RULE, GRID, ROUNDING)
            exponent = tl.minimum(tl.maximum(_floor_log2(amax_bits) + 1, -126), 126)
            unit = _power_of_two(-exponent)
            error = _squared_error(result, values, unit, HALVINGS)
            other_is_better = _squared_error(other, values, unit, HALVINGS) < error
            result = tl.where(other_is_better, other, result)
    _store(out + index, result, exists)
