"""Images and their classes as shards of bytes in the cache, and batches of them.

A corpus folder of images is one of tokens in all but its content: bytes of images, [C, H, W] each,
row by row, then the classes as 32-bit integers; `images.json` says what the bytes are.  Hashes,
verification and errors about damage are those of text.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from experiments.data.batches import DataConfig
from experiments.data.digits import DIGITS_SHA256, SIDE, digits, read_digits
from experiments.data.examples import Examples
from experiments.data.image_files import ImageFiles
from experiments.data.shards import (
    DataError,
    Manifest,
    Shard,
    cache_folder,
    fingerprint,
    make_once,
    read_manifest,
    shards_sha256,
    write_manifest,
)
from experiments.data.verified import verify as verify_shards

IMAGES = ("digits", "images")
"""Names of data that is images."""
WHAT = "images.json"
_SHARD_BYTES = 1 << 28
_LABEL = np.dtype("<i4")
Labelled = tuple[np.ndarray, int]
"""Bytes of an image, uint8 [C, H, W], and the number of its class."""


@dataclass(frozen=True)
class _What:
    """What the bytes of a corpus of images are."""

    shape: tuple[int, int, int]
    """[C, H, W]."""
    classes: tuple[str, ...]
    train: int
    """Images to train on."""
    val: int


def image_shape(config: DataConfig) -> tuple[int, int, int]:
    """[C, H, W] of every image, known without reading any.

    Raises:
        DataError: The keys do not say it.
    """
    image = config.image
    if config.name == "digits":
        size = image.size or SIDE
        if size % SIDE or image.channels != 1:
            raise DataError(
                f"data.image.size={image.size}, data.image.channels={image.channels}: digits are "
                f"grey, and {SIDE} pixels a side or a multiple of it"
            )
        return 1, size, size
    if not image.size:
        raise DataError("data.image.size=0: must be the pixels of a side, as data.image.size=32")
    return image.channels, image.size, image.size


def images_sha256(config: DataConfig) -> str:
    """The identity of images and classes, for a run's id; that of digits is known."""
    if config.name == "digits" and not config.path:
        return DIGITS_SHA256
    return _manifest(_folder(config), config).sha256


def _folder(config: DataConfig) -> Path:
    """The corpus folder; made first if necessary."""
    shape = image_shape(config)
    if config.name == "digits":
        if config.path:
            raise DataError(f"data.path={config.path}: is read with data=images, not data=digits")
        return make_once(cache_folder() / f"digits-{DIGITS_SHA256[:12]}", _make_digits)
    if not config.path:
        raise DataError("data.path=: data=images needs the path of your images")
    path = Path(config.path).expanduser()
    stored = json.dumps(config.image.stored, sort_keys=True)
    return _imported(path, config.key, shape, stored, fingerprint(path))


@functools.lru_cache(maxsize=16)
def _imported(path: Path, key: str, shape: tuple[int, int, int], stored: str, _: str) -> Path:
    """A folder or Parquet of images in the cache, found again by names, contents and keys."""
    keys = json.loads(stored)
    files = ImageFiles(path, key, shape, str(keys["column"]), str(keys["label"]))
    content = hashlib.sha256(json.dumps([files.sources, keys], sort_keys=True).encode()).hexdigest()
    name = path.resolve().name

    def make(folder: Path) -> None:
        write_images(
            folder, name, shape, files.classes, files.read("train"), files.read("val"),
            files.split, files.sources,
        )  # fmt: skip

    return make_once(cache_folder() / "imported" / f"{name}-{content[:12]}", make)


def _make_digits(folder: Path) -> None:
    train, val = digits(*read_digits())
    classes = [str(digit) for digit in range(10)]
    shape, split = (1, SIDE, SIDE), "every fifth image, numbers 4, 9, 14, ..."
    made = write_images(folder, "digits", shape, classes, train, val, split, {})
    if made.sha256 != DIGITS_SHA256:
        raise DataError(
            f"data.name=digits: scikit-learn's digits are not those that this project knows "
            f"(sha256 {made.sha256[:12]}, not {DIGITS_SHA256[:12]})"
        )


def write_images(
    folder: Path,
    name: str,
    shape: tuple[int, int, int],
    classes: Iterable[str],
    train: Iterable[Labelled],
    val: Iterable[Labelled],
    split: str,
    sources: Mapping[str, str],
) -> Manifest:
    """Write images as shards, one after the other: no more than a shard is held in memory.

    Args:
        folder: Existing, empty folder.
        name: The corpus' name in the manifest and in every run record.
        shape: [C, H, W] of every image.
        classes: Names of the classes, in the order of their numbers.
        train: Images to train on, and their classes.
        val: Those that are scored.
        split: How they were parted.
        sources: File -> SHA-256 of what they come from.
    """
    parts, counts = {}, {}
    for part, images in (("train", train), ("val", val)):
        parts[part], counts[part] = _write_part(folder, part, images)
    what = _What(shape, tuple(classes), counts["train"], counts["val"])
    (folder / WHAT).write_text(json.dumps(asdict(what), indent=1) + "\n", encoding="utf-8")
    manifest = Manifest(
        name=name,
        sha256=shards_sha256(parts["train"] + parts["val"]),
        tokenizer="images",
        vocab_size=256,
        dtype="uint8",
        bytes_per_token=None,
        split=split,
        sources=dict(sources),
        documents=counts,
        train=tuple(parts["train"]),
        val=tuple(parts["val"]),
    )
    write_manifest(manifest, folder)
    return manifest


