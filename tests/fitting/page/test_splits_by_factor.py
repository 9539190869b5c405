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
    assert lead.startswith("At 4 bits E1M2 loses more than E2M1, in nats per token. By recipe: ")
    assert "the recipe changes it: rotated instead of plain -0.01" in lead
    assert "no change with the scale was shown" in lead
    assert lead not in points
    page = write_report(tmp_path / "results.csv", tmp_path, tmp_path / "out", figure_files=("svg",))
    text = page.read_text(encoding="utf-8")
    assert 'id="splits_by_factor"' in text
    assert (tmp_path / "out" / "figures" / "lead.svg").exists()
    table = pd.read_csv(tmp_path / "out" / "tables" / "splits_by_factor.csv")
    assert set(table["factor"]) == {"recipe", "scale"}


def test_without_crossed_factors_nothing_is_said() -> None:
    assert splits_by_factor(pd.DataFrame()) == ""
