"""The report page: what is on it, and what it says when little is there."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from scipy import stats

from fitting.command.describe import run_fit
from fitting.command.options import FitOptions, report_options
from fitting.laws.published import QUARTET_2025
from fitting.laws.synthetic import make_table
from fitting.page import conclusions
from fitting.results.record import RunRecord
from fitting.results.table import load
from tests.support.report_study import (
    TRUTH,
    Page,
    a_fit,
    all_diverged,
    out,
    page,
    study,
    the_runs,
    write_fit,
    write_report,
    write_runs,
)

__all__ = ["out", "page", "study"]  # fixtures


def test_every_loss_is_followed_from_its_record_to_the_page(
    study: tuple[Path, Path], page: Page
) -> None:
    table = load(study[0])
    assert len(table) == 48
    for run in table.itertuples():
        (row,) = [row for row in page.rows if row and row[0] == run.run_id]
        assert run.status in row
        if run.status == "finished":
            assert f"{run.loss:.4f}" in row
        else:
            assert "loss is NaN at step 9" in row


def test_the_page_loads_nothing_and_links_only_to_itself_and_papers(page: Page) -> None:
    """Both scripts are in the page, one of them data: a source would be among what it loads."""
    assert page.loads
    assert all(target.startswith("#") for target in page.loads)
    assert page.tags.count("script") == 2
    outside = [link for link in page.links if not link.startswith("#")]
    assert outside
    assert all(link.startswith("https://arxiv.org/abs/") for link in outside)
    assert not {"iframe", "link", "img", "object", "embed", "base"} & set(page.tags)


def test_each_mark_on_the_page_says_its_run(study: tuple[Path, Path], out: Path) -> None:
    source = (out / "index.html").read_text()
    match = re.search(r'<script type="application/json" id="tips">(.*?)</script>', source)
    assert match
    tips = json.loads(match[1])
    assert len(tips) == len(set(tips))
    drawn = source[source.index('aria-label="Residuals') :]
    drawn = drawn[: drawn.index("</svg>")]
    said = [tips[int(i)] for i in re.findall(r'data-tip="(\d+)"', drawn)]
    table = load(study[0])
    losses = table["loss"][table["status"] == "finished"]
    assert len(losses) == 46
    assert sorted(re.findall(r"loss (\d\.\d{4})", "\n".join(said))) == sorted(
        f"{loss:.4f}" for loss in losses
    )


def test_the_figures_files_hold_no_tags(out: Path) -> None:
    for path in (out / "figures").glob("*.svg"):
        assert "data-" not in path.read_text(), path.name


def test_runs_are_counted_by_outcome(page: Page) -> None:
    for words in ("46 finished", "2 diverged", "0 failed", "1 missing", "49 runs were planned"):
        assert words in page.text
    (lost,) = [row for row in page.rows if row[:2] == ["diverged", "2"]]
    assert lost[2] == "12 s"
    assert lost[-2:] == ["loss is NaN at step 9", "E1M1"]


def test_what_goes_beyond_the_data_is_listed(page: Page) -> None:
    beyond = page.text[page.text.index("Where this page goes beyond the data") :]
    assert "Best exponent/mantissa split: 1 of 2 rows" in beyond
    assert "Critical data size: 1 of 1 row" in beyond


def test_the_headline_says_what_the_losses_say(study: tuple[Path, Path], page: Page) -> None:
    """The law's cost of E1M1 is 0.07 to 0.17 nats, of E4M3 1/37 of that, below the noise."""
    table = load(study[0])
    loss = table[table["status"] == "finished"].set_index(["params", "tokens", "seed"])
    base = loss[loss["bits"] == 16]["loss"]
    low = loss[(loss["exponent"] == 1)]["loss"]
    expected = (low - base).groupby(["params", "tokens"]).mean().mean()
    none = r"none \(the unquantized run\)"
    assert re.search(
        rf"E1M1 \(3 bits\) is worse than {none} by {expected:.3g} ± [\d.]+ nats per token",
        page.text,
    )
    assert "at any size or token count: E4M3" in page.text
    assert "cannot pin gamma and delta" in page.text
    assert "24.6k" in page.text
    assert "must not be compared with those in papers" in page.text


