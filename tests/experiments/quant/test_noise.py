"""The counter-based noise against statistical tests that it must pass, each at a stated size.

Every test looks at independent deviates of known law; with a perfect generator it fails with the
probability that it names.  Keys come from `NoiseClock`, as training makes them.
"""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from experiments.quant.kernels.noise import mix, uniform
from experiments.quant.linear import STREAMS, NoiseClock

DRAWS = 2**16
WIDTHS = (96, 128, 192, 256, 320, 384, 512, 640, 768, 1024, 1536, 2048, 2816, 4096, 11008)
KEYS = [NoiseClock(seed).key(step, 3, 1) for seed in range(4) for step in range(8)]


def bits_of(draws: Tensor) -> Tensor:
    """The 24 bits of each draw as an integer."""
    return (draws.double() * 2**24).to(torch.int64)


def chi_square_z(cells: Tensor, number: int) -> float:
    """How far counts of `number` equal cells are from even; normal for many cells."""
    expected = cells.numel() / number
    counts = torch.bincount(cells.flatten(), minlength=number).double()
    chi2 = ((counts - expected) ** 2 / expected).sum().item()
    return (chi2 - (number - 1)) / (2.0 * (number - 1)) ** 0.5


def test_streams_keep_their_numbers() -> None:
    """A change here changes every stochastic run."""
    names = "P1 P2 P3 P4 P5 P6 output grad_input grad_weight weight exp_avg exp_avg_sq dropout"
    names += " query key probabilities value"
    assert list(STREAMS.items()) == list(zip(names.split(), range(1, 18), strict=True))


def test_the_definition_is_golden() -> None:
    """By Python's integers; a change here changes every stochastic run."""
    for key, index in itertools.product((0, 1, -5, 2**63, 12345678901234567890), (0, 1, 77, 5000)):
        low, high = mix(key) & 0xFFFFFFFF, mix(key) >> 32
        h = (index * 0x9E3779B1 + low) % 2**32
        h = ((h ^ h >> 16) + high) * 0x21F0AAAD % 2**32
        h = (h ^ h >> 15) * 0x735A2D97 % 2**32
        assert uniform(key, (5001,))[index].item() == (h >> 8) / 2**24
    assert mix(0) == 0xE220A8397B1DCDAF, "the first output of SplitMix64 from state 0"


def test_the_state_is_a_bijection_of_the_counter_so_all_draws_are_equally_frequent() -> None:
    """Each step has an inverse, so over 2^32 counters every draw comes 256 times: no two of the
    states below are equal, and the steps undone give the counters back.
    """
    low, high = mix(7) & 0xFFFFFFFF, mix(7) >> 32
    generator = torch.Generator().manual_seed(0)
    index = torch.randint(2**32, (DRAWS,), generator=generator).tolist()
    for i in index[:2000]:
        h = (i * 0x9E3779B1 + low) % 2**32
        h = ((h ^ h >> 16) + high) * 0x21F0AAAD % 2**32
        h = (h ^ h >> 15) * 0x735A2D97 % 2**32
        h = h * pow(0x735A2D97, -1, 2**32) % 2**32
        h = h ^ (h >> 15) ^ (h >> 30)
        h = (h * pow(0x21F0AAAD, -1, 2**32) - high) % 2**32
        h = h ^ (h >> 16)
        assert (h - low) * pow(0x9E3779B1, -1, 2**32) % 2**32 == i


def test_every_bit_is_balanced() -> None:
    """24 bits x 32 keys, 2^16 draws each: 768 normal z, limit 5: false alarm 5e-4."""
    for key in KEYS:
        bits = bits_of(uniform(key, (DRAWS,)))
        ones = torch.stack([(bits >> b & 1).sum() for b in range(24)])
        assert ((ones - DRAWS / 2).abs() / (DRAWS / 4) ** 0.5).max() < 5, key


@pytest.mark.parametrize("byte", [0, 1, 2])
def test_every_byte_is_even(byte: int) -> None:
    """Chi-square of 256 values, 32 keys, 2^16 draws: z beyond 6.5 has probability 2e-8 (the upper
    tail of chi-square 255), both sides and all keys 1e-6.
    """
    for key in KEYS:
        cells = bits_of(uniform(key, (DRAWS,))) >> (8 * byte) & 255
        assert abs(chi_square_z(cells, 256)) < 6.5, key


@pytest.mark.parametrize(("together", "bits"), [(2, 8), (4, 4), (8, 2), (16, 1)])
@pytest.mark.parametrize("shift", [0, 8])
def test_neighbouring_draws_fill_the_cube_evenly(together: int, bits: int, shift: int) -> None:
    """The serial test: top bits (and bits 8 lower) of 2, 4, 8, 16 consecutive draws in 65,536
    cells, 2^20 tuples; chi-square with 65,535 degrees is normal: limit 5: 5e-6 over the eight.
    """
    draws = bits_of(uniform(KEYS[5], (2**20 * together,))).reshape(-1, together)
    top = draws >> (24 - bits - shift) & (2**bits - 1)
    cells = (top << (bits * torch.arange(together))).sum(-1)
    assert abs(chi_square_z(cells, 65_536)) < 5


