"""Block Walsh-Hadamard rotation along the summed axis of a GEMM.

Rotating both operands by the same orthonormal matrix leaves their product unchanged, and spreads
outliers over the block before quantization.  Random signs, shared by both operands, make the
rotation different at every use (RHT).
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor


@lru_cache(maxsize=32)
def hadamard_matrix(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The orthonormal Sylvester matrix, [size, size], symmetric and its own inverse.

    Raises:
        ValueError: `size` is not a power of two.
    """
    if size < 1 or size & (size - 1):
        raise ValueError(f"hadamard={size}: must be a power of two")
    matrix: Tensor = torch.ones(1, 1, dtype=torch.float64)
    pair = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
    while matrix.shape[0] < size:
        matrix = torch.kron(pair, matrix)
    return matrix.div(size**0.5).to(dtype=dtype, device=device)


def rotate(x: Tensor, size: int, signs: Tensor | None = None) -> Tensor:
    """Multiply every `size` consecutive values of the last axis by signs, then by H.

    Args:
        x: [..., K], K divisible by `size`.
        size: Block length, a power of two; 1 only applies the signs.
        signs: [K] of +-1, or None for all +1.

    Returns:
        The rotated values, [..., K].  `unrotate` with the same signs gives x back.

    Raises:
        ValueError: K is not a multiple of `size`, or `size` not a power of two.
    """
    if x.shape[-1] % size:
        raise ValueError(
            f"hadamard={size}: the summed axis of {tuple(x.shape)} is no multiple of it"
        )
    if signs is not None:
        x = x * signs
    return (x.reshape(-1, size) @ hadamard_matrix(size, x.dtype, x.device)).reshape(x.shape)


def unrotate(x: Tensor, size: int, signs: Tensor | None = None) -> Tensor:
    """The inverse of `rotate` with the same `size` and `signs`."""
    x = rotate(x, size)
    return x if signs is None else x * signs
