"""Block Walsh-Hadamard rotation along the summed axis of a GEMM.

Rotating both operands by the same orthonormal matrix leaves their product unchanged, and spreads
outliers over the block before quantization.  Random signs, shared by both operands, make the
rotation different at every use (RHT).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd import forward_ad

from experiments.quant.kernels import cpu
from experiments.quant.kernels.dense import of_one_process
from experiments.quant.kernels.noise import uniform


@of_one_process
def rotate(x: Tensor, size: int, signs: Tensor | None = None) -> Tensor:
    """Multiply every `size` consecutive values of the last axis by signs, then by H.

    Args:
        x: [..., K], K divisible by `size`.
        size: Block length, a power of two; 1 only applies the signs.
        signs: [K] of +-1, or None for all +1.

    Returns:
        The rotated values, [..., K].  `unrotate` with the same signs gives x back.  The gradient is
        the transposed rotation; with one to follow, the definition computes the same bits.

    Raises:
        ValueError: K is not a multiple of `size`, or `size` not a power of two.
    """
    check_rotation(x.shape, size)
    followed = torch.is_grad_enabled() and (
        x.requires_grad or (signs is not None and signs.requires_grad)
    )
    if not followed and forward_ad._current_level < 0 and cpu.rotates(x, size, signs):
        return cpu.rotate(x, size, signs)
    return rotate_plain(x, size, signs)


def check_rotation(shape: torch.Size, size: int) -> None:
    """Raise the errors of `rotate` for a tensor of this shape."""
    if size < 1 or size & (size - 1):
        raise ValueError(f"hadamard={size}: must be a power of two")
    if shape[-1] % size:
        raise ValueError(
            f"hadamard={size}: the summed axis of {tuple(shape)} is not a multiple of it"
        )


@of_one_process
def rotate_plain(x: Tensor, size: int, signs: Tensor | None = None) -> Tensor:
    """The definition: what `rotate` returns, to the bit; arguments as there.

    The order of the additions is part of it: for h = 1, 2, 4, ... values a and b at distance h
    become a + b and a - b; then all are multiplied by size^-1/2.
    """
    values = (x if signs is None else x * signs).reshape(-1, size)
    distance = 1
    while distance < size:
        pairs = values.reshape(-1, size // (2 * distance), 2, distance)
        a, b = pairs.unbind(-2)
        values = torch.stack((a + b, a - b), -2).reshape(-1, size)
        distance *= 2
    return values.mul(size**-0.5).reshape(x.shape)


@of_one_process
def unrotate(x: Tensor, size: int, signs: Tensor | None = None) -> Tensor:
    """The inverse of `rotate` with the same `size` and `signs`."""
    x = rotate(x, size)
    return x if signs is None else x * signs


def random_signs(key: int, size: int, device: torch.device | str = "cpu") -> Tensor:
    """Signs for a rotation, [size] of +-1, float32: -1 where draw i of `uniform(key)` is below 1/2.

    >>> random_signs(0, 4)
    tensor([-1., -1., -1.,  1.])
    """
    if cpu.makes_signs(device):
        return cpu.random_signs(key, size)
    return torch.where(uniform(key, (size,), device) < 0.5, -1.0, 1.0)


@dataclass(frozen=True)
class Rotation:
    """A rotation of matrices: in float32, or in float64 if they are.

    >>> x = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    >>> Rotation(2).across(x)
    tensor([[0.7071, 0.0000],
            [0.7071, 0.0000]])
    """

    size: int
    """Block length."""
    signs: Tensor | None = None

    def along(self, x: Tensor) -> Tensor:
        """[rows, columns] rotated along each row."""
        return rotate(_wide(x), self.size, self.signs)

    def undone_along(self, x: Tensor) -> Tensor:
        """The inverse of `along`."""
        return unrotate(_wide(x), self.size, self.signs)

    def across(self, x: Tensor) -> Tensor:
        """[rows, columns] rotated along each column."""
        return self.along(x.t().contiguous()).t()

    def undone_across(self, x: Tensor) -> Tensor:
        """The inverse of `across`."""
        return self.undone_along(x.t().contiguous()).t()


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype is torch.float64 else x.float()
