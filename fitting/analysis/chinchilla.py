"""What follows from Chinchilla's form."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fitting.analysis.trades import (
    QUIET,
)


@QUIET
def compute_optimal_exponent(parameters: Mapping[str, Any]) -> Any:
    """Exponent a of N* ~ C^a, the best size for compute C = 6 N D: beta/(alpha + beta).

    Hoffmann et al. 2203.15556, Eq. 4, for the law `chinchilla`; arrays of draws give an array.
    """
    return parameters["beta"] / (parameters["alpha"] + parameters["beta"])
