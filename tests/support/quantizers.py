"""Every function that quantizes or rotates, by name."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from experiments.quant.block import quantize, round_elements
from experiments.quant.eden import ms_eden
from experiments.quant.formats import FloatFormat, Precision
from experiments.quant.hadamard import random_signs, rotate

SIGNS = random_signs(0, 64)


MXFP4, NVFP4, FP8, ROW = map(Precision.parse, ("mxfp4", "nvfp4", "fp8_e4m3", "E2M1-row-quest"))


E4M3 = FloatFormat(4, 3)


Call = Callable[[Tensor], Tensor]


ROUNDED: dict[str, Call] = {
    "mxfp4": lambda x: quantize(x, MXFP4),
    "nvfp4, keyed": lambda x: quantize(x, NVFP4, 3),
    "a tensor's scale": lambda x: quantize(x, FP8, 5),
    "no kernel": lambda x: quantize(x, ROW),
    "elements": lambda x: round_elements(x, E4M3),
    "ms_eden": lambda x: ms_eden(x, 7),
}


ROTATED: dict[str, Call] = {
    "rotated mxfp4": lambda x: quantize(x, MXFP4, hadamard=32, signs=SIGNS.to(x.device)),
    "rotated by 8": lambda x: quantize(x, NVFP4, 3, hadamard=8),
    "rotation": lambda x: rotate(x, 32, SIGNS.to(x.device)),
    "rotation by 8": lambda x: rotate(x, 8),
}


ALL = ROUNDED | ROTATED


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)))
