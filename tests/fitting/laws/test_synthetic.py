"""Synthetic tables: the published grid, and noise as asked."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from fitting.law.terms import FitError
from fitting.laws.catalogue import LAWS
from fitting.laws.published import SUN_2025
from fitting.laws.synthetic import SUN_PARAMS, make_table, sun_cells, sun_design

# layers, hidden, ffn of the four sizes of the grid (2501.02423, Table 4).
SHAPES = [(12, 512, 1536), (12, 768, 2048), (12, 1024, 2816), (24, 1536, 4096)]


def test_sizes_are_layers_times_4h2_plus_3hf() -> None:
    assert [n * (4 * h * h + 3 * h * f) for n, h, f in SHAPES] == list(SUN_PARAMS)


def test_the_design_has_336_distinct_runs_and_the_token_counts_are_whole_steps() -> None:
    design = sun_design()
    assert len(design) == 4 * 4 * (17 + 4)
    assert not design.duplicated().any()
    assert sorted(design["tokens"].unique() // 2**21) == [5_000, 10_000, 25_000, 50_000]


def test_without_noise_the_law_holds_exactly() -> None:
    table = make_table("floating_point", SUN_2025, sun_design(), noise=0, seed=0)
    assert (table["loss"] == LAWS["floating_point"].predict(SUN_2025, table)).all()


def test_noise_is_normal_in_log_loss_with_the_given_deviation() -> None:
    n = 20_000
    design = pd.DataFrame({"params": np.full(n, 1e8), "tokens": 1e10})
    truth = {"A": 400.0, "alpha": 0.34, "B": 2000.0, "beta": 0.37, "E": 1.8}
    table = make_table("chinchilla", truth, design, noise=0.01, seed=1)
    log_noise = np.log(table["loss"] / LAWS["chinchilla"].predict(truth, design))
    # n = 20,000: five standard errors of a deviation are 5 / sqrt(2 n) of it (p = 6e-7).
    assert log_noise.std() == pytest.approx(0.01, rel=5 / np.sqrt(2 * n))
    assert abs(log_noise.mean()) < 5 * 0.01 / np.sqrt(n)
    assert sorted(table["seed"]) == list(range(n))  # the same cell again and again


def test_the_same_seed_gives_the_same_table_and_another_another() -> None:
    tables = [make_table("floating_point", SUN_2025, sun_design(), 0.01, s) for s in (3, 3, 4)]
    pd.testing.assert_frame_equal(tables[0], tables[1])
    assert (tables[0]["loss"] != tables[2]["loss"]).all()


def test_unquantized_rows_are_marked_as_the_run_record_marks_them() -> None:
    design = sun_design().head(2).assign(block_size=[1.0, 32.0]).drop(columns="granularity")
    table = make_table("floating_point", SUN_2025, design, 0, 0)
    assert list(table["granularity"]) == ["none", "block"]
    assert list(table["recipe"]) == ["none", "synthetic"]


def test_a_truth_that_is_not_the_laws_is_refused() -> None:
    with pytest.raises(FitError, match="no value for n, alpha"):
        make_table("floating_point", {}, sun_design(), 0, 0)


def test_cells_are_drawn_without_repeats_from_the_whole_grid() -> None:
    some, others, every = sun_cells(366, 0), sun_cells(366, 1), sun_cells(1600, 0)
    assert [len(x.drop_duplicates()) for x in (some, others, every)] == [366, 366, 1600]
    assert len(some.merge(others)) < 366
    assert set(every["params"]) == set(SUN_PARAMS)
    assert set(every["block_size"]) == {32, 64, 128, 512}
    assert every.groupby(["exponent", "mantissa"]).size().eq(64).all()
    with pytest.raises(ValueError, match="rows=1601: must be between 1 and 1600"):
        sun_cells(1601, 0)
