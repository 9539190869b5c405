"""A matplotlib figure as SVG for a page and a paper: short, of stable bytes, its marks named.

Data attributes (`tag`), which page.js reads, say what marks stand for: a pointer near a mark shows
its words, a click on an entry of a legend hides its series.  A viewer that does not know them shows
the same picture.
"""

from __future__ import annotations

import hashlib
import html
import io
import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

import matplotlib as mpl
from matplotlib.artist import Artist
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

_TICK = "fill: currentColor; stroke: currentColor; stroke-width: 0.8"
"""Style of a tick where it is defined, too, so what refers to it need not say it."""


def tag(artist: Artist, series: str = "", tips: Sequence[str] = ()) -> None:
    """Attach to an artist the words that it stands for.

    Args:
        artist: A line, a patch, a collection or a text.
        series: The entry of a legend that it belongs to; "" if it cannot be hidden.
        tips: The words shown under a pointer, lines separated by newlines: one for the whole
            artist, or one per mark of a line.
    """
    artist.set_gid(_gid("series", series, tips))


def tag_entry(artists: Iterable[Artist | None], series: str) -> None:
    """Make artists an entry of a legend: a click on them hides all marks tagged with the series."""
    for artist in filter(None, artists):
        artist.set_gid(_gid("entry", series, ()))


def _gid(kind: str, series: str, tips: Sequence[str]) -> str:
    """A tag in letters that XML does not change."""
    return "tag" + json.dumps([kind, series, list(tips)]).encode().hex()


