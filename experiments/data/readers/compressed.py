"""The bytes of a file, unpacked as its name says, with an error where they break off."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from experiments.data.readers.documents import Advance, Source, library

PACKED = (".gz", ".zst")
_PLAIN_BLOCK = 1 << 20
_PACKED_BLOCK = 1 << 16
_LARGEST_WINDOW = 1 << 31
"""As `zstd --long=31` needs, with which large dumps are made."""


class BrokenError(Exception):
    """A packed file that ends in its middle, or is none."""


def unpacked_name(file: Path) -> str:
    """A file's name without .gz or .zst."""
    return file.stem if file.suffix in PACKED else file.name


def blocks(source: Source, advance: Advance) -> Iterator[bytes]:
    """The content of a file, some at a time.

    Raises:
        BrokenError: It is packed, and cut off or damaged.
    """
    packed = source.file.suffix in PACKED
    raw = _raw(source.file, _PACKED_BLOCK if packed else _PLAIN_BLOCK, advance)
    if not packed:
        yield from raw
    elif source.file.suffix == ".gz":
        yield from _unpacked(raw, lambda: zlib.decompressobj(wbits=31), (zlib.error,))
    else:
        zstandard = library("zstandard", source.key, f"{source.file.name}: .zst")
        whole = zstandard.ZstdDecompressor(max_window_size=_LARGEST_WINDOW)
        yield from _unpacked(raw, whole.decompressobj, (zstandard.ZstdError,))


def _raw(file: Path, size: int, advance: Advance) -> Iterator[bytes]:
    with open(file, "rb", buffering=0) as opened:
        while block := opened.read(size):
            yield block
            advance(len(block))


def _unpacked(
    raw: Iterator[bytes], new: Callable[[], Any], errors: tuple[type[Exception], ...]
) -> Iterator[bytes]:
    """What one frame after the other unpacks to; a file may hold several."""
    frame, frames = None, 0
    for block in raw:
        while block:
            if frame is None:
                block = block.lstrip(b"\0") if frames else block  # padding, as gzip ignores it
                if not block:
                    break
                frame, frames = new(), frames + 1
            try:
                data = frame.decompress(block)
            except errors as error:
                raise BrokenError(f"is damaged ({error})") from error
            if data:
                yield data
            block = frame.unused_data if frame.eof else b""
            if frame.eof:
                frame = None
    if frame is not None:
        raise BrokenError("is cut off: it ends in the middle of what was packed")
    if not frames:
        raise BrokenError("is empty, which no packed file is")
