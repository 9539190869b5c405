"""The compiled way to quantize on a CPU: the same bits as `experiments.quant.block`, faster.

The C sources here are built with the package as a plain shared library and called through ctypes
on raw pointers, so it depends on neither torch's nor Python's ABI.  If it could not be built,
`NAME` is None and nothing here can be used; the dispatcher decides which backend runs and records
it.
"""

from __future__ import annotations

import ctypes
import sysconfig
from functools import lru_cache
from pathlib import Path

import torch  # before the library: both then share torch's OpenMP threads
from torch import Tensor

from experiments.quant.formats import ElementFormat, Precision, ScaleFormat
from experiments.quant.kernels import facts
from experiments.quant.kernels.dense import address, dense, tracing_nothing
from experiments.quant.kernels.noise import mix
from experiments.quant.layout import lying_as, narrowed, turned
from experiments.quant.modes import Direction
from experiments.quant.scale import CLIPPED_BEYOND
from experiments.quant.scale_rules import quest_clip

_LIBRARY_PATH = Path(__file__).with_name("_quantize" + sysconfig.get_config_var("EXT_SUFFIX"))
_MODES = {"nearest_even": 0, "nearest_even_code": 1, "noise": 2, "key": 3, "unclipped": 5}
"""The enum in format.h; the other directions are _DIRECTED."""
_DIRECTED = 4
_TWO_LEVEL = 5
_UNSCALED = 7
_BY_ALL_VALUES = (ScaleFormat.E4M3_4_6, ScaleFormat.QUEST, ScaleFormat.QUEST_FLOOR)
"""Rules that need more than amax; the kernel knows them for contiguous blocks of at most 256."""
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
        The code now in use; None, and nothing changed, if the processor or the library lacks it.
    """
    name = None if _library is None else _library.lowbit_select(instructions.encode())
    return None if name is None else str(name.decode())


NAME: str | None = None if (_chosen := select()) is None else f"c-{_chosen}"
"""The name of this backend in a run record; None if the library was not built."""


def supports(x: Tensor, precision: Precision, hadamard: int = 0) -> bool:
    """Whether `quantize` takes `x` and does what `precision` says, after this rotation."""
    return (
        _library is not None
        and dense(x)
        and facts.takes(precision, hadamard, SCALES, ROTATIONS)
        and (precision.scale not in _BY_ALL_VALUES or _in_small_blocks(precision))
        and x.numel() < facts.TOO_MANY
    )


def _in_small_blocks(precision: Precision) -> bool:
    return precision.granularity == "block" and precision.block_size <= _MOST_VALUES


def quantize(
    x: Tensor,
    precision: Precision,
    noise: Tensor | int | None = None,
    rounding: Direction = Direction.NEAREST_EVEN,
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
    return _quantize(x, precision, *facts.mode(noise, rounding), hadamard, signs, out)


def _quantize(
    x: Tensor,
    precision: Precision,
    mode: str,
    draws: Tensor | None,
    words: int,
    hadamard: int,
    signs: Tensor | None,
    out: Tensor | None = None,
) -> Tensor:
    """The same with draws, or the two words of a key, for a mode that takes them."""
    assert _library is not None
    assert draws is None or draws.shape == x.shape
    if turned(x) and precision.scale in _BY_ALL_VALUES:
        result = _quantize(x.contiguous(), precision, mode, draws, words, hadamard, signs)
        return lying_as(x, result) if out is None else out.copy_(result)
    values = x if x.dtype is torch.float32 else x.float()
    by_column = turned(values)
    if not by_column:
        values = values.contiguous()
    n, columns, tile = values.numel(), x.shape[-1], precision.tile
    result = _result(values, out)
    if n == 0:
        return narrowed(result, x.dtype)
    block = tile or precision.sharing(n // columns, columns)
    assert block == n or columns % block == 0
    assert not tile or x.shape[-2] % tile == 0
    format = _format(precision.element, precision.scale, mode)
    common = (ctypes.byref(format), address(values), result.data_ptr(), _address(draws), words)
    threads = _threads(n)
    if by_column:
        signs_, _, factor, size = _rotation(x, hadamard, signs)
        at = (columns, n // columns, block, tile > 0, signs_, factor, size, threads)
        if _library.lowbit_quantize_columns(*common, *at):
            raise MemoryError(f"no memory for the scales of {tuple(x.shape)}")
    elif tile:
        _library.lowbit_quantize_tiles(*common, n // columns, columns, tile, threads)
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
    return _quantize(x, precision, "unclipped", None, 0, hadamard, signs)


def rounds(x: Tensor) -> bool:
    """Whether `round_elements` takes `x`."""
    return _library is not None and dense(x) and x.numel() < facts.TOO_MANY


def round_elements(
    x: Tensor,
    element: ElementFormat,
    noise: Tensor | int | None = None,
    rounding: Direction = Direction.NEAREST_EVEN,
    out: Tensor | None = None,
) -> Tensor:
    """`experiments.quant.block.round_elements`, bit for bit; arguments as for `quantize`."""
    assert _library is not None
    values = x.float().contiguous()
    result, n = _result(values, out), x.numel()
    mode, draws, words = facts.mode(noise, rounding)
    assert draws is None or draws.shape == x.shape
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
    """Whether the kernel can read these signs of x's columns from memory as they are."""
    return signs is None or (
        signs.shape == x.shape[-1:]
        and signs.dtype is torch.float32
        and signs.is_contiguous()
        and dense(signs)
    )


def makes_signs(device: torch.device | str) -> bool:
    """Whether `random_signs` can make signs on the wanted device."""
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


def _rotation(x: Tensor, size: int, signs: Tensor | None) -> tuple[int | None, int, float, int]:
    """A rotation as the kernel takes it: signs, columns, factor and size, or size 0."""
    if not size:
        return None, 1, 1.0, 0
    columns = x.shape[-1]
    assert columns % size == 0
    assert signs is None or (
        signs.shape == (columns,) and signs.dtype is torch.float32 and signs.is_contiguous()
    )
    return _address(signs), columns, size**-0.5, size


@lru_cache(maxsize=256)
def _format(element: ElementFormat, scale: ScaleFormat | None, mode: str) -> _Format:
    if mode == "nearest_even" and element.mantissa == 0:
        mode = "nearest_even_code"
    rule, grid, stored = facts.constants(element, scale)
    beyond = CLIPPED_BEYOND if mode == "unclipped" else 1.0
    return _Format(
        rounding=_MODES.get(mode, _DIRECTED),
        ties_away=mode == "nearest_away",
        up=mode == "up",
        down=mode == "down",
        scale=_UNSCALED if scale is None else SCALES[scale],
        mantissa=grid.mantissa,
        emin_bits=grid.emin_bits,
        emax=rule.emax,
        wide=grid.wide,
        exact_inverse=rule.exact_inverse,
        max=rule.reached,
        other_max=rule.other[0],
        most=rule.most,
        other_most=rule.other[1],
        lower=rule.bounds[0],
        upper=rule.bounds[1],
        limit=grid.limit * beyond,
        lowest=grid.lowest * beyond,
        top=rule.top,
        stored_mantissa=stored.mantissa,
        stored_emin_bits=stored.emin_bits,
        stored_max=stored.limit,
        clip=quest_clip(element),
    )
