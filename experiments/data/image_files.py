"""The user's images: folders by class, or Parquet files as the Hugging Face hub ships them."""

from __future__ import annotations

import functools
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.data.shards import DataError, file_sha256
from fitting.entry.errors import one_line

SUFFIXES = frozenset(".png .jpg .jpeg .webp .bmp .gif .tif .tiff .ppm .pgm".split())
_SCORED = ("val", "valid", "validation", "dev", "test", "eval")
"""Names of the part that is scored; the first of them that is there."""
_ROWS = 256
"""Rows of a Parquet file that are read at once."""
_HELD_OUT = 20
"""Every so manieth row is scored, of a Parquet file without a part for that."""


class ImageFiles:
    """What lies at a path: its files, classes, and images of each part.

    Args:
        path: A folder with train/ and val/, each with a folder of images for every class; a Parquet
            file, or a folder of them whose names begin with train and validation (or test).
        key: The option as the user wrote it; errors start with it.
        shape: [C, H, W] to which each image is brought.
        column: The Parquet column of images: {"bytes", "path"}, or bytes alone.
        label: The Parquet column of classes, numbers from 0 or words.

    Raises:
        DataError: There is nothing to read, or a file or row that is not as it should be.
    """

    def __init__(
        self, path: Path, key: str, shape: tuple[int, int, int], column: str, label: str
    ) -> None:
        self.path, self.key, self.shape, self.column, self.label = path, key, shape, column, label
        if not path.exists():
            raise DataError(f"{key}: no such file or folder")
        tables = [path] if path.is_file() else sorted(path.rglob("*.parquet"))
        if path.is_file() and path.suffix != ".parquet":
            raise DataError(f"{key}: must be a folder of images by class, or Parquet")
        self._parquet = bool(tables)
        self.split = "as given"
        self._files = self._tables(tables) if tables else self._folders()
        base = path if path.is_dir() else path.parent
        files = dict.fromkeys([*self._files["train"], *self._files["val"]])
        self.sources = {f.relative_to(base).as_posix(): file_sha256(f) for f in files}
        """File -> SHA-256."""

    @functools.cached_property
    def classes(self) -> list[str]:
        """Names of the classes, in the order of their numbers."""
        if not self._parquet:
            train, val = ({f.parent.name for f in self._files[p]} for p in ("train", "val"))
            if strange := sorted(val - train):
                raise DataError(
                    f"{self.key}: {', '.join(strange[:3])} is a class of the scored images alone"
                )
            return sorted(train)
        found: set[Any] = set()
        for file in dict.fromkeys([*self._files["train"], *self._files["val"]]):
            for place, (label,) in self._rows(file, [self.label]):
                if not isinstance(label, int | str) or isinstance(label, bool):
                    raise DataError(
                        f"{self.key}: {place}: {self.label}={label!r} is no class: a number from 0 "
                        "or a word"
                    )
                found.add(label)
        if len({type(label) for label in found}) > 1:
            raise DataError(f"{self.key}: {self.label} holds numbers and words")
        if any(isinstance(label, int) for label in found):
            if min(found) < 0:
                raise DataError(f"{self.key}: {self.label} holds {min(found)}; classes are from 0")
            return [str(number) for number in range(max(found) + 1)]
        return sorted(found)

    def read(self, part: str) -> Iterator[tuple[np.ndarray, int]]:
        """The images of "train" or "val", uint8 [C, H, W], with the numbers of their classes."""
        number = {name: place for place, name in enumerate(self.classes)}
        if not self._parquet:
            for file in self._files[part]:
                yield self._decoded(file, str(file)), number[file.parent.name]
            return
        one = self._files["train"] == self._files["val"]
        for file in self._files[part]:
            for row, (place, (image, label)) in enumerate(
                self._rows(file, [self.column, self.label])
            ):
                if one and (row % _HELD_OUT == _HELD_OUT - 1) != (part == "val"):
                    continue
                data = image.get("bytes") if isinstance(image, dict) else image
                if not isinstance(data, bytes):
                    raise DataError(
                        f"{self.key}: {place}: {self.column} holds {type(data).__name__}, not the "
                        "bytes of an image"
                    )
                yield self._decoded(io.BytesIO(data), place), number[str(label)]

    def _folders(self) -> dict[str, list[Path]]:
        """The images of each part in folders by class."""
        if not (self.path / "train").is_dir():
            raise DataError(
                f"{self.key}: has no folder train/ with a folder of images for every class, and no "
                "*.parquet"
            )
        scored = next((name for name in _SCORED if (self.path / name).is_dir()), "")
        if not scored:
            raise DataError(f"{self.key}: has train/ and no val/ to be scored")
        parts = {}
        for part, name in (("train", "train"), ("val", scored)):
            folder = self.path / name
            images = [f for f in sorted(folder.glob("*/*")) if f.suffix.lower() in SUFFIXES]
            parts[part] = [f for f in images if not f.name.startswith(".")]
            if not parts[part]:
                raise DataError(
                    f"{self.key}: {folder} has no images in folders by class; of kinds "
                    f"{' '.join(sorted(SUFFIXES))}"
                )
        return parts

    def _tables(self, files: Sequence[Path]) -> dict[str, list[Path]]:
        """The Parquet files of each part."""
        if len(files) == 1:
            self.split = f"every {_HELD_OUT}th row"
            return {"train": list(files), "val": list(files)}
        named: dict[str, list[Path]] = {}
        for file in files:
            within = file.relative_to(self.path).as_posix()
            first = within.replace("/", "-").replace("_", "-").replace(".", "-").split("-")
            part = next((word for word in first if word in ("train", *_SCORED)), "")
            if not part:
                raise DataError(
                    f"{self.key}: {within} is neither train nor one of {', '.join(_SCORED)} by its "
                    "name"
                )
            named.setdefault(part, []).append(file)
        scored = next((name for name in _SCORED if name in named), "")
        if "train" not in named or not scored:
            raise DataError(
                f"{self.key}: needs Parquet files for training and for validation, by their names; "
                f"there are those of {', '.join(sorted(named))}"
            )
        return {"train": named["train"], "val": named[scored]}

    def _rows(self, file: Path, columns: list[str]) -> Iterator[tuple[str, list[Any]]]:
        """(Where, values) of each row of a Parquet file."""
        try:
            from pyarrow import ArrowException, parquet
        except ImportError:
            raise DataError(
                f"{self.key}: Parquet needs pyarrow; pip install 'lowbit-scaling[vision]'"
            ) from None
        row = 0
        try:
            table = parquet.ParquetFile(file)
            there = table.schema_arrow.names
            for name, option in ((self.column, "column"), (self.label, "label")):
                if name in columns and name not in there:
                    raise DataError(
                        f"data.image.{option}={name}: {file} has no such column; it has "
                        f"{', '.join(there)}"
                    )
            for batch in table.iter_batches(_ROWS, columns=columns):
                for values in zip(*(batch[name].to_pylist() for name in columns), strict=True):
                    row += 1
                    yield f"row {row} of {file}", list(values)
        except (ArrowException, OSError) as error:
            raise DataError(f"{self.key}: {file} cannot be read ({one_line(error)})") from error

    def _decoded(self, file: Path | io.BytesIO, place: str) -> np.ndarray:
        """An image scaled to its shorter side and cut to a square in its middle, [C, H, W]."""
        try:
            from PIL import Image, ImageOps
        except ImportError:
            raise DataError(
                f"{self.key}: images need Pillow; pip install 'lowbit-scaling[vision]'"
            ) from None
        channels, height, width = self.shape
        try:
            with Image.open(file) as image:
                plain = image.convert("L" if channels == 1 else "RGB")
        # Pillow's decoders raise many kinds, struct.error and SyntaxError among them.
        except Exception as error:
            raise DataError(
                f"{self.key}: {place}: not an image that Pillow reads ({one_line(error)})"
            ) from error
        fitted = ImageOps.fit(plain, (width, height), Image.Resampling.BILINEAR)
        values = np.asarray(fitted, dtype=np.uint8)
        return values[None] if channels == 1 else values.transpose(2, 0, 1)
