"""Block scales: the OCP rule, FP32 scales, and what happens at the edges."""

from collections.abc import Callable

import gfloat
import gfloat.formats
import numpy as np
import pytest
import torch

from experiments.quant.block import quantize, quantize_plain, round_elements, round_elements_plain
from experiments.quant.formats import (
    ElementFormat,
    FloatFormat,
    IntFormat,
    Precision,
    ScaleFormat,
    parse_element,
)
from experiments.quant.hadamard import rotate_plain
from experiments.quant.scale import block_scale

E2M1 = FloatFormat(2, 1)
MX = Precision(E2M1, "block", 32, ScaleFormat.E8M0)
FP32 = Precision(E2M1, "block", 32, ScaleFormat.FP32)


@pytest.mark.parametrize(
    ("amax", "scale"), [(6, 1), (7.9, 1), (8, 2), (3, 0.5), (4, 1), (1e-44, 2.0**-127)]
)
def test_e8m0_is_the_ocp_floor_rule(amax: float, scale: float) -> None:
    assert block_scale(torch.tensor([float(amax)]), E2M1, ScaleFormat.E8M0).item() == scale


def test_e8m0_is_exact_just_below_a_power_of_two() -> None:
    """Where a float log2 rounds up (microxcaling's fault): all exponents."""
    powers = 2.0 ** torch.arange(-100, 120, dtype=torch.float64)
    below = torch.nextafter(powers.float(), torch.tensor(0.0))
    scales = block_scale(below.unsqueeze(-1), E2M1, ScaleFormat.E8M0).squeeze(-1)
    assert torch.equal(scales.double(), powers / 2 / 4)


def test_mxfp4_equals_gfloat_bit_for_bit() -> None:
    """1,000 blocks of 32 over 60 binades; gfloat's own scale rule, its own rounding."""
    generator = np.random.default_rng(0)
    blocks = generator.standard_normal((1000, 32)) * 2.0 ** generator.uniform(-30, 30, (1000, 1))
    blocks = blocks.astype(np.float32)
    exponent = np.floor(np.log2(np.abs(blocks).max(axis=1, keepdims=True).astype(np.float64))) - 2
    scale = 2.0**exponent
    expected = scale * gfloat.round_ndarray(
        gfloat.formats.format_info_ocp_e2m1,
        blocks.astype(np.float64) / scale,
        gfloat.RoundMode.TiesToEven,
        True,
    )
    assert np.array_equal(
        quantize(torch.from_numpy(blocks), MX).numpy(), expected.astype(np.float32)
    )


@pytest.mark.parametrize("granularity", ["block", "row", "tensor"])
def test_fp32_scale_maps_amax_to_the_largest_number(granularity: str) -> None:
    """Amax survives to half an ulp of float32, so the scale is amax / max and nothing clips."""
    torch.manual_seed(0)
    x = torch.randn(8, 64)
    q = quantize(x, Precision(E2M1, granularity, 32))
    shape = {"block": (8, 2, 32), "row": (8, 64), "tensor": (1, 512)}[granularity]
    before, after = x.reshape(shape).abs().amax(-1), q.reshape(shape).abs().amax(-1)
    assert torch.allclose(before, after, rtol=2**-23, atol=0)


@pytest.mark.parametrize(("granularity", "scales"), [("block", 16), ("row", 8), ("tensor", 1)])
def test_granularity_says_who_shares_a_scale(granularity: str, scales: int) -> None:
    """The ratio of a group's values to its amax lies on the grid / max; groups differ in amax."""
    torch.manual_seed(1)
    x = torch.randn(8, 64)
    q = quantize(x, Precision(E2M1, granularity, 32)).reshape(scales, -1)
    ratio = (q / q.abs().amax(-1, keepdim=True) * 6).abs()
    grid = torch.tensor(E2M1.grid())
    assert (ratio.unsqueeze(-1) - grid).abs().amin(-1).max() < 1e-5
    assert len(q.abs().amax(-1).unique()) == scales


def test_mean_squared_error_on_gaussian_data_is_the_published() -> None:
    """OCP floor scale at sigma 1, RTN: 1.33e-2 (65,536 blocks of 32; one part in fifty)."""
    x = torch.randn(65_536, 32, generator=torch.Generator().manual_seed(0))
    error = ((quantize(x, MX) - x).square().sum() / x.square().sum()).item()
    assert error == pytest.approx(1.33e-2, rel=0.02)


def test_edges() -> None:
    zeros = torch.zeros(1, 32)
    zeros[0, 3] = -0.0
    assert torch.equal(quantize(zeros, MX), zeros)
    assert torch.signbit(quantize(zeros, FP32))[0, 3]
    for bad in (float("nan"), float("inf"), -float("inf")):
        x = torch.ones(2, 32)
        x[0, 5] = bad
        for precision in (MX, FP32):
            q = quantize(x, precision)
            assert q[0].isnan().all(), "the block of a non-finite value is all NaN"
            assert torch.equal(q[1], x[1]), "and no other block is touched"
    tiny = torch.full((1, 32), 1e-44)
    assert quantize(tiny, FP32).isfinite().all()


