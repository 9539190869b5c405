"""The built page in a real browser: figures draw, marks answer, nothing is loaded, nothing spills.

Screenshots go to the folder that LOWBIT_SHOTS names, else to pytest's own.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fitting.page.compare import Place, UnseenWarning, write_comparison
from fitting.page.report import write_report
from tests.support.browser import CHROMIUM, Page, chromium
from tests.support.report_study import a_fit, again, the_runs, write_fit, write_runs

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here: make browser")
SCREENS: dict[str, dict[str, Any]] = {
    "desktop": {"width": 1280, "height": 900},
    "phone": {"width": 390, "height": 844},
    "dark": {"width": 1280, "height": 900, "dark": True},
    "print": {"width": 794, "height": 1123, "media": "print"},
}
"""Print: A4 at 96 dpi."""


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A report and a comparison."""
    root = tmp_path_factory.mktemp("pages")
    runs = write_runs(root / "tiny", the_runs(), title="A tiny study", planned=["one-more"])
    fit = write_fit(root / "fit", a_fit())
    half = write_runs(root / "half", again(the_runs()[:24]))
    places = Place("tiny", runs, fit), Place("half", half, root / "no-fit")
    with pytest.warns(UnseenWarning):  # these runs have no configuration
        compared = write_comparison(*places, root / "compare", ("svg",))
    return {
        "report": write_report(runs, fit, root / "report", ("svg",)),
        "compare": compared,
    }


