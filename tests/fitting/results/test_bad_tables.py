"""Bad tables: a clear line and exit code 2, or a fit that says what is wrong with it."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from fitting.command import main as commands
from fitting.laws.published import SUN_2025
from fitting.laws.synthetic import make_table, sun_design
from tests.support.chinchilla_table import losses

GOOD = losses(6, 5)
"""30 runs; every bad table is this one with something done to it."""


def with_cell(column: str, value: Any) -> pd.DataFrame:
    """One value of the third run replaced."""
    table = GOOD.astype(object)
    table.loc[2, column] = value
    return table


def lowbit_fit(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int | str | None:
    monkeypatch.setattr(sys, "argv", ["lowbit-fit", *arguments])
    try:
        commands.fit()
    except SystemExit as stop:
        return stop.code
    return 0


def csv(table: pd.DataFrame) -> bytes:
    return table.to_csv(index=False).encode()


NUMBER = "column '{0}' of {path} is not numeric: Unable to parse string '{1}' at position 2"
POSITIVE = "law=chinchilla: column '{}' must be finite and positive, but is not in 1 of 30 rows"
REFUSED: dict[str, tuple[bytes, str]] = {
    "no rows": (csv(GOOD.iloc[:0]), "law=chinchilla: 0 usable rows, but 5 free parameters"),
    "one row": (csv(GOOD.iloc[:1]), "law=chinchilla: 1 usable rows, but 5 free parameters need"),
    "no column": (
        csv(GOOD.drop(columns="tokens")),
        "law=chinchilla needs column tokens; the table has params, loss, status; map one with",
    ),
    "empty file": (b"", "results={path}: cannot be read (No columns to parse from file)"),
    "no text": (bytes(range(256)), "results={path}: cannot be read ('utf-8' codec can't decode"),
    "another encoding": (
        GOOD.to_csv(index=False).encode("utf-16"),
        "results={path}: cannot be read ('utf-8' codec can't decode byte 0xff",
    ),
    "ragged": (b"params,tokens,loss\n1,2,3\n1,2,3,4\n", "results={path}: cannot be read (Error"),
    "no losses": (
        csv(GOOD.assign(loss=np.nan)),
        "law=chinchilla: 0 usable rows, but 5 free parameters need at least 6 (30 loss not fini",
    ),
    "all failed": (csv(GOOD.assign(status="failed")), "law=chinchilla: 0 usable rows, but 5 free"),
}
for kind in ("params", "tokens"):
    for bad in (0, -1e9, np.nan, np.inf, "1e400"):
        REFUSED[f"{kind} {bad}"] = (csv(with_cell(kind, bad)), POSITIVE.format(kind))
for kind in ("params", "tokens", "loss"):
    for bad in ("many", "1;5", "50,000"):
        said = NUMBER.replace("{0}", kind).replace("{1}", bad)
        REFUSED[f"{kind} {bad}"] = (csv(with_cell(kind, bad)), said)


@pytest.mark.parametrize("name", REFUSED)
def test_a_table_that_cannot_be_fitted_is_refused_in_one_line(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    content, message = REFUSED[name]
    path = tmp_path / "losses.csv"
    path.write_bytes(content)
    out = tmp_path / "out"
    assert lowbit_fit(monkeypatch, f"results={path}", "law=chinchilla", f"out={out}") == 2
    streams = capsys.readouterr()
    assert streams.err.startswith(f"lowbit-fit: {message.replace('{path}', str(path))}")
    assert streams.err.count("\n") == 1
    assert streams.out == ""
    assert not out.exists()


PLACES: dict[str, tuple[str, bytes | None, str]] = {
    "another extension": ("t.txt", csv(GOOD), "must be a folder of runs, a .csv, .tsv, .jsonl"),
    "no parquet": ("t.parquet", b"PAR1", "cannot be read ("),
    "a folder without runs": ("folder", None, "no */result.json in this folder"),
    "a folder called csv": ("folder.csv", None, "no */result.json in this folder"),
}


@pytest.mark.parametrize("name", PLACES)
def test_what_is_no_table_is_refused_in_one_line(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file, content, message = PLACES[name]
    path = tmp_path / file
    if content is None:
        (path / "a run without a result").mkdir(parents=True)
    else:
        path.write_bytes(content)
    assert lowbit_fit(monkeypatch, f"results={path}", "law=chinchilla", f"out={tmp_path}/o") == 2
    streams = capsys.readouterr()
    assert streams.err.startswith(f"lowbit-fit: results={path}: {message}")
    assert streams.err.count("\n") == 1


@pytest.mark.parametrize("text", ["{", "[]", '{"run_id": "a"}'])
def test_a_broken_record_is_named(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    record = tmp_path / "runs" / "one" / "result.json"
    record.parent.mkdir(parents=True)
    record.write_text(text)
    arguments = [f"results={tmp_path}/runs", "law=chinchilla", f"out={tmp_path}/out"]
    assert lowbit_fit(monkeypatch, *arguments) == 2
    streams = capsys.readouterr()
    where = f"results={tmp_path}/runs: no */result.json in this folder; 1 damaged"
    assert streams.err.startswith(f"lowbit-fit: {where}: {record}: damaged (")
    assert streams.err.count("\n") == 1


def test_a_place_that_cannot_be_written_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "losses.csv"
    GOOD.to_csv(path, index=False)
    arguments = [f"results={path}", "law=chinchilla", f"out={path}", "bootstrap=0"]
    assert lowbit_fit(monkeypatch, *arguments) == 2
    assert capsys.readouterr().err == f"lowbit-fit: out={path}: cannot be written (File exists)\n"


FLAGGED: dict[str, tuple[pd.DataFrame, str]] = {
    "all rows the same size": (
        GOOD.assign(params=1e8),
        "params has one value in the rows that matter: alpha cannot be told",
    ),
    "all rows as long": (
        GOOD.assign(tokens=1e10),
        "tokens has one value in the rows that matter: beta cannot be told",
    ),
    "data grow with size": (
        GOOD.assign(tokens=20 * GOOD["params"]),
        "params and tokens move together (correlation of logs 1.000)",
    ),
    "duplicated rows": (pd.concat([GOOD, GOOD]), "30 rows repeat another row: each counts as"),
    "negative loss": (with_cell("loss", -3), "left out: 1 loss not positive"),
    "zero loss": (with_cell("loss", 0), "left out: 1 loss not positive"),
    "no loss": (with_cell("loss", np.nan), "left out: 1 loss not finite"),
    "infinite loss": (with_cell("loss", np.inf), "left out: 1 loss not finite"),
    "the same loss everywhere": (GOOD.assign(loss=3.0), "not identified: the fit stays the same"),
    "one seed": (GOOD, "no cell was run with two seeds: the noise floor is unknown"),
}


@pytest.mark.parametrize("name", FLAGGED)
def test_a_table_that_says_too_little_is_fitted_and_flagged(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    table, message = FLAGGED[name]
    path = tmp_path / "losses.csv"
    table.to_csv(path, index=False)
    arguments = [f"results={path}", "law=chinchilla", f"out={tmp_path}", "bootstrap=20"]
    assert lowbit_fit(monkeypatch, *arguments) == 0
    written = json.loads((tmp_path / "fit.json").read_text())
    assert any(message in warning for warning in written["warnings"])
    printed = " ".join(capsys.readouterr().out.split())
    assert message in printed


def test_a_hundred_thousand_rows_are_fitted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No time is promised but for a limit that only something quadratic would miss."""
    design = pd.concat([sun_design()] * 298, ignore_index=True).iloc[:100_000]
    table = make_table("floating_point", SUN_2025, design, noise=5e-3, seed=0)
    columns = {"params": "N", "tokens": "D", "exponent": "E", "mantissa": "M"}
    columns |= {"block_size": "B", "loss": "val"}
    path = tmp_path / "losses.csv"
    table[[*columns]].rename(columns=columns).to_csv(path, index=False)
    typed = [f"columns.{ours}={theirs}" for ours, theirs in columns.items()]
    arguments = [f"results={path}", "law=floating_point", *typed, "starts=2", "bootstrap=0"]
    began = time.process_time()
    assert lowbit_fit(monkeypatch, *arguments, f"out={tmp_path}") == 0
    assert time.process_time() - began < 60
    written = json.loads((tmp_path / "fit.json").read_text())
    assert written["rows"]["used"] == 100_000
    # alpha's standard error is .3 % at 336 rows of .1 % noise (2501.02423's grid): .1 % here.
    assert written["parameters"]["alpha"] == pytest.approx(SUN_2025["alpha"], rel=0.01)
    assert "100000 used" in capsys.readouterr().out