@pytest.mark.parametrize(
    "element", [FloatFormat(8, 7), FloatFormat(8, 0), FloatFormat(7, 2)], ids=str
)
def test_formats_wider_than_float32_keep_relative_precision(element: FloatFormat) -> None:
    x = torch.randn(4, 32, generator=torch.Generator().manual_seed(3)) * 1e5
    q = quantize(x, Precision(element, "tensor"))
    assert ((q - x).abs() <= x.abs() * 2.0 ** -(element.mantissa + 1) * (1 + 1e-6)).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtype_and_layout_do_not_change_the_values(dtype: torch.dtype) -> None:
    x = torch.randn(64, 64, generator=torch.Generator().manual_seed(2)).to(dtype)
    for granularity in Precision.GRANULARITIES:
        precision = Precision(E2M1, granularity, 32, ScaleFormat.E8M0)
        q = quantize(x, precision)
        assert q.dtype == dtype
        assert torch.equal(quantize(x.t().contiguous().t(), precision), q)
        assert torch.equal(q.float(), quantize(x.float(), precision))


def test_quantizing_twice_changes_nothing_with_power_of_two_scales() -> None:
    x = torch.randn(64, 64, generator=torch.Generator().manual_seed(4))
    once = quantize(x, MX)
    assert torch.equal(quantize(once, MX), once)


@pytest.mark.parametrize("call", [round_elements, round_elements_plain])
@pytest.mark.parametrize(("name", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_without_a_scale_bf16_and_fp16_are_torchs_own_casts(
    call: Callable[..., torch.Tensor], name: str, dtype: torch.dtype
) -> None:
    """Any float32 bit pattern; beyond the largest number a cast overflows where we saturate."""
    bits = np.random.default_rng(0).integers(0, 2**32, 100_000, dtype=np.uint32)
    x = torch.from_numpy(bits.view(np.float32))
    cast = x.to(dtype).float()
    largest = torch.finfo(dtype).max
    expected = torch.where(x.isfinite() & cast.isinf(), largest * x.sign(), cast)
    expected = torch.where(x.isfinite(), expected, torch.nan)
    got = call(x, parse_element(name))
    assert torch.equal(got.nan_to_num(7e37), expected.nan_to_num(7e37))
    assert torch.equal(torch.signbit(got)[x.isfinite()], torch.signbit(x)[x.isfinite()])


@pytest.mark.parametrize("element", [FloatFormat(4, 3), FloatFormat(2, 0), IntFormat(4)], ids=str)
def test_without_a_scale_stochastic_rounding_stays_on_the_grid(element: ElementFormat) -> None:
    x = 3 * torch.randn(4096, generator=torch.Generator().manual_seed(5))
    grid = torch.tensor([-v for v in element.grid()] + element.grid())
    assert torch.isin(round_elements(x, element, 1), grid).all()
    assert torch.equal(round_elements(grid, element, 1), grid), "what lies on it does not move"


@pytest.mark.parametrize("precision", ["mxfp4", "nvfp4", "fp8_e4m3", "E2M1-block16-quest"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_hadamard_is_a_rotation_before_all_else(precision: str, dtype: torch.dtype) -> None:
    """In float32, whatever the input; also where the kernel knows only one of the two."""
    to = Precision.parse(precision)
    x = torch.randn(32, 128, generator=torch.Generator().manual_seed(6)).to(dtype)
    signs = torch.where(torch.arange(128) % 3 == 0, -1.0, 1.0)
    for size in (4, 32, 128):
        expected = quantize_plain(rotate_plain(x.float(), size, signs), to).to(dtype)
        assert torch.equal(quantize(x, to, hadamard=size, signs=signs), expected)


def test_errors_name_the_value() -> None:
    with pytest.raises(ValueError, match="block_size=32: .* must be a multiple"):
        quantize(torch.ones(2, 33), MX)
    with pytest.raises(ValueError, match="got torch.float64"):
        quantize(torch.ones(2, 32, dtype=torch.float64), MX)
    with pytest.raises(ValueError, match=r"noise has shape \(1, 32\), x has \(2, 32\)"):
        quantize(torch.ones(2, 32), MX, torch.zeros(1, 32))
    with pytest.raises(ValueError, match="hadamard=24: must be a power of two"):
        quantize(torch.ones(2, 96), MX, hadamard=24)
    with pytest.raises(ValueError, match="rounding=odd: must be one of"):
        round_elements(torch.ones(2), E2M1, rounding="odd")
