"""The Triton kernels against the plain definition, bit for bit.

On a GPU as they are; elsewhere in Triton's interpreter, which is a process of its own, for Triton
asks at its import whether to interpret.  What the interpreter cannot tell (whether the compiler
keeps each rounding) is read off the compiled code, for which no GPU is needed.
"""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from experiments.quant.block import backend, quantize, quantize_plain, round_elements_plain
from experiments.quant.formats import ElementFormat, Precision, ScaleFormat, parse_element
from experiments.quant.kernels import facts, gpu
from experiments.quant.modes import DIRECTIONS
from tests.support.places import ROOT
from tests.support.random_cases import (
    random_noise,
    random_precision,
    random_signs,
    random_values,
    same_bits,
)

HAS_GPU = torch.cuda.is_available()
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cuda" if HAS_GPU and not INTERPRETED else "cpu"
CASES = int(os.environ.get("LOWBIT_GPU_CASES", "100"))

pytestmark = [
    pytest.mark.skipif(gpu.NAME is None, reason="Triton is not installed"),
    # NumPy, which the interpreter computes with, remarks on NaN, infinities and overflow.
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]
executes = pytest.mark.skipif(
    not (HAS_GPU or INTERPRETED), reason="no GPU: runs within the test of the interpreter"
)


@pytest.mark.skipif(HAS_GPU or INTERPRETED, reason="the other tests run as they are")
def test_the_kernels_equal_the_plain_definition_in_tritons_interpreter() -> None:
    """The other tests of this file, interpreted."""
    command = [sys.executable, "-m", "pytest", "-q", "--noconftest"]
    inner = subprocess.run(
        [*command, "-k", "not interpreter and not compile", __file__],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert inner.returncode == 0, inner.stdout + inner.stderr
    passed = re.search(r"(\d+) passed", inner.stdout)
    assert passed, inner.stdout
    assert int(passed[1]) > 10


def on_device(
    x: Tensor,
    precision: Precision,
    noise: Tensor | int | None = None,
    rounding: str = "nearest_even",
    hadamard: int = 0,
    signs: Tensor | None = None,
) -> Tensor:
    """`gpu.quantize` of these CPU tensors."""
    noise = noise.to(DEVICE) if isinstance(noise, Tensor) else noise
    signs = None if signs is None else signs.to(DEVICE)
    return gpu.quantize(x.to(DEVICE), precision, noise, rounding, hadamard, signs).cpu()


@executes
def test_every_precision_and_rounding_equals_the_plain_definition() -> None:
    """Random formats x scales x granularities x roundings x rotations x dtypes x hostile values."""
    generator = np.random.default_rng(2031)
    tried = 0
    while tried < CASES:
        precision, size = random_precision(generator), int(generator.choice([0, 0, 2, 16, 32, 128]))
        rows, columns = (int(n) for n in generator.integers(1, 6, 2))
        if precision.granularity in ("block", "tile"):
            columns *= precision.block_size
        if precision.granularity == "tile":
            rows *= precision.block_size
        columns = math.lcm(columns, size or 1)
        x = random_values(generator, rows, columns)
        x = x.to([torch.float32, torch.bfloat16, torch.float16][tried % 3])
        if not gpu.knows(precision, size):
            continue
        noise, rounding = random_noise(generator, x.shape)
        signs = random_signs(generator, columns)
        expected = quantize_plain(x, precision, noise, rounding, size, signs)
        if generator.random() < 0.4:
            x = x.t().contiguous().t()
        got = on_device(x, precision, noise, rounding, size, signs)
        assert same_bits(got, expected), f"case {tried}: {precision} {rounding} H{size} {x.dtype}"
        tried += 1


@executes
@pytest.mark.parametrize(
    ("name", "shape", "hadamard"),
    [
        ("fp8_e4m3", (3, 5, 1344), 0),  # a tensor, not a multiple of what a program takes
        ("E4M3-tensor-e4m3", (20, 1024), 128),
        ("int8_row", (2, 17000), 0),  # more than a program holds
        ("E2M1-row-e4m3", (2, 16512), 64),
        ("E3M2-tile136", (136, 272), 0),
        ("nvfp4", (3, 16), 0),
        ("nvfp4", (40, 256), 16),
        ("nvfp4_4_6", (40, 256), 32),
    ],
)
def test_groups_in_pieces_and_many_programs_equal_the_plain_definition(
    name: str, shape: tuple[int, ...], hadamard: int
) -> None:
    """Keyed noise, whose index must follow; one group is all zeros, one far above the others."""
    generator = torch.Generator().manual_seed(11)
    x = torch.randn(shape, generator=generator)
    if len(x) > 1:
        x[0], x[1] = 0.0, x[1] * 1000
    signs = torch.randint(0, 2, shape[-1:], generator=generator) * 2.0 - 1.0
    precision = Precision.parse(name)
    for noise in (None, 2**62 + 7):
        expected = quantize_plain(x, precision, noise, hadamard=hadamard, signs=signs)
        got = on_device(x, precision, noise, hadamard=hadamard, signs=signs)
        assert same_bits(got, expected)


def edges(element: ElementFormat) -> Tensor:
    """Every number of a format, every midpoint, float32's neighbours of each, and the specials."""
    grid = torch.tensor(element.grid(), dtype=torch.float64)
    points = torch.cat((grid, (grid[1:] + grid[:-1]) / 2, grid[-1:] * 1.25, grid[1:2] / 4)).float()
    points = points[points.isfinite()]
    infinity = torch.tensor(math.inf)
    near = torch.cat((points, points.nextafter(infinity), points.nextafter(-infinity)))
    special = torch.tensor([math.nan, math.inf, 2.0**-149, 2.0**-126, 3.4e38, 2.0**-140])
    return torch.cat((near, -near, special, -special))


@executes
@pytest.mark.parametrize("rounding", [*DIRECTIONS, "noise"])
def test_every_number_midpoint_and_neighbour_of_small_formats_is_rounded_as_defined(
    rounding: str,
) -> None:
    """Without a scale, so that the values reach the rounding as they are."""
    names = "E2M1 E3M2 E2M3 E4M3 E4M3-ocp E4M3-ieee E5M2-ocp E3M0 E1M2 E0M3 E7M0 E8M0 E8M1"
    for name in [*names.split(), "INT2", "INT4", "INT8-asymmetric"]:
        element = parse_element(name)
        x = edges(element)
        noise = torch.linspace(0, 0.999, len(x)) if rounding == "noise" else None
        mode = "nearest_even" if noise is not None else rounding
        expected = round_elements_plain(x, element, noise, mode)
        draws = None if noise is None else noise.to(DEVICE)
        got = gpu.round_elements(x.to(DEVICE), element, draws, mode).cpu()
        different = (got.view(torch.int32) != expected.view(torch.int32)) & ~expected.isnan()
        assert not different.any(), f"{name}: {x[different]}"
        assert torch.equal(got.isnan(), expected.isnan()), name


@executes
def test_no_values_stay_none_and_one_needs_no_axis() -> None:
    assert on_device(torch.empty(0, 32), Precision.parse("nvfp4")).shape == (0, 32)
    one = gpu.round_elements(torch.tensor(2.4, device=DEVICE), parse_element("E2M1"))
    assert one.shape == ()
    assert one.item() == 2.0


@executes
def test_what_no_kernel_knows_is_said_so() -> None:
    e2m1 = parse_element("E2M1")
    known = [scale for scale in ScaleFormat if gpu.knows(Precision(e2m1, "block", 32, scale))]
    assert tuple(known) == gpu.SCALES
    assert not gpu.knows(Precision(e2m1, "row", scale=ScaleFormat.E4M3_4_6))
    assert not gpu.knows(Precision(e2m1, "block", 48), 32)
    assert not gpu.supports(torch.empty(0), Precision(e2m1))


@pytest.mark.skipif(DEVICE == "cpu", reason="no GPU")
def test_a_tensor_on_a_gpu_goes_to_the_kernels() -> None:
    x = torch.randn(64, 4096, generator=torch.Generator().manual_seed(3))
    for name in ("mxfp4", "nvfp4", "fp8_e4m3", "int8_row"):
        precision = Precision.parse(name)
        assert backend(precision, "cuda") == "triton"
        got = quantize(x.cuda(), precision, 5, hadamard=32)
        assert same_bits(got.cpu(), quantize_plain(x, precision, 5, hadamard=32))


@pytest.mark.skipif(INTERPRETED, reason="interpreted kernels are not compiled")
@pytest.mark.parametrize(
    ("name", "rounding", "stages"),
    [
        ("nvfp4", "key", 4),
        ("nvfp4_4_6", "nearest_even", 0),
        ("E3M0-row-e8m0_nearest", "up", 0),
        ("E8M3-row", "noise", 0),
    ],
)
def test_compiled_code_neither_fuses_nor_flushes_nor_approximates(
    name: str, rounding: str, stages: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every float32 operation in the PTX says .rn, none .ftz, .approx or .full, none is an fma.

    PTX ISA, 9.7.3: without a rounding modifier mul and add may be fused later on; with .rn not.
    """
    from triton import compile as compiled
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from experiments.quant.kernels import triton_quantize

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    precision = Precision.parse(name)
    rule, grid, stored = facts.constants(precision.element, precision.scale)
    pointers = dict.fromkeys(["x", "out", "noise", "signs"], "*fp32") | dict.fromkeys(
        ["tensor_amax"], "*i32"
    )
    numbers = dict.fromkeys(["key_low", "key_high", "groups", "size", "columns"], "i32")
    constants = {
        **{"amaxes": None, "RULE": rule, "GRID": grid, "STORED": stored, "ROUNDING": rounding},
        **{"TILE": 0, "STAGES": stages, "GROUPS": 32, "WIDTH": 16, "HALVINGS": 4},
    }
    types = {**pointers, **numbers, "factor": "fp32", **dict.fromkeys(constants, "constexpr")}
    kernel = compiled(
        ASTSource(triton_quantize.quantize, types, constants),
        target=GPUTarget("cuda", 90, 32),
        options={"enable_fp_fusion": False, "num_warps": 1},
    )
    operations = set(
        re.findall(r"^\s*(?:@\S+ )?([a-z]\S*\.f32)\b", kernel.asm["ptx"], re.MULTILINE)
    )
    arithmetic = {o for o in operations if o.split(".")[0] in ("add", "sub", "mul", "div", "fma")}
    assert arithmetic
    assert arithmetic <= {"add.rn.f32", "sub.rn.f32", "mul.rn.f32", "div.rn.f32"}
    assert not [o for o in operations if re.search(r"ftz|approx|full", o)]
