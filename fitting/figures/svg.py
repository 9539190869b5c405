"""A matplotlib figure as SVG for a page and a paper: short, of stable bytes, its marks named.

What marks stand for is said in data attributes (`tag`), which page.js reads: a pointer near a mark
shows its words, a click on an entry of a legend hides its series.  A viewer that knows nothing of
them shows the same picture.
"""

from __future__ import annotations

import hashlib
import html
import io
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.artist import Artist
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

Replacement = str | Callable[[re.Match[str]], str]


def tag(artist: Artist, series: str = "", tips: Sequence[str] = ()) -> None:
    """Say what an artist stands for.

    Args:
        artist: A line, a patch, a collection or a text.
        series: What it belongs to, as a legend names it; "" for nothing that could be hidden.
        tips: What a pointer over it shows, lines parted by a newline: one for the whole artist, or
            one per mark of a line.
    """
    artist.set_gid(_gid("series", series, tips))


def tag_entry(artists: Iterable[Artist | None], series: str) -> None:
    """Make artists an entry of a legend: a click on them hides what is tagged with the series."""
    for artist in filter(None, artists):
        artist.set_gid(_gid("entry", series, ()))


def _gid(kind: str, series: str, tips: Sequence[str]) -> str:
    """A tag in letters that XML leaves as they are."""
    return "tag" + json.dumps([kind, series, list(tips)]).encode().hex()


