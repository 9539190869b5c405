"""fit.json and study.json read without trust: a value of another type is one line, anywhere."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from fitting.command.describe import describe
from fitting.files.own_json import DamagedError, ResultsError
from fitting.fit.bootstrap import bootstrap
from fitting.fit.derived import basis_of, derived, identified
from fitting.fit.evidence import comparison, evidence
from fitting.fit.fit_file import FIT, read_fit, read_pilot
from fitting.fit.search import fit
from fitting.law.conclusion import Derived, entries, entries_of
from fitting.laws.catalogue import LAWS
from fitting.laws.published import (
    BESIROGLU_2024,
    KUMAR_2024,
    KUMAR_2024_PTQ,
    QUARTET_2025,
    SUN_2025,
)
from fitting.laws.synthetic import make_table, sun_design
from fitting.page.study import load_study
from fitting.results.study_file import STUDY, read_about
from tests.support.places import REPORTS
from tests.support.tuned_tables import TUNED, TUNED_COLUMNS, TUNED_RUNS

SIZES, DATA = np.meshgrid(np.geomspace(3e7, 1e9, 4), np.geomspace(1e9, 1e11, 4))
DESIGN = pd.DataFrame({"params": SIZES.ravel(), "tokens": DATA.ravel()})


def _beside(**columns: list[Any]) -> pd.DataFrame:
    return DESIGN.merge(pd.DataFrame(columns), how="cross")


def _quartet() -> pd.DataFrame:
    passes = [(f, b) for f in ("BF16", "FP4") for b in ("BF16", "FP4")]
    truth = {n: v for n, v in QUARTET_2025.items() if not n.startswith("eff")}
    truth |= {"eff_N[FP4]": 0.65, "eff_D[FP4]": 0.95}
    design = _beside(forward=[f for f, _ in passes], backward=[b for _, b in passes])
    return make_table("quartet", truth, design, 2e-4, 0)


def _qat() -> pd.DataFrame:
    truth = {**BESIROGLU_2024, "k": 0.3, "gamma_D": 0.1, "gamma_G": 0.8, "gamma_N": 0.2}
    return make_table("qat", truth, _beside(block_size=[1.0, 32.0, 128.0]), 1e-4, 0)


def _compressed() -> pd.DataFrame:
    truth = {**BESIROGLU_2024, "L": 1.0, "F": 0.5, "C": 0.6}
    return make_table("compressed", truth, _beside(gmse=[0.0, 0.01, 0.03, 0.1]), 1e-4, 0)


TUNED_DESIGN = DESIGN.merge(pd.DataFrame(TUNED_RUNS, columns=TUNED_COLUMNS), how="cross")
RATIO = {"A": 400.0, "alpha": 0.34, "E": 1.8, "rho[AdamW]": 0.863, "rho[PSGD]": 0.739}
UNIFIED = {**BESIROGLU_2024, "gamma": 0.9, "c": 20.0}
ERRORS = _beside(err_input=[0.0, 0.0, 0.01, 0.05], err_weight=[0.0, 0.01, 0.01, 0.05])
TABLES = {
    "chinchilla": lambda: make_table("chinchilla", BESIROGLU_2024, DESIGN, 1e-3, 0),
    "floating_point": lambda: make_table("floating_point", SUN_2025, sun_design(), 2e-3, 0),
    "quartet": _quartet,
    "precision": lambda: make_table(
        "precision",
        KUMAR_2024,
        _beside(
            bits_w=[4, 16, 16, 8, 16, 6, 3],
            bits_a=[16, 5, 16, 8, 16, 6, 8],
            bits_kv=[16, 16, 4, 8, 16, 6, 8],
        ),
        1e-4,
        0,
    ),
    "ptq": lambda: make_table("ptq", KUMAR_2024_PTQ, _beside(bits_post=[3.0, 4.0, 6.0]), 1e-3, 0),
    "qat": _qat,
    "compressed": _compressed,
    "qat_switch": lambda: make_table(
        "qat_switch", {"a": 6.7297}, _beside(bits=[2.0, 4.0, 6.0]), 1e-2, 0
    ),
    "fixed_ratio": lambda: make_table(
        "fixed_ratio", RATIO, _beside(scheme=["BF16", "AdamW", "PSGD"]), 1e-3, 0
    ),
    "fine_tuning": lambda: make_table("fine_tuning", TUNED, TUNED_DESIGN, 1e-3, 0),
    "unified": lambda: make_table("unified", UNIFIED, ERRORS, 2e-4, 0),
}


@pytest.fixture(scope="module", params=sorted(LAWS))
def concluded(request: pytest.FixtureRequest) -> tuple[dict[str, Any], Derived]:
    """A fit.json of each law with all that one can hold, and the conclusions in it as drawn."""
    law = request.param
    table = TABLES[law]()
    found = fit(table, law, starts=8)
    draws = bootstrap(table, found, 20)
    report = describe(found, draws, table)
    rivals = comparison(table, [LAWS[law], LAWS["chinchilla"]], "huber", 1e-3, 1.0, None)
    report |= entries(evidence(table, found, law == "chinchilla"))
    report |= entries_of({"comparison": rivals, "where": None, "seed": 0, "cluster": None})
    drawn = derived(found, basis_of(found, draws, table), identified(found, draws))
    return json.loads(json.dumps(report, allow_nan=False)), drawn


@pytest.fixture(scope="module")
def fitted(concluded: tuple[dict[str, Any], Derived]) -> dict[str, Any]:
    return concluded[0]


def _paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where each value within an object lies; of a list's entries the first."""
    if path:
        yield path
    entries: list[tuple[Any, Any]] = []
    if isinstance(value, dict):
        entries = list(value.items())
    elif isinstance(value, list):
        entries = list(enumerate(value[:1]))
    for key, entry in entries:
        yield from _paths(entry, (*path, key))


