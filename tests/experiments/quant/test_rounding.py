"""Rounding, bit for bit against gfloat and ml_dtypes, and against the enumerated grid."""

import itertools

import gfloat
import gfloat.formats
import ml_dtypes
import numpy as np
import pytest
import torch

from experiments.quant.formats import ElementFormat, FloatFormat, IntFormat
from experiments.quant.modes import DIRECTIONS
from experiments.quant.rounding import (
    few_bits,
    round_nearest_even,
    round_stochastic,
    round_to,
)

SMALL = [
    FloatFormat(e, m) for e in range(5) for m in range(4) if e + m > 0 and not (e == 0 and m == 0)
]
NAMED = {
    "E2M1": gfloat.formats.format_info_ocp_e2m1,
    "E2M3": gfloat.formats.format_info_ocp_e2m3,
    "E3M2": gfloat.formats.format_info_ocp_e3m2,
    "E4M3-ocp": gfloat.formats.format_info_ocp_e4m3,
    "E5M2-ocp": gfloat.formats.format_info_ocp_e5m2,
    "E8M7-ieee": gfloat.formats.format_info_bfloat16,
    "E5M10-ieee": gfloat.formats.format_info_binary16,
}
ML_DTYPES = {
    "E2M1": ml_dtypes.float4_e2m1fn,
    "E2M3": ml_dtypes.float6_e2m3fn,
    "E3M2": ml_dtypes.float6_e3m2fn,
    "E4M3-ocp": ml_dtypes.float8_e4m3fn,
    "E5M2-ocp": ml_dtypes.float8_e5m2,
    "E4M3-ieee": ml_dtypes.float8_e4m3,
    "E3M4-ieee": ml_dtypes.float8_e3m4,
    "E8M7-ieee": ml_dtypes.bfloat16,
    "E5M10-ieee": np.float16,
}
GFLOAT_MODES = {
    "nearest_even": gfloat.RoundMode.TiesToEven,
    "nearest_away": gfloat.RoundMode.TiesToAway,
    "toward_zero": gfloat.RoundMode.TowardZero,
    "up": gfloat.RoundMode.TowardPositive,
    "down": gfloat.RoundMode.TowardNegative,
}


def edge_inputs(element: FloatFormat) -> torch.Tensor:
    """Every grid point, every midpoint, both float32 neighbours of each, beyond max, both signs."""
    grid = np.array(element.grid())
    middles = (grid[1:] + grid[:-1]) / 2
    beyond = min(element.max, 3e35) * np.array([1.01, 2, 1e3])
    largest = [np.finfo(np.float32).max]
    points = np.concatenate([grid, middles, beyond, largest]).astype(np.float32)
    with np.errstate(over="ignore"):
        up = np.nextafter(points, np.float32(np.inf))
    every = np.concatenate([points, up[np.isfinite(up)], np.nextafter(points, -np.float32(1e9))])
    return torch.from_numpy(np.concatenate([every, -every]))


def many_inputs(element: FloatFormat) -> torch.Tensor:
    """`edge_inputs`, and 20,000 normal values over 60 binades."""
    generator = np.random.default_rng(0)
    values = generator.standard_normal(20_000) * 2.0 ** generator.uniform(-30, 30, 20_000)
    return torch.cat([torch.from_numpy(values.astype(np.float32)), edge_inputs(element)])


def enumerated_nearest_even(x: float, grid: list[float]) -> float:
    """By search: the nearest of the grid, of two the one with the even position."""
    inside = min(abs(x), grid[-1])
    distances = [abs(inside - value) for value in grid]
    smallest = min(distances)
    nearest = [code for code, distance in enumerate(distances) if distance == smallest]
    chosen = next(code for code in nearest if len(nearest) == 1 or code % 2 == 0)
    return float(np.copysign(grid[chosen], x))


