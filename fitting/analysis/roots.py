"""Where a function turns positive, for a number or for every draw of a bootstrap at once."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fitting.law.curves import Array

HALVINGS = 80
"""Halvings after which a bracket has no width left in float64."""


def rising_root(
    function: Callable[[Array], Array], low: float, high: float, shape: tuple[int, ...]
) -> Array:
    """The root of a rising function between `low` and `high`, by bisection.

    Args:
        function: Takes [draws] points and gives [draws] values.
        low: Where the bracket begins.
        high: Where it ends.
        shape: [draws], or empty for one number.

    Returns:
        [draws] roots: -inf where the function is already positive at `low`, inf where it is not
        positive even at `high`.

    >>> rising_root(lambda x: x**2 - np.array([2.0, 9.0, 200.0]), 2.0, 10.0, (3,))
    array([-inf,   3.,  inf])
    """
    below, above = np.full(shape, low), np.full(shape, high)
    at_low, at_high = (function(end) > 0 for end in (below, above))
    for _ in range(HALVINGS):
        middle = (below + above) / 2
        positive = function(middle) > 0
        below, above = np.where(positive, below, middle), np.where(positive, middle, above)
    root: Array = np.where(at_low, -np.inf, np.where(at_high, above, np.inf))
    return root
