"""The rotation is orthonormal, exactly undone, and invisible in a product."""

import pytest
import torch

from experiments.quant.hadamard import random_signs, rotate, rotate_plain, unrotate
from experiments.quant.kernels import cpu


@pytest.mark.parametrize("size", [1, 2, 16, 32, 128])
def test_rotation_is_the_sylvester_matrix(size: int) -> None:
    """Entry (i, j) is (-1)^popcount(i & j) / sqrt(size); rotating the identity gives it."""
    signs = [[(-1.0) ** (i & j).bit_count() for j in range(size)] for i in range(size)]
    matrix = torch.tensor(signs) * size**-0.5
    for turn in (rotate, rotate_plain):
        assert torch.equal(turn(torch.eye(size), size), matrix)
    assert torch.allclose(matrix @ matrix, torch.eye(size), atol=1e-6)


@pytest.mark.parametrize("size", [8, 32, 128])
def test_every_backend_adds_in_the_same_order(size: int) -> None:
    generator = torch.Generator().manual_seed(size)
    x = torch.randn(64, 256, generator=generator)
    signs = torch.randint(2, (256,), generator=generator) * 2.0 - 1.0
    assert torch.equal(rotate(x, size, signs), rotate_plain(x, size, signs))
    assert torch.equal(rotate(x.t().contiguous().t(), size), rotate_plain(x, size))


def test_every_backend_draws_the_same_signs(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = [random_signs(key, 5000) for key in (0, -3, 2**70)]
    monkeypatch.setattr(cpu, "_library", None)
    assert all(map(torch.equal, drawn, [random_signs(key, 5000) for key in (0, -3, 2**70)]))
    # Of 5,000 fair signs the mean lies beyond 5 / sqrt(5,000) once in 1.7 million times.
    assert all(signs.mean().abs() < 5 / 5000**0.5 for signs in drawn)


def test_rotating_both_operands_leaves_the_product() -> None:
    """Float32 sums of 128 terms of size 1: 128 * 2^-24 each, times a margin of 8."""
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(8, 128, generator=generator), torch.randn(6, 128, generator=generator)
    signs = torch.randint(2, (128,), generator=generator) * 2.0 - 1
    product = rotate(a, 32, signs) @ rotate(b, 32, signs).t()
    assert torch.allclose(product, a @ b.t(), atol=8 * 128 * 2**-24)


def test_unrotate_is_the_inverse() -> None:
    x = torch.randn(4, 64, generator=torch.Generator().manual_seed(1))
    signs = torch.ones(64)
    signs[::3] = -1
    assert torch.allclose(unrotate(rotate(x, 16, signs), 16, signs), x, atol=1e-6)


def test_an_outlier_is_spread_over_its_block() -> None:
    x = torch.zeros(1, 64)
    x[0, 40] = 1
    rotated = rotate(x, 32)
    assert torch.equal(rotated[0, :32], torch.zeros(32))
    assert torch.allclose(rotated[0, 32:].abs(), torch.full((32,), 32**-0.5))


def test_wrong_sizes_are_named() -> None:
    with pytest.raises(ValueError, match="hadamard=24: must be a power of two"):
        rotate(torch.ones(2, 48), 24)
    with pytest.raises(ValueError, match="hadamard=32: .* not a multiple"):
        rotate(torch.ones(2, 48), 32)
