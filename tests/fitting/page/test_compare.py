"""Two studies side by side: the cells in both, what is told of them, and where nothing can be."""

from __future__ import annotations

import json
import re
import shutil
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fitting.command import main as commands
from fitting.page.compare import (
    SAME,
    Place,
    UnseenWarning,
    common_cells,
    overlapping,
    write_comparison,
)
from fitting.page.publish import publish
from fitting.page.study import load_study
from fitting.results.record import RunRecord
from fitting.seeds.verdicts import enough
from tests.support.report_study import (
    SHIFT,
    Page,
    a_fit,
    again,
    files_of,
    the_runs,
    write_fit,
    write_runs,
)

pytestmark = pytest.mark.filterwarnings("ignore::fitting.page.compare.UnseenWarning")


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> tuple[Place, Place]:
    """Two studies of one design, the second without its largest size's E4M3, each with a fit."""
    root = tmp_path_factory.mktemp("studies")
    second = [r for r in again(the_runs()) if not (r.params > 50_000 and r.exponent == 4)]
    write_runs(root / "one", the_runs(), title="The first")
    write_runs(root / "two", second)
    parameters = {**a_fit()["parameters"], "gamma": 5000.0}
    intervals = {name: [0.9 * value, 1.2 * value] for name, value in parameters.items()}
    write_fit(root / "fit-one", a_fit())
    write_fit(root / "fit-two", a_fit(parameters=parameters, intervals=intervals))
    names = "one", "two"
    first, other = (Place(n, root / n, root / f"fit-{n}") for n in names)
    return first, other


