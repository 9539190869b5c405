"""What a report leaves in its folder: the same bytes each time, and all that a paper wants."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from fitting.files.own_json import ResultsError
from fitting.laws.synthetic import make_table, sun_design
from tests.support.places import ROOT
from tests.support.report_study import (
    TRUTH,
    Page,
    a_fit,
    all_diverged,
    files_of,
    out,
    page,
    study,
    the_runs,
    write_fit,
    write_report,
    write_runs,
)

__all__ = ["out", "page", "study"]  # fixtures


def test_the_same_inputs_give_the_same_bytes_in_another_process(
    study: tuple[Path, Path], out: Path, tmp_path: Path
) -> None:
    code = (
        "import sys; from pathlib import Path; from fitting.page.report import write_report; "
        "write_report(*map(Path, sys.argv[1:]))"
    )
    subprocess.run(
        [sys.executable, "-c", code, *map(str, study), str(tmp_path)],
        check=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": "7", "TZ": "Asia/Tokyo", "LC_ALL": "C"},
    )
    assert files_of(out) == files_of(tmp_path)


def test_a_page_comes_back_to_the_byte_from_what_is_published_beside_it(
    study: tuple[Path, Path], tmp_path: Path
) -> None:
    """From the folder of runs, with diagnostics; then from the files alone, elsewhere."""
    runs = Path(shutil.copytree(study[0], tmp_path / "runs" / "tiny"))
    some = next(run.run_id for run in the_runs() if run.bits == 4)
    row = {"step": 1, "qsnr_P2/blocks.0.mlp.down": 0.1 + 0.2, "qsnr_P4/blocks.0.mlp.up": 1 / 3}
    (runs / some / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    there, here = tmp_path / "there", Path(shutil.copytree(study[1], tmp_path / "here"))
    write_report(runs, here, here)
    there.mkdir()
    for name in ("results.csv", "study.json", "diagnostics.csv", "fit.json"):
        shutil.copy(here / name, there)
    shutil.rmtree(runs)
    page = write_report(there / "results.csv", there, there)
    assert "QSNR" in page.read_text()
    assert files_of(there) == files_of(here)


def test_the_manifest_holds_the_sum_of_every_file_and_input(
    study: tuple[Path, Path], out: Path
) -> None:
    files = {k: v for k, v in files_of(out).items() if k not in ("results.csv", "study.json")}
    manifest = json.loads(files.pop("MANIFEST.json"))
    assert manifest["files"] == {k: hashlib.sha256(v).hexdigest() for k, v in files.items()}
    parts = {name.split("/")[0] for name in manifest["files"]}
    assert parts == {"index.html", "headline.png", "figures", "tables"}
    assert set(manifest["inputs"]) == {"results.csv", "study.json", "fit.json"}
    for name, digest in manifest["inputs"].items():
        where = study[1] if name == "fit.json" else out
        assert digest == hashlib.sha256((where / name).read_bytes()).hexdigest()
    fit_sum = hashlib.sha256((study[1] / "fit.json").read_bytes()).hexdigest()
    assert manifest["inputs"]["fit.json"] == fit_sum


def test_every_figure_and_table_is_there_for_a_paper(out: Path) -> None:
    files = set(files_of(out))
    for folder, kinds in (("figures", ("svg", "pdf")), ("tables", ("csv", "tex"))):
        names = {name.rpartition(".")[0] for name in files if name.startswith(folder)}
        assert len(names) >= 4
        assert {f"{name}.{kind}" for name in names for kind in kinds} == {
            name for name in files if name.startswith(folder)
        }


def test_a_published_size_study_stays_below_a_megabyte(tmp_path: Path) -> None:
    """The grid of 2501.02423 with three seeds: 1056 runs, 21 formats, 4 sizes."""
    formats = sun_design()
    base = formats.drop_duplicates(["params", "tokens"])
    base = base.assign(exponent=8, mantissa=7, block_size=1.0, granularity="none")
    design = pd.concat([formats, base, formats, base, formats, base], ignore_index=True)
    table = make_table("floating_point", {**TRUTH, "d": 6.9e4}, design, 1e-3, seed=0)
    table.to_csv(tmp_path / "grid.csv", index=False)
    write_report(tmp_path / "grid.csv", write_fit(tmp_path / "fit", a_fit()), tmp_path / "out")
    for name, content in files_of(tmp_path / "out").items():
        assert len(content) < 1_000_000, name


def test_figures_of_an_earlier_report_go_but_other_files_stay(
    study: tuple[Path, Path], out: Path, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(out, tmp_path / "out"))
    assert (out / "figures" / "residuals.svg").exists()
    (out / "figures" / "mine.svg").write_text("<svg/>")
    (out / "tables" / "parameters.csv").write_text("edited by hand")
    write_report(study[0], tmp_path / "no-fit", out)
    left = files_of(out)
    assert "figures/residuals.svg" not in left
    assert left["figures/mine.svg"] == b"<svg/>"
    assert left["tables/parameters.csv"] == b"edited by hand"


def test_a_broken_fit_leaves_no_page_behind(study: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "fit.json").write_text("{")
    with pytest.raises(ResultsError, match=r"fit\.json: damaged \("):
        write_report(study[0], tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_headline_figure_is_a_1200_by_500_png(study: tuple[Path, Path], tmp_path: Path) -> None:
    png = (write_report(*study, tmp_path / "a").parent / "headline.png").read_bytes()
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    assert (int.from_bytes(png[16:20]), int.from_bytes(png[20:24])) == (1200, 500)
    again = write_report(*study, tmp_path / "b").parent
    assert png == (again / "headline.png").read_bytes()
    sums = json.loads((again / "MANIFEST.json").read_text())["files"]
    assert sums["headline.png"] == hashlib.sha256(png).hexdigest()


def test_a_study_with_nothing_to_compare_has_no_headline_figure(tmp_path: Path) -> None:
    results = write_runs(tmp_path / "runs", all_diverged())
    out = tmp_path / "out"
    (tmp_path / "nowhere").mkdir()
    page = write_report(results, tmp_path / "nowhere", out)
    assert not (out / "headline.png").exists()
    assert "nothing to compare" in Page(page).text
