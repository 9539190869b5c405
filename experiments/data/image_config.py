"""How images are brought to one shape: the keys `data.image`."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

CHANNELS = (1, 3)
_LARGEST = 4_096


@dataclass
class ImageConfig:
    """The shape of an image, its normalisation, and the columns of a table that hold it."""

    size: int = 0
    """Pixels a side; 0: as they are, which is known of data=digits alone (8)."""
    channels: int = 1
    """1, shades of grey, or 3, red, green and blue."""
    mean: list[float] = field(default_factory=lambda: [0.5])
    """Subtracted from values between 0 and 1: one number, or one per channel."""
    std: list[float] = field(default_factory=lambda: [0.5])
    """By which the rest is divided: one number, or one per channel."""
    column: str = "image"
    """Column of the images' bytes, in Parquet files."""
    label: str = "label"
    """Column of the classes, in Parquet files."""

    @property
    def stored(self) -> dict[str, int | str]:
        """The keys that what is stored depends on; normalisation comes after."""
        return {
            "size": self.size,
            "channels": self.channels,
            "column": self.column,
            "label": self.label,
        }

    def problems(self) -> list[str]:
        """Errors, each as "key=value: what would be right"."""
        found = []
        if self.channels not in CHANNELS:
            found.append(f"data.image.channels={self.channels}: must be 1 (grey) or 3 (colour)")
        if not 0 <= self.size <= _LARGEST:
            found.append(f"data.image.size={self.size}: must be from 0 to {_LARGEST}")
        for key, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in {1, self.channels}:
                found.append(
                    f"data.image.{key}={values}: must be one number, or one for each of "
                    f"data.image.channels={self.channels}"
                )
            elif not all(map(math.isfinite, values)) or (key == "std" and min(values) <= 0):
                right = "positive numbers" if key == "std" else "finite numbers"
                found.append(f"data.image.{key}={values}: must be {right}")
        return found