@pytest.fixture(scope="module")
def out(places: tuple[Place, Place], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_comparison(*places, tmp_path_factory.mktemp("page"), ("svg",)).parent


def test_cells_in_both_are_compared_by_the_noise_of_either(places: tuple[Place, Place]) -> None:
    """12 quantized and 4 other cells less the 2 that the second study lacks."""
    a, b = (load_study(place.results, place.fit_dir) for place in places)
    cells, order, reason = common_cells(a, b)
    assert (len(cells), reason) == (14, "")
    assert order == ["E1M1", "E2M1", "E4M3", "none"]
    # The second study's runs have the first one's noise, shift aside.
    np.testing.assert_allclose(
        cells["difference"], np.where(cells["format"] == "E1M1", SHIFT, 0.0), atol=1e-12
    )
    expected = np.hypot(a.noise.std_loss, b.noise.std_loss) / np.sqrt(3)
    np.testing.assert_allclose(cells["standard_error"], expected, rtol=1e-12)
    told = cells["difference"] >= enough(min(a.noise.dof, b.noise.dof)) * expected
    assert told.sum() == 4
    assert (cells["verdict"] == np.where(told, "worse", "cannot tell")).all()


def test_the_page_says_what_differs(out: Path) -> None:
    page = Page(out / "index.html")
    assert "14 cells of the design are in both studies: two has the higher loss in 4" in page.text
    assert "Intervals overlap for 7 of 8 parameters; they do not for gamma." in page.text
    (gamma,) = [row for row in page.rows if row[:1] == ["gamma"]]
    assert gamma == ["gamma", "2,500 (2,250 to 3,000)", "5,000 (4,500 to 6,000)", "no"]
    (layout,) = [row for row in page.rows if row[:2] == ["4", "E2M1 (93 %)"]]
    assert layout[2:] == ["E2M1 (93 %)", "yes", ""]
    assert ["Runs", "48 finished, 0 diverged, 0 failed", "42 finished, 0 diverged, 0 failed"] in [
        row for row in page.rows if row
    ]
    assert "one : The first" in page.text.replace("one: ", "one : ")
    for row in page.rows:
        if row[:1] == ["E1M1"] and len(row) > 5:
            assert row[3].startswith("+0.2000 ± ")
            assert row[5] == "higher"


def test_losses_of_other_corpora_are_not_compared_but_what_formats_cost_is(
    places: tuple[Place, Place], tmp_path: Path
) -> None:
    write_runs(tmp_path / "other", again(the_runs(), corpus="another 9876543210fe"))
    a = load_study(places[0].results, places[0].fit_dir)
    b = load_study(tmp_path / "other", tmp_path)
    cells, _, _ = common_cells(a, b)
    assert len(cells) == 12
    assert cells["above_none"].all()
    assert "none" not in set(cells["format"])
    e1m1 = cells[cells["format"] == "E1M1"]
    np.testing.assert_allclose(e1m1["difference"], SHIFT, atol=1e-12)
    other = Place("other", tmp_path / "other", tmp_path)
    page = Page(write_comparison(places[0], other, tmp_path / "out", ("svg",)))
    assert "Their corpora differ, so losses above none are compared" in page.text
    assert "There is no fit of other (no fit.json), so no parameters can be compared." in page.text


def test_a_study_beside_itself_holds_the_same_runs(
    places: tuple[Place, Place], tmp_path: Path
) -> None:
    study = load_study(places[0].results, places[0].fit_dir)
    cells, _, _ = common_cells(study, study)
    assert set(cells["verdict"]) == {SAME}
    page = Page(write_comparison(places[0], places[0], tmp_path, ("svg",)))
    assert "16 hold the same runs" in page.text
    assert "Intervals overlap for 8 of 8 parameters." in page.text
    assert not list(tmp_path.glob("figures/differences_*")), "there are none"


@pytest.mark.parametrize(
    ("runs", "said"),
    [
        ([], "No cell of the design (size, tokens, format) is in both studies."),
        (the_runs()[:1], "1 cell of the design is in both studies"),
        ([replace(r, params=7) for r in the_runs()[:4]], "No cell of the design"),
    ],
    ids=["no run", "one run", "another size"],
)
def test_little_in_common_is_a_page_that_says_so(
    places: tuple[Place, Place], runs: list[RunRecord], said: str, tmp_path: Path
) -> None:
    write_runs(tmp_path / "little", runs)
    little = Place("little", tmp_path / "little", tmp_path / "no-fit")
    page = Page(write_comparison(places[0], little, tmp_path / "out", ("svg",)))
    assert said in page.text


def test_tables_of_schemes_are_compared_by_scheme(tmp_path: Path) -> None:
    table = pd.DataFrame(
        {"params": [1e7, 1e7], "tokens": [1e9, 1e9], "forward": ["QuEST", "BF16"],
         "backward": "BF16", "loss": [3.1, 3.0]}
    )  # fmt: skip
    table.to_csv(tmp_path / "a.csv", index=False)
    table.assign(loss=[3.2, 3.0]).to_csv(tmp_path / "b.csv", index=False)
    law = {"A": 1.0, "B": 1.0, "E": 1.0, "alpha": 0.5, "beta": 0.5, "gamma": 1.0}
    law |= {"eff_N[QuEST]": 0.6}
    write_fit(tmp_path, a_fit(law="quartet", parameters=law, intervals={}, derived={}))
    a, b = (load_study(tmp_path / name, tmp_path) for name in ("a.csv", "b.csv"))
    cells, order, _ = common_cells(a, b)
    assert order == ["BF16:BF16", "QuEST:BF16"]
    np.testing.assert_allclose(cells["difference"], [0.0, 0.1], atol=1e-12)
    assert set(cells["verdict"]) == {"cannot tell"}, "no seed was repeated"


def test_other_laws_are_not_set_side_by_side_as_one(
    places: tuple[Place, Place], tmp_path: Path
) -> None:
    truth = {"A": 400.0, "alpha": 0.34, "B": 410.0, "beta": 0.28, "E": 1.69}
    intervals = {name: [0.9 * v, 1.1 * v] for name, v in truth.items()}
    fit = a_fit(law="chinchilla", parameters=truth, intervals=intervals, derived={})
    other = Place("two", places[1].results, write_fit(tmp_path / "fit", fit))
    page = Page(write_comparison(places[0], other, tmp_path / "out", ("svg",)))
    assert "one is fitted with the law floating_point, two with chinchilla" in page.text
    (alpha,) = [row for row in page.rows if row[:1] == ["alpha"]]
    assert alpha[-1] == "another law"
    assert not (tmp_path / "out" / "figures" / "parameters.svg").exists()


def test_intervals_that_touch_overlap() -> None:
    assert overlapping([[1.0, 2.0], [2.0, 3.0]]) == "yes"
    assert overlapping([[2.5, 3.0], [1.0, 2.0]]) == "no"


def test_the_same_inputs_give_the_same_bytes_and_are_all_listed(
    places: tuple[Place, Place], out: Path, tmp_path: Path
) -> None:
    again_out = write_comparison(*places, tmp_path, ("svg",)).parent
    assert files_of(out) == files_of(again_out)
    inputs = json.loads((out / "MANIFEST.json").read_text())["inputs"]
    assert {"one: fit.json", "two: fit.json", "one: study.json"} <= set(inputs)
    assert len(inputs) == 48 + 42 + 3


def test_the_second_study_is_dashed_and_named_in_the_legend(out: Path) -> None:
    svg = (out / "figures" / "curves_24576.svg").read_text()
    assert "stroke-dasharray" in svg
    assert re.findall(r">(one|two)<", svg) == ["one", "two"]
    assert '"two: E2M1\\n24.6k parameters and 1M tokens\\n' in (out / "index.html").read_text()


def test_the_command_compares_published_reports(
    places: tuple[Place, Place],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As in a checkout: reports/NAME with results.csv and fit.json, and a folder elsewhere."""
    monkeypatch.chdir(tmp_path)
    for place, folder in zip(places, ("reports/one", "else/two"), strict=True):
        Path(folder).mkdir(parents=True)
        load_study(place.results, place.fit_dir).table.to_csv(f"{folder}/results.csv", index=False)
        shutil.copy(place.fit_dir / "fit.json", folder)
    typed = ["lowbit-report", "--compare", "one", "else/two", "figures=svg"]
    monkeypatch.setattr(sys, "argv", typed)
    commands.report()
    assert capsys.readouterr().out == "reports/one-vs-two/index.html\n"
    page = Page(Path("reports/one-vs-two/index.html"))
    assert "14 cells of the design are in both studies" in page.text
    assert "lowbit-report --compare one else/two" in page.text
    monkeypatch.setattr(sys, "argv", ["lowbit-report", "--compare", "one", "nowhere"])
    with pytest.raises(SystemExit):
        commands.report()
    assert "reports/nowhere/results.csv: no such file" in capsys.readouterr().err


def test_what_one_study_does_not_record_is_said(
    places: tuple[Place, Place],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Two studies at another rate, the page of one older than `config` in study.json."""
    for name, rate, runs in (("old", 0.016, the_runs()), ("new", 0.001, again(the_runs()))):
        config = {"optim": {"lr": rate}, "batch_size": 8}
        write_runs(tmp_path / "made" / name, [replace(run, config=config) for run in runs])
        publish(tmp_path / "made" / name, tmp_path / "nowhere", tmp_path / "reports" / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["lowbit-report", "--compare", "old", "new", "figures=svg"])
    page = tmp_path / "reports" / "old-vs-new" / "index.html"
    commands.report()
    assert not capsys.readouterr().err
    assert "they differ in optim.lr (0.016 and 0.001)" in Page(page).text
    about = json.loads(Path("reports/old/study.json").read_text())
    del about["config"]
    Path("reports/old/study.json").write_text(json.dumps(about))
    capsys.readouterr()
    with warnings.catch_warnings():
        warnings.simplefilter("always", UnseenWarning)
        commands.report()
    said = (
        "The settings that all runs of old share are not recorded (batch_size, optim.lr): a "
        "difference in them would go unnoticed. A page made again from its runs records them."
    )
    assert capsys.readouterr().err == f"lowbit-report: {said}\n"
    assert said in Page(page).text
