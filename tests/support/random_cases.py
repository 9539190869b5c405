"""Random tensors, precisions and noise, and the equality that counts for them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from experiments.quant.formats import ElementFormat, FloatFormat, IntFormat, Precision, ScaleFormat
from experiments.quant.kernels import cpu as kernels
from experiments.quant.modes import DIRECTIONS, Direction


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Equal, zeros with their signs; all NaNs are one."""
    canonical = [torch.where(x.isnan(), torch.nan, x.float()).view(torch.int32) for x in (a, b)]
    return torch.equal(*canonical)


def random_element(generator: np.random.Generator) -> ElementFormat:
    if generator.random() < 0.1:
        return IntFormat(int(generator.integers(2, 9)), symmetric=bool(generator.random() < 0.5))
    while True:
        exponent, mantissa = int(generator.integers(0, 9)), int(generator.integers(0, 11))
        specials = str(generator.choice(["none", "ocp", "ieee"]))
        if exponent + mantissa > 0 and not (specials == "ieee" and exponent < 2):
            return FloatFormat(exponent, mantissa, specials)


def random_values(generator: np.random.Generator, rows: int, columns: int) -> Tensor:
    """Gaussian over a few or over all binades, ties, zeros of both signs, subnormals, NaN, inf."""
    x = generator.standard_normal((rows, columns))
    kind = generator.integers(0, 6)
    if kind == 1:  # every exponent
        x = x * 2.0 ** generator.integers(-149, 127, x.shape)
    elif kind == 2:  # one far exponent for the tensor
        x = x * 2.0 ** int(generator.integers(-149, 127))
    elif kind == 3:  # few significant bits: ties are common
        x = np.round(x * 8) / 8 * 2.0 ** int(generator.integers(-20, 20))
    elif kind == 4:  # random bit patterns, NaN and infinities among them
        x = generator.integers(0, 2**32, x.shape, dtype=np.uint32).view(np.float32)
    elif kind == 5:  # largest magnitudes next to a power of two
        power = 2.0 ** int(generator.integers(-126, 127))
        x = np.nextafter(np.float32(power), np.float32(generator.choice([0, 1e38]))) * np.sign(x)
    with np.errstate(over="ignore"):
        x = np.asarray(x, dtype=np.float32)
    x[generator.random(x.shape) < 0.05] = 0.0
    x[generator.random(x.shape) < 0.05] = -0.0
    if generator.random() < 0.1:
        x[generator.random(x.shape) < 0.02] = generator.choice([np.nan, np.inf, -np.inf])
    if generator.random() < 0.1:
        x[: rows // 2 + 1] = 0.0
    return torch.from_numpy(x)


def random_precision(generator: np.random.Generator) -> Precision:
    element = random_element(generator)
    e2m1_only = [
        *(ScaleFormat.E8M0_4_3, ScaleFormat.E4M3_4_6),
        *(ScaleFormat.QUEST, ScaleFormat.QUEST_FLOOR),
    ]
    scales = [s for s in kernels.SCALES if s not in e2m1_only]
    if generator.random() < 0.3:
        element, scales = FloatFormat(2, 1), e2m1_only
    scale = scales[int(generator.integers(len(scales)))]
    granularity = str(generator.choice(["block", "tile", "row", "tensor"]))
    return Precision(element, granularity, int(generator.choice([1, 3, 16, 32, 48, 128])), scale)


def random_noise(
    generator: np.random.Generator, shape: torch.Size
) -> tuple[Tensor | int | None, Direction]:
    """Noise and rounding: none with one of DIRECTIONS, an array, or a key."""
    kind = generator.random()
    if kind < 0.2:
        return torch.from_numpy(generator.random(shape, dtype=np.float32)), Direction.NEAREST_EVEN
    if kind < 0.4:
        return int(generator.integers(2**40)), Direction.NEAREST_EVEN
    return None, Direction(generator.choice(DIRECTIONS))


def random_signs(generator: np.random.Generator, columns: int) -> Tensor | None:
    if generator.random() < 0.5:
        return None
    return torch.from_numpy(generator.choice(np.array([-1, 1], np.float32), columns))
