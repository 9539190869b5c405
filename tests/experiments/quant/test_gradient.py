"""Gradient estimators against what they are derivatives of."""

import pytest
import torch

from experiments.quant.block import quantize
from experiments.quant.formats import FloatFormat, Precision
from experiments.quant.gradient import rounding_gradient, staircase_slope
from experiments.quant.hadamard import rotate_plain
from experiments.quant.kernels import cpu
from experiments.quant.modes import Estimator
from experiments.quant.scale import CLIPPED_BEYOND, block_scale

MASKED = Estimator.parse("masked")

E2M1 = FloatFormat(2, 1)


@pytest.mark.parametrize("k", [1.0, 3.0, 5.0])
def test_the_slope_is_the_staircases_derivative(k: float) -> None:
    """2501.17116, section 3.1: f = l + d / 2 (1 + sign(t) |t|^(1/k)), t = 2 (x - l) / d - 1.

    Central differences of 1e-5 of a step in float64, away from the cap, and from the numbers, where
    f has a kink: to 1e-4, float32's error in t times the slope's own slope.
    """
    for low, high in ((0.0, 0.5), (1.0, 1.5), (2.0, 3.0), (4.0, 6.0)):
        d = high - low

        def staircase(x: torch.Tensor, low: float = low, d: float = d) -> torch.Tensor:
            t = 2 * (x - low) / d - 1
            return low + d / 2 * (1 + t.sign() * t.abs() ** (1 / k))

        x = torch.linspace(low + 0.01 * d, high - 0.01 * d, 200, dtype=torch.float64)
        h = 1e-5 * d
        expected = (staircase(x + h) - staircase(x - h)) / (2 * h)
        flat = expected < 2.5
        found = staircase_slope(x.float(), E2M1, k).double()
        assert torch.allclose(found[flat], expected[flat], rtol=1e-4)
        assert torch.equal(staircase_slope(-x.float(), E2M1, k).double(), found)


def test_the_slope_is_cut_at_three_and_zero_beyond_the_largest() -> None:
    x = torch.tensor([0.25, 2.5, 6.0, 6.01, -7.0])
    assert staircase_slope(x, E2M1, 5.0).tolist() == pytest.approx([3.0, 3.0, 0.2, 0.0, 0.0])


@pytest.mark.parametrize("name", ["mxfp4", "mxfp4_quest", "nvfp4", "INT4-block16-e8m0"])
def test_masked_values_are_the_clipped_ones(name: str) -> None:
    """Where a block was clipped its largest result is the bound: masked is what lies beyond."""
    precision = Precision.parse(name)
    x = torch.randn(64, 64, generator=torch.Generator().manual_seed(0)) * 3
    mask = rounding_gradient(x, precision, MASKED)
    assert set(mask.unique().tolist()) == {0.0, 1.0}
    mask = mask.bool()
    assert 0.8 < mask.double().mean() < 1
    size = precision.block_size
    blocks, kept = x.abs().reshape(-1, size), mask.reshape(-1, size)
    bound = quantize(x, precision).abs().reshape(-1, size).amax(-1, keepdim=True)
    clipped = ~kept.all(-1)
    assert clipped.any()
    assert torch.equal(kept[clipped], (blocks <= bound * (1 + 2**-20))[clipped])


@pytest.mark.parametrize("hadamard", [0, 32])
@pytest.mark.parametrize(
    "name",
    ["mxfp4", "mxfp4_quest", "nvfp4", "INT4-asymmetric-block16-e8m0", "E2M1-row-e8m0", "E1M0"],
)
def test_the_compiled_mask_is_the_defined_one(name: str, hadamard: int) -> None:
    """Zeros, infinities, a NaN and values on the bound and beside it among the random ones."""
    precision = Precision.parse(name)
    if not cpu.masks(torch.zeros(1, 32), precision, hadamard):
        pytest.skip("no compiled kernel for it here")
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 64, generator=generator) * 3
    x[0, :32], x[1, 3], x[2, 5] = 0.0, float("inf"), float("nan")
    x[3, :4] = torch.tensor([7.0, 6.0, 6.0 * (1 + 2.0**-20), 6.0 * (1 + 2.0**-19)])
    signs = torch.where(torch.rand(64, generator=generator) < 0.5, -1.0, 1.0) if hadamard else None
    values = rotate_plain(x, hadamard, signs) if hadamard else x
    blocks = values.reshape(-1, 64 if precision.granularity == "row" else precision.block_size)
    scale, element = block_scale(blocks, precision.element, precision.scale), precision.element
    bound = torch.where(blocks < 0, -element.lowest, element.max) * CLIPPED_BEYOND
    expected = (blocks.abs() <= scale * bound).reshape(x.shape)
    found = rounding_gradient(x, precision, MASKED, hadamard, signs)
    assert torch.equal(found, expected.float())


@pytest.mark.parametrize("name", ["E2M1-row-fp32", "fp8_e4m3", "mxfp4_4_3", "mxfp4_ceil", "mxint8"])
def test_scales_that_clip_nothing_mask_nothing(name: str) -> None:
    """Each block's amax lies on the largest element, to the last bit of a quotient, or below."""
    x = torch.randn(64, 64, generator=torch.Generator().manual_seed(0)) * 3
    mask = rounding_gradient(x, Precision.parse(name), MASKED)
    assert mask.all()


def test_a_mask_is_of_the_blocks_scale() -> None:
    """OCP scales: amax 7 has scale 1 and clips what lies beyond 6; amax 8 has scale 2."""
    x = torch.tensor([[7.0, 6.5, 6.0, -6.1], [8.0, 6.5, 6.0, -6.1]])
    mask = rounding_gradient(x, Precision.parse("E2M1-block4-e8m0"), MASKED)
    assert mask.tolist() == [[False, False, True, False], [True] * 4]


def test_asymmetric_integers_reach_one_lower() -> None:
    """OCP scale 2^(2 - 2) = 1 of amax 7.9: INT4-asymmetric holds -8..7."""
    x = torch.tensor([[7.5, -7.9, 7.0, -7.2]])
    kept = {
        name: rounding_gradient(x, Precision.parse(f"{name}-block4-e8m0"), MASKED).tolist()
        for name in ("INT4", "INT4-asymmetric")
    }
    assert kept["INT4"] == [[False, False, True, False]]
    assert kept["INT4-asymmetric"] == [[False, True, True, True]]
