"""Matrix products of 16-bit numbers that come out in float32, and the switches that keep them so.

A 16-bit GEMM adds in float32 and rounds its sums once, when it stores them.  Here the sums are
returned before that, so that scales can be applied and the result rounded a single time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

WIDE_DEVICES = ("cuda",)
"""Devices whose GEMM takes 16-bit operands and stores float32.  On a CPU torch 2.13 has none: its
16-bit GEMM rounds what it stores, and without AVX-512 is ten times slower than float32's."""

_REDUCTIONS = (
    "allow_bf16_reduced_precision_reduction",
    "allow_fp16_reduced_precision_reduction",
)


def has_wide_product(device: torch.device) -> bool:
    """Whether `device` multiplies 16-bit numbers into float32 faster than it multiplies float32."""
    return device.type in WIDE_DEVICES


def wide_product(left: Tensor, right: Tensor) -> Tensor:
    """[rows, K] times [columns, K] transposed, both bfloat16 or both float16, in float32.

    The products of two such numbers are exact in float32, so this differs from a 16-bit GEMM only
    in the order of its additions, and in what it does not round.
    """
    if left.device.type == "cuda":
        return torch.mm(left, right.t(), out_dtype=torch.float32)
    return left.float() @ right.float().t()


@contextlib.contextmanager
def full_precision() -> Iterator[None]:
    """Make every product add in float32, and float32 mean float32; then restore the settings.

    By default cuBLAS may add parts of a bfloat16 or float16 product in 16 bits, and a program may
    have allowed TensorFloat32, or bfloat16 on a CPU, for products of float32.
    """
    matmul = torch.backends.cuda.matmul
    # Pairs: whether sums may be 16 bits, and whether a sum may be split among thread blocks.
    reductions = {
        name: (getattr(matmul, name), getattr(matmul, f"{name}_split_k")) for name in _REDUCTIONS
    }
    accumulation = matmul.allow_fp16_accumulation
    on_cpu = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    precisions = {each: each.fp32_precision for each in (matmul, on_cpu)}
    # torch keeps an older setting beside these, and refuses to multiply, or to report it, if the
    # two disagree: then only the newer was set, and the older is at its default.
    try:
        older = torch.get_float32_matmul_precision()
    except RuntimeError:
        older = "highest"
    try:
        for name in reductions:
            setattr(matmul, name, False)
        matmul.allow_fp16_accumulation = False
        torch.set_float32_matmul_precision("highest")
        yield
    finally:
        for name, pair in reductions.items():
            setattr(matmul, name, pair)
        matmul.allow_fp16_accumulation = accumulation
        torch.set_float32_matmul_precision(older)
        for each, precision in precisions.items():
            each.fp32_precision = precision
