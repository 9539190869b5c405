"""Quantizing at the ends of float32: every format, every scale, every published precision."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from experiments.measure.error import crest_factor, gaussian_error
from experiments.quant.block import quantize, quantize_plain, round_elements, round_elements_plain
from experiments.quant.eden import ms_eden
from experiments.quant.formats import (
    PRECISIONS,
    ElementFormat,
    FloatFormat,
    FormatError,
    IntFormat,
    Precision,
    ScaleFormat,
)
from experiments.quant.gradient import staircase_slope
from experiments.quant.hadamard import rotate_plain
from experiments.quant.modes import DIRECTIONS
from experiments.quant.rounding import round_nearest_even
from experiments.quant.scale import block_scale

S = ScaleFormat
E2M1 = FloatFormat(2, 1)
MAX = {dtype: torch.finfo(dtype).max for dtype in (torch.float32, torch.bfloat16, torch.float16)}


def elements() -> list[ElementFormat]:
    """Every exponent with few and many mantissa bits, every policy, every integer."""
    found: list[ElementFormat] = []
    for exponent, mantissa in itertools.product(range(9), (0, 1, 3, 10)):
        for specials in ("none", "ocp", "ieee"):
            try:
                found.append(FloatFormat(exponent, mantissa, specials))
            except FormatError:
                continue
    return [*found, *(IntFormat(bits, sym) for bits in range(2, 9) for sym in (True, False))]


def precisions() -> list[Precision]:
    """Every element under every scale that it may have, and what is published."""
    found = list(PRECISIONS.values())
    for element, scale in itertools.product(elements(), ScaleFormat):
        try:
            found.append(Precision(element, "block", 16, scale))
        except FormatError:  # a rule for E2M1 only
            continue
    return found


ALL = precisions()


def tensors(dtype: torch.dtype) -> list[Tensor]:
    """16 x 32, or two rows: the largest, the smallest, subnormals, all of them, and normal ones."""
    largest, least = MAX[dtype], torch.finfo(dtype).smallest_normal
    smallest = 2.0**-149 if dtype is torch.float32 else least * torch.finfo(dtype).eps
    normal = torch.randn(16, 32, generator=torch.Generator().manual_seed(0))
    ramp = torch.linspace(-1, 1, 512, dtype=torch.float64).reshape(16, 32)
    mixed = torch.tensor(
        [largest, -largest, smallest, -least, 1.0, 0.0, -0.0, largest / 2]
    ).double()
    return [
        torch.full((16, 32), largest, dtype=dtype),
        torch.full((16, 32), -largest, dtype=dtype),
        (ramp * largest).to(dtype),
        torch.full((16, 32), smallest, dtype=dtype),
        (ramp * least).to(dtype),
        mixed.repeat(64).reshape(16, 32).to(dtype),
        normal.to(dtype),
        torch.ones(16, 32, dtype=dtype),
    ]


@pytest.mark.parametrize("dtype", MAX, ids=str)
def test_finite_values_stay_finite_in_every_precision(dtype: torch.dtype) -> None:
    """To nearest, by every backend; what the definition gives is within the format, too."""
    for x in tensors(dtype):
        for precision in ALL:
            for q in (quantize(x, precision), quantize_plain(x, precision)):
                assert q.isfinite().all(), f"{precision} of {x.abs().max()}"


def test_finite_values_stay_finite_by_every_rounding() -> None:
    """Up and away are what leaves float32 first; formats at the ends of the lists."""
    some = [p for p in ALL if p in PRECISIONS.values() or p.element.mantissa in (0, 3)]
    x = torch.cat(tensors(torch.float32)[:3])
    for precision, rounding in itertools.product(some, DIRECTIONS):
        assert quantize(x, precision, rounding=rounding).isfinite().all(), (precision, rounding)
    for precision in some:
        assert quantize(x, precision, torch.zeros_like(x)).isfinite().all(), precision


def test_results_are_numbers_of_the_format_times_the_scale() -> None:
    """Over their scale they round to themselves, none is beyond the largest; powers of two."""
    for x in tensors(torch.float32):
        for precision in ALL:
            if not precision.scale.power_of_two or precision.scale is S.E8M0_4_3:
                continue
            size = precision.block_size if precision.granularity == "block" else x.numel()
            q = quantize(x, precision).reshape(-1, size)
            scale = block_scale(x.reshape(-1, size), precision.element, precision.scale)
            numbers = q.double() / scale.double()
            assert numbers.abs().max() <= max(precision.element.max, -precision.element.lowest)
            kept = round_nearest_even(numbers.float(), precision.element).double()
            assert torch.equal(kept, numbers), precision


@pytest.mark.parametrize("scale", [S.E4M3, S.E4M3_16_17, S.UE5M3, S.FP32, S.E8M0])
@pytest.mark.parametrize("mantissa", [0, 1, 3, 7, 10])
def test_eight_exponent_bits_lose_nothing_but_mantissa(scale: S, mantissa: int) -> None:
    """Ones and normal values: within half a step of the value, whatever the scale's own rounding.

    Where the OCP rule clips, by up to the last half step of a binade, it is a whole one.
    """
    precision = Precision(FloatFormat(8, mantissa), "block", 16, scale)
    normal = torch.randn(16, 32, generator=torch.Generator().manual_seed(0))
    for x in (torch.ones(16, 32), normal, normal * 1e20, normal * 1e-12):
        for call in (quantize, quantize_plain):
            error = (call(x, precision) - x).abs()
            steps = 2.0 ** -(mantissa + (0 if scale is S.E8M0 else 1))
            # E4M3 rounds a scale down by up to 1/17, which clips; so does 16/17 of nothing.
            clipped = 1 / 17 if scale in (S.E4M3, S.UE5M3) else 0.0
            assert (error <= x.abs() * max(steps, clipped) * (1 + 1e-5)).all()


@pytest.mark.parametrize("call", [round_elements, round_elements_plain])
def test_without_a_scale_values_saturate_to_a_number_of_the_grid(call: object) -> None:
    """E8M3 has 1.875 * 2^127 and, next, 2^128, which float32 lacks."""
    assert callable(call)
    largest = torch.tensor([MAX[torch.float32], -MAX[torch.float32]])
    for element in elements():
        if element.exponent == 7:  # its long grids end as those of 6 do
            continue
        numbers = [v for v in element.grid() if v <= MAX[torch.float32]]
        for rounding in DIRECTIONS:
            got = call(largest, element, None, rounding)
            assert got[0].item() == numbers[-1], f"{element} {rounding}"
            assert got[1].item() == -numbers[-1] or element.lowest == got[1].item()
        assert call(largest, element, torch.zeros(2)).isfinite().all()


def test_narrow_results_saturate_without_a_scale() -> None:
    for dtype in (torch.bfloat16, torch.float16):
        for x in tensors(dtype):
            for element in elements():
                assert round_elements(x, element).isfinite().all(), (element, dtype)


@pytest.mark.parametrize("exponent", [-60, -20, 20, 62, 100])
def test_four_over_six_chooses_alike_at_every_magnitude(exponent: int) -> None:
    """Times a power of two all moves with it, bit for bit, as long as float32 has the values."""
    x = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    factor = 2.0**exponent
    for call in (quantize, quantize_plain):
        expected = call(x, PRECISIONS["nvfp4_4_6"]) * factor
        assert torch.equal(call(x * factor, PRECISIONS["nvfp4_4_6"]), expected)


@pytest.mark.parametrize("exponent", [-76, -40, 40, 61, 100])
def test_ms_eden_corrects_alike_at_every_magnitude(exponent: int) -> None:
    """3e18 is 2^61.4: its squares leave float32, as those of 1e-23, 2^-76, do at the other end."""
    x = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    factor = 2.0**exponent
    assert torch.equal(ms_eden(x * factor, 3), ms_eden(x, 3) * factor)


def test_ms_eden_keeps_finite_values_finite() -> None:
    for dtype in MAX:
        for x in tensors(dtype):
            assert all(ms_eden(x, key).isfinite().all() for key in range(4)), (dtype, x.abs().max())


@pytest.mark.parametrize("exponent", [-100, 100])
def test_crest_factors_do_not_depend_on_the_unit(exponent: int) -> None:
    x = torch.randn(8, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(crest_factor(x * 2.0**exponent), crest_factor(x))


def test_the_nearest_power_of_two_is_exact_for_every_significand_near_the_middle() -> None:
    """2^round(log2(amax / max)) by integers: amax^2 against 2 max^2 4^k, 64 floats either side.

    0x1.0f876cp+5 lies below 4 sqrt(2) times 6, so that its scale is 4; over 6 it rounds to more.
    """
    special = torch.tensor([[float.fromhex("0x1.0f876cp+5")]])
    assert block_scale(special, E2M1, S.E8M0_NEAREST).item() == 4
    for element in elements():
        if isinstance(element, FloatFormat) and element.exponent == 8:
            continue  # its largest number is not the one that a scale goes by
        middle = torch.tensor(element.max * 2**0.5, dtype=torch.float32).view(torch.int32)
        amax = (middle + torch.arange(-64, 65, dtype=torch.int32)).view(torch.float32)
        limit = 2 * Fraction(element.max) ** 2
        expected = [2.0 if Fraction(value) ** 2 > limit else 1.0 for value in amax.tolist()]
        found = block_scale(amax.unsqueeze(-1), element, S.E8M0_NEAREST).flatten()
        assert found.tolist() == expected, element
        precision = Precision(element, "block", 1, S.E8M0_NEAREST)
        x = amax.unsqueeze(-1)
        assert torch.equal(quantize(x, precision), quantize_plain(x, precision))


def test_the_slope_of_asymmetric_integers_ends_at_their_lowest() -> None:
    """2501.17116 between -8 and -7 as between 6 and 7; nothing beyond 7 or below -8."""
    element = IntFormat(4, symmetric=False)
    x = torch.tensor([-7.5, -7.25, -8.0, -8.5, 6.5, 7.0, 7.5])
    inner = staircase_slope(torch.tensor([6.5, 6.25, 7.0]), element, 5.0).tolist()
    assert staircase_slope(x, element, 5.0).tolist() == [*inner, 0.0, inner[0], inner[2], 0.0]


def test_all_of_an_octave_weighs_the_same() -> None:
    """Mean of the errors at 64 single sigmas; MXFP4, the OCP rule: .01336, not .01346."""
    mxfp4 = PRECISIONS["mxfp4"]
    sigmas = [2.0 ** ((n + 0.5) / 64) for n in range(64)]
    single = [gaussian_error(mxfp4, rows=256, seed=1, sigma=sigma).mse for sigma in sigmas]
    found = gaussian_error(mxfp4, rows=4096)
    assert found.mse == pytest.approx(sum(single) / 64, rel=1e-3)
    assert found.mse == pytest.approx(0.01336, abs=2e-5)


class NoNumbersAsDivisors(TorchDispatchMode):
    """Refuses x / 3.0, which a GPU computes as a product with 1 / 3, and divisors elsewhere."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if func.overloadpacket in (torch.ops.aten.div, torch.ops.aten.div_):
            divisor = args[1]
            assert isinstance(divisor, Tensor), f"{func}: divided by {divisor}"
            assert divisor.device == args[0].device, f"{func}: the divisor is on the host"
        return func(*args, **(kwargs or {}))


