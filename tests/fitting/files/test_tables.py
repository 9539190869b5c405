"""Tables as others write them, and what is typed to pick rows and columns of them."""

from __future__ import annotations

import gzip
import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from fitting.command import main as commands
from fitting.command.options import OUR_COLUMNS
from fitting.files.own_json import ResultsError
from fitting.fit.search import fit
from fitting.law.terms import FitError
from fitting.laws.catalogue import LAWS
from fitting.results.record import COLUMNS
from fitting.results.swept import is_key
from fitting.results.table import load, select_rows
from fitting.results.where import ExpressionError, evaluate
from tests.support.chinchilla_table import losses

GOOD = losses(4, 4)


def command(
    monkeypatch: pytest.MonkeyPatch, which: Callable[[], None], *arguments: str
) -> int | str | None:
    monkeypatch.setattr(sys, "argv", ["lowbit-x", *arguments])
    try:
        which()
    except SystemExit as stop:
        return stop.code
    return 0


def lines(table: pd.DataFrame) -> str:
    return table.to_json(orient="records", lines=True, double_precision=15)


def decimal_comma(table: pd.DataFrame) -> str:
    return table.to_csv(index=False, sep=";", decimal=",")


FILES: dict[str, bytes] = {
    "commas.csv": GOOD.to_csv(index=False).encode(),
    "semicolons.csv": GOOD.to_csv(index=False, sep=";").encode(),
    "decimal_commas.csv": decimal_comma(GOOD).encode(),
    "tabs.csv": GOOD.to_csv(index=False, sep="\t").encode(),
    "pipes.csv": GOOD.to_csv(index=False, sep="|").encode(),
    "tabs.tsv": GOOD.to_csv(index=False, sep="\t").encode(),
    "bom.csv": b"\xef\xbb\xbf" + GOOD.to_csv(index=False).encode(),
    "comments.csv": b"# Table 3; b, c\n" + GOOD.to_csv(index=False).encode() + b"# end\n",
    "numpy.csv": b"# " + GOOD.to_csv(index=False).encode(),
    "number_sign.csv": b"#" + GOOD.to_csv().encode(),
    "padded.csv": GOOD.to_csv(index=False).replace(",", " , ").encode(),
    "packed.csv.gz": gzip.compress(GOOD.to_csv(index=False).encode()),
    "packed.tsv.gz": gzip.compress(GOOD.to_csv(index=False, sep="\t").encode()),
    "lines.jsonl": lines(GOOD).encode(),
    "lines.ndjson": lines(GOOD).encode(),
    "lines_bom.jsonl": b"\xef\xbb\xbf" + lines(GOOD).encode(),
    "rows.json": json.dumps(GOOD.to_dict("records")).encode(),
    "columns.json": json.dumps(GOOD.to_dict("list")).encode(),
    "packed.json.gz": gzip.compress(json.dumps(GOOD.to_dict("records")).encode()),
    "packed.jsonl.gz": gzip.compress(lines(GOOD).encode()),
    "nested.jsonl": lines(GOOD.assign(tags=[["a", 1]] * len(GOOD))).encode(),
    "windows.csv": GOOD.to_csv(index=False, lineterminator="\r\n").encode(),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore::fitting.files.tables.CommentWarning")
@pytest.mark.parametrize("name", FILES)
def test_a_table_is_read_whatever_separates_it(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(FILES[name])
    table = load(tmp_path / name)
    np.testing.assert_allclose(table[["params", "tokens", "loss"]], GOOD, rtol=1e-14)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"# by us\nN,D,loss\n1,2,3\n#4,5,6\n7,8,9\n", "1 line begins with # and is left out"),
        (b"N\tD\n1\t2\n  # 3\t4\n#\n5\t6\n", "2 lines begin with # and are left out"),
        (b"# N D\n1,2\n", ""),
        (b"# one\n\n# N,D\n1,2\n3,4\n", ""),
        (b"N,D\n1,2\n", ""),
    ],
)
def test_rows_that_look_like_comments_are_counted(text: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / ("t.tsv" if b"\t" in text else "t.csv")
    path.write_bytes(text)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if b"# N D" in text:
            with pytest.raises(ResultsError, match="its first line holds numbers"):
                load(path)
        else:
            assert len(load(path)) == (2 if said or b"3,4" in text else 1)
    assert len(caught) == bool(said)
    assert said in "".join(str(w.message) for w in caught)


@pytest.mark.parametrize(
    "nested", [[["a"]], [{"x": 1}], [[1, 2]], [np.array([1.0, 2.0])]], ids=lambda value: repr(value)
)
def test_parquet_with_lists_or_structs_is_read(nested: Any, tmp_path: Path) -> None:
    GOOD.assign(nested=nested * len(GOOD)).to_parquet(tmp_path / "t.parquet")
    table = load(tmp_path / "t.parquet")
    np.testing.assert_array_equal(table["loss"], GOOD["loss"])
    assert all(isinstance(value, str) for value in table["nested"])
    select_rows(table)[0].drop_duplicates()


@pytest.mark.parametrize("index", [["params"], ["run", "params"]])
def test_an_index_in_parquet_is_columns(index: list[str], tmp_path: Path) -> None:
    runs = GOOD.assign(run=[f"r{i}" for i in range(len(GOOD))])
    runs.set_index(index).to_parquet(tmp_path / "t.parquet")
    table = load(tmp_path / "t.parquet")
    np.testing.assert_array_equal(table[["params", "tokens", "loss"]], GOOD)


BROKEN: dict[str, tuple[bytes, str]] = {
    "surrogate.jsonl": (b'{"loss": 3, "note": "\\ud800"}\n', "line 1 holds half a character"),
    "cut.json": (b'[{"loss": 3}', "not JSON"),
    "number.json": (b"3", "must be a list of rows"),
    "ragged.json": (b'{"loss": [3, 4], "N": [1]}', "have different lengths"),
    "cut.jsonl": (b'{"loss": 3}\n{"loss"', "line 2 is not JSON"),
    "list.jsonl": (b"[1, 2]\n", "line 1 is not a JSON object"),
    "cut.csv.gz": (gzip.compress(b"loss\n3\n" * 99)[:-20], "cannot be read ("),
    "no.csv.gz": (b"loss\n3\n", "cannot be read ("),
    # Read with the first field as a label, each name would be its neighbour's.
    "long_rows.csv": (b"params,tokens,loss\n1,2,3,4\n5,6,7,8\n", "rows have 4 fields, its first"),
    "row_names.csv": (b"params,tokens,loss\nr1,1,2,3\nr2,5,6,7\n", "its first line names 3"),
    "row_numbers.csv": (b"params,tokens,loss\n\n0,1,2,3\n1,5,6,7\n", "its first line names 3"),
    "quote.csv": (b'params,tokens,loss\n"1,2,3\n' + b"4,5,6\n" * 30_000, "field larger than"),
    "no_names.csv": (b"1,2,3\n4,5,6\n", "its first line holds numbers"),
    "other_comment.csv": (b"# Table 3\n1,2,3\n4,5,6\n", "its first line holds numbers"),
    "twice.csv": (b"loss, loss \n3,4\n", "two columns are called 'loss'"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_one_line(name: str, tmp_path: Path) -> None:
    content, message = BROKEN[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ResultsError) as caught:
        load(tmp_path / name)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_counts_may_have_units_or_be_scaled(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("params,tokens,loss,N\n70M,1.4B,3,0.07\n7B,2T,2,7\n125e6,300b,2.5,0.125\n")
    table = load(path)
    assert table["params"].tolist() == [70e6, 7e9, 125e6]
    assert table["tokens"].tolist() == [1.4e9, 2e12, 300e9]
    scaled = load(path, {"params": "N * 1e9"})
    assert scaled["params"].tolist() == pytest.approx([70e6, 7e9, 125e6])
    with pytest.raises(ResultsError, match=r"columns.params=N\*x: no such column.*'x' is no"):
        load(path, {"params": "N*x"})


@pytest.mark.parametrize(("unit", "warned"), [(1.0, False), (1e9, True)])
def test_counts_in_billions_are_asked_about(
    unit: float, warned: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "t.csv"
    GOOD.assign(params=GOOD["params"] / unit).to_csv(path, index=False)
    arguments = [f"results={path}", "law=chinchilla", f"out={tmp_path}/o", "bootstrap=0"]
    assert command(monkeypatch, commands.fit, *arguments, "evidence=false") == 0
    said = " ".join(json.loads((tmp_path / "o" / "fit.json").read_text())["warnings"])
    assert ("params is at most 10: in billions?" in said) == warned
    assert "tokens is at most" not in said


# --- columns -----------------------------------------------------------------------------------


def test_columns_are_read_from_the_table_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("params,tokens,forward,backward,loss\n1,2,a,b,3\n")
    swapped = {"params": "tokens", "tokens": "params", "forward": "backward", "backward": "forward"}
    row = load(path, swapped).iloc[0]
    assert (row["params"], row["tokens"], row["forward"], row["backward"]) == (2, 1, "b", "a")


def test_every_column_of_ours_may_be_mapped_and_no_other(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    labels = {"metrics_sha256", "weights_sha256", "schema_version"}
    needed = {c for law in LAWS.values() for c in (*law.columns, *law.schemes)}
    assert (set(COLUMNS) - labels) | needed <= set(OUR_COLUMNS)
    path = tmp_path / "t.csv"
    GOOD.to_csv(path, index=False)
    arguments = [f"results={path}", "law=chinchilla", f"out={tmp_path}/o"]
    assert command(monkeypatch, commands.fit, *arguments, "columns.prams=params") == 2
    said = capsys.readouterr().err
    assert "columns.prams=params: not a column of ours; did you mean columns.params?" in said
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    ("typed", "said"),
    [("freeze.foo=1", "freeze.foo=1.0: law=chinchilla has no such"),
     ("freeze.A=-1", "freeze.A=-1.0: must be a positive number"),
     ("bounds.foo=0..1", "bounds.foo=1.0: law=chinchilla has no such"),
     ("freeze.=1", "freeze.=1: names nothing; must be freeze.NAME=VALUE")],
)  # fmt: skip
def test_what_is_wrong_is_named_as_it_was_typed(
    typed: str, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:  # fmt: skip
    path = tmp_path / "t.csv"
    GOOD.to_csv(path, index=False)
    arguments = [f"results={path}", "law=chinchilla", f"out={tmp_path}/o", "bootstrap=0", typed]
    assert command(monkeypatch, commands.fit, *arguments) == 2
    assert capsys.readouterr().err.partition(": ")[2].startswith(said)


def test_a_column_that_nobody_needs_stops_nothing(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    words = {c: "not recorded" for c in COLUMNS if c not in (*GOOD, "status", "run_id")}
    GOOD.assign(**words).to_csv(path, index=False)
    assert fit(load(path), "chinchilla").rows.used == len(GOOD)


# --- status ------------------------------------------------------------------------------------


def test_a_blank_status_says_nothing(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("loss,status\n3,\n4,finished\n5,crashed\n,\n6, Finished \n")
    rows, excluded = select_rows(load(path))
    assert rows["loss"].tolist() == [3, 4, 6]
    assert excluded == {"crashed": 1, "loss not finite": 1}


@pytest.mark.parametrize("mapped", [False, True])
def test_the_state_of_wandb_is_known(mapped: bool, tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("loss,State\n3,finished\n4,crashed\n5,failed\n6,killed\n7,running\n")
    table = load(path, {"status": "State"} if mapped else None)
    assert select_rows(table)[0]["loss"].tolist() == [3]
    path.write_text("loss,State\n3,Ohio\n4,Utah\n")
    assert len(select_rows(load(path))[0]) == 2


@pytest.mark.parametrize("name", ["State", "state", "STATE", "Status", "STATUS"])
def test_a_state_is_known_however_its_column_is_written(name: str, tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text(f"loss,{name}\n3,finished\n4,crashed\n5,failed\n")
    assert select_rows(load(path))[0]["loss"].tolist() == [3]


@pytest.mark.parametrize("header", ["loss,params,params", "loss, params ,params", "loss,loss,x"])
def test_two_columns_of_one_name_are_refused(header: str, tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text(f"{header}\n3,1,2\n")
    with pytest.raises(ResultsError, match="two columns are called"):
        load(path)


def test_a_page_is_made_of_a_table_with_states(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "t.csv"
    state = ["finished"] * 13 + ["crashed", "killed", ""]
    GOOD.assign(State=state).to_csv(path, index=False)
    out = f"out={tmp_path}/o"
    arguments = [f"results={path}", "law=chinchilla", out, "bootstrap=0", "columns.status=State"]
    assert command(monkeypatch, commands.fit, *arguments) == 0
    assert command(monkeypatch, commands.report, f"fit={tmp_path}/o", "figures=svg") == 0
    page = (tmp_path / "o" / "index.html").read_text(encoding="utf-8")
    assert "crashed" in page
    assert "killed" in page


def test_compute_dtypes_of_a_folder_are_not_pooled(tmp_path: Path) -> None:
    from tests.support.configured_runs import config, folder, record

    runs = [
        record(config(compute_dtype=dtype, tokens=tokens), 3.0 + tokens / 1e6)
        for dtype in ("float32", "bfloat16")
        for tokens in (65_536, 131_072, 262_144, 524_288)
    ]
    table = load(folder(tmp_path, runs))
    with pytest.raises(FitError, match="compute_dtype has 2 values"):
        fit(table, "chinchilla")


# --- where -------------------------------------------------------------------------------------

TABLE = pd.DataFrame(
    {"N": [1.0, 2.0, 3.0], "D": [1, 20, 300], "forward": ["BF16", "FP4", "BF16"],
     "a column": [1, 2, 3], "optim.lr": [0.1, 0.2, np.nan], "ok": [True, False, True]}
)  # fmt: skip


@pytest.mark.parametrize(
    "expression",
    [
        "N > 1", "forward == 'BF16' and D >= 300", "not N > 1", "N > 1 and not (D == 20)",
        "N > 1 & D < 300", "(N > 1) | (D == 1)", "~(N > 1)", "1 < N <= 3", "N + D * 2 > 40",
        "N ** 2 == 9", "-N < -1", "D % 7 == 6", "D // 3 >= 6", "`a column` > 1", "ok", "not ok",
        "forward in ['BF16', 'MX']", "forward not in ('BF16',)", "forward == ['FP4', 'MX']",
        'forward != "FP4"', "D / N == 10", "`optim.lr` == 0.1",
    ],
)  # fmt: skip
def test_an_expression_means_what_it_means_to_pandas(expression: str) -> None:
    expected = TABLE.eval(expression, engine="python")
    pd.testing.assert_series_equal(evaluate(expression, TABLE), expected, check_names=False)


def test_a_dotted_name_is_a_column() -> None:
    assert evaluate("optim.lr == 0.1", TABLE).tolist() == [True, False, False]
    assert evaluate("forward == 'a & b' or forward == '`x`'", TABLE).tolist() == [False] * 3


HOSTILE = (
    "@pd.io.common.os.system('touch {0}')", "N.to_csv('{0}')", "N.to_pickle('{0}').empty",
    "__import__('os').system('touch {0}')", "N.__class__", "N.values", "().__class__.__bases__",
    "[x for x in N]", "(lambda: 1)()", "N[0]", "f'{N}'", "N := 3", "N = 3", "print(1)",
    "9 ** 9 ** 9 ** 9", "'a' * 10 ** 10", "1 if ok else 0", "N is None", "*N", "N << 40",
    "`N`.to_csv('{0}')", "index > 0", "N; D", "N\nD", "(" * 500 + "N" + ")" * 500, "\0", "",
    "not N", "N and D", "forward + 1", "forward < 3", "1 in N", "N in D.x", "[[1]] == N",
    "b'x' == N",
)  # fmt: skip


@pytest.mark.parametrize("expression", HOSTILE)
def test_nothing_that_is_typed_is_run(expression: str, tmp_path: Path) -> None:
    made = tmp_path / "made"
    with pytest.raises(ExpressionError) as caught:
        evaluate(expression.replace("{0}", str(made)), TABLE)
    assert "\n" not in str(caught.value)
    assert not made.exists()


def test_a_key_is_told_from_a_file_name() -> None:
    assert is_key("optim.lr")
    assert not any(map(is_key, ("runs.csv", "seed", "tracking.mode", "optim", 3)))
    assert json.dumps(sorted(OUR_COLUMNS)).count("loss") == 3
