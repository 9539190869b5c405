"""docs/concepts.md and what all pages share: drawings, links, and the facts in the text."""

import re
import runpy
import shlex
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from experiments.errors.command import error
from experiments.quant.formats import FloatFormat
from experiments.quant.normal_error import error_of
from fitting.analysis.signal import signal_share
from fitting.laws.catalogue import LAWS
from fitting.laws.published import SUN_2025
from tests.support.places import ROOT

DOCS = ROOT / "docs"
PAGE = (DOCS / "concepts.md").read_text()
DRAWINGS = runpy.run_path(str(DOCS / "drawings" / "draw.py"))["DRAWINGS"]
LETTER = 7.5
"""Pixels that a letter of 14 takes at most on average, in the widest of the common fonts."""


@pytest.mark.parametrize("name", DRAWINGS)
def test_a_drawing_is_what_its_script_draws_and_shows_in_both_themes(name: str) -> None:
    text = (DOCS / "drawings" / f"{name}.svg").read_text()
    assert text == DRAWINGS[name]().svg()
    root = ElementTree.fromstring(text)
    assert "prefers-color-scheme: dark" in text
    assert "href" not in text, "loads nothing"
    width, height = (float(root.attrib[side]) for side in ("width", "height"))
    labels = [e for e in root.iter() if e.tag.endswith("}text")]
    assert len(labels) >= 10
    for label in labels:
        size = LETTER * (12 / 14 if label.get("class") == "small" else 1)
        half = size * len(label.text or "") / 2
        assert half <= float(label.attrib["x"]) <= width - half, label.text
        assert 12 <= float(label.attrib["y"]) <= height - 4, label.text


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
        assert (page.parent / link).exists(), link


def test_every_page_is_in_the_list_of_pages() -> None:
    listed = set(re.findall(r"\]\(([\w-]+\.md)\)", (DOCS / "README.md").read_text()))
    pages = {page.name for page in DOCS.glob("*.md")} - {"README.md"}
    assert pages == listed


def test_its_command_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    [command] = re.findall(r"^```sh\n(.*?)\n```", PAGE, re.MULTILINE)
    words = shlex.split(command, comments=True)
    monkeypatch.setattr(sys, "argv", [*words, "rows=16"])
    error()
    printed = capsys.readouterr().out
    for name in words[1].partition("=")[2].split(","):
        assert re.search(rf"^ *{name} ", printed, re.MULTILINE)


def test_its_numbers_are_the_formats_and_its_letters_the_laws() -> None:
    numbers = ", ".join(f"{value:g}" for value in FloatFormat(2, 1).grid())
    assert numbers in PAGE.replace("\n", " ")
    assert set(LAWS["floating_point"].parameters) == set(SUN_2025)
    for letter in ("n/N^α", "d/D^β", "ε", "log₂B", "γ", "^δ", "^ν"):
        assert letter in PAGE


def test_the_drawing_of_the_law_shows_what_the_law_says() -> None:
    labels = [e.text or "" for e in ElementTree.fromstring(DRAWINGS["law"]().svg()).iter()]
    for name in ("E2M1", "E1M1", "E2M3"):
        at = labels.index(f"{name}, blocks of 32")
        error = error_of(name)
        both = {"err_weight": error, "err_input": error}
        share = signal_share({"c": 30}, {"err_weight": error})
        shown = [f"{error:.3g}", f"{error / (1 - error):.3g}", f"{share:.2f}"]
        assert [f"{float(text):.3g}" for text in labels[at + 1 : at + 3]] == shown[:2]
        assert labels[at + 3] == shown[2]
        assert labels[at + 4] == f"{signal_share({'c': 30}, both):.2f} N"
    assert "s = e/(1 − e)" in PAGE
    assert set(LAWS["unified"].parameters) == {"A", "alpha", "B", "beta", "E", "gamma", "c"}