@pytest.fixture(scope="module")
def shots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(os.environ.get("LOWBIT_SHOTS") or tmp_path_factory.mktemp("shots"))


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with chromium(tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.mark.parametrize("screen", SCREENS)
@pytest.mark.parametrize("page", ["report", "compare"])
def test_a_page_is_drawn_whole_on_every_screen(
    page: str, screen: str, pages: dict[str, Path], browser: Page, shots: Path
) -> None:
    browser.screen(**SCREENS[screen])
    browser.open(pages[page])
    browser.screenshot(shots / f"{page}_{screen}.png", whole=True)
    # Nothing but the page itself is asked for, and nobody complains.
    assert browser.requests() == [pages[page].resolve().as_uri()]
    assert browser.complaints() == []
    # Figures have a size and marks in them; the page is not wider than its screen.
    sizes = browser.run(
        "[...document.querySelectorAll('.panel svg')].map(svg => {"
        " const box = svg.getBoundingClientRect();"
        " return [box.width, box.height, svg.querySelectorAll('use, path').length] })"
    )
    assert len(sizes) >= {"report": 12, "compare": 2}[page]
    assert all(width > 250 and height > 50 and parts > 3 for width, height, parts in sizes)
    wide = browser.run("document.documentElement.scrollWidth")
    assert wide <= SCREENS[screen]["width"]


def test_text_can_be_read_in_either_theme(pages: dict[str, Path], browser: Page) -> None:
    """WCAG 2.2 asks for 4.5:1; of a figure's text as of the page's."""
    contrast = """(() => {
      const light = colour => {
        const [r, g, b] = colour.match(/[\\d.]+/g).map(Number).map(
          v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
      };
      const paper = light(getComputedStyle(document.body).backgroundColor);
      const parts = ["body", ".aside", "figcaption", "td", "a", "dt", "td.verdict"];
      const inks = parts.map(name => getComputedStyle(document.querySelector(name)).color);
      inks.push(getComputedStyle(document.querySelector(".panel svg text")).fill);
      return inks.map(ink => {
        const [high, low] = [light(ink), paper].sort((a, b) => b - a);
        return (high + 0.05) / (low + 0.05);
      });
    })()"""
    papers = set()
    for screen in ("desktop", "dark"):
        browser.screen(**SCREENS[screen])
        browser.open(pages["report"])
        ratios = browser.run(contrast)
        assert len(ratios) == 8
        assert min(ratios) >= 4.5, screen
        papers.add(browser.run("getComputedStyle(document.body).backgroundColor"))
    assert len(papers) == 2


def centre(browser: Page, selector: str) -> tuple[float, float]:
    """Where the first such element is in the window, after scrolling to it has ended."""
    x, y = browser.run(
        f"(async () => {{ const e = document.querySelector({selector!r});"
        " e.scrollIntoView({block: 'center'});"
        " for (let frame = 0; frame < 3; frame++) await new Promise(requestAnimationFrame);"
        " const b = e.getBoundingClientRect();"
        " return [(b.left + b.right) / 2, (b.top + b.bottom) / 2] })()"
    )
    return x, y


TIP = "document.getElementById('tip').hidden ? '' : document.getElementById('tip').innerText"
RESIDUALS = '[aria-label="Residuals in percent of the loss"]'


@pytest.mark.parametrize("screen", ["desktop", "dark", "phone"])
def test_a_pointer_over_a_mark_names_its_run_and_its_numbers(
    screen: str, pages: dict[str, Path], browser: Page, shots: Path
) -> None:
    browser.screen(**SCREENS[screen])
    browser.open(pages["report"])
    assert browser.run(TIP) == ""
    point = browser.tap if screen == "phone" else browser.move
    point(*centre(browser, f'{RESIDUALS} [data-series="E2M1"] use'))
    said = browser.run(TIP).split("\n")
    names = {run.run_id: run for run in the_runs()}
    assert said[0] in names
    run = names[said[0]]
    assert said[1].startswith("E2M1, ")
    assert said[2].startswith(f"loss {run.loss:.4f}, predicted ")
    browser.screenshot(shots / f"hover_{screen}.png")
    box = browser.run(
        "(() => { const b = tip.getBoundingClientRect();"
        " return [b.left, b.top, innerWidth - b.right, innerHeight - b.bottom] })()"
    )
    assert min(box) >= 0, "the words stand inside the window"
    point(5, 5)
    assert browser.run(TIP) == ""


def hidden(browser: Page, name: str) -> list[bool]:
    """Whether a part is hidden, for each part of a series on the page."""
    found: list[bool] = browser.run(
        f"[...document.querySelectorAll('[data-series=\"{name}\"]')]"
        ".map(part => getComputedStyle(part).display === 'none')"
    )
    return found


def test_a_legend_hides_a_format_on_the_whole_page_and_brings_it_back(
    pages: dict[str, Path], browser: Page, shots: Path
) -> None:
    browser.screen(**SCREENS["desktop"])
    browser.open(pages["report"])
    assert set(hidden(browser, "E1M1")) == {False}
    assert len(hidden(browser, "E1M1")) >= 6
    entry = centre(browser, f'{RESIDUALS} [data-entry="E1M1"] text')
    browser.click(*entry)
    assert set(hidden(browser, "E1M1")) == {True}
    assert set(hidden(browser, "E2M1")) == {False}
    browser.screenshot(shots / "toggled.png")
    browser.move(*centre(browser, f'{RESIDUALS} [data-series="E2M1"] use'))
    assert "E1M1" not in browser.run(TIP), "what is hidden does not answer"
    browser.click(*centre(browser, f'{RESIDUALS} [data-entry="E1M1"] text'))
    assert set(hidden(browser, "E1M1")) == {False}


def test_a_double_click_leaves_a_format_alone_and_a_button_shows_all(
    pages: dict[str, Path], browser: Page
) -> None:
    browser.screen(**SCREENS["desktop"])
    browser.open(pages["report"])
    browser.click(*centre(browser, f'{RESIDUALS} [data-entry="E2M1"] text'), times=2)
    assert set(hidden(browser, "E2M1")) == {False}
    for name in ("E1M1", "E4M3", "none"):
        assert set(hidden(browser, name)) == {True}
    browser.click(*centre(browser, "#all"))
    for name in ("E1M1", "E2M1", "E4M3", "none"):
        assert set(hidden(browser, name)) == {False}


def test_keys_do_what_clicks_do(pages: dict[str, Path], browser: Page) -> None:
    browser.screen(**SCREENS["desktop"])
    browser.open(pages["report"])
    browser.run(f"document.querySelector('{RESIDUALS} [data-entry=E1M1][tabindex]').focus()")
    browser.call("Input.dispatchKeyEvent", type="keyDown", key="Enter")
    assert set(hidden(browser, "E1M1")) == {True}
    pressed = "document.activeElement.getAttribute('aria-pressed')"
    assert browser.run(pressed) == "false"
    browser.call("Input.dispatchKeyEvent", type="keyDown", key=" ")
    assert browser.run(pressed) == "true"


def test_the_page_prints_without_what_only_a_screen_can_do(
    pages: dict[str, Path], browser: Page, shots: Path
) -> None:
    browser.screen(**SCREENS["desktop"], media="print")
    browser.open(pages["report"])
    shown = "getComputedStyle(document.querySelector({!r})).display"
    for part in ("nav", "#tip", "#all", ".how"):
        assert browser.run(shown.format(part)) == "none", part
    pdf = browser.pdf()
    assert pdf.startswith(b"%PDF-")
    (shots / "print.pdf").write_bytes(pdf)


def test_a_study_that_shows_little_has_no_broken_script(browser: Page, tmp_path: Path) -> None:
    for name, runs in (("none", []), ("one", the_runs()[:1])):
        results = write_runs(tmp_path / name, runs)
        page = write_report(results, tmp_path / "no-fit", tmp_path / f"page-{name}", ("svg",))
        browser.open(page)
        assert browser.complaints() == []
