"""The compiled quantizer against the plain definition, bit for bit."""

from __future__ import annotations

import math
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from experiments.quant.block import quantize_plain, round_elements_plain
from experiments.quant.formats import FloatFormat, Precision, ScaleFormat
from experiments.quant.hadamard import rotate_plain
from experiments.quant.kernels import cpu as kernels
from experiments.quant.kernels.noise import uniform
from tests.support.places import ROOT
from tests.support.random_cases import (
    random_element,
    random_noise,
    random_precision,
    random_signs,
    random_values,
    same_bits,
)

pytestmark = pytest.mark.skipif(kernels.NAME is None, reason="the library was not built")

INSTRUCTIONS = [name for name in ("avx512", "avx2", "plain") if kernels.select(name)]
kernels.select()
CASES = 2000


@pytest.fixture(params=INSTRUCTIONS)
def instructions(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each instruction set this processor has, then the best one again."""
    assert kernels.select(request.param) == request.param
    yield request.param
    kernels.select()


def test_every_precision_and_rounding_equals_the_plain_definition(instructions: str) -> None:
    """Random formats x scales x granularities x roundings x layouts x hostile values."""
    generator = np.random.default_rng([2026, INSTRUCTIONS.index(instructions)])
    tried = 0
    while tried < CASES / len(INSTRUCTIONS):
        precision = random_precision(generator)
        rows, columns = int(generator.choice([1, 2, 5, 19, 70])), int(generator.integers(1, 6))
        if precision.granularity in ("block", "tile"):
            columns *= precision.block_size
        if precision.granularity == "tile":
            rows *= precision.block_size
        x = random_values(generator, rows, columns)
        if not kernels.supports(x, precision):
            continue
        noise, rounding = random_noise(generator, x.shape)
        expected = quantize_plain(x, precision, noise, rounding)
        if generator.random() < 0.4:
            x = x.t().contiguous().t()
        got = kernels.quantize(x, precision, noise, rounding)
        assert same_bits(got, expected), f"case {tried}: {precision} {rounding} {x.stride()}"
        assert got.stride() == quantize_plain(x, precision, noise, rounding).stride()
        tried += 1


def test_every_element_format_equals_the_plain_definition_without_a_scale(
    instructions: str,
) -> None:
    """As above; the values of one tensor lie around and beyond its format's largest number."""
    generator = np.random.default_rng([2027, INSTRUCTIONS.index(instructions)])
    for case in range(CASES // len(INSTRUCTIONS)):
        element = random_element(generator)
        x = random_values(generator, int(generator.integers(1, 6)), int(generator.integers(1, 99)))
        if generator.random() < 0.5:
            largest = x[x.isfinite()].abs().max().clamp(min=1e-30) if x.isfinite().any() else 1.0
            x = x / largest * min(2.0 * element.max, 3e38)
        noise, rounding = random_noise(generator, x.shape)
        expected = round_elements_plain(x, element, noise, rounding)
        got = kernels.round_elements(x, element, noise, rounding)
        assert same_bits(got, expected), f"case {case}: {element} {rounding}"


def test_rotated_and_quantized_in_one_pass_equals_one_after_the_other(instructions: str) -> None:
    """As above, over blocks smaller and larger than the rotation and all of a row."""
    generator = np.random.default_rng([2028, INSTRUCTIONS.index(instructions)])
    tried = 0
    while tried < CASES / 4 / len(INSTRUCTIONS):
        precision, size = random_precision(generator), int(generator.choice(kernels.ROTATIONS))
        columns = math.lcm(size, precision.block_size) * int(generator.integers(1, 4))
        rows = int(generator.choice([1, 2, 5, 16, 21, 64, 83]))  # less than a register, and more
        x = random_values(generator, rows, columns)
        if not kernels.supports(x, precision, size):
            continue
        noise, rounding = random_noise(generator, x.shape)
        signs = random_signs(generator, columns)
        expected = quantize_plain(x, precision, noise, rounding, size, signs)
        if generator.random() < 0.4:
            x = x.t().contiguous().t()
        got = kernels.quantize(x, precision, noise, rounding, size, signs)
        assert same_bits(got, expected), f"case {tried}: {precision} {rounding} H{size} {x.shape}"
        plain = quantize_plain(x, precision, noise, rounding, size, signs)
        assert got.stride() == plain.stride(), "a GEMM adds in another order"
        tried += 1


def test_what_is_written_past_the_caches_is_the_same(instructions: str) -> None:
    """2^22 values and more; the second `out` begins in the middle of a cache line."""
    x = torch.randn(1025, 4096, generator=torch.Generator().manual_seed(5))
    room = torch.empty(x.numel() + 5)
    for out in (None, room[5:].view_as(x)):
        for name, size in (("mxfp4", 0), ("nvfp4", 32), ("fp8_e4m3", 0)):
            precision = Precision.parse(name)
            expected = quantize_plain(x, precision, hadamard=size)
            assert same_bits(kernels.quantize(x, precision, hadamard=size, out=out), expected)
        rounded = kernels.round_elements(x, FloatFormat(3, 2), out=out)
        assert same_bits(rounded, round_elements_plain(x, FloatFormat(3, 2)))
        assert same_bits(kernels.rotate(x, 64, out=out), rotate_plain(x, 64))


@pytest.mark.parametrize("rounding", ["nearest_even", "stochastic"])
def test_the_smallest_values_below_every_scale(instructions: str, rounding: str) -> None:
    """With a scale that is a power of two the kernel moves the grid instead of dividing: quotients
    that would have been subnormal or zero, and draws of 0, which round up all but zeros.
    """
    generator = np.random.default_rng([2029, INSTRUCTIONS.index(instructions)])
    tiny = 2.0 ** generator.integers(-149, -100, (80, 64)) * generator.choice(
        [1, -1, 1.5], (80, 64)
    )
    x, draws = torch.from_numpy(tiny).float(), torch.zeros(tiny.shape)
    draws[::2] = 2.0**-24
    noise = draws if rounding == "stochastic" else None
    for name in ("mxfp4", "mxfp8_e5m2", "mxint8"):
        precision = Precision.parse(name)
        for exponent in range(-149, 128):
            x[:, ::32] = 2.0**exponent
            expected = quantize_plain(x, precision, noise)
            assert same_bits(kernels.quantize(x, precision, noise), expected), (name, exponent)


SHAPES = [(1, 96), (7, 96), (300, 320), (600, 96), (256, 1024), (4, 70016)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("granularity", Precision.GRANULARITIES)
@pytest.mark.parametrize("threads", [1, 3])
def test_neither_threads_nor_tiles_nor_layout_change_a_bit(
    shape: tuple[int, int], granularity: str, threads: int
) -> None:
    """Shapes around the sizes at which work is divided; keyed noise, whose index must follow."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    if granularity == "tile":
        x = x.repeat(32 // math.gcd(shape[0], 32), 1)
    x[0, 5] = 0.0
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for scale in (ScaleFormat.FP32, ScaleFormat.E8M0, ScaleFormat.E4M3):
            precision = Precision(FloatFormat(2, 1), granularity, 32, scale)
            for key in (None, 7):
                noise = None if key is None else uniform(key, tuple(x.shape))
                expected = quantize_plain(x, precision, noise)
                assert same_bits(kernels.quantize(x, precision, key), expected)
                assert same_bits(kernels.quantize(x.t().contiguous().t(), precision, key), expected)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_inputs_come_back_as_they_were(dtype: torch.dtype) -> None:
    x = torch.randn(8, 64, generator=torch.Generator().manual_seed(2)).to(dtype)
    got = kernels.quantize(x, Precision.parse("mxfp4"))
    assert got.dtype is dtype
    assert same_bits(got, quantize_plain(x, Precision.parse("mxfp4")))


@pytest.mark.parametrize("name", ["mxfp4", "nvfp4", "fp8_e4m3", "mxfp4_quest"])
@pytest.mark.parametrize("threads", [1, 3])
def test_rotated_and_quantized_by_many_threads_is_the_same(name: str, threads: int) -> None:
    """More chunks than threads, and with fp8_e4m3 one scale that all of them need."""
    x = torch.randn(96, 1024, generator=torch.Generator().manual_seed(8))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for rows in (1, 40, 96):
            for size in (16, 128):
                for key in (None, 5):
                    expected = quantize_plain(x[:rows], Precision.parse(name), key, hadamard=size)
                    got = kernels.quantize(x[:rows], Precision.parse(name), key, hadamard=size)
                    assert same_bits(got, expected), (rows, size, key)
    finally:
        torch.set_num_threads(before)


def test_out_is_where_the_result_goes() -> None:
    x, out = torch.randn(4, 64), torch.full((4, 64), 9.0)
    assert kernels.quantize(x, Precision.parse("mxfp4"), out=out) is out
    assert same_bits(out, quantize_plain(x, Precision.parse("mxfp4")))


def test_quotients_by_correction_equal_division() -> None:
    """Where E4M10 under an FP32 scale has a midpoint, an ulp in x / scale would show: x one float
    above, at and below s * midpoint, every midpoint of a binade, 500 random scales.
    """
    precision = Precision(FloatFormat(4, 10), "row", scale=ScaleFormat.FP32)
    generator = torch.Generator().manual_seed(3)
    amax = torch.rand(500, 1, generator=generator) * 2.0 ** torch.randint(
        -40, 40, (500, 1), generator=generator
    )
    midpoints = (1 + (2 * torch.arange(1024) + 1) / 2048)[None, :]
    x = amax / precision.element.max * midpoints
    x = torch.cat([amax, x, x.nextafter(x + 1e30), x.nextafter(-amax)], dim=1)
    assert same_bits(kernels.quantize(x, precision), quantize_plain(x, precision))


def test_what_is_not_supported_is_said() -> None:
    x = torch.randn(32, 32)
    for precision in (
        Precision(FloatFormat(2, 1), "row", scale=ScaleFormat.QUEST),
        Precision(FloatFormat(2, 1), "block", 512, ScaleFormat.QUEST_FLOOR),
        Precision(FloatFormat(2, 1), "block", 512, ScaleFormat.E4M3_4_6),
        Precision(FloatFormat(8, 7), scale=ScaleFormat.E4M3),
    ):
        assert not kernels.supports(x, precision)
    assert kernels.select("sse9") is None
    with pytest.raises(ValueError, match="rounding=odd"):
        kernels.quantize(x, Precision.parse("mxfp4"), rounding="odd")


@pytest.mark.parametrize("size", [16, 32, 64, 128, 256, 512, 1024])
def test_rotation_equals_the_butterfly_in_its_fixed_order(instructions: str, size: int) -> None:
    """Bit for bit, with and without signs, over more than one chunk and with a ragged last one."""
    generator = torch.Generator().manual_seed(size)
    x = torch.randn(45, 1024, generator=generator) * 10.0 ** torch.randn(45, 1, generator=generator)
    signs = torch.randint(2, (1024,), generator=generator).mul_(2).sub_(1).float()
    for chosen in (None, signs):
        assert same_bits(kernels.rotate(x, size, chosen), rotate_plain(x, size, chosen))


def test_keyed_stochastic_rounding_is_unbiased() -> None:
    """4,096 values x 512 keys.  By Bernstein's inequality the mean of n draws with variance v and
    range r errs by more than sqrt(2 v t / n) + r t / (3 n) with probability 2 exp(-t): here
    t = 18, so 1.2e-4 for all values together.
    """
    n, t = 512, 18
    x = torch.linspace(-5.9, 5.9, 4096)
    x[0] = 6.0  # so that the scale is 1
    precision = Precision(FloatFormat(2, 1), "tensor", scale=ScaleFormat.E8M0)
    lower, upper = (quantize_plain(x, precision, rounding=r).double() for r in ("down", "up"))
    mean = torch.stack([kernels.quantize(x, precision, key) for key in range(n)]).double().mean(0)
    variance = (x - lower) * (upper - x)
    tolerance = (2 * variance * t / n).sqrt() + (upper - lower) * t / (3 * n)
    assert ((mean - x).abs() <= tolerance).all()


@pytest.mark.skipif(
    shutil.which("gcc") is None or "avx2" not in INSTRUCTIONS, reason="needs gcc and FMA"
)
def test_every_quotient_that_could_be_rounded_wrongly_is_right(tmp_path: Path) -> None:
    """The kernel multiplies by 1 / scale and corrects once; the program tells why this is all."""
    program = tmp_path / "correct_division"
    source = ROOT / "tests/support/correct_division.c"
    flags = ["-O2", "-mfma", "-ffp-contract=off"]
    subprocess.run(["gcc", *flags, str(source), "-o", str(program), "-lm"], check=True)
    printed = subprocess.run([str(program)], check=True, capture_output=True, text=True).stdout
    assert printed.split() == ["46517418", "0"]