def test_each_difference_stands_beside_its_error_and_the_noise_floor(page: Page) -> None:
    assert "Noise floor: another seed changes the loss by" in page.text
    rows = [row for row in page.rows if row and row[0] in ("E1M1", "E2M1", "E4M3") and len(row) > 5]
    assert len(rows) == 12
    # 12 cells of 3 seeds, two of which lost one: 34 pairs less 12 means.
    needed = float(stats.t.isf(stats.norm.sf(3), 22))
    assert "A verdict needs 3.38 standard errors (22 degrees of freedom)" in page.text
    for row in rows:
        difference, error = (float(x.replace("−", "-")) for x in row[1].split(" ± "))
        z = float(row[2].replace("−", "-"))
        # Printed to 4 decimals, 2 digits (5 % at worst) and, cut, 1 decimal.
        slack = 0.1 + 5e-5 / error + 0.05 * abs(difference) / error
        assert z == pytest.approx(difference / error, abs=slack)
        assert row[3].startswith("worse") == (z >= needed)
    assert sum("1 of 3 diverged" in row[3] for row in rows) == 2


def test_what_lowbit_fit_writes_is_what_the_report_reads(
    study: tuple[Path, Path], tmp_path: Path
) -> None:
    options = FitOptions(
        results=str(study[0]), out=str(tmp_path), law="floating_point", bootstrap=20, starts=8,
        freeze={"epsilon": 0.35},
    )  # fmt: skip
    fit = run_fit(options)
    page = Page(write_report(study[0], tmp_path, tmp_path / "page"))
    rows = {row[0]: row for row in page.rows if row and row[0] in fit.parameters}
    for name, value in fit.parameters.items():
        assert float(rows[name][1].replace(",", "")) == pytest.approx(value, rel=5e-4)
    assert rows["epsilon"][-1] == "held fixed"
    assert "Held fixed and not fitted: epsilon = 0.35" in page.text.replace("\xa0", " ")
    assert "freeze.epsilon=0.35" in page.text
    for warning in fit.warnings:
        assert warning in page.text
    assert f"{fit.rows.used} runs were used; excluded: 2 diverged" in page.text


def test_published_constants_and_warnings_stand_beside_the_fit(page: Page) -> None:
    (alpha,) = [row for row in page.rows if row[:1] == ["alpha"]]
    assert alpha == ["alpha", "0.16", "0.144 to 0.192", "–", "0.011", "0.2368", "yes"]
    (delta,) = [row for row in page.rows if row[:1] == ["delta"]]
    assert delta[-1] == "no"
    assert "gamma and delta move together: not identified" in page.text
    assert "31 of 32 starts agree" in page.text
    assert "2 diverged" in page.text


def test_extrapolations_are_marked(page: Page) -> None:
    (inside,) = [row for row in page.rows if row[1:2] == ["E2M1"] and "93" in row[2]]
    (outside,) = [row for row in page.rows if row[1:2] == ["E8M7"]]
    assert (inside[0], inside[-1]) == ("4", "")
    assert (outside[0], outside[-1]) == ("16", "extrapolated")
    (critical,) = [row for row in page.rows if row[1:4] == ["E1M1", "32", "7.5M"]]
    assert critical[4:] == ["5M to ∞", "extrapolated"]


def test_every_conclusion_of_a_fit_is_on_the_page(study: tuple[Path, Path], tmp_path: Path) -> None:
    """With nu frozen, and without a bootstrap: what is tested is the way to the page."""
    options = FitOptions(
        results=str(study[0]), out=str(tmp_path), law="floating_point", bootstrap=0, starts=8,
        freeze={"epsilon": 0.35, "nu": 1.8},
    )  # fmt: skip
    fit = run_fit(options)
    page = Page(write_report(study[0], tmp_path, tmp_path / "page"))
    views = conclusions.views(fit)
    assert len(views) == 7
    for view in views:
        assert view.title in page.text
        for _, cells in view.rows:
            assert cells in page.rows
        assert len(pd.read_csv(tmp_path / "page" / "tables" / f"{view.name}.csv")) == len(view.data)
    assert "No run of this table has tested what is marked extrapolated" in page.text
    for name in ("cost_of_bits", "critical_tokens", "bits_for_tokens", "bits_jointly"):
        assert (tmp_path / "page" / "figures" / f"{name}.svg").exists()


