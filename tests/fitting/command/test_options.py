"""What is typed: options, defaults, and what stands for what."""

from __future__ import annotations

import json
import math
from dataclasses import fields
from pathlib import Path

import pytest

from fitting.command.options import (
    FIT_HELP,
    LAW_NAMES,
    REPORT_HELP,
    FitOptions,
    ReportOptions,
    fit_options,
    place,
    report_options,
)
from fitting.entry.errors import UsageError
from fitting.entry.options import option_of
from fitting.laws.catalogue import LAWS


def test_help_names_every_law_and_every_option() -> None:
    assert list(LAWS) == list(LAW_NAMES)
    for options, text in ((FitOptions, FIT_HELP), (ReportOptions, REPORT_HELP)):
        for f in fields(options):
            assert f"  {option_of(f).key or f.name}" in text
    assert max(map(len, (FIT_HELP + REPORT_HELP).splitlines())) <= 100


def test_speed_ups_are_inputs_with_the_papers_defaults() -> None:
    typed = ["results=a", "out=b", "law=quartet"]
    options = fit_options(typed)
    assert (options.speedup_forward, options.speedup_backward) == (2.0, 2.0)
    options = fit_options([*typed, "speedup.forward=1.8", "speedup.backward=1"])
    assert (options.speedup_forward, options.speedup_backward) == (1.8, 1.0)
    with pytest.raises(UsageError, match="speedup.forward=fast: must be a number"):
        fit_options([*typed, "speedup.forward=fast"])


def test_a_schemes_name_may_hold_anything() -> None:
    options = fit_options(["results=a", "out=b", "law=quartet", "freeze.eff_N[a=b v1.5]=0.5"])
    assert options.freeze == {"eff_N[a=b v1.5]": 0.5}


def test_bounds_are_two_numbers_and_may_be_infinite() -> None:
    typed = ["results=a", "out=b", "law=quartet", "bounds.E=1..2.5", "bounds.alpha=.2..inf"]
    options = fit_options([*typed, "bounds.eff_D[a=b]=1e-2..1"])
    expected = {"E": (1.0, 2.5), "alpha": (0.2, math.inf), "eff_D[a=b]": (0.01, 1.0)}
    assert options.bounds == expected
    for wrong in ("1", "1..", "1,2", "low..high"):
        with pytest.raises(UsageError, match=f"^bounds.A={wrong}: must be two numbers, LO..HI$"):
            fit_options([*typed, f"bounds.A={wrong}"])


def test_the_first_of_the_compared_laws_is_the_fits_unless_another_is_given() -> None:
    typed = ["results=a", "out=b", "compare=chinchilla,quartet"]
    options = fit_options(typed)
    assert (options.law, options.compare) == ("chinchilla", ("chinchilla", "quartet"))
    assert fit_options([*typed, "law=ptq"]).law == "ptq"
    with pytest.raises(UsageError, match="^compare=ptq: name a law besides ptq$"):
        fit_options(["results=a", "out=b", "law=ptq", "compare=ptq"])


def test_a_cost_is_positive_and_clusters_are_for_drawing() -> None:
    typed = ["results=a", "out=b", "law=quartet"]
    assert fit_options(typed).cost_k == 6 / 16
    assert fit_options([*typed, "cost.k=.5"]).cost_k == 0.5
    for wrong in ("0", "-1", "inf", "nan"):
        with pytest.raises(UsageError, match=r"^cost\.k=.*: must be a positive number$"):
            fit_options([*typed, f"cost.k={wrong}"])
    with pytest.raises(UsageError, match="^cluster=seed: bootstrap=0 draws nothing"):
        fit_options([*typed, "cluster=seed", "bootstrap=0"])


def test_a_study_may_set_bounds_weights_and_rivals(tmp_path: Path) -> None:
    fit = {"law": "chinchilla", "bounds": {"E": "1..2"}, "weights": "w", "compare": "ptq,qat"}
    (tmp_path / "study.json").write_text(json.dumps({"fit": fit}))
    options = fit_options([f"results={tmp_path}", "out=b", "weights=v"])
    assert (options.bounds, options.weights) == ({"E": (1.0, 2.0)}, "v")
    assert options.compare == ("ptq", "qat")


def test_a_page_finds_its_fits_table_and_its_place() -> None:
    options = report_options(["fit=fits/mine"])
    assert (options.results, options.out) == ("fits/mine/results.csv", "fits/mine")
    options = report_options(["study=demo"])
    assert (options.results, options.fit, options.out) == ("runs/demo", *["reports/demo"] * 2)
    options = report_options(["study=demo", "out=elsewhere"])
    assert (options.fit, options.out) == ("reports/demo", "elsewhere")


def test_two_studies_are_compared_by_name_or_folder() -> None:
    options = report_options(["--compare", "demo", "somewhere/grid"])
    assert options.compare == ("demo", "somewhere/grid")
    assert (options.out, options.figures) == ("reports/demo-vs-grid", ("svg", "pdf"))
    options = report_options(["figures=svg", "--compare", "a", "b", "out=c"])
    assert (options.compare, options.out, options.figures) == (("a", "b"), "c", ("svg",))
    assert report_options(["compare=a,b"]).out == "reports/a-vs-b"
    with pytest.raises(UsageError, match="^compare=a: name two studies, compare=A,B$"):
        report_options(["compare=a"])
    for wrong in (["--compare", "demo"], ["--compare", "demo", "out=c"], ["--compare"]):
        with pytest.raises(UsageError, match="^--compare: name two studies"):
            report_options(wrong)
    with pytest.raises(UsageError, match="^study=demo: compare names its studies$"):
        report_options(["study=demo", "--compare", "a", "b"])
    with pytest.raises(UsageError, match="^figures=png: must be svg, pdf or both$"):
        report_options(["study=demo", "figures=png"])


def test_the_places_of_a_study_to_compare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert place("a") == (Path("reports/a/results.csv"), Path("reports/a"))
    assert place("./a") == (Path("a/results.csv"), Path("a"))
    Path("runs/a").mkdir(parents=True)
    assert place("a") == (Path("runs/a"), Path("reports/a"))
