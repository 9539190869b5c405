"""The run record: written once, read back as written, and wrong tables refused in one line."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from fitting.files.atomic import write_atomic
from fitting.files.own_json import ResultsError
from fitting.results.format_errors import MEASURED
from fitting.results.record import COLUMNS, FAILURE, RESULT, RunRecord, read_record, write_exclusive
from fitting.results.table import load, require_columns
from tests.support.records import RECORD, save


def test_a_record_comes_back_bit_for_bit(tmp_path: Path) -> None:
    record = save(tmp_path)
    assert read_record(tmp_path / record.run_id) == record
    assert record.loss == 3.1234567890123456


def test_a_result_is_written_once_and_never_overwritten(tmp_path: Path) -> None:
    save(tmp_path)
    again = dataclasses.replace(RECORD, loss=1.0)
    assert not write_exclusive(again, tmp_path / RECORD.run_id)
    assert read_record(tmp_path / RECORD.run_id) == RECORD
    assert [p.name for p in (tmp_path / RECORD.run_id).iterdir()] == [RESULT]


def _race(folder: Path, loss: float) -> bool:
    return write_exclusive(dataclasses.replace(RECORD, loss=loss), folder)


def test_of_many_writers_exactly_one_wins_and_its_record_is_whole(tmp_path: Path) -> None:
    folder = tmp_path / RECORD.run_id
    folder.mkdir()
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        wins = pool.starmap(_race, [(folder, 1.0 + i) for i in range(8)])
    record = read_record(folder)
    assert sum(wins) == 1
    assert record is not None
    assert record.loss == 1.0 + wins.index(True)


def test_a_failure_is_read_only_where_there_is_no_result(tmp_path: Path) -> None:
    folder = tmp_path / RECORD.run_id
    folder.mkdir()
    failed = dataclasses.replace(RECORD, status="failed", loss=None, reason="killed")
    write_atomic(failed.to_json(), folder / FAILURE)
    assert read_record(folder) == failed
    write_exclusive(RECORD, folder)
    assert read_record(folder) == RECORD


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"status": "done"}, "status='done': must be one of finished, diverged, failed"),
        ({"loss": None}, "finished with loss=None"),
        ({"loss": float("nan")}, "finished with loss=nan"),
    ],
)
def test_a_record_that_would_mislead_cannot_be_made(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ResultsError, match=message):
        dataclasses.replace(RECORD, **changes)


def test_records_are_strict_json() -> None:
    diverged = dataclasses.replace(RECORD, status="diverged", loss=None, train_loss=float("nan"))
    with pytest.raises(ValueError, match="not JSON compliant"):
        diverged.to_json()


@pytest.mark.parametrize("text", ["", "{", '{"run_id": "x"}', json.dumps({"surprise": 1})])
def test_a_broken_record_is_named_by_its_path(tmp_path: Path, text: str) -> None:
    (tmp_path / RESULT).write_text(text)
    with pytest.raises(ResultsError, match=rf"{tmp_path}/result.json: damaged"):
        read_record(tmp_path)


def test_a_folder_loads_as_one_row_a_run_sorted_by_id(tmp_path: Path) -> None:
    save(tmp_path, run_id="b", loss=2.0)
    save(tmp_path, run_id="a", status="diverged", loss=None, reason="loss above 12")
    (tmp_path / "not-yet").mkdir()  # a run that has left nothing
    (tmp_path / "study.json").write_text("{}")
    table = load(tmp_path)
    assert tuple(table.columns) == (*COLUMNS, *MEASURED)
    assert list(table["run_id"]) == ["a", "b"]
    assert list(table["status"]) == ["diverged", "finished"]
    assert np.isnan(table["loss"][0])
    assert table["loss"][1] == 2.0


def test_a_csv_of_a_folder_loads_with_the_same_numbers(tmp_path: Path) -> None:
    for i in range(3):
        save(tmp_path / "runs", run_id=f"r{i}", loss=3 + i / 7)
    table = load(tmp_path / "runs")
    table.to_csv(tmp_path / "all.csv", index=False)
    again = load(tmp_path / "all.csv")
    numbers = table.select_dtypes("number").columns
    pd.testing.assert_frame_equal(again[numbers], table[numbers], check_exact=True)


def test_foreign_columns_are_mapped_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "losses.csv"
    path.write_text("N,D,val,note\n100,2000,3.5,x\n200,4000,,y\n")
    table = load(path, {"params": "N", "tokens": "D", "loss": "val"})
    assert list(table["params"]) == [100, 200]
    assert list(table["note"]) == ["x", "y"]
    assert list(table["status"]) == ["finished", "finished"]
    assert np.isnan(table["loss"][1])


def test_what_cannot_be_loaded_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "x.txt").write_text("")
    (tmp_path / "words.csv").write_text("params,loss\nmany,3\n")
    for name, message in {
        "nowhere": r"results=.*nowhere: no such file or folder",
        "empty": r"results=.*empty: no \*/result.json in this folder",
        "empty.csv": r"results=.*empty.csv: cannot be read",
        "x.txt": r"must be a folder of runs, a .csv, .tsv, .jsonl, .json .*or .parquet file",
        "words.csv": r"column 'params' of .*words.csv is not numeric",
    }.items():
        with pytest.raises(ResultsError, match=message) as caught:
            load(tmp_path / name)
        assert "\n" not in str(caught.value)
    with pytest.raises(ResultsError, match=r"columns.tokens=T: no such column; the table has pa"):
        load(tmp_path / "words.csv", {"tokens": "T"})


def test_missing_columns_are_named_with_those_there_are() -> None:
    table = pd.DataFrame({"N": [1], "loss": [2.0]})
    message = "law=x needs columns params, tokens; the table has N, loss; map one with columns.par"
    with pytest.raises(ResultsError, match=message):
        require_columns(table, ("params", "loss", "tokens"), "law=x")
    require_columns(table, ("loss",), "law=x")


def test_a_file_that_cannot_be_replaced_stays_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    with pytest.raises(IsADirectoryError):
        write_atomic("new", tmp_path / "target")
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


def slot(precision: str = "") -> dict[str, Any]:
    return {"rounding": "nearest_even", "precision": precision}


@pytest.mark.parametrize(
    ("dtype", "scale", "mantissa", "own", "values"),
    [
        ("float32", "fp32", 1, "", "exact"),
        ("bfloat16", "none", 7, None, "exact"),
        ("bfloat16", "e8m0", 1, "", "exact"),
        ("bfloat16", "quest_floor", 1, "", "exact"),
        ("bfloat16", "e8m0", 1, "mxfp8_e4m3", "exact"),
        ("bfloat16", "e8m0", 1, "E5M2-ocp-block32-e8m0_ceil", "exact"),
        ("bfloat16", "e8m0", 1, "INT8-block32-e8m0", "exact"),
        ("bfloat16", "fp32", 1, "", "rounded"),
        ("bfloat16", "e4m3", 1, "", "rounded"),
        ("bfloat16", "e8m0_4_3", 1, "", "rounded"),
        ("bfloat16", "e8m0", 10, "", "rounded"),
        ("bfloat16", "e8m0", 1, "nvfp4", "rounded"),
        ("bfloat16", "e8m0", 1, "fp8_e5m2", "rounded"),
        ("bfloat16", "e8m0", 1, "mxfp4_4_3", "rounded"),
        ("bfloat16", "e8m0", 1, "E3M9-block32-e8m0", "rounded"),
    ],
)
def test_older_records_say_what_was_multiplied(
    dtype: str, scale: str, mantissa: int, own: str | None, values: str
) -> None:
    """As it was then: bfloat16 rounded all that it does not hold."""
    recipe = {"output": {"weight": None if own is None else slot(own), "hadamard": 0}}
    config = {"compute_dtype": dtype, "recipe": recipe}
    old = dataclasses.replace(
        RECORD, scale=scale, mantissa=mantissa, config=config, operands="" if own is None else "P2"
    )
    data = json.loads(old.to_json())
    del data["operand_values"]
    assert RunRecord.from_json(json.dumps(data)).operand_values == values
    data["operand_values"] = "rounded"
    assert RunRecord.from_json(json.dumps(data)).operand_values == "rounded", "as it says"
    data["operand_values"] = "some"
    with pytest.raises(ResultsError, match="operand_values='some': must be one of exact, rounded"):
        RunRecord.from_json(json.dumps(data))
