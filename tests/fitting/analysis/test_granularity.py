"""Coarse scales: the block size they are worth is found again, and only where it can be."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pandas as pd
import pytest

from fitting.fit.bootstrap import bootstrap
from fitting.fit.result import Fit
from fitting.fit.search import fit
from fitting.laws.published import SUN_2025
from fitting.laws.synthetic import SUN_LOG2_CHANNEL, SUN_PARAMS, SUN_TOKENS, make_table
from tests.support.fits import derived_json

OMEGA, XI, ETA = 0.12, 0.02, 0.14
"""Constants of log2 B = N^omega/(xi D^eta), which is 12 to 23 on the grid."""
OWN = 10.0
"""log2 of the channels' own length, which tables give where no equivalent is known."""


def every_run(noise: float) -> pd.DataFrame:
    """Blocks of 32 to 512, a scale per channel (worth 2^13.1567) and one per tensor."""
    layouts = ((1, 1), (2, 1), (1, 2), (3, 2), (4, 3))
    rows = []
    for n in SUN_PARAMS:
        for d in SUN_TOKENS:
            per_tensor = n**OMEGA / (XI * d**ETA)
            rows += [(n, d, *x, 2.0**b, "block") for x in layouts for b in (5, 7, 9)]
            rows += [(n, d, *x, 2.0**SUN_LOG2_CHANNEL, "row") for x in layouts[:3]]
            rows += [(n, d, *x, 2.0**per_tensor, "tensor") for x in layouts[:3]]
    names = ["params", "tokens", "exponent", "mantissa", "block_size", "granularity"]
    table = make_table("floating_point", SUN_2025, pd.DataFrame(rows, columns=names), noise, 3)
    coarse = table["granularity"] != "block"
    return table.assign(block_size=table["block_size"].mask(coarse, 2.0**OWN))


def equivalent_blocks(
    fitted: Fit, draws: pd.DataFrame | None, table: pd.DataFrame, every: pd.DataFrame
) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = derived_json(fitted, draws, table, every)["equivalent_blocks"]
    return found


@pytest.fixture(scope="module")
def every() -> pd.DataFrame:
    return every_run(2e-3)


@pytest.fixture(scope="module")
def blocks(every: pd.DataFrame) -> pd.DataFrame:
    return every[every["granularity"] == "block"]


@pytest.fixture(scope="module")
def fitted(blocks: pd.DataFrame) -> Fit:
    return fit(blocks, "floating_point", starts=8)


def test_without_noise_the_block_sizes_are_found_exactly() -> None:
    table = every_run(0.0)
    only_blocks = table[table["granularity"] == "block"]
    found = fit(only_blocks, "floating_point", starts=4)
    row, tensor = equivalent_blocks(found, None, only_blocks, table)
    assert row["log2_block"] == pytest.approx(SUN_LOG2_CHANNEL, rel=1e-5)
    assert (row["given"], row["rows"], row["fitted"]) == (OWN, 48, False)
    assert row["interval"] == [None, None]
    law = [tensor[name] for name in ("omega", "xi", "eta")]
    assert law == pytest.approx([OMEGA, XI, ETA], rel=1e-3)
    assert 12 < tensor["log2_block"] < 23


def test_intervals_hold_the_truth(every: pd.DataFrame, blocks: pd.DataFrame, fitted: Fit) -> None:
    row, tensor = equivalent_blocks(fitted, bootstrap(blocks, fitted, 200), blocks, every)
    json.dumps((row, tensor), allow_nan=False)
    # 95 % intervals are 4 standard errors wide: one and a half of them is 6 (p = 2e-9).
    low, high = row["interval"]
    assert abs(row["log2_block"] - SUN_LOG2_CHANNEL) < 1.5 * (high - low)
    assert high - low < 3
    for name, exact in (("omega", OMEGA), ("eta", ETA)):
        low, high = tensor[f"{name}_interval"]
        assert abs(tensor[name] - exact) < 1.5 * (high - low)


def test_a_fit_that_took_their_own_length_for_granted_is_marked_and_pulled(
    every: pd.DataFrame, fitted: Fit
) -> None:
    pooled = fit(every, "floating_point", starts=8)
    row, _ = equivalent_blocks(pooled, None, every, every)
    assert row["fitted"]
    assert row["log2_block"] > OWN


def test_other_corpora_and_recipes_do_not_count(blocks: pd.DataFrame, fitted: Fit) -> None:
    elsewhere = blocks.assign(granularity="row", recipe="another")
    assert equivalent_blocks(fitted, None, blocks, pd.concat([blocks, elsewhere])) == []


def test_one_size_says_nothing_about_how_it_grows(
    every: pd.DataFrame, blocks: pd.DataFrame, fitted: Fit
) -> None:
    one = every[(every["granularity"] == "block") | (every["params"] == SUN_PARAMS[0])]
    tensor = equivalent_blocks(fitted, None, blocks, one)[1]
    assert tensor["log2_block"] is not None
    assert [tensor[name] for name in ("omega", "xi", "eta")] == [None, None, None]


def test_without_blocks_nothing_is_measured(every: pd.DataFrame) -> None:
    rows = every[every["granularity"] == "row"]
    coarse = fit(rows.assign(block_size=np.where(rows.index % 2, 64.0, 4096.0)), "floating_point")
    assert equivalent_blocks(coarse, None, rows, every) == []