def test_the_definition_divides_by_nothing_but_tensors_on_the_device() -> None:
    """On the meta device, so that a divisor on the host shows; all rules, roundings, rotations."""
    x = torch.empty(32, 64, device="meta")
    with NoNumbersAsDivisors():
        for element, scale in itertools.product(elements()[::7], ScaleFormat):
            if scale not in (S.E8M0_4_3, S.QUEST, S.QUEST_FLOOR, S.E4M3_4_6):
                quantize_plain(x, Precision(element, "row", scale=scale))
        for precision in PRECISIONS.values():
            quantize_plain(x, precision, hadamard=16)
        for rounding, scale in itertools.product(DIRECTIONS, (S.FP32, S.E8M0, S.E4M3)):
            quantize_plain(x, Precision(E2M1, "tile", 16, scale), rounding=rounding)
        quantize_plain(x, PRECISIONS["nvfp4"], 3)
        rotate_plain(x, 16)
        ms_eden(x, 3)
        for element in elements()[::5]:
            round_elements_plain(x, element)
        with pytest.raises(AssertionError, match=r"divided by 3\.0"):
            x / 3.0


def test_the_quest_exponent_goes_up_from_the_first_float_above_the_middle() -> None:
    """One value per block: wanted = 2.92 |x| / 6, compared with sqrt(1/2) by integers."""
    clip = torch.tensor(2.92247856 / 6, dtype=torch.float32)
    start = (torch.tensor(0.5**0.5) / clip).view(torch.int32)
    x = (start + torch.arange(-512, 513, dtype=torch.int32)).view(torch.float32).unsqueeze(-1)
    unit = 2.0 ** torch.frexp(x).exponent
    wanted = (((x / unit).square().sqrt() * clip) * unit).flatten().tolist()
    expected = [1.0 if 2 * Fraction(w) ** 2 > 1 else 0.5 for w in wanted]
    assert {math.frexp(w)[0] for w in wanted} >= {math.ldexp(0x3504F3 + 2**23, -24)}
    assert block_scale(x, E2M1, S.QUEST).flatten().tolist() == expected
    precision = Precision(E2M1, "block", 1, S.QUEST)
    assert torch.equal(quantize(x, precision), quantize_plain(x, precision))
