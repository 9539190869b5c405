"""The threshold of a verdict: Student's t at the false-alarm rate of three standard errors.

A standard error from few repeated seeds is itself uncertain, and chance differences divided by it
scatter more widely than normal deviates.  So the threshold for |difference / standard error|
depends on the degrees of freedom behind it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import special

SIGMAS = 3.0
"""Standard errors of a normal distribution; their false-alarm rate, 0.27 %, holds for verdicts."""
WORSE, BETTER, CANNOT_TELL = "worse", "better", "cannot tell"

EQUAL_WITHIN = 0.005
"""Nats per token that two formats may differ by and still be called equal."""
EQUAL_ALARM = 0.05
"""The chance, at most, with which formats that differ by that much are called equal."""


def equal(difference: float, error: float, dof: int, margin: float = EQUAL_WITHIN) -> bool:
    """Whether a difference is shown to be smaller than a margin: two one-sided t tests.

    Args:
        difference: The measured difference.
        error: Its standard error.
        dof: Degrees of freedom of the standard error.
        margin: The margin.

    >>> equal(0.001, 0.002, 30), equal(0.001, 0.003, 30)
    (True, False)
    """
    if dof < 1 or not error > 0:
        return False
    needed = -float(special.stdtrit(dof, EQUAL_ALARM)) * error
    return -margin + needed < difference < margin - needed


def enough(dof: Any) -> Any:
    """|difference / standard error| from which a difference counts as real.

    Args:
        dof: Degrees of freedom of the standard error: a number or an array.

    Returns:
        Infinite without degrees of freedom: nothing can be told.

    >>> [round(enough(dof), 2) for dof in (1, 4, 16, 1000)]
    [235.8, 6.62, 3.54, 3.01]
    """
    dof = np.asarray(dof, dtype=np.float64)
    known = np.where(dof > 0, dof, 1.0)
    needed = np.where(dof > 0, -special.stdtrit(known, special.ndtr(-SIGMAS)), np.inf)
    return float(needed) if needed.ndim == 0 else needed


def judge(z: npt.ArrayLike, dof: npt.ArrayLike) -> npt.NDArray[np.str_]:
    """The verdict on differences by their size in standard errors.

    Args:
        z: Difference / standard error; NaN where there is none.
        dof: Degrees of freedom of the standard errors.

    Returns:
        "worse" (z is positive), "better" or "cannot tell" (also where there is no z).
    """
    z, needed = np.asarray(z, dtype=np.float64), enough(dof)
    return np.select([z >= needed, z <= -needed], [WORSE, BETTER], CANNOT_TELL)
