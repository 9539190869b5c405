"""The compiled way to quantize on a CPU: the same bits as `experiments.quant.block`, faster.

The C sources here are built with the package as a plain shared library and called through ctypes
on raw pointers, so it depends on neither torch's nor Python's ABI.  Where it could not be built,
`NAME` is None and nothing here can be used; whoever dispatches decides and records what ran.
"""

from __future__ import annotations

import ctypes
import sysconfig
from functools import lru_cache
from pathlib import Path

import torch  # before the library: both then share torch's OpenMP threads
from torch import Tensor

from experiments.quant.formats import ElementFormat, FloatFormat, Precision, ScaleFormat
from experiments.quant.kernels.dense import address, dense, tracing_nothing
from experiments.quant.kernels.noise import mix
from experiments.quant.rounding import ROUNDINGS
from experiments.quant.scale import (
    CLIPPED_BEYOND,
    E4M3,
    OTHER_REACHED,
    largest_factor,
    most_scale,
    nearest_bounds,
    quest_clip,
    reach,
    saturation,
    two_level_parts,
)

_LIBRARY_PATH = Path(__file__).with_name("_quantize" + sysconfig.get_config_var("EXT_SUFFIX"))
_ROUNDINGS = {  # the enum in format.h; the other ones are _DIRECTED
    "nearest_even": 0,
    "nearest_even_code": 1,
    "stochastic": 2,
    "stochastic_counter": 3,
    "unclipped": 5,
}
_DIRECTED = 4
_TWO_LEVEL = 5
_UNSCALED = 7
_BY_ALL_VALUES = (ScaleFormat.E4M3_4_6, ScaleFormat.QUEST, ScaleFormat.QUEST_FLOOR)
"""Rules that go by more than amax; the kernel knows them for contiguous blocks of at most 256."""
_MOST_VALUES = 256
ROTATIONS = (16, 32, 64, 128, 256, 512, 1024)
SCALES = {  # rules it knows; the enum in format.h
    ScaleFormat.FP32: 0,
    ScaleFormat.E8M0: 1,
    ScaleFormat.E8M0_CEIL: 2,
    ScaleFormat.E8M0_NEAREST: 3,
    ScaleFormat.E8M0_4_3: 4,
    ScaleFormat.E4M3: _TWO_LEVEL,
    ScaleFormat.UE5M3: _TWO_LEVEL,
    ScaleFormat.E4M3_16_17: _TWO_LEVEL,
    ScaleFormat.E4M3_4_6: 6,
    ScaleFormat.QUEST: 8,
    ScaleFormat.QUEST_FLOOR: 9,
}


class _Format(ctypes.Structure):
    """`lowbit_format` of format.h."""

    _fields_ = (
        ("rounding", ctypes.c_int32),
        ("ties_away", ctypes.c_int32),
        ("up", ctypes.c_int32),
        ("down", ctypes.c_int32),
        ("scale", ctypes.c_int32),
        ("mantissa", ctypes.c_int32),
        ("emin_bits", ctypes.c_int32),
        ("emax", ctypes.c_int32),
        ("wide", ctypes.c_int32),
        ("exact_inverse", ctypes.c_int32),
        ("max", ctypes.c_float),
        ("other_max", ctypes.c_float),
        ("most", ctypes.c_float),
        ("other_most", ctypes.c_float),
        ("lower", ctypes.c_float),
        ("upper", ctypes.c_float),
        ("limit", ctypes.c_float),
        ("lowest", ctypes.c_float),
        ("top", ctypes.c_float),
        ("stored_mantissa", ctypes.c_int32),
        ("stored_emin_bits", ctypes.c_int32),
        ("stored_max", ctypes.c_float),
        ("clip", ctypes.c_float),
        ("key_low", ctypes.c_uint32),  # the call fills it in
        ("key_high", ctypes.c_uint32),
    )


