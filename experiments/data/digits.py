"""The built-in images: scikit-learn's digits, 1,797 of 8 x 8 pixels, by 43 writers.

The images of the UCI set "Optical Recognition of Handwritten Digits" (its test part), as
scikit-learn ships them.  Values 0 to 16 become bytes, 255/16 times as large.  Every fifth image,
numbers 4, 9, 14, ... in scikit-learn's order, is scored (359), the others are trained on (1,438).

With data.image.size=16, 24, ... each pixel is repeated, for models that make an image smaller
before they look at it.
"""

from __future__ import annotations

import numpy as np

from experiments.data.shards import DataError

SIDE = 8
DIGITS_SHA256 = "ca703985210d062a2a9d0e6bd6f73e66b6af0bf85aaef7b585a0a778b1b80a3a"
_DARKEST = 16
_EVERY = 5

_Labelled = list[tuple[np.ndarray, int]]


def read_digits() -> tuple[np.ndarray, np.ndarray]:
    """Images, uint8 [1797, 1, 8, 8], and their digits.

    Raises:
        DataError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise DataError(
            "data.name=digits: needs scikit-learn; pip install 'lowbit-scaling[vision]'"
        ) from None
    held = load_digits()
    scaled = np.rint(held.images * (255 / _DARKEST)).astype(np.uint8)
    return scaled.reshape(-1, 1, SIDE, SIDE), held.target


def digits(images: np.ndarray, classes: np.ndarray) -> tuple[_Labelled, _Labelled]:
    """Those to train on and those that are scored."""
    pairs = [(image, int(digit)) for image, digit in zip(images, classes, strict=True)]
    scored = range(_EVERY - 1, len(pairs), _EVERY)
    return [p for n, p in enumerate(pairs) if n not in scored], [pairs[n] for n in scored]