def test_a_table_of_schemes_is_drawn_by_scheme_and_its_map_is_on_the_page(tmp_path: Path) -> None:
    sizes = [(n, r * n) for n in (3e7, 5e7, 1e8, 2e8) for r in (25, 50, 100, 200, 400, 800)]
    schemes = [(f, b) for f in ("BF16", "A") for b in ("BF16", "B")]
    rows = [(*size, *scheme) for size in sizes for scheme in schemes]
    design = pd.DataFrame(rows, columns=["params", "tokens", "forward", "backward"])
    truth = {n: v for n, v in QUARTET_2025.items() if not n.startswith("eff")}
    truth |= {"eff_N[A]": 0.65, "eff_D[B]": 0.95}
    table = make_table("quartet", truth, design, 2e-4, seed=0)
    columns = ["params", "tokens", "forward", "backward", "loss"]
    table[columns].rename(columns={"params": "N"}).to_csv(tmp_path / "mine.csv", index=False)
    options = FitOptions(
        results=str(tmp_path / "mine.csv"), out=str(tmp_path / "fits"), law="quartet", starts=8,
        columns={"params": "N"}, bootstrap=20, speedup_forward=1.5,
    )  # fmt: skip
    run_fit(options)
    written = report_options([f"fit={tmp_path / 'fits'}"])
    page = Page(write_report(Path(written.results), Path(written.fit), Path(written.out)))
    assert "Formats A:B, A:BF16, BF16:B, BF16:BF16" in page.text
    assert "FP4 is taken to be 1.5 × as fast as FP8 forward and 2 × backward" in page.text
    assert "speedup.forward=1.5" in page.text
    assert "lowbit-report results=results.csv fit=." in page.text
    assert ["scheme", "pass", "efficiency", "more parameters", "more tokens"] in page.rows
    assert (tmp_path / "fits" / "figures" / "map.svg").exists()


