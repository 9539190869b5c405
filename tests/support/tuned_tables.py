"""A truth of the law of fine-tuning, and runs that tell its constants apart."""

from __future__ import annotations

TUNED = {
    **{"A": 400.0, "alpha": 0.34, "E": 1.8, "F": 1.2, "B": 1e6, "beta": 0.6, "R": 0.7},
    **{"kappa": 0.5, "C": 0.9, "mu": 0.7, "G": 0.25, "nu": 0.7, "eff_r[sign]": 0.25},
}
"""Its constants, for tokens in billions."""
TUNED_COLUMNS = ["rank", "adapter_format", "err_weight", "err_trained"]
TUNED_RUNS: list[tuple[object, ...]] = [
    *((rank, "none", 0.0, 0.0) for rank in (1, 4, 16)),
    *((rank, "none", error, 0.0) for rank in (1, 16) for error in (0.02, 0.2)),
    *((rank, "sign", error, 0.0) for rank, error in ((4, 0.0), (16, 0.1))),
    *((4, "none", error, error) for error in (0.01, 0.1, 0.2)),
]
"""Ranks, formats and bases beside each size and token count."""
