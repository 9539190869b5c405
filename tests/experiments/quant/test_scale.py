"""Scale rules: the papers' worked numbers, and what each promises about clipping."""

import pytest
import torch

from experiments.measure.error import qsnr
from experiments.quant.block import quantize
from experiments.quant.formats import (
    PRECISIONS,
    FloatFormat,
    FormatError,
    IntFormat,
    Precision,
    ScaleFormat,
)
from experiments.quant.rounding import round_nearest_even
from experiments.quant.scale import block_scale, four_over_six_scale

E2M1 = FloatFormat(2, 1)
S = ScaleFormat
WIDE = 2.0 ** torch.linspace(-100, 100, 4001, dtype=torch.float64)


def scale_of(amax: float, rule: ScaleFormat) -> float:
    return block_scale(torch.tensor([[float(amax)]]), E2M1, rule).item()


@pytest.mark.parametrize(("amax", "scale"), [(6, 1), (6.01, 2), (12, 2), (10, 2), (3, 0.5)])
def test_ceil_scales_are_the_worked_ones(amax: float, scale: float) -> None:
    assert scale_of(amax, S.E8M0_CEIL) == scale


@pytest.mark.parametrize("rule", [S.E8M0_CEIL, S.E8M0_4_3, S.FP32])
@pytest.mark.parametrize("element", [E2M1, FloatFormat(4, 3, "ocp"), IntFormat(4), IntFormat(8)])
def test_these_rules_never_clip_and_ceil_wastes_less_than_a_binade(
    rule: ScaleFormat, element: FloatFormat | IntFormat
) -> None:
    """4/3 may exceed the largest number, but only by what rounds back to it (E2M1)."""
    if rule is S.E8M0_4_3 and element != E2M1:
        with pytest.raises(FormatError, match=r"scale=e8m0_4_3: is defined for E2M1"):
            Precision(element, "block", 32, rule)
        return
    amax = WIDE.float().unsqueeze(-1)
    scaled = (amax / block_scale(amax, element, rule)).double()
    assert scaled.max() <= element.max * (1 + 2**-23)
    if rule is S.E8M0_CEIL:
        assert scaled.min() > element.max / 2


def test_nearest_scale_is_within_half_a_binade_of_the_exact_one() -> None:
    amax = WIDE.float().unsqueeze(-1)
    ratio = block_scale(amax, E2M1, S.E8M0_NEAREST).double() / (amax.double() / 6)
    assert ratio.max() <= 2**0.5 * (1 + 1e-6)
    assert ratio.min() >= 0.5**0.5 * (1 - 1e-6)


def test_power_of_two_rules_give_powers_of_two() -> None:
    x = torch.randn(512, 32, generator=torch.Generator().manual_seed(0)) * WIDE[:512, None].float()
    for rule in (S.E8M0, S.E8M0_CEIL, S.E8M0_NEAREST, S.QUEST, S.QUEST_FLOOR):
        mantissa, _ = torch.frexp(block_scale(x, E2M1, rule))
        assert (mantissa == 0.5).all(), rule


def test_quest_scales_are_the_powers_of_two_nearest_to_and_below_the_clip() -> None:
    """2505.14669: 2.92247856 rms / 6, its logarithm rounded, or floored as the repository does.

    By logarithms in double; of 4,096 blocks none lies within 1e-5 of where the exponent changes.
    """
    x = torch.randn(4096, 48, generator=torch.Generator().manual_seed(1))
    x = x * 2.0 ** torch.linspace(-20, 20, 4096)[:, None]
    wanted = (x.double().square().mean(-1, keepdim=True).sqrt() * (2.92247856 / 6)).log2()
    for rule, exponent in ((S.QUEST, wanted.round()), (S.QUEST_FLOOR, wanted.floor())):
        apart = (wanted - (0.5 if rule is S.QUEST else 0.0)).remainder(1.0)
        assert (torch.minimum(apart, 1 - apart) > 1e-5).all()
        assert torch.equal(block_scale(x, E2M1, rule), (2.0**exponent).float())


@pytest.mark.parametrize("rule", [S.QUEST, S.QUEST_FLOOR])
def test_quest_scales_follow_the_data_down_to_the_smallest_and_up_to_the_largest(rule: S) -> None:
    """A square of 2^100 is infinite, one of 2^-100 zero, and the scale right all the same."""
    x = torch.randn(1, 32, generator=torch.Generator().manual_seed(2)).clamp(-3.9, 3.9)
    unit = block_scale(x, E2M1, rule)
    for exponent in (-110, -100, 100, 125):
        got = block_scale(torch.ldexp(x, torch.tensor(exponent)), E2M1, rule)
        assert torch.equal(got, torch.ldexp(unit, torch.tensor(exponent)))
    assert block_scale(torch.zeros(1, 32), E2M1, rule) == 2.0**-127
    assert block_scale(torch.full((1, 32), 2.0**-149), E2M1, rule) == 2.0**-127


def test_nvfp4_scales_are_the_reports() -> None:
    """2509.25149: amax 2688 = 6 * 448 has tensor scale 1; block scales are E4M3 numbers."""
    blocks = torch.tensor([[2688.0], [6.0], [7.0], [0.01]])
    scale = block_scale(blocks, E2M1, S.E4M3).flatten()
    grid = torch.tensor(FloatFormat(4, 3, "ocp").grid())
    assert torch.isin(scale, grid).all()
    assert scale.tolist() == [448.0, 1.0, 1.125, 2.0**-9], "7 / 6 = 1.167 rounds to 1.125"