def correlation(a: Tensor, b: Tensor) -> float:
    """Correlation of draws from [0, 1), as a standard normal deviate."""
    return float(((a.double() - 0.5) * (b.double() - 0.5)).sum() * 12 / a.numel() ** 0.5)


def test_draws_at_any_usual_distance_are_uncorrelated() -> None:
    """Neighbours up to 64 apart and rows of usual widths apart, 16 keys, 2^16 draws: 1,264 z,
    limit 5: 7e-4.
    """
    for key in KEYS[:16]:
        draws = uniform(key, (2 * DRAWS,))
        for lag in (*range(1, 65), *WIDTHS):
            assert abs(correlation(draws[:DRAWS], draws[lag : lag + DRAWS])) < 5, (key, lag)


@pytest.mark.parametrize("lag", [0, 1])
def test_steps_layers_operands_and_seeds_are_uncorrelated(lag: int) -> None:
    """Every pair of 576 streams (2 seeds, 8 steps, 6 layers, 6 operands), 2^14 draws, at equal
    counters and at neighbouring ones: 3.3e5 z at most, limit 6.5: 3e-5.
    """
    draws = torch.stack(
        [
            uniform(NoiseClock(seed).key(step, layer, operand), (2**14 + 1,)) - 0.5
            for seed in (0, 1)
            for step in range(8)
            for layer in range(6)
            for operand in range(1, 7)
        ]
    )
    z = draws[:, lag : 2**14 + lag] @ draws[:, : 2**14].t() * (12 / 2**7)
    if lag == 0:
        z.fill_diagonal_(0.0)
    assert z.abs().max() < 6.5
    # And as a whole their spread is that of independent ones, to 5 / sqrt(2 x 576^2 / 2).
    spread = z.square().sum().item() / (576 * (575 if lag == 0 else 576))
    assert spread == pytest.approx(1.0, abs=5 * (2 / (576 * 575 / 2)) ** 0.5)


def test_flipping_a_bit_of_the_counter_flips_half_of_the_draw() -> None:
    """Avalanche: 20 counter bits x 24 bits, 2^16 draws, 2 keys: 960 z, limit 5: 6e-4."""
    index = torch.randperm(2**20, generator=torch.Generator().manual_seed(4))[:DRAWS]
    for key in KEYS[:2]:
        draws = bits_of(uniform(key, (2**20,)))
        for bit in range(20):
            flipped = draws[index] ^ draws[index ^ (1 << bit)]
            ones = torch.stack([(flipped >> b & 1).sum() for b in range(24)])
            assert ((ones - DRAWS / 2).abs() / (DRAWS / 4) ** 0.5).max() < 5, bit


def test_flipping_a_bit_of_the_key_flips_half_of_the_draw() -> None:
    """64 key bits x 24 bits, 2^14 draws, 2 keys: 3,072 z, limit 5.5: 1.2e-4."""
    for key in KEYS[:2]:
        draws = bits_of(uniform(key, (2**14,)))
        for bit in range(64):
            flipped = draws ^ bits_of(uniform(key ^ (1 << bit), (2**14,)))
            ones = torch.stack([(flipped >> b & 1).sum() for b in range(24)])
            assert ((ones - 2**13).abs() / 2**6).max() < 5.5, bit


def test_birthday_spacings() -> None:
    """Marsaglia's test: of the sorted spacings of 512 draws in a year of 2^24 days the number that
    repeat is Poisson with mean 512^3 / 2^26 = 2; over 2,000 samples of consecutive draws the total
    is 4,000 with deviation 63: limit 5: 6e-7.
    """
    days = bits_of(uniform(KEYS[9], (2000 * 512,))).reshape(2000, 512).sort(-1).values
    spacings = (days[:, 1:] - days[:, :-1]).sort(-1).values
    repeats = (spacings[:, 1:] == spacings[:, :-1]).sum().item()
    assert abs(repeats - 4000) / 4000**0.5 < 5


def test_runs_up_and_gaps_between_small_draws_are_those_of_chance() -> None:
    """Turning points of n = 2^20 draws: 2 (n - 2) / 3 with variance (16 n - 29) / 90; gaps between
    draws below 1/16 are geometric: chi-square of 64 lengths.  Limit 5 (6.5 for chi-square): 1e-6.
    """
    n = 2**20
    draws = uniform(KEYS[11], (n,))
    rising = draws[1:] > draws[:-1]
    turns = (rising[1:] != rising[:-1]).sum().item()
    assert abs(turns - 2 * (n - 2) / 3) / ((16 * n - 29) / 90) ** 0.5 < 5
    small = (draws < 1 / 16).nonzero().flatten()
    gaps = (small[1:] - small[:-1] - 1).clamp(max=63)
    p = (15 / 16) ** torch.arange(64, dtype=torch.float64) / 16
    p[63] = (15 / 16) ** 63
    expected = p * gaps.numel()
    counts = torch.bincount(gaps, minlength=64)
    chi2 = ((counts - expected) ** 2 / expected).sum().item()
    assert abs(chi2 - 63) / 126**0.5 < 6.5
