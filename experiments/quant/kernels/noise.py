"""Counter-based uniform noise: draw i of stream `key` is a function of (key, i) and nothing else.

The compiled and the GPU kernels compute the same bits in registers, so stochastic rounding needs
no array of noise; this is the definition they must equal.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_MASK = 2**64 - 1
_WORD = 0xFFFFFFFF
_WEYL = 0x9E3779B1
"""A prime near 2^32 / golden ratio: consecutive indices land far apart."""


def mix(key: int) -> int:
    """The finalizer of SplitMix64: neighbouring keys, of any size and sign, to unrelated ones."""
    key = (key + 0x9E3779B97F4A7C15) & _MASK
    key = ((key ^ (key >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    key = ((key ^ (key >> 27)) * 0x94D049BB133111EB) & _MASK
    return key ^ (key >> 31)


def uniform(key: int, shape: tuple[int, ...], device: torch.device | str = "cpu") -> Tensor:
    """Uniform draws from [0, 1), multiples of 2^-24.

    With (low, high) the two words of mix(key), all in 32-bit arithmetic,

        h = i * WEYL + low;   h = ((h ^ h >> 16) + high) * M1;   h = (h ^ h >> 15) * M2

    and the draw is the top 24 bits of h.  A stream repeats after 2^32 draws.

    Args:
        key: Any integer.
        shape: Fewer than 2^32 elements; i counts them in row-major order.
        device: Where to make them; the bits are the same everywhere.

    Returns:
        Float32.

    Source:
        Shifts and multipliers of SplitMix32 as the hash-prospector project improved them, without
        the last shift, which serves the lowest bits; both words of the key are ours.  Tested
        for balance, avalanche and correlation in tests/experiments/quant/test_kernels.py.

    >>> uniform(0, (2, 2))
    tensor([[0.3576, 0.4848],
            [0.4928, 0.6746]])
    """
    low, high = mix(key) & _WORD, mix(key) >> 32
    h = torch.arange(math.prod(shape), dtype=torch.int64, device=device)
    # int64 wraps modulo 2^64, so the low 32 bits of every product are right.
    h.mul_(_WEYL).add_(low).bitwise_and_(_WORD)
    h.bitwise_xor_(h >> 16).add_(high).mul_(0x21F0AAAD).bitwise_and_(_WORD)
    h.bitwise_xor_(h >> 15).mul_(0x735A2D97).bitwise_and_(_WORD)
    return h.bitwise_right_shift_(8).to(torch.float32).mul_(2.0**-24).reshape(shape)