def test_ue5m3_scales_are_the_reports() -> None:
    """2609.02846: largest 61440, smallest 2^-17; the tensor's amax goes to 448."""
    ue5m3 = FloatFormat(5, 3, "ieee")
    assert (ue5m3.max, ue5m3.step) == (61440.0, 2.0**-17)
    blocks = torch.tensor([[100.0], [1.7e-6], [1e-9]])
    tensor_scale = 100 / (6 * 448)
    stored = block_scale(blocks, E2M1, S.UE5M3).flatten() / tensor_scale
    assert stored.tolist() == pytest.approx([448.0, 2.0**-17, 2.0**-17], rel=1e-5)


def test_two_level_scales_follow_the_tensor() -> None:
    """Times a power of two, everything moves with it, bit for bit."""
    x = torch.randn(8, 64, generator=torch.Generator().manual_seed(1))
    for rule in (S.E4M3, S.UE5M3, S.E4M3_4_6):
        precision = Precision(E2M1, "block", 16, rule)
        assert torch.equal(quantize(x * 2.0**20, precision), quantize(x, precision) * 2.0**20)


def test_four_over_six_takes_the_better_of_its_two_scales_block_by_block() -> None:
    x = torch.randn(64, 16, generator=torch.Generator().manual_seed(2))
    chosen = quantize(x, Precision(E2M1, "block", 16, S.E4M3_4_6))
    errors = []
    for scale in (block_scale(x, E2M1, S.E4M3_4_6), four_over_six_scale(x)):
        q = round_nearest_even(x / scale, E2M1) * scale
        errors.append((q - x).square().sum(-1))
    least = torch.minimum(*errors)
    assert torch.equal((chosen - x).square().sum(-1), least)
    assert 0 < (errors[1] < errors[0]).sum() < 64, "both are taken somewhere"


@pytest.mark.parametrize("power", [*range(-125, 128)])
def test_microxcalings_scale_is_twice_ours_just_below_a_power_of_two(power: int) -> None:
    """By hand: log2(16 - 2^-20) = 4 - 8.6e-8 is 4 in float32, so the scale is 2^(4 - 2) and not
    2^(3 - 2); at small |k| float32 is fine enough.  The same from torch's own float32 logarithm.
    """
    below = torch.tensor([[2.0**power]], dtype=torch.float64).float().nextafter(torch.zeros(1))
    ocp, theirs = (block_scale(below, E2M1, rule).item() for rule in (S.E8M0, S.E8M0_LOG2))
    assert ocp == max(2.0 ** (power - 1 - 2), 2.0**-127)
    exponent = below.log2().floor().item()
    assert theirs == max(2.0 ** (exponent - 2), 2.0**-127)
    assert (exponent == power) == (power not in (-1, 0, 1, 2))


def test_microxcalings_scale_is_the_ocp_one_elsewhere() -> None:
    """And keeps zeros, subnormals and non-finite blocks as all rules do."""
    x = WIDE.float().unsqueeze(-1) * 1.01
    x = torch.cat([x, torch.tensor([[1e-44], [float("nan")], [float("inf")]])])
    ours, theirs = block_scale(x, E2M1, S.E8M0), block_scale(x, E2M1, S.E8M0_LOG2)
    assert torch.equal(ours.nan_to_num(-1), theirs.nan_to_num(-1))
    assert theirs[-2:].isnan().all()
    zeros = torch.tensor([[0.0, -0.0]])
    assert torch.equal(quantize(zeros, Precision(E2M1, "row", scale=S.E8M0_LOG2)), zeros)


def test_sixteen_seventeenths_leave_room_for_every_rounding_of_the_scale() -> None:
    """2601.22813: x32 = amax / (6 * 16/17 * 448); 100,000 blocks, none clipped, one touching."""
    generator = torch.Generator().manual_seed(0)
    amax = 448 * torch.rand(100_000, 1, generator=generator)
    amax = torch.cat([amax, torch.tensor([[448.0], [1.0625 * 16]])])  # 17/16: the worst rounding
    for rule, most in ((S.E4M3_16_17, 6.0), (S.E4M3, 6.0 * 17 / 16)):
        top = (amax / block_scale(amax, E2M1, rule))[amax > 1.0].max().item()
        assert top == pytest.approx(most, rel=1e-3)
        assert (top <= 6 * (1 + 2**-22)) == (rule is S.E4M3_16_17)


def test_integers_round_to_their_range() -> None:
    x = torch.tensor([[-9.0, -7.4, -0.5, 0.5, 1.5, 7.6, 100.0, 7.0]])
    scaled = Precision(IntFormat(4), "tensor")
    q = quantize(x, scaled) / (100 / 7)
    assert torch.allclose(q, torch.tensor([[-1.0, -1, 0, 0, 0, 1, 7, 0]]), atol=1e-6)
    asymmetric = IntFormat(4, symmetric=False)
    low = quantize(
        torch.tensor([[-8.0, 7.0, 1.0, 0.0]]), Precision(asymmetric, "tensor", scale=S.E8M0)
    )
    assert low.tolist() == [[-8.0, 8.0, 0.0, 0.0]], "the floor rule: scale 2, and the lowest -8 * 2"


@pytest.mark.parametrize("name", PRECISIONS)
def test_published_precisions_parse_and_say_their_bits(name: str) -> None:
    stated = {"mxfp4": 4.25, "nvfp4": 4.5 + 32 / 4096, "mxfp8_e4m3": 8.25, "mxint8": 8.25}
    precision = Precision.parse(name.upper())
    bits = precision.bits_per_element(64, 64)
    assert bits == stated.get(name, bits)
    x = torch.randn(64, 64, generator=torch.Generator().manual_seed(5))
    assert qsnr(x, quantize(x, precision)) > 10