def _load() -> ctypes.CDLL | None:
    if not _LIBRARY_PATH.exists():
        return None
    library = ctypes.CDLL(str(_LIBRARY_PATH))
    pointer, size = ctypes.c_void_p, ctypes.c_int64
    rotation = (pointer, size, ctypes.c_float, ctypes.c_int)  # signs, columns, factor, size
    library.lowbit_format_size.restype = size
    if library.lowbit_format_size() != ctypes.sizeof(_Format):
        raise ImportError(
            f"{_LIBRARY_PATH} is older than the code that calls it: reinstall the package"
        )
    library.lowbit_select.argtypes = (ctypes.c_char_p,)
    library.lowbit_select.restype = ctypes.c_char_p
    library.lowbit_quantize.argtypes = (
        *(pointer, pointer, pointer, pointer),  # format, x, out, noise
        *(ctypes.c_uint64, size, size),  # key, n, block
        *rotation,
        ctypes.c_int,  # threads
    )
    library.lowbit_quantize.restype = None
    library.lowbit_quantize_tiles.argtypes = (
        *(pointer, pointer, pointer, pointer),  # format, x, out, noise
        *(ctypes.c_uint64, size, size, size, ctypes.c_int),  # key, rows, columns, size, threads
    )
    library.lowbit_quantize_tiles.restype = None
    library.lowbit_quantize_columns.argtypes = (
        *(pointer, pointer, pointer, pointer),  # format, x, out, noise
        *(ctypes.c_uint64, size, size, size, ctypes.c_int),  # key, rows, columns, block, tiles
        *(pointer, ctypes.c_float, ctypes.c_int, ctypes.c_int),  # signs, factor, size, threads
    )
    library.lowbit_quantize_columns.restype = ctypes.c_int
    library.lowbit_rotate.argtypes = (
        *(pointer, pointer, size),  # x, out, n
        *rotation,
        ctypes.c_int,  # threads
    )
    library.lowbit_rotate.restype = None
    library.lowbit_signs.argtypes = (pointer, ctypes.c_uint64, size)  # out, key, n
    library.lowbit_signs.restype = None
    return library


_library = _load()


def select(instructions: str = "") -> str | None:
    """Choose the code for "avx512", "avx2" or "plain"; "" is the best this processor has.

    Returns:
        What is now in use; None, and nothing changed, if the processor or the library lacks it.
    """
    name = None if _library is None else _library.lowbit_select(instructions.encode())
    return None if name is None else str(name.decode())


NAME: str | None = None if (_chosen := select()) is None else f"c-{_chosen}"
"""What a run record calls this backend; None where the library was not built."""


def supports(x: Tensor, precision: Precision, hadamard: int = 0) -> bool:
    """Whether `quantize` takes `x` and does what `precision` says, after this rotation."""
    element, block = precision.element, precision.block_size
    fused = not hadamard or (
        hadamard in ROTATIONS
        and precision.granularity != "tile"
        and (precision.granularity != "block" or max(block, hadamard) % min(block, hadamard) == 0)
    )
    small = precision.granularity == "block" and block <= _MOST_VALUES
    return (
        _library is not None
        and dense(x)
        and precision.scale in SCALES
        and (element.exponent < 8 or precision.scale in (ScaleFormat.FP32, ScaleFormat.E8M0))
        and (precision.scale not in _BY_ALL_VALUES or small)
        and fused
        and x.numel() < 2**32
    )


