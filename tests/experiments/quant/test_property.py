"""`quantize`, whoever computes it, is the plain definition: 10,000 cases, the same every time.

LOWBIT_CASES=1000000 python -m pytest tests/experiments/quant/test_property.py      new ones
"""

from __future__ import annotations

import os

import numpy as np
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from experiments.quant.block import quantize, quantize_plain
from experiments.quant.formats import (
    ElementFormat,
    FloatFormat,
    FormatError,
    IntFormat,
    Precision,
    ScaleFormat,
)
from experiments.quant.kernels import cpu
from experiments.quant.modes import DIRECTIONS
from experiments.quant.rounding import few_bits
from tests.support.random_cases import same_bits

CASES = int(os.environ.get("LOWBIT_CASES", "10000"))
KINDS = (
    "normal",
    "every exponent",
    "one far exponent",
    "few significant bits",
    "bit patterns",
    "largest next to a power of two",
    "zeros",
)


@st.composite
def elements(draw: st.DrawFn) -> ElementFormat:
    if draw(st.integers(0, 5)) == 5:
        return IntFormat(draw(st.integers(2, 8)), draw(st.booleans()))
    exponent, mantissa = draw(st.integers(0, 8)), draw(st.integers(0, 10))
    specials = draw(st.sampled_from(["none", "ocp", "ieee"] if exponent > 1 else ["none", "ocp"]))
    return FloatFormat(exponent, max(mantissa, exponent == 0), specials)


@st.composite
def precisions(draw: st.DrawFn) -> Precision:
    # What the compiled quantizer knows comes more often: elsewhere plain meets plain.
    scale = draw(st.sampled_from([*ScaleFormat, *cpu.SCALES]))
    granularity = draw(st.sampled_from([*Precision.GRANULARITIES, "block", "row", "tensor"]))
    sizes = [1, 2, 16] if granularity == "tile" else [1, 3, 16, 32, 48, 128]
    size = draw(st.sampled_from(sizes))
    try:
        return Precision(draw(elements()), granularity, size, scale)
    except FormatError:  # a rule that is defined for E2M1 only
        return Precision(FloatFormat(2, 1), granularity, size, scale)


def values(kind: str, seed: int, shape: tuple[int, int]) -> Tensor:
    """Hostile float32: ties, subnormals, both zeros, every exponent, NaN and infinities."""
    generator = np.random.default_rng(seed)
    x = generator.standard_normal(shape)
    if kind == "every exponent":
        x = x * 2.0 ** generator.integers(-149, 127, shape)
    elif kind == "one far exponent":
        x = x * 2.0 ** int(generator.integers(-149, 127))
    elif kind == "few significant bits":
        x = np.round(x * 8) / 8 * 2.0 ** int(generator.integers(-20, 20))
    elif kind == "bit patterns":
        x = generator.integers(0, 2**32, shape, dtype=np.uint32).view(np.float32)
    elif kind == "largest next to a power of two":
        power = np.float32(2.0 ** int(generator.integers(-126, 127)))
        x = np.nextafter(power, np.float32(generator.choice([0, 1e38]))) * np.sign(x)
    elif kind == "zeros":
        x[: shape[0] // 2 + 1] = 0.0
    with np.errstate(over="ignore", invalid="ignore"):
        x = np.asarray(x, dtype=np.float32)
    x[generator.random(shape) < 0.05] = generator.choice([0.0, -0.0])
    if generator.random() < 0.1:
        x[generator.random(shape) < 0.02] = generator.choice([np.nan, np.inf, -np.inf])
    return torch.from_numpy(x)


@settings(
    max_examples=CASES,
    derandomize=CASES == 10_000,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
@given(
    precision=precisions(),
    rows=st.integers(1, 4),
    blocks=st.integers(1, 4),
    kind=st.sampled_from(KINDS),
    seed=st.integers(0, 2**32),
    rounding=st.sampled_from([*DIRECTIONS, "noise", "few bits", "key"]),
    dtype=st.sampled_from([torch.float32] * 4 + [torch.bfloat16, torch.float16]),
    transposed=st.booleans(),
)
def test_fast_and_plain_never_differ(
    precision: Precision,
    rows: int,
    blocks: int,
    kind: str,
    seed: int,
    rounding: str,
    dtype: torch.dtype,
    transposed: bool,
) -> None:
    """Formats x scales x granularities x roundings x layouts x dtypes x hostile values."""
    columns = blocks * (precision.block_size if precision.granularity in ("block", "tile") else 13)
    if precision.granularity == "tile":
        rows *= precision.block_size
    x = values(kind, seed, (rows, columns)).to(dtype)
    noise: Tensor | int | None = None
    if rounding in ("noise", "few bits"):
        noise = torch.rand(x.shape, generator=torch.Generator().manual_seed(seed))
        noise = few_bits(noise, 8) if rounding == "few bits" else noise
    elif rounding == "key":
        noise = seed
    mode = rounding if rounding in DIRECTIONS else "nearest_even"
    expected = quantize_plain(x, precision, noise, mode)
    if transposed:
        x = x.t().contiguous().t()
    assert same_bits(quantize(x, precision, noise, mode), expected)
