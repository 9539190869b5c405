"""A made-up study of splits crossed with recipes and scales."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd

SPLITS = {(2, 1): 0.0, (1, 2): 0.004, (3, 0): 0.03}


def crossed(
    seed: int, noise: float = 0.004, rotated: float = -0.012, seeds: int = 8
) -> pd.DataFrame:
    """Three splits, two recipes, two scales; E1M2 gains `rotated` by the rotation."""
    rng = np.random.default_rng(seed)
    rows = []
    for number, scale in itertools.product(range(seeds), ("fp32", "e8m0")):
        shared = rng.normal(scale=0.05)
        for recipe, hadamard in (("plain", 0), ("rotated", 32)):
            for (e, m), cost in SPLITS.items():
                gain = rotated if (recipe, e) == ("rotated", 1) else 0.0
                loss = 2.3 + shared + cost + gain + rng.normal(scale=noise / 2**0.5)
                rows.append(
                    {
                        "model": "a", "recipe": recipe, "exponent": e, "mantissa": m,
                        "block_size": 32.0, "granularity": "block", "scale": scale, "tokens": 1e6,
                        "params": 1e5, "seed": number, "status": "finished", "loss": loss,
                        "recipe.output.hadamard": hadamard,
                        "err_weight": {(2, 1): 0.0102, (1, 2): 0.0094, (3, 0): 0.032}[e, m],
                    }
                )  # fmt: skip
    return pd.DataFrame(rows)
