"""The compiled way to quantize on a CPU: the same bits as `experiments.quant.block`, faster.

`quantize.c` is built with the package as a plain shared library and called through ctypes on raw
pointers, so it depends on neither torch's nor Python's ABI.  Where it could not be built, `NAME`
is None and nothing here can be used; whoever dispatches decides and records what ran.
"""

from __future__ import annotations

import ctypes
import sysconfig
from functools import lru_cache
from pathlib import Path

import torch  # before the library: both then share torch's OpenMP threads
from torch import Tensor

from experiments.quant.formats import FloatFormat, Precision, ScaleFormat
from experiments.quant.kernels.noise import mix
from experiments.quant.rounding import ROUNDINGS
from experiments.quant.scale import E4M3, UE5M3, UE5M3_TOP, reach

_LIBRARY_PATH = Path(__file__).with_name("_quantize" + sysconfig.get_config_var("EXT_SUFFIX"))
_ROUNDINGS = {  # the enum in quantize.c; the other ones are _DIRECTED
    "nearest_even": 0,
    "nearest_even_code": 1,
    "stochastic": 2,
    "stochastic_counter": 3,
}
_DIRECTED = 4
_TWO_LEVEL = 5
ROTATIONS = (8, 16, 32, 64, 128, 256, 512, 1024)
SCALES = {  # rules it knows; the enum in quantize.c
    ScaleFormat.FP32: 0,
    ScaleFormat.E8M0: 1,
    ScaleFormat.E8M0_CEIL: 2,
    ScaleFormat.E8M0_NEAREST: 3,
    ScaleFormat.E8M0_4_3: 4,
    ScaleFormat.E4M3: _TWO_LEVEL,
    ScaleFormat.UE5M3: _TWO_LEVEL,
}


class _Format(ctypes.Structure):
    """`lowbit_format` of quantize.c."""

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
        ("power_of_two", ctypes.c_int32),
        ("max", ctypes.c_float),
        ("limit", ctypes.c_float),
        ("top", ctypes.c_float),
        ("stored_mantissa", ctypes.c_int32),
        ("stored_emin_bits", ctypes.c_int32),
        ("stored_max", ctypes.c_float),
        ("key_low", ctypes.c_uint32),  # the call fills it in
        ("key_high", ctypes.c_uint32),
    )


def _load() -> ctypes.CDLL | None:
    if not _LIBRARY_PATH.exists():
        return None
    library = ctypes.CDLL(str(_LIBRARY_PATH))
    pointer, size = ctypes.c_void_p, ctypes.c_int64
    library.lowbit_format_size.restype = size
    if library.lowbit_format_size() != ctypes.sizeof(_Format):
        raise ImportError(
            f"{_LIBRARY_PATH} is older than the code that calls it: reinstall the package"
        )
    library.lowbit_select.argtypes = (ctypes.c_char_p,)
    library.lowbit_select.restype = ctypes.c_char_p
    library.lowbit_quantize.argtypes = (
        *(pointer, pointer, pointer, pointer),  # format, x, out, noise
        *(ctypes.c_uint64, size, size, ctypes.c_int),  # key, n, block, threads
    )
    library.lowbit_quantize.restype = None
    library.lowbit_quantize_transposed.argtypes = (
        *(pointer, pointer, pointer, pointer),  # format, x, out, noise
        *(ctypes.c_uint64, size, size, size, ctypes.c_int),  # key, rows, columns, block, threads
    )
    library.lowbit_quantize_transposed.restype = ctypes.c_int
    library.lowbit_rotate.argtypes = (
        *(pointer, pointer, pointer, size, size),  # x, out, signs, n, columns
        *(ctypes.c_float, ctypes.c_int, ctypes.c_int),  # factor, size, threads
    )
    library.lowbit_rotate.restype = None
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


def supports(x: Tensor, precision: Precision) -> bool:
    """Whether `quantize` takes `x` and does what `precision` says."""
    element = precision.element
    return (
        _library is not None
        and x.device.type == "cpu"
        and precision.granularity != "tile"
        and precision.scale in SCALES
        and (element.exponent < 8 or precision.scale in (ScaleFormat.FP32, ScaleFormat.E8M0))
        and element.lowest == -element.max
        and x.numel() < 2**32
    )


