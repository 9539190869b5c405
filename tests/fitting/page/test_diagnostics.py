"""Diagnostics on the page: which rows are read, which runs are drawn, which layer is the worst."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from fitting.figures.style import format_colours
from fitting.files.own_json import ResultsError
from fitting.page import diagnostics as qsnr
from fitting.results.record import DamagedWarning

ORDER = ["E1M1", "E2M1", "none"]
RUNS = pd.DataFrame(
    [("small", "E2M1", 1e5, 1e6, 0), ("large", "E2M1", 2e5, 1e6, 1),
     ("again", "E2M1", 2e5, 1e6, 0), ("low", "E1M1", 1e5, 1e6, 0)],
    columns=["run_id", "format", "params", "tokens", "seed"],
)  # fmt: skip
LAYERS = {"up": (20.0, 18.0), "down": (14.0, 10.0)}


def rows_of(*run_ids: str) -> pd.DataFrame:
    rows = [
        (run, step, layer, "P2", values[i])
        for run in run_ids
        for layer, values in LAYERS.items()
        for i, step in enumerate((0, 500))
    ]
    return pd.DataFrame(rows, columns=list(qsnr.COLUMNS))


def test_rows_are_read_from_the_loss_curves_of_runs(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    rows = [
        {"step": 0, "train/loss": 4.0},
        {"step": 10, "qsnr/P1": 15.0, "qsnr_P1/blocks.0.mlp.up": 15.5, "crest_P1/x": 3.0},
        {"step": 20, "qsnr_P6/blocks.1.attention.query": 9.25},
    ]
    (tmp_path / "a" / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "b" / "metrics.jsonl").write_text(json.dumps(rows[0]))
    table, inputs = qsnr.read(tmp_path)
    assert table.to_numpy().tolist() == [
        ["a", 10, "blocks.0.mlp.up", "P1", 15.5],
        ["a", 20, "blocks.1.attention.query", "P6", 9.25],
    ]
    assert list(inputs) == ["a/metrics.jsonl"]


def test_a_results_file_may_have_them_beside_it(tmp_path: Path) -> None:
    results = tmp_path / "results.csv"
    assert qsnr.read(results)[0].empty
    rows = rows_of("a", "b").iloc[1:]  # one layer of one run was not measured
    (tmp_path / "diagnostics.csv").write_text(qsnr.to_file(rows))
    table, inputs = qsnr.read(results)
    keys = list(qsnr.COLUMNS[:-1])
    pd.testing.assert_frame_equal(
        table.sort_values(keys, ignore_index=True), rows.sort_values(keys, ignore_index=True)
    )
    assert list(inputs) == ["diagnostics.csv"]


@pytest.mark.parametrize(
    "row",
    ['{"qsnr_P1/x": 3', '["qsnr_"]', '{"step": 1, "qsnr_P1/x": "high"}', "[" * 9999 + "qsnr_"],
)
def test_the_diagnostics_of_a_broken_file_are_left_out_by_its_name(
    row: str, tmp_path: Path
) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        whole = json.dumps({"step": 10, "qsnr_P1/x": 15.5})
        (tmp_path / name / "metrics.jsonl").write_text(f"{whole}\n{row if name == 'a' else ''}\n")
    with pytest.warns(DamagedWarning, match=r"a/metrics\.jsonl: not a row of metrics"):
        table, inputs = qsnr.read(tmp_path)
    assert (set(table["run_id"]), list(inputs)) == ({"b"}, ["b/metrics.jsonl"])


def test_a_broken_table_of_diagnostics_is_refused_by_its_file(tmp_path: Path) -> None:
    (tmp_path / "diagnostics.csv").write_text("run_id,step\na,1\n")
    with pytest.raises(ResultsError, match="needs column operand"):
        qsnr.read(tmp_path / "results.csv")


def test_one_run_stands_for_a_format_the_largest_of_the_lowest_seed() -> None:
    chosen = qsnr.of_study(rows_of("small", "large", "again", "unknown"), RUNS)
    assert set(chosen["run_id"]) == {"again"}
    assert set(chosen["format"]) == {"E2M1"}
    chosen = qsnr.of_study(rows_of("small", "low"), RUNS)
    assert dict(zip(chosen["run_id"], chosen["format"], strict=True)) == {
        "small": "E2M1", "low": "E1M1",
    }  # fmt: skip
    assert qsnr.of_study(rows_of("a"), RUNS.drop(columns="run_id")).empty


def test_the_worst_layer_is_named_in_the_table_and_at_the_mark() -> None:
    rows = qsnr.of_study(rows_of("small", "low"), RUNS)
    view = qsnr.summary(rows, ORDER)
    assert view is not None
    assert [cells for _, cells in view.rows] == [
        [name, "P2", "2", "17", "14", "down", "12"] for name in ("E1M1", "E2M1")
    ]
    (panel,) = qsnr.over_training(rows, ORDER, format_colours(ORDER))
    assert "E2M1, P2, step 500&#10;median 14.0 dB&#10;worst 10.0 dB: down" in panel.svg
    assert panel.svg.count("data-tip=") == 4
    (layers,) = qsnr.by_layer(rows, ORDER)
    assert "down&#10;P2, step 500: 10.0 dB" in layers.svg
    assert "E1M1" in layers.svg, "the format of the fewest bits"


def test_without_rows_there_is_neither_figure_nor_table() -> None:
    none = qsnr.of_study(rows_of("unknown"), RUNS)
    assert qsnr.summary(none, ORDER) is None
    assert qsnr.over_training(none, ORDER, {}) == []
    assert qsnr.by_layer(none, ORDER) == []
