"""The reports in this repository come back, to the byte, from the tables beside them."""

import re
from pathlib import Path

import pytest

from fitting.page.files import versions
from fitting.page.report import headline_words, write_report
from fitting.page.study import load_study
from tests.support.places import REPORTS

PUBLISHED = sorted(path.parent.name for path in REPORTS.glob("*/results.csv"))


@pytest.mark.slow
@pytest.mark.parametrize("study", PUBLISHED)
def test_a_published_page_is_rebuilt_from_its_tables(study: str, tmp_path: Path) -> None:
    folder = REPORTS / study
    text = (folder / "index.html").read_text(encoding="utf-8")
    others = [version for version in versions() if version not in text]
    if others:
        pytest.skip(f"the page was made with others than {', '.join(others)}")
    page = write_report(folder / "results.csv", folder, tmp_path, figure_files=("svg",))
    assert page.read_text(encoding="utf-8") == text
    for table in sorted((tmp_path / "tables").iterdir()):
        assert table.read_bytes() == (folder / "tables" / table.name).read_bytes(), table.name
    figures = {path.name for path in (folder / "figures").glob("*.svg")}
    assert figures == {path.name for path in (tmp_path / "figures").iterdir()}


def test_what_the_readme_shows_is_published() -> None:
    readme = (REPORTS.parent / "README.md").read_text(encoding="utf-8")
    named = re.findall(r"\]?\((reports/[^)]+)\)", readme)
    assert named
    assert all((REPORTS.parent / path).exists() for path in named)


@pytest.mark.parametrize(
    ("study", "begins"),
    [
        ("precision_grid", "Measured at equal bits and seeds: E1M2 beats E3M0 by 0.051"),
        ("demo", "E1M0 row (2 bits) is worse than none (the"),  # it cannot tell splits apart
    ],
)
def test_a_page_begins_with_what_its_study_can_tell_of_splits(study: str, begins: str) -> None:
    folder = REPORTS / study
    lead, points = headline_words(load_study(folder / "results.csv", folder))
    assert lead.startswith(begins)
    assert not any(point in lead for point in points)
    assert sum("according to the fit" in words for words in (lead, *points)) == 1