def quantize(
    x: Tensor,
    precision: Precision,
    noise: Tensor | int | None = None,
    rounding: str = "nearest_even",
    hadamard: int = 0,
    signs: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """`experiments.quant.block.quantize`, bit for bit; only where `supports` says so.

    Args:
        x: [..., K], any floating dtype of the plain way.  The transpose of a contiguous matrix is
            read as it lies, unless a scale depends on more than amax.
        precision: As there.
        noise: As there, or a key: rounds with `noise.uniform(key, x.shape)` without making it.
        rounding: As there.
        hadamard: As there.
        signs: As there, float32, contiguous.
        out: Where to write, float32, x's shape, lying as the result does, not overlapping x; None
            makes it.
    """
    assert _library is not None
    if turned(x) and precision.scale in _BY_ALL_VALUES:
        result = quantize(x.contiguous(), precision, noise, rounding, hadamard, signs)
        return lying_as(x, result) if out is None else out.copy_(result)
    values = x if x.dtype is torch.float32 else x.float()
    by_column = turned(values)
    if not by_column:
        values = values.contiguous()
    n, columns, tiles = values.numel(), x.shape[-1], precision.granularity == "tile"
    block = {"row": columns, "tensor": n}.get(precision.granularity, precision.block_size)
    assert block == n or columns % block == 0
    assert not tiles or x.shape[-2] % block == 0
    result = _result(values, out)
    mode, draws, words = _mode(noise, rounding, x.shape)
    format = _format(precision.element, precision.scale, mode)
    common = (ctypes.byref(format), address(values), result.data_ptr(), _address(draws), words)
    threads = _threads(n)
    if n == 0:
        pass
    elif by_column:
        signs_, _, factor, size = _rotation(x, hadamard, signs)
        at = (columns, n // columns, block, tiles, signs_, factor, size, threads)
        if _library.lowbit_quantize_columns(*common, *at):
            raise MemoryError(f"no memory for the scales of {tuple(x.shape)}")
    elif tiles:
        _library.lowbit_quantize_tiles(*common, n // columns, columns, block, threads)
    else:
        _library.lowbit_quantize(*common, n, block, *_rotation(x, hadamard, signs), threads)
    return narrowed(result, x.dtype)


def readable(*tensors: Tensor | None) -> bool:
    """Whether `quantize` can read this noise and these signs, too."""
    return all(tensor is None or dense(tensor) for tensor in tensors)


def masks(x: Tensor, precision: Precision, hadamard: int = 0) -> bool:
    """Whether `unclipped` takes `x` and does what `precision` says, after this rotation."""
    return supports(x, precision, hadamard) and precision.element.exponent < 8


def unclipped(
    x: Tensor, precision: Precision, hadamard: int = 0, signs: Tensor | None = None
) -> Tensor:
    """The masked `experiments.quant.gradient.rounding_gradient`; only where `masks` says so."""
    return quantize(x, precision, None, "unclipped", hadamard, signs)


def rounds(x: Tensor) -> bool:
    """Whether `round_elements` takes `x`."""
    return _library is not None and dense(x) and x.numel() < 2**32


def round_elements(
    x: Tensor,
    element: ElementFormat,
    noise: Tensor | int | None = None,
    rounding: str = "nearest_even",
    out: Tensor | None = None,
) -> Tensor:
    """`experiments.quant.block.round_elements`, bit for bit; arguments as for `quantize`."""
    assert _library is not None
    values = x.float().contiguous()
    result, n = _result(values, out), x.numel()
    mode, draws, words = _mode(noise, rounding, x.shape)
    format = _format(element, None, mode)
    common = (ctypes.byref(format), address(values), result.data_ptr(), _address(draws), words)
    if n:
        _library.lowbit_quantize(*common, n, n, *_rotation(x, 0, None), _threads(n))
    return narrowed(result, x.dtype)


def rotates(x: Tensor, size: int, signs: Tensor | None = None) -> bool:
    """Whether `rotate` takes `x`, `size` and `signs`."""
    known = _library is not None and size in ROTATIONS
    return known and x.dtype is torch.float32 and dense(x) and _readable(signs, x)


def rotate(x: Tensor, size: int, signs: Tensor | None = None, out: Tensor | None = None) -> Tensor:
    """Signs, then the orthonormal Walsh-Hadamard transform of every `size` values, bit for bit.

    The order of the additions is fixed: in float32, for h = 1, 2, 4, ..., size / 2 in turn, values
    a and b at distance h become a + b and a - b; then all are multiplied by float32(size^-1/2).

    Args:
        x: [..., K], float32, on the CPU; K divisible by `size`.
        size: A power of two, 8 to 1024.
        signs: [K] of +-1, float32, contiguous, or None.
        out: As for `quantize`.
    """
    assert _library is not None
    assert size in ROTATIONS
    values, n = x.contiguous(), x.numel()
    result = _result(values, out)
    rotation = _rotation(x, size, signs)
    _library.lowbit_rotate(address(values), result.data_ptr(), n, *rotation, _threads(n))
    return result


def _readable(signs: Tensor | None, x: Tensor) -> bool:
    """Whether the kernel can take these signs of x's columns as they lie."""
    return signs is None or (
        signs.shape == x.shape[-1:]
        and signs.dtype is torch.float32
        and signs.is_contiguous()
        and dense(signs)
    )


def makes_signs(device: torch.device | str) -> bool:
    """Whether `random_signs` makes them where they are wanted."""
    return _library is not None and torch.device(device).type == "cpu" and tracing_nothing()


def random_signs(key: int, size: int) -> Tensor:
    """`experiments.quant.hadamard.random_signs`; only where `makes_signs` says so."""
    assert _library is not None
    result = torch.empty(size, dtype=torch.float32)
    _library.lowbit_signs(result.data_ptr(), mix(key), size)
    return result


_GRAIN = 32768
"""Values below which a second thread costs more than it saves; torch's own constant."""


def _threads(n: int) -> int:
    return torch.get_num_threads() if n > _GRAIN else 1


def turned(x: Tensor) -> bool:
    """Whether x is the transpose of a contiguous matrix, and not contiguous itself."""
    return x.ndim == 2 and not x.is_contiguous() and x.t().is_contiguous()


def lying_as(x: Tensor, result: Tensor) -> Tensor:
    """`result`, of x's shape, in memory as `turned` x is, else contiguous."""
    return result.t().contiguous().t() if turned(x) else result.contiguous()


def narrowed(result: Tensor, dtype: torch.dtype) -> Tensor:
    """Float32 values in `dtype`; what would overflow there saturates.  May change `result`."""
    if result.dtype is dtype:
        return result
    limit = torch.finfo(dtype).max
    return result.clamp_(-limit, limit).to(dtype)


def _result(x: Tensor, out: Tensor | None) -> Tensor:
    """`out`, or a new one, lying as x does."""
    if turned(x):
        return _result(x.t(), None if out is None else out.t()).t()
    if out is None:
        return torch.empty(x.shape, dtype=torch.float32)
    assert (out.shape, out.dtype, out.is_contiguous()) == (x.shape, torch.float32, True)
    assert dense(out)
    return out


def _address(draws: Tensor | None) -> int | None:
    return None if draws is None else address(draws)


def _mode(
    noise: Tensor | int | None, rounding: str, shape: torch.Size
) -> tuple[str, Tensor | None, int]:
    """The kernel's rounding, its draws and its key."""
    if isinstance(noise, Tensor):
        assert noise.shape == shape
        return "stochastic", noise.float().contiguous(), 0
    if noise is not None:
        return "stochastic_counter", None, mix(noise)
    return rounding, None, 0


def _rotation(x: Tensor, size: int, signs: Tensor | None) -> tuple[int | None, int, float, int]:
    """The kernel's words for it: signs, columns, factor and size, or size 0."""
    if not size:
        return None, 1, 1.0, 0
    columns = x.shape[-1]
    assert columns % size == 0
    assert signs is None or (
        signs.shape == (columns,) and signs.dtype is torch.float32 and signs.is_contiguous()
    )
    return _address(signs), columns, size**-0.5, size


@lru_cache(maxsize=256)
def _format(element: ElementFormat, scale: ScaleFormat | None, rounding: str) -> _Format:
    if rounding not in ROUNDINGS and rounding not in _ROUNDINGS:
        raise ValueError(f"rounding={rounding}: must be one of {', '.join(ROUNDINGS)}")
    emin = element.emin if isinstance(element, FloatFormat) else element.mantissa
    if rounding == "nearest_even" and element.mantissa == 0:
        rounding = "nearest_even_code"
    largest, emax = reach(element)
    stored, top = E4M3, 1.0
    if scale is not None and scale.two_level:
        largest, stored, top = two_level_parts(element, scale)
    beyond = CLIPPED_BEYOND if rounding == "unclipped" else 1.0
    lowest, limit = saturation(element, scaled=scale is not None)
    lower, upper = nearest_bounds(element)
    exact = scale is None or (scale.power_of_two and scale is not ScaleFormat.E8M0_4_3)
    return _Format(
        rounding=_ROUNDINGS.get(rounding, _DIRECTED),
        ties_away=rounding == "nearest_away",
        up=rounding == "up",
        down=rounding == "down",
        scale=_UNSCALED if scale is None else SCALES[scale],
        mantissa=element.mantissa,
        emin_bits=(emin + 127) << 23,
        emax=emax,
        wide=element.exponent == 8,
        exact_inverse=exact,
        max=largest,
        other_max=OTHER_REACHED,
        most=0.0 if scale is None else most_scale(element, scale),
        other_most=largest_factor(OTHER_REACHED),
        lower=lower,
        upper=upper,
        limit=limit * beyond,
        lowest=lowest * beyond,
        top=top,
        stored_mantissa=stored.mantissa,
        stored_emin_bits=(stored.emin + 127) << 23,
        stored_max=stored.max,
        clip=quest_clip(element),
    )
