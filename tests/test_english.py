"""A docstring's first line stands without the name: it does not begin with a dangling "Of"."""

import re
from pathlib import Path

import pytest

from tests.support.places import ROOT

DANGLING = re.compile(r'^\s*(?:r?"""Of |(?:\w+: )Of )', re.MULTILINE)
FOLDERS = ("experiments", "fitting", "tests")
FILES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_docstring_begins_with_a_dangling_of(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    found = [text[: match.start()].count("\n") + 1 for match in DANGLING.finditer(text)]
    assert not found, f"{path}: lines {found} begin with Of: what is it?"
