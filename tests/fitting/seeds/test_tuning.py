"""Fine-tuning as measured: differences of known tables, and how often intervals hold the truth."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pandas as pd
import pytest

from fitting.page import tuning as page
from fitting.seeds.tuning import ALWAYS, NEVER, NOW, against_the_best, cost_of_bits, tuning_of

SHIFT = {"none": 0.0, "E2M1": 0.03, "E0M1": 0.4}
OF_RANK = {math.nan: 0.0, 4.0: 0.2, 16.0: 0.1}
OF_FORMAT = {"none": 0.0, "int4_row": 0.01, "sign": 0.1}


def study(noise: float = 0.0, seed: int = 0, seeds: int = 2) -> pd.DataFrame:
    """Every base with every adapter; a seed moves all its runs together, and each run a little."""
    rng = np.random.default_rng(seed)
    together = {(n, s): rng.normal() for n in (1e5, 3e5) for s in range(seeds)}
    rows = []
    for (base, shift), (rank, lost), n, d, s in itertools.product(
        SHIFT.items(), OF_RANK.items(), (1e5, 3e5), (1e4, 1e5), range(seeds)
    ):
        for how, coarse in OF_FORMAT.items() if rank == rank else [("none", 0.0)]:
            for bits in (32.0,) if base == "none" else (32.0, 4.0):
                loss = 2 - 0.1 * math.log10(d) + shift + lost + coarse + (bits == 4) * 0.005
                loss += together[n, s] + noise * rng.normal()
                rows.append((3 + loss, n, d, s, base, bits, rank, how))
    names = ["loss", "params", "tokens", "seed", "base", "base.bits", "rank", "adapter_format"]
    table = pd.DataFrame(rows, columns=names).assign(status="finished", block_size=64.0)
    base = table.pop("base")
    return table.assign(
        exponent=base.map({"none": 8, "E2M1": 2, "E0M1": 0}),
        mantissa=base.map({"none": 23, "E2M1": 1, "E0M1": 1}),
        granularity=base.where(base == "none", "row"),
        recipe=base.where(base == "none", "weights"),
        err_trained=np.where(table["base.bits"] < 16, 0.01, 0.0),
        **{"base.label": table["base.bits"].astype(str)},
    )


def test_without_noise_differences_are_those_that_were_put_in() -> None:
    """What a seed does to all its runs cancels."""
    cells = against_the_best(study())
    assert set(cells["base"]) == {"none", "E2M1", "INT2"}
    assert {base: set(rows["rounded"]) for base, rows in cells.groupby("base")} == {
        "none": {NEVER}, "E2M1": {NOW, ALWAYS}, "INT2": {NOW, ALWAYS},
    }  # fmt: skip
    shift = cells["base"].map({"none": 0.0, "E2M1": 0.03, "INT2": 0.4})
    shift = shift + cells["rank"].map(lambda r: OF_RANK.get(r, 0.0))
    shift = shift + cells["adapter_format"].map(OF_FORMAT) + 0.005 * (cells["rounded"] == ALWAYS)
    best = (cells["rounded"] == NEVER) & cells["rank"].isna()
    assert cells["difference"][~best].to_numpy() == pytest.approx(shift[~best].to_numpy())
    assert cells["difference"][best].isna().all()
    assert (cells["seeds"] == 2).all()
    costs = cost_of_bits(study())
    assert costs["difference"].to_numpy() == pytest.approx(costs["adapter_format"].map(OF_FORMAT))
    assert (costs["pairs"] == 2 * 5).all(), "two seeds of five bases"


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    """Cells share the runs that they are set against, so what counts is each cell by itself."""
    inside, count = 0, 300
    for seed in range(count):
        cells = against_the_best(study(noise=0.01, seed=seed))
        [row] = cells[
            (cells["base"] == "E2M1") & (cells["rounded"] == NOW) & cells["rank"].isna()
            & (cells["params"] == 1e5) & (cells["tokens"] == 1e4)
        ].to_dict("records")  # fmt: skip
        inside += row["low"] <= 0.03 <= row["high"]
    assert 0.91 < inside / count < 0.985  # 95 % of 300, at 1 in 1,000 on either side


def test_a_study_without_adapters_or_with_them_alone_is_none_of_tuning() -> None:
    table = study()
    assert tuning_of(table) is not None
    assert tuning_of(table.drop(columns="rank")) is None
    assert tuning_of(table[table["rank"].notna()]) is None
    assert tuning_of(table[table["rank"].isna()]) is None


def test_sentences_name_the_ends() -> None:
    found = tuning_of(study())
    assert found is not None
    whole, ranks, bits = page.answer(found)
    assert whole.startswith("With all weights tuned, a rounded base loses 0.030 (")
    assert "INT2, trained so" in whole
    assert ranks.startswith("Adapters on the unquantized base lose 0.100")
    assert "; rank 16) to 0.200" in ranks
    assert "; int4_row) to 0.100" in bits
    rows = page.view(found).rows
    assert [cells for kind, cells in rows if kind == "group"] == [
        ["100k parameters"], ["300k parameters"],
    ]  # fmt: skip
    assert len(rows) == 2 * (1 + 7 * 5)