@pytest.mark.parametrize("element", SMALL, ids=str)
def test_nearest_even_equals_the_enumerated_grid(element: FloatFormat) -> None:
    x = edge_inputs(element)
    grid = element.grid()
    expected = torch.tensor([enumerated_nearest_even(value, grid) for value in x.tolist()])
    rounded = round_nearest_even(x, element)
    assert torch.equal(rounded, expected)
    assert torch.equal(torch.signbit(rounded), torch.signbit(x)), "the sign of zero is kept"


@pytest.mark.parametrize("name", NAMED)
@pytest.mark.parametrize("rounding", DIRECTIONS)
def test_every_rounding_equals_gfloat_at_the_edges_and_over_sixty_binades(
    name: str, rounding: str
) -> None:
    """Every code, every midpoint, the floats beside them, subnormals, both zeros, beyond max."""
    element, mode = FloatFormat.parse(name), GFLOAT_MODES[rounding]
    x = many_inputs(element)
    expected = gfloat.round_ndarray(NAMED[name], x.double().numpy(), mode, True)
    rounded = round_to(x, element, rounding).numpy()
    assert np.array_equal(rounded, expected.astype(np.float32))
    assert np.array_equal(np.signbit(rounded), np.signbit(expected))


@pytest.mark.parametrize("name", ML_DTYPES)
def test_nearest_even_equals_ml_dtypes_wherever_its_cast_stays_finite(name: str) -> None:
    """The same inputs.  Its casts overflow to infinity or NaN where the format has one."""
    element = FloatFormat.parse(name)
    x = many_inputs(element)
    with np.errstate(over="ignore"):
        expected = x.numpy().astype(ML_DTYPES[name]).astype(np.float32)
    rounded = round_nearest_even(x, element).numpy()
    finite = np.isfinite(expected)
    assert np.array_equal(rounded[finite], expected[finite])
    assert np.array_equal(np.signbit(rounded[finite]), np.signbit(expected[finite]))
    assert (np.abs(x.numpy()[~finite]) > element.max).all()
    assert (np.abs(rounded[~finite]) == np.float32(element.max)).all(), "ours saturates"
    assert finite.sum() > 20_000 / 3


ODD: list[ElementFormat] = [FloatFormat(0, 3), FloatFormat(1, 0), FloatFormat(8, 10), IntFormat(4)]


@pytest.mark.parametrize("element", [*SMALL, *ODD, *map(FloatFormat.parse, NAMED)], ids=str)
def test_nan_and_infinities_become_nan_in_every_format_and_rounding(element: ElementFormat) -> None:
    x = torch.tensor([float("nan"), float("inf"), -float("inf")])
    for rounding in DIRECTIONS:
        assert round_to(x, element, rounding).isnan().all(), rounding
    for noise in (0.0, 1 - 2**-24):
        assert round_stochastic(x, element, torch.full((3,), noise)).isnan().all()


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("symmetric", [True, False])
def test_integers_equal_numpys_rint_and_saturate(bits: int, symmetric: bool) -> None:
    element = IntFormat(bits, symmetric)
    x = np.concatenate([np.arange(-300, 300) / 2, np.arange(-300, 300) / 2 + 1e-4, [1e30, -1e30]])
    rounded = round_nearest_even(torch.from_numpy(x.astype(np.float32)), element).numpy()
    expected = np.clip(np.rint(x.astype(np.float32)), element.lowest, element.max)
    assert np.array_equal(rounded, expected)
    assert np.array_equal(np.signbit(rounded), np.signbit(expected))


@pytest.mark.parametrize("element", SMALL, ids=str)
def test_rounding_is_idempotent(element: FloatFormat) -> None:
    grid = torch.tensor(element.grid())
    assert torch.equal(round_nearest_even(grid, element), grid)
    for noise in (0.0, 0.5, 1 - 2**-24):
        assert torch.equal(round_stochastic(grid, element, torch.full_like(grid, noise)), grid)


