"""The Triton way to quantize on a GPU: the same bits as `experiments.quant.block`, in one pass.

This module decides what is launched, and with which constants; the kernels are in
triton_quantize.py, imported at the first launch, because importing Triton takes half a second.
Without Triton `NAME` is None and nothing here can be used; the dispatcher decides which backend
runs and records it.
"""

from __future__ import annotations

import math
from importlib.util import find_spec

import torch
from torch import Tensor

from experiments.quant.formats import ElementFormat, Precision, ScaleFormat
from experiments.quant.kernels import facts
from experiments.quant.kernels.dense import on_device, tracing_nothing
from experiments.quant.modes import Direction

NAME: str | None = "triton" if find_spec("triton") else None
"""The name of this backend in a run record; None if Triton is not installed."""
SCALES = (
    ScaleFormat.FP32,
    ScaleFormat.E8M0,
    ScaleFormat.E8M0_CEIL,
    ScaleFormat.E8M0_NEAREST,
    ScaleFormat.E8M0_4_3,
    ScaleFormat.E4M3,
    ScaleFormat.E4M3_4_6,
    ScaleFormat.E4M3_16_17,
    ScaleFormat.UE5M3,
)
"""The rules it knows."""
ROTATIONS = (2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
_VALUES = 4096
"""Values that a program takes, unless one group has more."""
_LARGEST_GROUP = 16384
"""Values that a program holds in registers: 16 in each of 1024 threads."""
_VALUES_PER_WARP = 512


def knows(precision: Precision, hadamard: int = 0) -> bool:
    """Whether there is a kernel for `precision` after this rotation."""
    if not facts.takes(precision, hadamard, SCALES, ROTATIONS):
        return False
    # To choose between two scales a program must see all of the group.
    whole = precision.in_blocks and precision.sharing(1, 1) <= _LARGEST_GROUP
    return precision.scale is not ScaleFormat.E4M3_4_6 or whole


def supports(x: Tensor, precision: Precision, hadamard: int = 0) -> bool:
    """Whether `quantize` takes `x` and does what `precision` says, after this rotation."""
    return rounds(x) and knows(precision, hadamard)


def rounds(x: Tensor) -> bool:
    """Whether `round_elements` takes `x`."""
    return (
        NAME is not None
        and x.device.type == "cuda"
        and x.numel() < facts.TOO_MANY
        and tracing_nothing()
        and on_device(x)
    )


def quantize(
    x: Tensor,
    precision: Precision,
    noise: Tensor | int | None = None,
    rounding: Direction = Direction.NEAREST_EVEN,
    hadamard: int = 0,
    signs: Tensor | None = None,
) -> Tensor:
    """`experiments.quant.block.quantize`, bit for bit; only where `supports` says so.

    Args:
        x: As there; where Triton interprets its kernels, on the CPU.
        precision: As there.
        noise: As there; of a key `noise.uniform(key, x.shape)` is not made.
        rounding: As there.
        hadamard: As there.
        signs: As there.
    """
    size = precision.sharing(math.prod(x.shape[:-1]), x.shape[-1])
    constants = facts.constants(precision.element, precision.scale)
    return _launch(x, constants, size, precision.tile, noise, rounding, hadamard, signs)


def round_elements(
    x: Tensor,
    element: ElementFormat,
    noise: Tensor | int | None = None,
    rounding: Direction = Direction.NEAREST_EVEN,
) -> Tensor:
    """`experiments.quant.block.round_elements`, bit for bit; arguments as for `quantize`."""
    return _launch(x, facts.constants(element, None), x.numel(), 0, noise, rounding, 0, None)


def _launch(
    x: Tensor,
    constants: tuple[facts.Rule, facts.Grid, facts.Grid],
    size: int,
    tile: int,
    noise: Tensor | int | None,
    rounding: Direction,
    hadamard: int,
    signs: Tensor | None,
) -> Tensor:
    """Every `size` values share a scale, those of a tile if `tile` is not 0."""
    from experiments.quant.kernels import triton_quantize as kernels

    out, n = torch.empty(x.shape, dtype=x.dtype, device=x.device), x.numel()
    if n == 0:
        return out
    rule, grid, stored = constants
    mode, draws, key = facts.mode(noise, rounding)
    values, results = x.contiguous(), out
    if x.dtype is torch.bfloat16:
        values, results = values.view(torch.int16), results.view(torch.int16)
    columns = x.shape[-1] if x.ndim else 1
    signs = None if signs is None else signs.float().contiguous()
    factor, stages = (hadamard**-0.5, hadamard.bit_length() - 1) if hadamard else (1.0, 0)

    def largest(groups: int, size: int, tile: int) -> Tensor:
        amaxes = torch.zeros(groups, dtype=torch.int32, device=x.device)
        kernels.largest[(groups * -(-size // _VALUES),)](
            *(values, amaxes, signs, groups, size, columns, factor),
            *(tile, stages, _VALUES),
            num_warps=_VALUES // _VALUES_PER_WARP,
            enable_fp_fusion=False,
        )
        return amaxes

    groups = n // size
    programs, at_once, width, warps = _division(groups, size)
    in_pieces = rule.name != "none" and size > width
    with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
        tensor_amax = largest(1, n, 0) if rule.two_level else None
        if in_pieces:
            shared = groups == 1 and tensor_amax is not None
            amaxes = tensor_amax if shared else largest(groups, size, tile)
        else:
            amaxes = None
        kernels.quantize[(programs,)](
            *(values, results, draws, _signed(key), _signed(key >> 32)),
            *(amaxes, tensor_amax, signs, groups, size, columns, factor),
            *(rule, grid, stored, str(mode), tile, stages, at_once, width, width.bit_length() - 1),
            num_warps=warps,
            enable_fp_fusion=False,
        )
    return out


def _signed(word: int) -> int:
    """The lowest 32 bits as a signed number, so that Triton takes every one for an int32."""
    return ((word + 2**31) & 0xFFFFFFFF) - 2**31


def _division(groups: int, size: int) -> tuple[int, int, int, int]:
    """Programs, the groups that one takes, the values it takes of each, and its warps."""
    width = 1 << (size - 1).bit_length()
    if width > _LARGEST_GROUP:
        width = _VALUES
    at_once = max(1, _VALUES // width)
    programs = -(-groups // at_once) * -(-size // width)
    return programs, at_once, width, at_once * width // _VALUES_PER_WARP