def _kind(value: Any) -> type:
    return float if type(value) is int else type(value)


def _with(whole: dict[str, Any], path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    changed = copy.deepcopy(whole)
    at: Any = changed
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    return changed


def _at(whole: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        whole = whole[key]
    return whole


def test_conclusions_are_read_as_they_were_drawn(
    concluded: tuple[dict[str, Any], Derived], tmp_path: Path
) -> None:
    whole, drawn = concluded
    (tmp_path / FIT).write_text(json.dumps(whole))
    read = read_fit(tmp_path / FIT)
    assert read is not None
    assert read.concluded == drawn
    assert any(drawn.values.values())
    assert whole["derived"] == entries_of({"identified": read.identified, **read.concluded.values})


def test_a_value_of_another_type_is_refused_wherever_it_is(
    fitted: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / FIT
    path.write_text(json.dumps(fitted))
    assert read_fit(path)
    tried = 0
    for where in _paths(fitted):
        right = _at(fitted, where)
        for wrong in ("text", True, 1.5, ["x"], {"x": {}}):
            if right is None or _kind(wrong) == _kind(right):
                continue
            path.write_text(json.dumps(_with(fitted, where, wrong)))
            with pytest.raises(ResultsError) as caught:
                pytest.fail(f"{where} = {wrong!r} was read: {read_fit(path)}")
            assert str(caught.value).startswith(f"{path}: ")
            assert "\n" not in str(caught.value)
            tried += 1
    assert tried > 150


@pytest.mark.parametrize(
    ("where", "wrong"),
    [
        (("rows", "used"), 1.5),
        (("rows", "used"), -1),
        (("starts", "tried"), None),
        (("bootstrap", "draws"), 0.5),
        (("intervals", "A"), [1.0]),
        (("intervals", "A"), [1.0, 2.0, 3.0]),
        (("status",), None),
        (("warnings",), None),
        (("derived",), None),
        (("parameters", "A"), "4e2"),
    ],
)
def test_what_a_number_or_an_interval_cannot_be(
    where: tuple[str, ...], wrong: Any, tmp_path: Path
) -> None:
    table = TABLES["chinchilla"]()
    whole = describe(fit(table, "chinchilla", starts=4), None, table)
    path = tmp_path / FIT
    path.write_text(json.dumps(_with(whole, where, wrong)))
    with pytest.raises(DamagedError, match=r"run lowbit-fit again") as caught:
        read_fit(path)
    assert ".".join(where) in str(caught.value)


def test_a_pilot_may_be_constants_that_somebody_typed(tmp_path: Path) -> None:
    path = tmp_path / FIT
    path.write_text(json.dumps({"parameters": BESIROGLU_2024}))
    assert read_pilot(path).parameters == BESIROGLU_2024
    path.write_text(json.dumps({"parameters": {"A": "400"}}))
    with pytest.raises(DamagedError, match=r"parameters\.A='400'"):
        read_pilot(path)
    path.write_text(json.dumps({"law": "chinchilla"}))
    with pytest.raises(ResultsError, match="lacks parameters"):
        read_pilot(path)


@pytest.mark.parametrize("name", ["demo", "precision_pilot", "precision_grid"])
def test_published_fits_are_read(name: str) -> None:
    assert read_fit(REPORTS / name / FIT)


def test_a_value_of_another_type_in_a_published_study_is_refused(tmp_path: Path) -> None:
    whole = json.loads((REPORTS / "demo" / STUDY).read_text())
    whole |= {"notes": ["a note"], "config": {"seed": 1}, "damaged": 2, "work": {"a": 1.0}}
    (tmp_path / "results.csv").write_text((REPORTS / "demo" / "results.csv").read_text())
    tried = 0
    for key, right in whole.items():
        for wrong in (3, -1, "text", True, None, ["x", 1], {"x": "y"}, [["x"]]):
            if type(wrong) is type(right) and key not in ("planned", "notes", "work", "provenance"):
                continue
            if (key, wrong) == ("damaged", 3):
                continue
            (tmp_path / STUDY).write_text(json.dumps(whole | {key: wrong}))
            for read in (lambda: load_study(tmp_path / "results.csv", tmp_path), None):
                with pytest.raises(DamagedError, match=f"damaged .{key} is not") as caught:
                    _ = read() if read else read_about(tmp_path)
                assert str(caught.value).startswith(f"{tmp_path / STUDY}: ")
            tried += 1
    assert tried > 60
    (tmp_path / STUDY).write_text(json.dumps(whole))
    assert load_study(tmp_path / "results.csv", tmp_path).about == whole
