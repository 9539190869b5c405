"""What follows from Chinchilla's form."""

from __future__ import annotations

from fitting.law.conclusion import Basis, Conclusion, Estimate, Sample, Values


def compute_optimal_exponent(parameters: Sample) -> Values:
    """Exponent a of N* ~ C^a, the best size for compute C = 6 N D: beta/(alpha + beta).

    Hoffmann et al. 2203.15556, Eq. 4, for the law `chinchilla`; arrays of draws give an array.
    """
    return parameters["beta"] / (parameters["alpha"] + parameters["beta"])


def _found(basis: Basis) -> Estimate | None:
    if basis.lacks(("alpha", "beta")):
        return None
    return basis.estimate(compute_optimal_exponent)


COMPUTE_OPTIMAL_EXPONENT = Conclusion(
    "compute_optimal_exponent",
    Estimate,
    _found,
    title="exponent of the compute-optimal size",
)