@pytest.mark.parametrize("element", SMALL, ids=str)
def test_directed_and_away_roundings_equal_the_enumerated_grid(element: FloatFormat) -> None:
    """Beyond the largest number all of them saturate."""
    x = edge_inputs(element)
    signed = sorted({*element.grid(), *(-value for value in element.grid())})
    for value in x.tolist():
        inside = min(max(value, signed[0]), signed[-1])
        below = max(g for g in signed if g <= inside)
        above = min(g for g in signed if g >= inside)
        away = above if abs(above - inside) < abs(inside - below) else below
        if abs(above - inside) == abs(inside - below):
            away = max(below, above, key=abs)
        zero = min(below, above, key=abs)
        one = torch.tensor([value])
        expected = {"up": above, "down": below, "toward_zero": zero, "nearest_away": away}
        for rounding, wanted in expected.items():
            assert round_to(one, element, rounding).item() == wanted, (rounding, value)


def test_an_unknown_rounding_is_refused() -> None:
    with pytest.raises(ValueError, match="rounding=nearest: must be one of nearest_even"):
        round_to(torch.zeros(1), FloatFormat(2, 1), "nearest")


@pytest.mark.parametrize(
    "element", [FloatFormat(1, 1), FloatFormat(2, 1), FloatFormat(4, 3)], ids=str
)
def test_stochastic_rounding_is_unbiased(element: FloatFormat) -> None:
    """400 points, 20,000 draws each: |z| < 5 for all of them fails by chance once in 4,000."""
    points, draws = 400, 20_000
    generator = torch.Generator().manual_seed(7)
    x = (torch.rand(points, generator=generator) * 2 - 1) * element.max
    noise = torch.rand(draws, points, generator=generator)
    rounded = round_stochastic(x.expand(draws, points).contiguous(), element, noise).double()
    low, high = rounded.amin(0), rounded.amax(0)
    probability = ((x.double() - low) / (high - low)).clamp(0, 1).nan_to_num(0)
    error = (high - low) * (probability * (1 - probability) / draws).sqrt()
    z = (rounded.mean(0) - x.double()) / error.clamp_min(1e-12)
    assert z.abs().max() < 5


@pytest.mark.parametrize(
    "element", [FloatFormat(1, 0), FloatFormat(2, 1), FloatFormat(3, 2)], ids=str
)
def test_stochastic_rounding_gives_one_of_the_two_neighbours(element: FloatFormat) -> None:
    """Up where the noise is below the distance to the lower one, for both signs."""
    grid = element.grid()
    for low, high in itertools.pairwise(grid):
        for share in (0.25, 0.5, 0.75):
            x = torch.tensor([low + share * (high - low)] * 4)
            noise = torch.tensor([0.0, share - 1e-4, share + 1e-4, 1 - 2**-24])
            expected = torch.tensor([high, high, low, low])
            assert torch.equal(round_stochastic(x, element, noise), expected)
            assert torch.equal(round_stochastic(-x, element, noise), -expected)


def microxcaling(x: float, mantissa: int, emin: int, largest: float, rounding: str) -> float:
    """Its element rounding as published (github.com/microsoft/microxcaling, elemwise_ops.py), in
    float32: exponent by log2, shift, round the magnitude, shift back, saturate.
    """
    one = np.float32(abs(x))
    exponent = max(float(np.floor(np.float32(np.log2(np.float64(one))))), emin)
    shifted = np.float32(one / 2.0**exponent * 2.0**mantissa)
    if rounding == "floor":
        rounded = np.floor(shifted)
    else:
        rounded = np.floor(np.float32(shifted + np.float32(0.5)))
        if rounding == "even" and (shifted - 0.5) % 2 == 0:
            rounded -= 1
    return float(np.copysign(min(rounded / 2.0**mantissa * 2.0**exponent, largest), x))


MICROXCALING = {"nearest_away": "nearest", "nearest_even": "even", "toward_zero": "floor"}


