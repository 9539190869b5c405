"""A law of a user's own, from its file to its page: no line of ours knows its name."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fitting.command import main as commands
from tests.support.report_study import Page, write_fit, write_runs

MINE = """
from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fitting.law import (
    COEFFICIENT, EXPONENT, PENALTY_COEFFICIENT, POSITIVE,
    Basis, Chart, Column, Conclusion, Estimate, Interval, Law, Number, Published, Table, Term,
)
from fitting.words import between, count_label, number


def loss(c):  # L = E + A/N^alpha + C/2^width
    penalty = Term({"C": 1}, offset=-np.log(2) * c["width"])
    return [Term({"A": 1, "alpha": -np.log(c["params"])}), penalty, Term({"E": 1})]


@dataclass(frozen=True)
class Doubling:
    params: float
    lost: Number
    lost_interval: Interval
    extrapolated: bool


def doublings(basis: Basis) -> list[Doubling]:
    sizes = [2 * float(n) for n in sorted(basis.rows["params"].unique())]
    found = [basis.estimate(lambda p: p["A"] / n ** p["alpha"]) for n in sizes]
    largest = basis.rows["params"].max()
    return [Doubling(n, *lost.pair, n > largest) for n, lost in zip(sizes, found)]


DOUBLINGS = Conclusion("doublings", list[Doubling], doublings, tables=(
    Table("doublings", "What twice the size still loses", (
        Column("parameters", lambda row: count_label(row.params)),
        Column("still lost", lambda row: between(row.lost, row.lost_interval, number)),
    ), "In nats per token.", chart=Chart("params", "lost")),
))
HALVING = Conclusion(
    "halving", Estimate, lambda basis: basis.estimate(lambda p: 2 ** (1 / p["alpha"])),
    title="times the size that halve what it loses",
)
MINE = Law(
    "mine", "my paper, Eq. 1", loss,
    columns={"params": POSITIVE, "width": 1.0},
    parameters={
        "A": COEFFICIENT, "alpha": EXPONENT, "C": PENALTY_COEFFICIENT, "E": COEFFICIENT,
    },
    conclusions=(DOUBLINGS, HALVING),
    published=Published({"A": 300.0, "alpha": 0.33, "C": 2.0}, "my paper", "https://example.org"),
)
"""
TRUTH = {"A": 200.0, "alpha": 0.3, "C": 3.0, "E": 1.7}


def run(monkeypatch: pytest.MonkeyPatch, command: str, *typed: str) -> None:
    monkeypatch.setattr(sys, "argv", [f"lowbit-{command}", *typed])
    getattr(commands, command)()


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with mine.py and losses that follow its law but for noise."""
    sizes, widths = np.meshgrid(np.geomspace(1e6, 1e8, 5), [2.0, 3.0, 4.0, 6.0, 8.0])
    table = pd.DataFrame({"params": sizes.ravel(), "width": widths.ravel()})
    exact = TRUTH["A"] / table["params"] ** TRUTH["alpha"] + TRUTH["C"] / 2 ** table["width"]
    noise = np.exp(1e-3 * np.random.default_rng(0).standard_normal(len(table)))
    table.assign(tokens=1e9, loss=(TRUTH["E"] + exact) * noise).to_csv(tmp_path / "losses.csv")
    (tmp_path / "mine.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


FIT = ("results=losses.csv", "starts=4", "bootstrap=60", "out=fits")


def test_a_law_of_ones_own_goes_from_its_file_to_its_page(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch, "fit", "law=mine.py:MINE", *FIT)
    printed = capsys.readouterr().out
    for words in ("my paper, Eq. 1", "What twice the size still loses", "Held-out predictions"):
        assert words in printed
    told = json.loads((here / "fits" / "fit.json").read_text())
    assert told["law"] == "mine"
    for name, truth in TRUTH.items():
        low, high = told["intervals"][name]
        # 95 % intervals are 4 standard errors wide: one and a half of them is 6 (p = 2e-9).
        assert abs(told["parameters"][name] - truth) < 1.5 * (high - low)
    rows, halving = told["derived"]["doublings"], told["derived"]["halving"]
    assert len(rows) == 5
    assert rows[-1]["params"] == pytest.approx(2e8)
    assert [row["extrapolated"] for row in rows] == [False] * 4 + [True]
    for row in rows:
        lost = told["parameters"]["A"] / row["params"] ** told["parameters"]["alpha"]
        assert row["lost"] == pytest.approx(lost)
        assert row["lost_interval"][0] < lost < row["lost_interval"][1]
    assert halving["value"] == pytest.approx(2 ** (1 / told["parameters"]["alpha"]))
    assert len(told["held_out"]["sizes"]) == 5

    run(monkeypatch, "report", "law=mine.py:MINE", "fit=fits", "figures=svg")
    assert capsys.readouterr().out == "fits/index.html\n"
    page = Page(here / "fits" / "index.html")
    cells = {row[0]: row for row in page.rows if row}
    for name, published in (("A", "300"), ("alpha", "0.33"), ("C", "2"), ("E", "–")):
        assert cells[name][5] == published
    assert "my paper" in page.text
    assert cells["200M"][-1] == "extrapolated"
    assert cells["200M"][1].startswith(f"{rows[-1]['lost']:.4g} (")
    assert cells["times the size that halve what it loses"][1] == f"{halving['value']:.3g}"
    assert cells["1M parameters"][1:3] == ["5", "20"], "held out and fitted to"
    figure = (here / "fits" / "figures" / "doublings.svg").read_text()
    assert "lost" in figure
    table = pd.read_csv(here / "fits" / "tables" / "doublings.csv")
    assert table["lost"].tolist() == pytest.approx([row["lost"] for row in rows])

    with pytest.raises(SystemExit) as caught:
        run(monkeypatch, "report", "fit=fits")
    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "law=mine is not one of" in said
    assert said.endswith("if it is yours, name its file and variable: law=FILE.py:NAME\n")


def test_a_column_that_only_ones_own_law_reads_may_have_another_name(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pd.read_csv("losses.csv").rename(columns={"width": "w"}).to_csv("losses.csv")
    typed = ("law=mine.py:MINE", *FIT, "evidence=false")
    run(monkeypatch, "fit", *typed, "columns.width=w")
    told = json.loads((here / "fits" / "fit.json").read_text())
    assert told["parameters"]["C"] == pytest.approx(TRUTH["C"], rel=0.1)
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        run(monkeypatch, "fit", *typed, "columns.widths=w")
    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert "columns.widths=w: not a column of ours; did you mean columns.width?" in said


def test_a_law_may_lie_in_a_package_and_be_compared_with_ours(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "my_package").mkdir()
    (here / "my_package" / "__init__.py").touch()
    (here / "mine.py").rename(here / "my_package" / "laws.py")
    monkeypatch.syspath_prepend(here)
    compared = "compare=chinchilla,my_package.laws:MINE"
    run(monkeypatch, "fit", "law=my_package.laws:MINE", *FIT, compared)
    told = json.loads((here / "fits" / "fit.json").read_text())
    assert told["parameters"]["alpha"] == pytest.approx(0.3, abs=0.05)
    assert {row["law"] for row in told["comparison"]} == {"mine", "chinchilla"}


@pytest.mark.parametrize(
    ("law", "said"),
    [
        ("yours.py:MINE", "there is no file yours.py"),
        ("mine.py:YOURS", "YOURS is not there; it has MINE"),
        ("mine.py:DOUBLINGS", "DOUBLINGS is no Law; it has MINE"),
        ("raises.py:MINE", "raises.py cannot be run (ValueError: one line and another)"),
        ("wrong.py:MINE", "wrong.py cannot be run (SyntaxError: "),
        ("ours.py:MINE", "is called chinchilla, like a law of ours; rename it"),
        ("no_such_package.laws:MINE", "no_such_package.laws cannot be run (ModuleNotFoundError: "),
        ("mine.py:", "must be FILE.py:NAME or package.module:NAME"),
        (":MINE", "must be FILE.py:NAME or package.module:NAME"),
        ("mine", "no such law; there are chinchilla, "),
    ],
)
def test_what_is_no_law_of_ones_own_is_said_in_one_line(
    law: str,
    said: str,
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (here / "raises.py").write_text('raise ValueError("one line\\nand another")')
    (here / "wrong.py").write_text("MINE = Law(")
    (here / "ours.py").write_text(MINE.replace('"mine"', '"chinchilla"'))
    write_fit(here / "fits", {})
    for command, typed in (("fit", FIT), ("report", ("fit=fits",))):
        with pytest.raises(SystemExit) as caught:
            run(monkeypatch, command, f"law={law}", *typed)
        assert caught.value.code == 2
        error = capsys.readouterr().err
        assert error.startswith(f"lowbit-{command}: law={law}: ")
        assert said in error
        assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("key", "value"), [("law", "mine.py:MINE"), ("compare", ["chinchilla", "mine.py:MINE"])]
)
def test_a_study_cannot_name_a_file_that_would_be_run(
    key: str,
    value: object,
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (here / "mine.py").write_text('raise RuntimeError("was run")')
    write_runs(here / "runs" / "mine", [], fit={key: value})
    with pytest.raises(SystemExit) as caught:
        run(monkeypatch, "fit", "study=mine")
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert f"fit.{key}=" in error
    assert error.endswith("a study cannot name a law's file; type it\n")
    assert error.count("\n") == 1


def test_a_pilots_fit_cannot_either_but_its_law_may_be_typed(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    typed = ("results=losses.csv", "expect=fit.json", "noise=0.001", "tables=3", "out=out")
    pilot = {"law": "mine.py:MINE", "parameters": TRUTH}
    (here / "fit.json").write_text(json.dumps(pilot))
    with pytest.raises(SystemExit) as caught:
        run(monkeypatch, "fit", *typed)
    assert caught.value.code == 2
    said = "fit.json: law=mine.py:MINE: a fit cannot name a law's file; type it\n"
    assert capsys.readouterr().err == f"lowbit-fit: {said}"
    run(monkeypatch, "fit", "law=mine.py:MINE", *typed)
    assert json.loads((here / "out" / "expected.json").read_text())["law"] == "mine"


def test_a_conclusion_that_cannot_be_drawn_names_itself(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "mine.py").write_text(MINE.replace('basis.rows["params"].max()', 'basis.rows["size"]'))
    with pytest.raises(SystemExit) as caught:
        run(monkeypatch, "fit", "law=mine.py:MINE", *FIT)
    assert caught.value.code == 2
    said = "law=mine.py:MINE: doublings cannot be concluded (KeyError: 'size')\n"
    assert capsys.readouterr().err == f"lowbit-fit: {said}"