def to_svg(figure: Figure, name: str, ink: str) -> str:
    """A stand-alone, transparent SVG with stable bytes: the same picture in a third of the size.

    Args:
        figure: Drawn under `fitting.figures.style.STYLE`.  Its layout is fixed from here on.
        name: Salts the ids, which are hashes, so that several figures can share one HTML page.
        ink: The colour that becomes `currentColor`; nothing that carries data may have it.
    """
    FigureCanvasSVG(figure)
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with mpl.rc_context({"svg.hashsalt": name, "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing, dpi=200)
    figure.set_layout_engine("none")
    root = _parsed(buffer.getvalue())
    for element in root.iter():
        _shorten(element, ink)
    _drop_idle(root)
    _share_marks(root)
    for element in root.iter("use"):
        if element.get("style") == _TICK:
            del element.attrib["style"]
    _share_styles(root)
    for group in list(root.iter("g")):
        _spell_tag(group)
    return _written(root)


def untagged(svg: str) -> str:
    """The same picture without tags, for other viewers."""
    return re.sub(r' data-(?:tip|series|entry)="[^"]*"', "", svg)


def _parsed(svg: str) -> Element:
    """The root of the tree, names with the prefixes that they are written with, no comments."""
    builder, parser = TreeBuilder(), expat.ParserCreate()
    parser.StartElementHandler, parser.EndElementHandler = builder.start, builder.end
    parser.CharacterDataHandler = builder.data
    parser.Parse(svg, True)
    return builder.close()


def _written(element: Element) -> str:
    """The lines of an element: one, or two around those of its children."""
    said = "".join(f' {name}="{_escaped(name, value)}"' for name, value in element.items())
    start, end = f"<{element.tag}{said}", f"</{element.tag}>\n"
    if len(element):
        return f"{start}>\n{''.join(map(_written, element))}{end}"
    text = (element.text or "").strip()
    return f"{start}>{html.escape(text, quote=False)}{end}" if text else f"{start}/>\n"


def _escaped(name: str, value: str) -> str:
    """An attribute's value; a path may run over lines, a tag keeps its own."""
    return html.escape(value).replace("\n", "\n" if name == "d" else "&#10;")


def _shorten(element: Element, ink: str) -> None:
    """Leave out the redundant parts of an element's attributes."""
    said = element.attrib
    if element.tag == "g" and not said.get("id", "").startswith("tag"):
        said.pop("id", None)
    for name, value in said.items():  # a hundredth of a pixel is enough
        said[name] = re.sub(r"(\.\d\d)\d+", r"\1", value).replace(ink, "currentColor")
    if said.get("transform", "").startswith("rotate(-0 "):
        del said["transform"]
    if "d" in said:
        curved = re.search("[CQ]", said["d"])  # a path of straight lines needs no letter per point
        kept = re.sub(r" +(?=[A-Za-z]|$)", "\n", said["d"])
        said["d"] = kept if curved else re.sub(r"\n(L )?", " ", kept).strip()
    style = re.sub("font-family: [^;]*; ", "", said.get("style", ""))
    style = re.sub(r"(font: [^;]*?\d+px) [^;]+", r"\1 sans-serif", style)
    if element.tag == "text":
        style = style.removesuffix("; fill: currentColor")
    if "stroke-opacity: 0.13;" in style:  # grid lines end where they would be cut off
        said.pop("clip-path", None)
    if style:
        said["style"] = style
    if element.tag == "style":  # properties that all texts share are stated once
        element.text = f"text{{font-family: sans-serif; fill: currentColor}}{element.text}"


def _drop_idle(element: Element) -> None:
    """Drop elements that draw nothing, and groups that add nothing to what they hold."""
    kept: list[Element] = []
    for child in element:
        holds = len(child)
        _drop_idle(child)
        if child.tag == "g":
            _lift_style(child)
        if child.tag == "metadata" or (child.tag == "path" and child.get("style") == "fill: none"):
            continue
        kept += child if child.tag == "g" and holds and not child.attrib else [child]
    element[:] = kept


def _lift_style(group: Element) -> None:
    """Move the style that all marks of a group share to the group."""
    styles = {(mark.tag, mark.get("style")) for mark in group}
    if len(group) > 1 and len(styles) == 1:
        [(kind, style)] = styles
        if kind == "use" and style:
            group.set("style", style)
            for mark in group:
                del mark.attrib["style"]


def _share_marks(root: Element) -> None:
    """Define each shape of a mark once, whatever the colours of those that refer to it."""
    first: dict[tuple[tuple[str, str], ...], str] = {}
    same: dict[str, str] = {}
    for parent in list(root.iter()):
        for defs in parent.findall("defs"):
            for mark in defs.findall("path"):
                shape = tuple(item for item in mark.items() if item[0] != "id")
                same[f"#{mark.get('id')}"] = first.setdefault(shape, f"#{mark.get('id')}")
                if first[shape] != f"#{mark.get('id')}":
                    defs.remove(mark)
            if not len(defs):
                parent.remove(defs)
    for use in root.iter("use"):
        use.set("xlink:href", same[use.attrib["xlink:href"]])


def _share_styles(root: Element) -> None:
    """State each style that several elements have once, as a class.

    A class is named by its content, so that figures on one page can share it.
    """
    times = Counter(element.attrib["style"] for element in root.iter() if "style" in element.attrib)
    names = {
        style: "s" + hashlib.sha256(style.encode()).hexdigest()[:6]
        for style, count in times.items()
        if count > 1
    }
    assert len(set(names.values())) == len(names), "two styles of one name"
    for element in root.iter():
        if name := names.get(element.get("style", "")):
            said = [("class", name) if item[0] == "style" else item for item in element.items()]
            element.attrib = dict(said)
    rules = "".join(f".{name}{{{style}}}" for style, name in names.items())
    sheet = next(root.iter("style"))
    sheet.text = f"{sheet.text}{rules}"


def _spell_tag(group: Element) -> None:
    """Turn a group's tag, if it has one, into data attributes of it and its marks."""
    if "id" not in group.attrib:
        return
    kind, series, tips = json.loads(bytes.fromhex(group.attrib.pop("id").removeprefix("tag")))
    said = {f"data-{kind}": series} if series else {}
    marks = list(group.iter("use"))
    if len(tips) == 1 and len(marks) != 1:
        said["data-tip"] = tips[0]
    elif tips and marks:  # none where the marks became a bitmap
        assert len(marks) == len(tips), f"{len(marks)} marks, {len(tips)} tips"
        for mark, tip in zip(marks, tips, strict=True):
            mark.attrib = {"data-tip": tip, **mark.attrib}
    group.attrib = {**said, **group.attrib}