def quantize(
    x: Tensor,
    precision: Precision,
    noise: Tensor | int | None = None,
    rounding: str = "nearest_even",
    out: Tensor | None = None,
) -> Tensor:
    """`experiments.quant.block.quantize`, bit for bit; only where `supports` says so.

    Args:
        x: [..., K], any floating dtype of the plain way.  The transpose of a contiguous matrix is
            read as it lies.
        precision: As there.
        noise: As there, or a key: rounds with `noise.uniform(key, x.shape)` without making it.
        rounding: As there.
        out: Where to write, float32, contiguous, x's shape, not overlapping x; None makes it.
    """
    assert _library is not None
    name, draws, words = rounding, None, 0
    if isinstance(noise, Tensor):
        assert noise.shape == x.shape
        name, draws = "stochastic", noise.float().contiguous()
    elif noise is not None:
        name, words = "stochastic_counter", mix(noise)
    values = x if x.dtype is torch.float32 else x.float()
    transposed = values.ndim == 2 and not values.is_contiguous() and values.t().is_contiguous()
    if not transposed:
        values = values.contiguous()
    if out is None:
        out = torch.empty(x.shape, dtype=torch.float32)
    assert (out.shape, out.dtype, out.is_contiguous()) == (x.shape, torch.float32, True)
    n = values.numel()
    block = precision.block_size
    if precision.granularity == "row":
        block = x.shape[-1]
    elif precision.granularity == "tensor":
        block = n
    else:
        assert x.shape[-1] % block == 0
    common = (
        ctypes.byref(_format(precision, name)),
        values.data_ptr(),
        out.data_ptr(),
        None if draws is None else draws.data_ptr(),
        words,
    )
    threads = torch.get_num_threads() if n > _GRAIN else 1
    if n == 0:
        pass
    elif not transposed:
        _library.lowbit_quantize(*common, n, block, threads)
    elif _library.lowbit_quantize_transposed(*common, x.shape[1], x.shape[0], block, threads):
        raise MemoryError(f"no memory for the scales of {tuple(x.shape)}")
    return out if x.dtype is torch.float32 else out.to(x.dtype)


def rotates(x: Tensor, size: int) -> bool:
    """Whether `rotate` takes `x` and `size`."""
    known = _library is not None and size in ROTATIONS
    return known and x.device.type == "cpu" and x.dtype is torch.float32


def rotate(x: Tensor, size: int, signs: Tensor | None = None, out: Tensor | None = None) -> Tensor:
    """Signs, then the orthonormal Walsh-Hadamard transform of every `size` values, bit for bit.

    The order of the additions is fixed: in float32, for h = 1, 2, 4, ..., size / 2 in turn, values
    a and b at distance h become a + b and a - b; then all are multiplied by float32(size^-1/2).

    Args:
        x: [..., K], float32, on the CPU; K divisible by `size`.
        size: A power of two, 8 to 1024.
        signs: [K] of +-1, float32, or None.
        out: As for `quantize`.
    """
    assert _library is not None
    assert size in ROTATIONS
    assert x.shape[-1] % size == 0
    values = x.contiguous()
    if out is None:
        out = torch.empty(x.shape, dtype=torch.float32)
    assert (out.shape, out.dtype, out.is_contiguous()) == (x.shape, torch.float32, True)
    if signs is not None:
        assert (signs.shape, signs.dtype) == (x.shape[-1:], torch.float32)
        signs = signs.contiguous()
    _library.lowbit_rotate(
        values.data_ptr(),
        out.data_ptr(),
        None if signs is None else signs.data_ptr(),
        values.numel(),
        max(1, x.shape[-1]),
        size**-0.5,
        size,
        torch.get_num_threads() if values.numel() > _GRAIN else 1,
    )
    return out


_GRAIN = 32768
"""Values below which a second thread costs more than it saves; torch's own constant."""


@lru_cache(maxsize=256)
def _format(precision: Precision, rounding: str) -> _Format:
    element, scale = precision.element, precision.scale
    if rounding not in ROUNDINGS and rounding not in _ROUNDINGS:
        raise ValueError(f"rounding={rounding}: must be one of {', '.join(ROUNDINGS)}")
    emin = element.emin if isinstance(element, FloatFormat) else element.mantissa
    if rounding == "nearest_even" and element.mantissa == 0:
        rounding = "nearest_even_code"
    largest, emax = (element.max, element.emax) if scale.two_level else reach(element)
    stored = UE5M3 if scale is ScaleFormat.UE5M3 else E4M3
    return _Format(
        rounding=_ROUNDINGS.get(rounding, _DIRECTED),
        ties_away=rounding == "nearest_away",
        up=rounding == "up",
        down=rounding == "down",
        scale=SCALES[scale],
        mantissa=element.mantissa,
        emin_bits=(emin + 127) << 23,
        emax=emax,
        wide=element.exponent == 8,
        power_of_two=scale.power_of_two and scale is not ScaleFormat.E8M0_4_3,
        max=largest,
        limit=min(element.max, torch.finfo(torch.float32).max),
        top=element.max * (UE5M3_TOP if stored is UE5M3 else stored.max),
        stored_mantissa=stored.mantissa,
        stored_emin_bits=(stored.emin + 127) << 23,
        stored_max=stored.max,
    )
