"""A page of splits crossed with recipes and scales: its lead, its table, its picture."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from fitting.page.report import headline_words, write_report
from fitting.page.sentences import splits_by_factor
from fitting.page.study import load_study
from tests.support.crossed import crossed


def test_a_page_begins_with_whether_the_split_depends_on_recipe_or_scale(tmp_path: Path) -> None:
    crossed(0).to_csv(tmp_path / "results.csv", index=False)
    study = load_study(tmp_path / "results.csv", tmp_path)
    lead, points = headline_words(study)
    assert lead.startswith("At 4 bits E1M2 loses more than E2M1, in nats per token. By scale: ")
    assert "no change with the scale was shown" in lead
    for scale in ("e8m0", "fp32"):
        begin = f"With {scale} scales the recipe changes it: rotated instead of plain -0.01"
        assert begin in lead
    assert lead not in points
    page = write_report(tmp_path / "results.csv", tmp_path, tmp_path / "out", figure_files=("svg",))
    text = page.read_text(encoding="utf-8")
    assert 'id="splits_by_factor"' in text
    assert (tmp_path / "out" / "figures" / "lead.svg").exists()
    table = pd.read_csv(tmp_path / "out" / "tables" / "splits_by_factor.csv")
    within = {"recipe with e8m0 scales", "recipe with fp32 scales"}
    assert set(table["factor"]) == {"scale", *within}


def test_an_interaction_at_one_scale_alone_is_not_averaged_away(tmp_path: Path) -> None:
    """The rotation helps E1M2 with one scale and harms it with the other."""
    table = crossed(0)
    sign = (table["scale"] == "e8m0") & (table["recipe"] == "rotated") & (table["exponent"] == 1)
    table.loc[sign, "loss"] += 0.024
    table.to_csv(tmp_path / "results.csv", index=False)
    lead, _ = headline_words(load_study(tmp_path / "results.csv", tmp_path))
    assert "With fp32 scales the recipe changes it: rotated instead of plain -0.01" in lead
    assert "With e8m0 scales the recipe changes it: rotated instead of plain +0.00" in lead
    even = table.assign(loss=table["loss"] - 0.0078 * sign)
    even.to_csv(tmp_path / "results.csv", index=False)
    lead, _ = headline_words(load_study(tmp_path / "results.csv", tmp_path))
    assert "With e8m0 scales the recipe changes it by no more than 0.00" in lead


def test_with_one_scale_recipes_are_compared_as_they_are(tmp_path: Path) -> None:
    table = crossed(0)
    table[table["scale"] == "fp32"].to_csv(tmp_path / "results.csv", index=False)
    lead, _ = headline_words(load_study(tmp_path / "results.csv", tmp_path))
    assert "By recipe: plain " in lead
    assert "the recipe changes it: rotated instead of plain -0.01" in lead


def test_without_crossed_factors_nothing_is_said() -> None:
    assert splits_by_factor(pd.DataFrame()) == ""