def to_svg(figure: Figure, name: str, ink: str) -> str:
    """A stand-alone SVG with stable bytes, transparent.

    Args:
        figure: Drawn under `fitting.figures.style.STYLE`.  Its layout is fixed from here on.
        name: Salts the ids, which are hashes, so that several figures can share one HTML page.
        ink: The colour that becomes `currentColor`; of nothing that carries data.
    """
    FigureCanvasSVG(figure)
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with mpl.rc_context({"svg.hashsalt": name, "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing, dpi=200)
    figure.set_layout_engine("none")
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    tags: list[list[Any]] = []

    def numbered(match: re.Match[str]) -> str:
        tags.append(json.loads(bytes.fromhex(match[1])))
        return f'<g tag="{len(tags) - 1}"'

    svg = re.sub(r'<g id="tag([0-9a-f]+)"', numbered, svg)
    return _with_tags(_shorter(svg, ink), tags)


# --- shorter ----------------------------------------------------------------------------------


def _shorter(svg: str, ink: str) -> str:
    """The same picture in a third of the bytes."""
    # Inside tags a hundredth of a pixel is enough; text between tags is left alone.
    svg = re.sub(r"<[^>]+>", lambda tag: re.sub(r"(\.\d\d)\d+", r"\1", tag[0]), svg)
    svg = svg.replace(ink, "currentColor")
    for pattern, replacement in _SHORTER:
        svg = re.sub(pattern, replacement, svg, flags=re.DOTALL)
    return _shared_styles(_shared_marks(_without_idle_groups(svg)))


def _straight(path: re.Match[str]) -> str:
    """A path of straight lines without a letter a point."""
    return re.sub(r"\s*L? *\n(L )?", " ", path[0]).strip()


def _common_style(group: re.Match[str]) -> str:
    """A group of marks that takes over the style which they share."""
    marks = group[2].replace(f' style="{group[3]}"', "")
    return f'<g{group[1]} style="{group[3]}">\n{marks}</g>'


_SHORTER: tuple[tuple[str, Replacement], ...] = (
    (r"<metadata>.*?</metadata>\s*", ""),
    (r"<!--.*?-->\s*", ""),
    (r"<g id=\"[^\"]*\"", "<g"),
    (r" transform=\"rotate\(-0 [^\"]*\"", ""),
    (r" *\n *", "\n"),
    (r'(?<= d=")[^"CQ]*(?=")', _straight),
    # Type: what is the same everywhere is said once.
    (r"font-family: [^;\"]*; ", ""),
    (r"(font: [^;\"]*?\d+px) [^;\"]+", r"\1 sans-serif"),
    (r'(<text style="[^"]*); fill: currentColor(?=")', r"\1"),
    (r"(<style[^>]*>)", r"\1text{font-family: sans-serif; fill: currentColor}"),
    # Marks.
    (
        r'<g([^>]*)>\n((?:<use [^>]*? style="([^"]*)"/>\n)(?:<use [^>]*? style="\3"/>\n)+)</g>',
        _common_style,
    ),
    # Ticks have this style where they are defined; grid lines end where they would be cut off.
    (r' style="fill: currentColor; stroke: currentColor; stroke-width: 0.8"/>', "/>"),
    (r' clip-path="[^"]*"(?= style="[^"]*stroke-opacity: 0.13;)', ""),
    # Backgrounds without a colour.
    (r'<path [^>]*style="fill: none"/>\n', ""),
)


def _without_idle_groups(svg: str) -> str:
    """Without groups that say nothing of what they hold."""
    lines: list[str] = []
    open_groups: list[int | None] = []  # where a plain one stands, None for the others
    for line in svg.split("\n"):
        if line == "<g>":
            open_groups.append(len(lines))
            continue
        if line.startswith("<g") and not line.endswith("/>"):
            open_groups.append(None)
        elif line == "</g>" and open_groups.pop() is not None:
            continue
        lines.append(line)
    return "\n".join(lines)


def _shared_marks(svg: str) -> str:
    """Each shape of a mark defined once, whatever the colours of those that refer to it."""
    first: dict[str, str] = {}
    same: dict[str, str] = {}

    def only_first(definition: re.Match[str]) -> str:
        name, shape = definition[1], definition[2]
        if first.setdefault(shape, name) == name:
            return definition[0]
        same[name] = first[shape]
        return ""

    svg = re.sub(r'<path id="(\w+)"([^>]*)/>\n', only_first, svg)
    svg = re.sub(r"<defs>\n</defs>\n", "", svg)
    return re.sub(r'href="#(\w+)"', lambda m: f'href="#{same.get(m[1], m[1])}"', svg)


_STYLE = re.compile(r' style="([^"]*)"')


def _shared_styles(svg: str) -> str:
    """Each style that several elements have said once, as a class.

    A class is named by what it says, so figures on one page may share it.
    """
    often = [style for style, times in Counter(_STYLE.findall(svg)).items() if times > 1]
    names = {style: "s" + hashlib.sha256(style.encode()).hexdigest()[:6] for style in often}
    assert len(set(names.values())) == len(names), "two styles of one name"
    svg = _STYLE.sub(lambda m: f' class="{names[m[1]]}"' if m[1] in names else m[0], svg)
    rules = "".join(f".{name}{{{style}}}" for style, name in names.items())
    return svg.replace("</style>", rules + "</style>", 1)


# --- tags --------------------------------------------------------------------------------------


def _with_tags(svg: str, tags: Sequence[Sequence[Any]]) -> str:
    """Numbered tags spelled out; before, the shortening would have cut the numbers in tips."""
    for i, (kind, series, tips) in enumerate(tags):
        start = svg.index(f'<g tag="{i}"')
        end = _end_of_group(svg, start)
        group = svg[start:end]
        said = f' data-{kind}="{html.escape(series)}"' if series else ""
        marks = group.count("<use ")
        if len(tips) == 1 and marks != 1:
            said += f' data-tip="{_attribute(tips[0])}"'
        elif tips and marks:  # none where the marks became a bitmap
            assert marks == len(tips), f"{marks} marks, {len(tips)} tips"
            head, *uses = group.split("<use ")
            tipped = zip(tips, uses, strict=True)
            group = head + "".join(f'<use data-tip="{_attribute(t)}" {u}' for t, u in tipped)
        svg = svg[:start] + group.replace(f'<g tag="{i}"', f"<g{said}", 1) + svg[end:]
    return svg


def untagged(svg: str) -> str:
    """The same picture for a viewer that does not read tags."""
    return re.sub(r' data-(?:tip|series|entry)="[^"]*"', "", svg)


def _end_of_group(svg: str, start: int) -> int:
    """Where the group that opens at `start` is closed."""
    depth = 0
    for match in re.compile(r"<g(?: [^>]*)?>|</g>").finditer(svg, start):
        if not match[0].endswith("/>"):  # of nothing that could be drawn
            depth += -1 if match[0] == "</g>" else 1
        if not depth:
            return match.end()
    raise ValueError("an SVG group is never closed")


def _attribute(text: str) -> str:
    return html.escape(text).replace("\n", "&#10;")
