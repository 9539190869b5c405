"""SVG for a page: nothing visible is lost, ids stay whole, marks say what they stand for."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.figure import Figure

from fitting.figures import svg as module
from fitting.figures.style import INK, STYLE
from fitting.figures.svg import tag, tag_entry, to_svg, untagged

SVG = "{http://www.w3.org/2000/svg}"
HREF = "{http://www.w3.org/1999/xlink}href"


def test_shortening_coordinates_leaves_the_text_alone() -> None:
    figure = Figure()
    figure.text(0.123456, 0.5, "2.37546")
    svg = to_svg(figure, "numbers", INK)
    assert ">2.37546<" in svg
    tags = "".join(re.findall(r"<[^>]+>", svg))
    assert not re.search(r"\.\d{3}", tags)


def rules(svg: str) -> dict[str, str]:
    """What its classes say."""
    return dict(re.findall(r"\.(s\w{6})\{([^}]*)\}", svg))


@mpl.rc_context(STYLE)
def a_figure() -> Figure:
    figure = Figure(figsize=(4, 3))
    axes = figure.add_subplot()
    (line,) = axes.plot([0, 1, 2], [0.5, 1.5, 1.0], "-o", color="#0072B2", label="one & <two>")
    tag(line, "one & <two>", ["first\n0.123456789", 'say "second"', "third"])
    (other,) = axes.plot([0, 2], [1, 1], "o", color="#D55E00")
    tag(other, "other", ["4th", "5th"])
    tag(axes.axvspan(0.5, 0.7, color="#009E73"), "", ["a band"])
    tag(axes.plot([], [])[0], "nothing")
    legend = axes.legend()
    tag_entry([legend.legend_handles[0], legend.get_texts()[0]], "one & <two>")
    return figure


def test_each_mark_gets_its_words_and_its_series() -> None:
    root = ET.fromstring(to_svg(a_figure(), "marks", INK))
    tipped = [element for element in root.iter() if "data-tip" in element.attrib]
    words = [element.attrib["data-tip"] for element in tipped]
    assert sorted(words) == [
        "4th", "5th", "a band", "first\n0.123456789", 'say "second"', "third",
    ]  # fmt: skip
    series = {e.attrib["data-series"]: e for e in root.iter() if "data-series" in e.attrib}
    assert set(series) == {"one & <two>", "other", "nothing"}
    assert [e.attrib["data-tip"] for e in series["other"].iter(f"{SVG}use")] == ["4th", "5th"]
    entries = [e for e in root.iter() if e.attrib.get("data-entry") == "one & <two>"]
    assert len(entries) == 2


def test_marks_stand_where_they_did_before_shortening() -> None:
    """Against matplotlib's own transform, to the hundredth of a pixel that is kept."""
    figure = a_figure()
    root = ET.fromstring(to_svg(figure, "places", INK))
    (axes,) = figure.axes
    found = {
        e.attrib["data-tip"]: (float(e.attrib["x"]), float(e.attrib["y"]))
        for e in root.iter(f"{SVG}use")
        if "data-tip" in e.attrib
    }
    points = {"third": (2, 1.0), "4th": (0, 1), "5th": (2, 1)}
    for name, point in points.items():
        x, y = axes.transData.transform(point) * 72 / figure.dpi
        np.testing.assert_allclose(found[name], (x, 3 * 72 - y), atol=0.011)


def test_whatever_is_referred_to_is_there() -> None:
    svg = to_svg(a_figure(), "references", INK)
    known = set(re.findall(r'\bid="([^"]+)"', svg))
    used = set(re.findall(r"url\(#([^)]+)\)", svg)) | set(re.findall(r'href="#([^"]+)"', svg))
    assert used
    assert used <= known


def test_marks_of_one_shape_share_its_definition_and_keep_their_colours() -> None:
    svg = to_svg(a_figure(), "shapes", INK)
    root = ET.fromstring(svg)
    uses = {e.attrib["data-tip"]: e for e in root.iter(f"{SVG}use") if "data-tip" in e.attrib}
    assert uses["third"].attrib[HREF] == uses["4th"].attrib[HREF]
    parents = {child: parent for parent in root.iter() for child in parent}
    for name, colour in (("third", "#0072b2"), ("4th", "#d55e00")):
        said = [element.attrib for element in (uses[name], parents[uses[name]])]
        styles = [a.get("style", rules(svg).get(a.get("class", ""), "")) for a in said]
        assert f"fill: {colour}" in "".join(styles)


def test_a_style_said_often_is_a_class_that_says_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    svg = to_svg(a_figure(), "styles", INK)
    assert rules(svg)
    spelled = re.sub(r"\.s\w{6}\{[^}]*\}", "", svg)
    spelled = re.sub(r' class="(s\w{6})"', lambda m: f' style="{rules(svg)[m[1]]}"', spelled)
    monkeypatch.setattr(module, "_share_styles", lambda root: None)
    assert spelled == to_svg(a_figure(), "styles", INK)
    assert len(svg) < len(spelled)


def test_a_file_for_papers_is_the_same_picture_without_tags() -> None:
    tagged = to_svg(a_figure(), "tags", INK)
    root, whole = ET.fromstring(untagged(tagged)), ET.fromstring(tagged)
    for element in whole.iter():
        for name in [name for name in element.attrib if name.startswith("data-")]:
            del element.attrib[name]
    assert ET.tostring(root) == ET.tostring(whole)
    assert "data-" not in untagged(tagged)


def test_words_must_be_as_many_as_marks() -> None:
    figure = Figure()
    (line,) = figure.add_subplot().plot([0, 1, 2], [0, 1, 2], "o")
    tag(line, "", ["only", "two"])
    with pytest.raises(AssertionError, match="3 marks, 2 tips"):
        to_svg(figure, "wrong", INK)


def test_the_same_figure_has_the_same_bytes_and_another_name_other_ids() -> None:
    one, two, other = (to_svg(a_figure(), name, INK) for name in ("a", "a", "b"))
    assert one == two
    ids = [set(re.findall(r'\bid="([^"]+)"', svg)) for svg in (one, other)]
    assert not ids[0] & ids[1]
