"""Results tables from a known law: to test a fitter, or a study's design before paying for it."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import numpy as np
import pandas as pd

from fitting.law.terms import Law
from fitting.laws.catalogue import get

SUN_PARAMS = (40_894_464, 84_934_656, 154_140_672, 679_477_248)
"""Sun et al. 2501.02423: the four sizes of the grid, layers (4 h^2 + 3 h f)."""
SUN_TOKENS = (10_485_760_000, 20_971_520_000, 52_428_800_000, 104_857_600_000)
"""The four token counts: 5,000 to 50,000 steps of 2^21 tokens."""
SUN_CHANNEL_WISE = (
    *((0, 7), (1, 1), (1, 2), (1, 3), (1, 4), (1, 5), (1, 6), (2, 1), (2, 3), (3, 1), (3, 2)),
    *((4, 1), (4, 3), (4, 5), (5, 1), (5, 2), (6, 1)),
)
"""(exponent, mantissa) run with one scale per channel: Table 3."""
SUN_LOG2_CHANNEL = 13.1567
"""log2 of the block size to which a scale per channel is equivalent."""
SUN_BLOCKS = (32, 64, 128, 256)
"""Block sizes run with E1M1 at every size."""


def sun_design() -> pd.DataFrame:
    """The grid behind the published floating-point law, 336 rows: 4 N x 4 D x 21 formats.

    17 layouts with a scale per channel, and E1M1 in blocks of 32 to 256 (Sun et al. 2501.02423,
    Table 3, without the few E1M1 rows of block size 512 or with a scale per tensor).
    """
    formats = [(e, m, 2.0**SUN_LOG2_CHANNEL, "row") for e, m in SUN_CHANNEL_WISE]
    formats += [(1, 1, float(block), "block") for block in SUN_BLOCKS]
    rows = [
        (n, d, e, m, block, granularity)
        for n in SUN_PARAMS
        for d in SUN_TOKENS
        for e, m, block, granularity in formats
    ]
    names = ["params", "tokens", "exponent", "mantissa", "block_size", "granularity"]
    return pd.DataFrame(rows, columns=names)


def sun_cells(rows: int, seed: int) -> pd.DataFrame:
    """A random part of 1,600 cells around Sun et al.'s: 4 N x 4 D x E1..5 x M1..5 x 4 block sizes.

    Raises:
        ValueError: `rows` is not between 1 and 1,600.
    """
    blocks = (32.0, 64.0, 128.0, 512.0)
    levels = (SUN_PARAMS, SUN_TOKENS, range(1, 6), range(1, 6), blocks)
    names = ["params", "tokens", "exponent", "mantissa", "block_size"]
    cells = pd.DataFrame(list(itertools.product(*levels)), columns=names)
    if not 1 <= rows <= len(cells):
        raise ValueError(f"rows={rows}: must be between 1 and {len(cells)}")
    chosen = np.random.default_rng(seed).choice(len(cells), rows, replace=False)
    return cells.iloc[np.sort(chosen)].reset_index(drop=True)


def make_table(
    law: Law | str,
    parameters: Mapping[str, float],
    design: pd.DataFrame,
    noise: float,
    seed: int,
) -> pd.DataFrame:
    """A results table in which a law holds exactly, apart from noise.

    Args:
        law: One of `fitting.laws.catalogue.LAWS`, or its name.
        parameters: The truth.
        design: One row per run: the law's columns; all its other columns are kept.
        noise: Standard deviation of log loss (about the relative one of loss), normal.
        seed: Seed of the noise.

    Returns:
        The design with the columns that runs have and it lacks: `run_id`, `status`, `loss`, and
        whatever tells runs apart in `fitting.results.record` (`model`, `recipe`, `bits`,
        `granularity`, `scale`, `operands`; `seed` counts runs that are otherwise the same).

    Raises:
        ResultsError: The design lacks one of the law's columns.
        FitError: The law is not defined there, or the parameters are not the law's.
    """
    law = get(law) if isinstance(law, str) else law
    table = design.reset_index(drop=True).copy()
    loss = law.predict(parameters, table)
    rng = np.random.default_rng(seed)
    table["loss"] = loss * np.exp(noise * rng.standard_normal(len(table)))
    table["status"] = "finished"
    table["run_id"] = [f"{law.name}-{i:06d}" for i in range(len(table))]

    derived: dict[str, pd.Series | np.ndarray | list[str]] = {
        "model": [f"n{n:.0f}" for n in table["params"]]
    }
    if "block_size" in table:
        quantized = (table["block_size"] > 1).to_numpy()
        derived["recipe"] = np.where(quantized, "synthetic", "none")
        derived["granularity"] = np.where(quantized, "block", "none")
        derived["scale"] = np.where(quantized, "fp32", "none")
        derived["operands"] = np.where(quantized, "P2 P4 P6", "")
    if "exponent" in table and "mantissa" in table:
        derived["bits"] = 1 + table["exponent"] + table["mantissa"]
    for name, values in derived.items():
        if name not in table:
            table[name] = values
    if "seed" not in table:
        table["seed"] = design.reset_index(drop=True).groupby(list(design), dropna=False).cumcount()
    return table