def _write_part(folder: Path, part: str, images: Iterable[Labelled]) -> tuple[list[Shard], int]:
    """The shards of one part: images, then one shard of their classes."""
    shards: list[Shard] = []
    labels: list[int] = []
    waiting = bytearray()

    def write(name: str, data: bytes) -> None:
        (folder / name).write_bytes(data)
        shards.append(Shard(name, len(data), hashlib.sha256(data).hexdigest()))

    for image, label in images:
        waiting += image.tobytes()
        labels.append(label)
        if len(waiting) >= _SHARD_BYTES:
            write(f"{part}-{len(shards):04d}.bin", bytes(waiting))
            waiting.clear()
    write(f"{part}-{len(shards):04d}.bin", bytes(waiting))
    write(f"{part}-classes.bin", np.array(labels, _LABEL).tobytes())
    return shards, len(labels)


def _manifest(folder: Path, config: DataConfig) -> Manifest:
    return read_manifest(folder, config.key, _remedy(folder))


def _remedy(folder: Path) -> str:
    return f"delete {folder}, and it is made again"


class ImageData(Examples):
    """Images and classes, opened: batches of normalised images and the numbers of their classes.

    Args:
        config: What to open; made or imported first if necessary.
        verify: As for `TokenData`.

    Raises:
        DataError: No such data, or a damaged shard.
    """

    def __init__(self, config: DataConfig, verify: bool = False) -> None:
        folder = _folder(config)
        manifest, remedy = _manifest(folder, config), _remedy(folder)
        verify_shards(folder, manifest, config.key, remedy, anew=verify)
        self.what = _read_what(folder, manifest, config.key, remedy)
        label = f"{manifest.name}-{manifest.sha256[:12]}"
        train, val = (
            _Part(folder, shards, self.what.shape, config)
            for shards in (manifest.train, manifest.val)
        )
        super().__init__(
            config, label, (self.what.train, train.gather), (self.what.val, val.gather)
        )

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of their numbers."""
        return self.what.classes


def _read_what(folder: Path, manifest: Manifest, key: str, remedy: str) -> _What:
    """What the bytes are, which must be as many as that takes."""
    try:
        raw: dict[str, Any] = json.loads((folder / WHAT).read_text(encoding="utf-8"))
        what = _What(tuple(raw.pop("shape")), tuple(raw.pop("classes")), **raw)
        size = int(np.prod(what.shape)) + _LABEL.itemsize
        held = [sum(s.tokens for s in part) for part in (manifest.train, manifest.val)]
        whole = held == [size * what.train, size * what.val]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DataError(f"{key}: {folder / WHAT} is damaged ({error!r}); {remedy}") from error
    if not whole:
        raise DataError(f"{key}: {folder / WHAT} does not say what its shards are; {remedy}")
    return what


class _Part:
    """The images of a part, read when they are asked for."""

    def __init__(
        self,
        folder: Path,
        shards: tuple[Shard, ...],
        shape: tuple[int, int, int],
        config: DataConfig,
    ) -> None:
        *images, labels = shards
        self._shape = shape
        self._images = [
            np.memmap(folder / s.file, np.uint8, "r").reshape(-1, *shape)
            for s in images
            if s.tokens
        ]
        self._ends = np.cumsum([len(shard) for shard in self._images])
        self._labels = np.fromfile(folder / labels.file, _LABEL).astype(np.int64)
        self._times = image_shape(config)[1] // shape[1]
        self._mean = torch.tensor(config.image.mean).view(-1, 1, 1)
        self._std = torch.tensor(config.image.std).view(-1, 1, 1)

    def gather(self, numbers: list[int]) -> tuple[Tensor, Tensor]:
        """Images, float32 [B, C, H, W], normalised; and their classes, int64 [B]."""
        held = np.empty((len(numbers), *self._shape), dtype=np.uint8)
        for row, image in enumerate(self._rows(numbers)):
            held[row] = image
        if self._times > 1:
            held = held.repeat(self._times, axis=2).repeat(self._times, axis=3)
        images = torch.from_numpy(held).float().div_(255).sub_(self._mean).div_(self._std)
        return images, torch.from_numpy(self._labels[numbers])

    def _rows(self, numbers: list[int]) -> Iterator[np.ndarray]:
        for number in numbers:
            shard = int(np.searchsorted(self._ends, number, side="right"))
            start = int(self._ends[shard - 1]) if shard else 0
            yield self._images[shard][number - start]
