"""What the report's figures share: ink, palette, type, legends, and how a figure becomes SVG.

Everything neutral (text, axes, grid, noise band) is drawn in one ink colour, which `to_svg` turns
into `currentColor`: the same file is legible on white and on black.  Formats keep their colour
across figures (Okabe and Ito's colour-blind safe palette, without its yellow, which vanishes on
white); more than seven formats take viridis in the order of their bits.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from fitting.naming import UNQUANTIZED

INK = "#16191d"  # replaced by currentColor in SVG: use it for nothing that carries data
NONE_COLOUR = "#8a8f96"
OKABE_ITO = ("#D55E00", "#E69F00", "#009E73", "#56B4E9", "#0072B2", "#CC79A7", "#7A6FD0")
MARKERS = "osD^vP"
"""By token count where a panel holds several, smallest first."""
PANEL_WIDTH = 5.2
"""Inches of 72 px: a panel is 374 px wide, the text of a phone's width."""
STYLE: Any = {  # matplotlib types its keys as literals
    "svg.fonttype": "none",
    "font.size": 11.0,
    "axes.labelsize": 11.0,
    "axes.titlesize": 11.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "xtick.labelsize": 10.0,
    "ytick.labelsize": 10.0,
    "legend.fontsize": 10.0,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": INK,
    "grid.alpha": 0.13,
    "grid.linewidth": 0.7,
    "axes.unicode_minus": True,
    "hatch.linewidth": 0.6,
}

_SHORTER = (
    (r"<metadata>.*?</metadata>\s*", ""),
    (r"<!--.*?-->\s*", ""),
    (r"<g id=\"[^\"]*\"", "<g"),
    (r" transform=\"rotate\(-0 [^\"]*\"", ""),
    (r"font-family: [^;\"]*", "font-family: sans-serif"),
    (r"(font: [^;\"]*?\d+px) [^;\"]+", r"\1 sans-serif"),
    (r" *\n *", "\n"),
)
"""What to_svg takes out, as pattern and replacement: half of the bytes."""


@dataclass(frozen=True)
class Panel:
    """One picture of a figure.

    `name` becomes the file's name and `title` what a screen reader says; `svg` is stand-alone.
    """

    name: str
    title: str
    svg: str


def format_colours(order: Sequence[str]) -> dict[str, str]:
    """One colour a format, `none` grey.

    Args:
        order: All formats of the study, as `format_order` gives them.
    """
    names = [name for name in order if name != UNQUANTIZED]
    if len(names) <= len(OKABE_ITO):
        colours = list(OKABE_ITO[: len(names)])
    else:  # viridis' dark and bright ends vanish on black and on white
        shades = mpl.colormaps["viridis"](np.linspace(0.22, 0.86, len(names)))
        colours = [to_hex(shade) for shade in shades]
    return {**dict(zip(names, colours, strict=True)), UNQUANTIZED: NONE_COLOUR}


def to_svg(figure: Figure, name: str) -> str:
    """A stand-alone SVG with stable bytes, transparent, its ink `currentColor`.

    Args:
        figure: Drawn under `STYLE`.
        name: Salts the ids, which are hashes, so that several figures can share one HTML page.
    """
    FigureCanvasSVG(figure)
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with mpl.rc_context({"svg.hashsalt": name, "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing, dpi=200)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    for pattern, short in _SHORTER:
        svg = re.sub(pattern, short, svg, flags=re.DOTALL)
    # Inside tags a hundredth of a pixel is enough; text between tags is left alone.
    svg = re.sub(r"<[^>]+>", lambda tag: re.sub(r"(\.\d\d)\d+", r"\1", tag[0]), svg)
    return svg.replace(INK, "currentColor")


def panel(figure: Figure, name: str, title: str) -> Panel:
    """The figure as a panel; arguments as in `Panel` and `to_svg`."""
    return Panel(name, title, to_svg(figure, name))


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of that many inches, which makes room for what stands outside its axes."""
    return Figure(figsize=(width, height), layout="constrained")


def _legend_columns(labels: Sequence[str]) -> int:
    """As many as fit a panel's width, four at most."""
    longest = max(len(label) for label in labels)
    return min(max(44 // (longest + 3), 1), 4)


def legend_inches(labels: Sequence[str]) -> float:
    """The height that `legend_below` takes, to be added to the figure's."""
    return 0.24 * -(-len(labels) // _legend_columns(labels))


def legend_below(figure: Figure, axes: Axes) -> None:
    """Below the axes, where it hides nothing; nothing for a single label."""
    handles, labels = axes.get_legend_handles_labels()
    if len(handles) > 1:
        columns = _legend_columns(labels)
        figure.legend(
            handles, labels, loc="outside lower left", ncols=columns, handletextpad=0.2,
            columnspacing=1.2,
        )  # fmt: skip
