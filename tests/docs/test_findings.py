"""The README's numbers are those of the published fits."""

from __future__ import annotations

import re

import pandas as pd
import pytest

from fitting.analysis.splits import SPLITS
from fitting.fit.fit_file import FIT, SavedFit, read_fit
from tests.support.places import REPORTS, ROOT

README = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())


def published(study: str) -> SavedFit:
    found = read_fit(REPORTS / study / FIT)
    assert found is not None
    return found


def percent(share: float | None) -> str:
    assert share is not None
    return f"{100 * share:.2g} %"


def test_the_first_finding_is_that_of_the_published_fit() -> None:
    fit = published("unified")
    ours, theirs, *_ = fit.comparison
    assert (ours.law, theirs.law) == ("unified", "floating_point")
    for error in ("rms", "rms_formats", "rms_sizes", "rms_largest"):
        mine, other = getattr(ours, error), getattr(theirs, error)
        assert mine < other
        said = rf"{re.escape(percent(mine))}.{{0,60}}?{re.escape(percent(other))}"
        assert re.search(said, README), error
    assert all(ours.rms_tokens < rival.rms_tokens for rival in fit.comparison[1:])  # type: ignore[operator]
    low, high = fit.interval("c")
    assert f"c is {fit.values['c']:.1f} ({low:.1f} to {high:.1f}) there" in README


def test_the_other_study_prices_weights_alike_and_inputs_higher() -> None:
    fit, other = published("passes"), published("unified")
    low, high = fit.interval("c")
    assert low is not None
    assert high is not None
    assert f"{fit.values['c']:.1f} ({low:.1f} to {high:.1f}) for weights" in README
    assert low < other.values["c"] < high
    splits = fit.concluded.of(SPLITS)
    assert splits is not None
    for name, words in (
        ("c_input", "{:.2g} times as much for inputs"),
        ("c_grad_input", "{:.2g} times for dX"),
        ("c_grad_weight", "{:.2g} times for dW"),
    ):
        ratio = splits.constants[name].value
        assert ratio == pytest.approx(fit.values[name] / fit.values["c"])
        assert words.format(ratio) in README


def test_which_split_is_better_depends_on_the_scale_and_the_rotation() -> None:
    found = pd.read_csv(REPORTS / "split" / "tables" / "splits_by_factor.csv").fillna("")
    four = found[(found["first"] == "E2M1") & (found["second"] == "E1M2")]

    def words(factor: str, at: str, against: str = "") -> str:
        """A difference as the page has it, made again from the runs beside it."""
        rows = four[four["factor"] == factor].set_index(["at", "against"])
        row = rows.loc[(at, against)]
        return f"{abs(row['difference']):.3f} ± {row['standard_error']:.3f}"

    assert f"E2M1 by {words('scale', 'e8m0')} nats with power-of-two scales" in README
    assert f"E1M2 by {words('scale', 'e4m3')} with NVFP4's" in README
    moved = words("recipe with fp32 scales", "unrotated", "random")
    assert f"a random rotation moves the difference by {moved}" in README
    alone = four[(four["factor"] == "scale") & (four["against"] == "")]
    fp32 = alone[alone["at"] == "fp32"]
    assert fp32["verdict"].tolist() == ["equal within 0.005"]
    verdicts = four[four["factor"] == "recipe with fp32 scales"].set_index(["at", "against"])
    assert verdicts.loc[("random", ""), "verdict"] == "worse"
    assert f"{pd.read_csv(REPORTS / 'split' / 'results.csv')['run_id'].nunique()} runs" in README


def test_formats_never_trained_were_predicted() -> None:
    cells = published("passes").predicted
    assert {cell.name for cell in cells} == {"integer", "rotated", "stochastic", "six_bits"}
    assert sum(cell.runs for cell in cells) == 32
    for cell in cells:
        assert cell.measured is not None
        low, high = cell.interval
        assert low is not None
        assert high is not None
        assert low < cell.measured < high, cell.name


def test_what_an_adapter_of_few_bits_is_worth() -> None:
    fit = published("finetune")
    bic = {rival.law: rival.bic or 0.0 for rival in fit.comparison}
    assert bic["fine_tuning"] < bic["fine_tuning_decay"] - 100
    for name, before in (("eff_r[sign]", "one bit is worth"), ("eff_r[int4_row]", "in INT4")):
        low, high = fit.interval(name)
        said = f"{fit.values[name]:.2f} ({low:.2f} to {high:.2f})"
        assert re.search(rf"{before} {re.escape(said)}", README), said
    assert f"does what rank {16 * fit.values['eff_r[sign]']:.1f} does" in README
    runs = pd.read_csv(REPORTS / "finetune" / "results.csv")["run_id"].nunique()
    assert f"{runs:,} runs" in README
