"""Rounding, bit for bit against gfloat and ml_dtypes, and against the enumerated grid."""

import itertools

import gfloat
import gfloat.formats
import ml_dtypes
import numpy as np
import pytest
import torch

from experiments.quant.formats import FloatFormat
from experiments.quant.rounding import round_nearest_even, round_stochastic, round_to

SMALL = [
    FloatFormat(e, m) for e in range(5) for m in range(4) if e + m > 0 and not (e == 0 and m == 0)
]
NAMED = {
    "E2M1": gfloat.formats.format_info_ocp_e2m1,
    "E2M3": gfloat.formats.format_info_ocp_e2m3,
    "E3M2": gfloat.formats.format_info_ocp_e3m2,
    "E4M3-ocp": gfloat.formats.format_info_ocp_e4m3,
    "E5M2-ocp": gfloat.formats.format_info_ocp_e5m2,
}


def edge_inputs(element: FloatFormat) -> torch.Tensor:
    """Every grid point, every midpoint, both float32 neighbours of each, beyond max, both signs."""
    grid = np.array(element.grid(), dtype=np.float32)
    middles = (grid[1:] + grid[:-1]) / 2
    beyond = np.array([element.max * 1.01, element.max * 2, element.max * 1e3], dtype=np.float32)
    points = np.concatenate([grid, middles, beyond])
    up, down = np.nextafter(points, np.float32(np.inf)), np.nextafter(points, np.float32(-np.inf))
    every = np.concatenate([points, up, down])
    return torch.from_numpy(np.concatenate([every, -every]).astype(np.float32))


def enumerated_nearest_even(x: float, grid: list[float]) -> float:
    """By search: the nearest of the grid, of two the one with the even position."""
    distances = [abs(abs(x) - value) for value in grid]
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
def test_nearest_even_equals_gfloat_over_sixty_binades(name: str) -> None:
    element, info = FloatFormat.parse(name), NAMED[name]
    generator = np.random.default_rng(0)
    values = generator.standard_normal(20_000) * 2.0 ** generator.uniform(-30, 30, 20_000)
    x = np.concatenate([values.astype(np.float32), edge_inputs(element).numpy()])
    expected = gfloat.round_ndarray(info, x.astype(np.float64), gfloat.RoundMode.TiesToEven, True)
    rounded = round_nearest_even(torch.from_numpy(x), element).numpy()
    assert np.array_equal(rounded, expected.astype(np.float32))
    assert np.array_equal(np.signbit(rounded), np.signbit(expected))


def test_bfloat16_and_half_equal_ml_dtypes_and_numpy() -> None:
    """In range, where their overflow to infinity plays no part."""
    generator = np.random.default_rng(1)
    x = (generator.standard_normal(50_000) * 2.0 ** generator.uniform(-30, 14, 50_000)).astype(
        np.float32
    )
    x = x[np.abs(x) < 65000]
    half = round_nearest_even(torch.from_numpy(x), FloatFormat(5, 10, "ieee")).numpy()
    assert np.array_equal(half, x.astype(np.float16).astype(np.float32))
    brain = round_nearest_even(torch.from_numpy(x), FloatFormat(8, 7, "ieee")).numpy()
    assert np.array_equal(brain, x.astype(ml_dtypes.bfloat16).astype(np.float32))


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


def test_nan_stays_nan() -> None:
    x = torch.tensor([float("nan")])
    assert round_nearest_even(x, FloatFormat(2, 1)).isnan().all()
    assert round_stochastic(x, FloatFormat(2, 1), torch.zeros(1)).isnan().all()


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