@pytest.mark.parametrize("rounding", MICROXCALING)
@pytest.mark.parametrize("name", ["E2M1", "E2M3", "E3M2", "E4M3-ocp", "E5M2-ocp"])
def test_microxcalings_roundings_are_ours_but_for_its_two_slips(name: str, rounding: str) -> None:
    """Where they differ x is the float below a power of two (its logarithm) or below a tie."""
    element = FloatFormat.parse(name)
    x = edge_inputs(element)
    x = x[(x != 0) & (x.abs() < 1e30)]
    ours = round_to(x, element, rounding)
    arguments = (element.mantissa, element.emin, element.max, MICROXCALING[rounding])
    theirs = torch.tensor([microxcaling(value, *arguments) for value in x.tolist()])
    following = x.nextafter(x * 2).abs()
    power = torch.frexp(following).mantissa == 0.5
    grid = torch.tensor(element.grid())
    tie = torch.isin(following, (grid[1:] + grid[:-1]) / 2)
    assert torch.equal(ours[~power & ~tie], theirs[~power & ~tie])


def test_microxcalings_slips_by_hand() -> None:
    """E2M1: 0.25 - 2^-26 is nearer to 0 than to 0.5, 8 - 2^-21 saturates at 6."""
    below_tie, below_power = 0.25 - 2**-26, 8 - 2**-21
    assert microxcaling(below_tie, 1, 0, 6.0, "nearest") == 0.5
    assert microxcaling(below_power, 1, 0, 6.0, "floor") == 4.0
    x, e2m1 = torch.tensor([below_tie, below_power]), FloatFormat(2, 1)
    assert round_to(x, e2m1, "nearest_away").tolist() == [0.0, 6.0]
    assert round_to(x, e2m1, "toward_zero").tolist() == [0.0, 6.0]
    assert round_to(torch.tensor([0.25, 2.5, 3.5]), e2m1, "nearest_away").tolist() == [0.5, 3, 4]


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_with_few_random_bits_the_mean_is_the_distance_rounded_to_them(bits: int) -> None:
    """All 2^bits draws and 4,097 values between 1 and 1.5 of E2M1, exactly; 2609.02846."""
    share = torch.linspace(0, 1, 4097, dtype=torch.float64)[:-1]
    x = (1 + share / 2).float()
    draws = 2**bits
    noise = (torch.arange(draws) + 0.5) / draws
    every = round_stochastic(
        x.expand(draws, -1).contiguous(),
        FloatFormat(2, 1),
        few_bits(noise[:, None].expand(draws, len(x)), bits),
    )
    up = (every == 1.5).sum(0)
    assert torch.equal(up.double(), (share * draws + 0.5).floor())
    paper = (share[None] + (2 * torch.arange(draws)[:, None] + 1) / (2 * draws) >= 1).sum(0)
    assert torch.equal(up, paper), "up iff f + (2r + 1) / 2^(bits+1) >= 1"
    bias = (every.double().mean(0) - x) / 0.5
    assert bias.abs().max() <= 2.0 ** -(bits + 1)


def test_few_bits_use_the_top_ones_and_refuse_other_counts() -> None:
    noise = torch.rand(1000, generator=torch.Generator().manual_seed(0))
    coarse = few_bits(noise, 8)
    assert (coarse - noise).abs().max() <= 2**-9 + 2**-24
    assert len(coarse.unique()) <= 256
    for bits in (0, 24):
        with pytest.raises(ValueError, match=f"bits={bits}: must be 1..23"):
            few_bits(noise, bits)


def test_the_ties_of_e2m1_and_the_share_of_ups_are_the_worked_ones() -> None:
    """2505.14669's thresholds; Q(1.2) is 1.5 with probability 0.4, so its mean is 1.2."""
    e2m1, ties = FloatFormat(2, 1), torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0])
    assert round_to(ties, e2m1, "nearest_even").tolist() == [0, 1, 1, 2, 2, 4, 4]
    assert round_to(ties, e2m1, "nearest_away").tolist() == [0.5, 1, 1.5, 2, 3, 4, 6]
    noise = (torch.arange(1000) + 0.5) / 1000
    ups = round_stochastic(torch.full((1000,), 1.2), e2m1, noise) == 1.5
    assert ups.sum() == 400
