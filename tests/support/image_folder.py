"""Images of two or three classes that a small model tells apart in seconds, as files."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest

CLASSES = ("bars", "checks", "stripes")
SIDE = 8


def image(kind: str, number: int) -> np.ndarray:
    """Noise of a seed of its own over a pattern, uint8 [8, 8]."""
    noise = np.random.default_rng([CLASSES.index(kind), number]).integers(0, 120, (SIDE, SIDE))
    rows, columns = np.indices((SIDE, SIDE))
    pattern = {"bars": rows % 4 < 2, "checks": (rows + columns) % 2, "stripes": columns % 4 < 2}
    return (noise + 120 * pattern[kind]).astype(np.uint8)


def png(pixels: np.ndarray) -> bytes:
    """The bytes of a PNG."""
    pil = pytest.importorskip("PIL.Image", reason="needs the extra vision")
    buffer = io.BytesIO()
    pil.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def write_folder(folder: Path, train: int = 24, val: int = 6) -> Path:
    """train/ and val/, each with a folder of images for every class."""
    for part, numbers in (("train", range(train)), ("val", range(train, train + val))):
        for kind in CLASSES:
            place = folder / part / kind
            place.mkdir(parents=True)
            for number in numbers:
                (place / f"{number:03d}.png").write_bytes(png(image(kind, number)))
    return folder
