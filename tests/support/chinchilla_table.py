"""A table of losses as the published Chinchilla law gives them, with noise."""

from __future__ import annotations

import numpy as np
import pandas as pd

from fitting.laws.published import BESIROGLU_2024
from fitting.laws.synthetic import make_table


def losses(sizes: int, lengths: int) -> pd.DataFrame:
    """`params`, `tokens` and `loss` of sizes x lengths runs, noise of 0.2 % on the loss."""
    n, d = np.meshgrid(np.geomspace(5e7, 1e10, sizes), np.geomspace(1e9, 3e11, lengths))
    design = pd.DataFrame({"params": n.ravel(), "tokens": d.ravel()})
    table = make_table("chinchilla", BESIROGLU_2024, design, noise=2e-3, seed=0)
    return table[["params", "tokens", "loss"]]
