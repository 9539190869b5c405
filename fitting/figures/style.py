"""Style shared by the report's figures: ink, palette, type, legends, and a panel's files.

Everything neutral (text, axes, grid, noise band) is drawn in one ink colour, which `to_svg` turns
into `currentColor`: the same file is legible on white and on black.  Formats keep their colour
across figures (Okabe and Ito's colour-blind safe palette, without its yellow, which vanishes on
white); more than seven formats take viridis in the order of their bits.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis, XAxis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from fitting.figures.svg import tag_entry, to_svg
from fitting.naming import UNQUANTIZED, is_none
from fitting.words import count_label

INK = "#16191d"  # replaced by currentColor in SVG: use it for nothing that carries data
BLUE, ORANGE = "#3b7dd8", "#D55E00"  # of anything that is not a format
NONE_COLOUR = "#8a8f96"
OKABE_ITO = ("#D55E00", "#E69F00", "#009E73", "#56B4E9", "#0072B2", "#CC79A7", "#7A6FD0")
MARKERS = "osD^vP"
"""By token count where a panel holds several, smallest first."""
MANY_TIMES = 40.0
"""Difference, in multiples of the noise, beside which the noise can no longer be seen."""
WIDER = 1.5
"""Factor by which a logarithmic axis extends beyond its data."""
PANEL_WIDTH = 5.2
LONGEST_NAME = 40
"""Characters of a name beyond which a figure shortens it."""
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
    "lines.markeredgewidth": 0.0,
}


@dataclass(frozen=True)
class Panel:
    """One picture of a figure.

    `name` becomes the file's name and `title` what a screen reader says; `svg` is stand-alone.
    """

    name: str
    title: str
    svg: str
    figure: Figure = field(compare=False, repr=False)

    def pdf(self) -> bytes:
        """The same picture for a paper, its fonts embedded as TrueType; stable bytes."""
        buffer = io.BytesIO()
        nothing = dict.fromkeys(("CreationDate", "Creator", "Producer"))
        with mpl.rc_context({**STYLE, "pdf.fonttype": 42}):
            self.figure.savefig(buffer, format="pdf", metadata=nothing, dpi=200)
        return buffer.getvalue()


def format_colours(order: Sequence[str]) -> dict[str, str]:
    """One colour per format, grey for `none`, whatever the conditions.

    Args:
        order: All formats of the study, as `format_order` gives them.
    """
    names = [name for name in order if not is_none(name)]
    grey = dict.fromkeys([*(name for name in order if is_none(name)), UNQUANTIZED], NONE_COLOUR)
    if len(names) > len(OKABE_ITO):
        return {**shades(names), **grey}
    return {**dict(zip(names, OKABE_ITO, strict=False)), **grey}


def shades(names: Sequence[str]) -> dict[str, str]:
    """One colour per name along viridis, without its ends, which vanish on black or on white."""
    colours = mpl.colormaps["viridis"](np.linspace(0.3, 0.86, len(names)))
    return dict(zip(names, map(to_hex, colours), strict=True))


def panel(figure: Figure, name: str, title: str) -> Panel:
    """The figure as a panel; arguments as in `Panel`."""
    return Panel(name, title, to_svg(figure, name, INK), figure)


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of this size in inches, with room for what stands outside its axes."""
    return Figure(figsize=(width, height), layout="constrained")


def short(name: str) -> str:
    """A name as a figure has room for: of a long one, swept keys by their last part alone.

    >>> short("E1M1, optim.lr=0.016")
    'E1M1, optim.lr=0.016'
    >>> short("E1M1/16 e4m3 fixed, recipe.grad_input.grad_output.rounding=nearest_even")
    'E1M1/16 e4m3 fixed, rounding=nearest_even'
    """
    return re.sub(r"\b[\w.]+\.(\w+)=", r"\1=", name) if len(name) > LONGEST_NAME else name


def png(figure: Figure) -> bytes:
    """A figure as the bytes of a PNG file, on white."""
    FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150, facecolor="white", metadata={"Software": None})
    return buffer.getvalue()


def _legend_columns(labels: Sequence[str]) -> int:
    """The number of columns that fit a panel's width, at most four."""
    longest = max(len(short(label)) for label in labels)
    return min(max(44 // (longest + 3), 1), 4)


def legend_inches(labels: Sequence[str]) -> float:
    """The height that `legend_below` takes, to be added to the figure's."""
    return 0.24 * -(-len(labels) // _legend_columns(labels))


def legend_below(figure: Figure, axes: Axes) -> None:
    """Put the legend below the axes, where it hides nothing; none for a single label."""
    handles, labels = axes.get_legend_handles_labels()
    if len(handles) > 1:
        columns = _legend_columns(labels)
        legend = figure.legend(
            handles, [*map(short, labels)], loc="outside lower left", ncols=columns,
            handletextpad=0.2, columnspacing=1.2,
        )  # fmt: skip
        entries = zip(legend.legend_handles, legend.get_texts(), labels, strict=True)
        for handle, text, label in entries:
            tag_entry((handle, text), label)


def span(axis: Axis, low: float, high: float, noise: float) -> None:
    """An axis of differences from low to high: linear up to the noise, logarithmic beyond it.

    Args:
        axis: An axis of matplotlib.
        low: The smallest value that it must show, bars included.
        high: The largest.
        noise: How much another seed changes; where differences do not far exceed it, or where it
            is NaN, the axis is linear.
    """
    horizontal = isinstance(axis, XAxis)
    limit = axis.axes.set_xlim if horizontal else axis.axes.set_ylim
    if not (noise > 0 and high > MANY_TIMES * noise):
        margin = 0.05 * (high - low) or 0.01
        limit(low - margin, high + margin)
        return
    rescale = axis.axes.set_xscale if horizontal else axis.axes.set_yscale
    rescale("symlog", linthresh=noise, linscale=0.6)
    low, high = min(WIDER * low, -noise / 2), WIDER * high
    limit(low, high)
    sizes = [digit * 10.0**n for n in range(-6, 4) for digit in (1, 3) if digit * 10.0**n > noise]
    ticks = sorted([0.0, *sizes, *(-size for size in sizes)])
    axis.set_ticks([tick for tick in ticks if low <= tick <= high])
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}".replace("-", "−")))
    axis.set_minor_formatter(NullFormatter())
    axis.set_minor_locator(NullLocator())


def ratio_axis(axis: Axis) -> None:
    """Ticks of a logarithmic axis of ratios: "0.1 ×"; decades where it spans some."""
    low, high = axis.get_view_interval()
    narrow = MaxNLocator(5, steps=[1, 2, 5, 10])  # these steps do not leave out 1
    axis.set_major_locator(LogLocator(numticks=7) if high > 30 * low else narrow)
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g} ×"))
    axis.set_minor_formatter(NullFormatter())
    axis.set_minor_locator(NullLocator())


def count_axis(axis: Axis, counts: Sequence[float]) -> None:
    """Ticks of a logarithmic axis at counts that were run, smallest first, as many as fit."""
    ticks: list[float] = []
    low, high = axis.get_view_interval()
    room = np.log(high / low) / 7
    for count in counts:
        if not ticks or np.log(count / ticks[-1]) >= room:
            ticks.append(count)
    axis.set_ticks(ticks)
    axis.set_major_formatter(FuncFormatter(lambda value, _: count_label(value)))
    axis.set_minor_formatter(NullFormatter())
    axis.set_minor_locator(NullLocator())