def test_a_hostile_title_stays_text(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>\"'&<img src=x onerror=y>"
    recipes = {1: "<b>bold", 2: "plain", 4: "plain", 8: "none"}
    runs = [replace(run, recipe=recipes[run.exponent]) for run in the_runs()[:8]]
    results = write_runs(tmp_path / "evil", runs, title=evil, notes=[evil], description=evil)
    fit = write_fit(tmp_path / "fit", a_fit(warnings=[evil]))
    page = Page(write_report(results, fit, tmp_path / "out"))
    assert not {"img", "b"} & set(page.tags)
    assert page.tags.count("script") == 2
    assert page.text.count("<script>alert(1)</script>") >= 4
    source = (tmp_path / "out" / "index.html").read_text()
    assert "<script>alert(1)" not in source
    assert "\\u003cb>bold" in source, "a recipe in the words of a mark"
    assert "<b>bold" in page.text


def no_runs() -> list[RunRecord]:
    return []


def one_run() -> list[RunRecord]:
    return the_runs()[:1]


def one_quantized_run() -> list[RunRecord]:
    return the_runs()[1:2]


def one_seed() -> list[RunRecord]:
    return [run for run in the_runs() if run.seed == 0]


def all_failed() -> list[RunRecord]:
    return [replace(run, status="failed", loss=None, train_loss=None) for run in the_runs()[:5]]


@pytest.mark.parametrize(
    ("runs", "said"),
    [
        (no_runs, "no finished run yet: there is nothing to report"),
        (one_run, "One run only: no spread, no comparison and no fit can come from it"),
        (one_quantized_run, "nothing can be compared"),
        (one_seed, "without repeated seeds this study cannot say whether that is real"),
        (all_diverged, "No run of this study ended with a loss (5 diverged)"),
        (all_failed, "No run of this study ended with a loss (5 failed)"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
@pytest.mark.parametrize("with_fit", [False, True])
def test_a_study_that_shows_little_says_so(
    runs: Any, said: str, with_fit: bool, tmp_path: Path
) -> None:
    results = write_runs(tmp_path / "runs", runs(), planned=["a", "b"])
    fit = write_fit(tmp_path / "fit", a_fit()) if with_fit else tmp_path / "fit"
    page = Page(write_report(results, fit, tmp_path / "out"))
    assert said in page.text
    if not with_fit:
        assert "There is no fit of this study" in page.text
    assert "is worse than none" not in page.text


def test_a_fit_without_bootstrap_or_conclusions_is_a_page_too(
    study: tuple[Path, Path], tmp_path: Path
) -> None:
    bare = a_fit(
        intervals={name: [None, None] for name in TRUTH}, standard_errors={}, derived={},
        objective={"name": "least_squares", "delta": None, "value": None}, warnings=[],
    )  # fmt: skip
    page = Page(write_report(study[0], write_fit(tmp_path / "fit", bare), tmp_path / "out"))
    assert "Without a bootstrap nothing is known about the precision of" in page.text
    assert "No optimal layouts" in page.text


def test_a_foreign_table_without_formats_is_reported_as_far_as_it_goes(tmp_path: Path) -> None:
    design = pd.DataFrame(
        [(n, d) for n in (1e7, 1e8, 1e9) for d in (1e9, 1e10)], columns=["params", "tokens"]
    )
    truth = {"A": 400.0, "alpha": 0.34, "B": 410.0, "beta": 0.28, "E": 1.69}
    table = make_table("chinchilla", truth, design, 0.0, seed=0)
    table[["params", "tokens", "loss"]].to_csv(tmp_path / "losses.csv", index=False)
    fit = write_fit(tmp_path / "fit", a_fit(law="chinchilla", parameters=truth, derived={}))
    page = Page(write_report(tmp_path / "losses.csv", fit, tmp_path / "out"))
    assert "formats cannot be compared" in page.text
    assert "results=losses.csv" in page.text
    for loss in table["loss"]:
        assert any(f"{loss:.4f}" in row for row in page.rows)


def test_it_is_said_who_shares_a_scale_where_names_do(page: Page, tmp_path: Path) -> None:
    """The names hold a block size only where a study has several."""
    assert "shares a scale per" not in page.text
    blocks = [
        replace(
            run, run_id=run.run_id + name, block_size=size, granularity=name,
        )
        for run in one_seed() if run.bits == 4
        for name, size in (("block", 32.0), ("row", 96.0), ("tensor", 9132.0))
    ]  # fmt: skip
    base = [run for run in one_seed() if run.bits == 16]
    results = write_runs(tmp_path / "runs", base + blocks)
    text = Page(write_report(results, tmp_path, tmp_path / "out")).text
    said = "E2M1/32 shares a scale per 32 values, E2M1 row per row, E2M1 tensor per tensor."
    assert text.count(said) == 1


def test_provenance_is_in_words(tmp_path: Path) -> None:
    runs = [
        replace(run, provenance={**run.provenance, "git_dirty": dirty})
        for run, dirty in zip(the_runs()[:2], (True, False), strict=True)
    ]
    results = write_runs(tmp_path / "runs", runs)
    text = Page(write_report(results, tmp_path, tmp_path / "out")).text
    for words in ("Git sha 1f2e3d4c5b6a", "Uncommitted changes no, yes", "Device cpu", "Threads 1"):
        assert words in text


def test_diagnostics_have_a_section_only_where_there_are_some(
    study: tuple[Path, Path], page: Page, tmp_path: Path
) -> None:
    assert "QSNR" not in page.text
    runs = Path(shutil.copytree(study[0], tmp_path / "tiny"))
    some = next(run.run_id for run in the_runs() if run.bits == 4)
    rows = [{"step": s, "qsnr_P2/blocks.0.mlp.down": 20.0 - s / 100} for s in (0, 100)]
    (runs / some / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    found = Page(write_report(runs, study[1], tmp_path / "out"))
    assert ["E2M1", "P2", "1", "20", "19", "blocks.0.mlp.down", "19.5"] in found.rows
    assert (tmp_path / "out" / "figures" / "qsnr_P2.svg").exists()
    manifest = json.loads((tmp_path / "out" / "MANIFEST.json").read_text())
    assert "diagnostics.csv" in manifest["inputs"]
