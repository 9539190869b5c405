"""The report's figures: one function a figure, each a matplotlib `Figure` without global state.

A figure is a list of panels (one per model size), because panels reflow on a narrow screen and
one wide picture does not.  Everything neutral (text, axes, grid, noise band) is drawn in one ink
colour, which `to_svg` turns into `currentColor`: the same file is legible on white and on black.
Formats keep their colour across figures (Okabe and Ito's colour-blind safe palette, without its
yellow, which vanishes on white); more than seven formats take viridis in the order of their bits.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from fitting.naming import UNQUANTIZED, count_label, records, sizes, whole
from fitting.uncertainty import SIGMAS

INK = "#16191d"  # replaced by currentColor in SVG: use it for nothing that carries data
NONE_COLOUR = "#8a8f96"
OKABE_ITO = ("#D55E00", "#E69F00", "#009E73", "#56B4E9", "#0072B2", "#CC79A7", "#7A6FD0")
MARKERS = "osD^vP"
"""By token count where a panel holds several, smallest first."""
PANEL_WIDTH = 5.2
"""Inches of 72 px: a panel is 374 px wide, the text of a phone's width."""
MANY_MARKS = 1000
"""Marks from which a cloud of points becomes a bitmap inside the SVG, to keep it small."""

_STYLE: Any = {  # matplotlib types its keys as literals
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
        figure: Drawn under `style()`.
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


def _panel(figure: Figure, name: str, title: str) -> Panel:
    return Panel(name, title, to_svg(figure, name))


def _figure(width: float, height: float) -> Figure:
    return Figure(figsize=(width, height), layout="constrained")


# --- the difference to no quantization -------------------------------------------------------


def draw_cost(
    axes: Axes, cells: pd.DataFrame, order: Sequence[str], colours: Mapping[str, str], noise: float
) -> None:
    """Difference to `none` by format on `axes`: dot, thick bar 1 standard error, thin bar 3.

    Args:
        axes: Drawn on.
        cells: One model size: `format`, `tokens`, `difference`, `standard_error` (nats per token).
        order: Rows from top to bottom.
        colours: Format -> colour.
        noise: Standard deviation between seeds (nats per token), shaded; NaN shades nothing.
    """
    tokens = sorted(cells["tokens"].unique())
    step = 0.62 / max(len(tokens), 2)
    if np.isfinite(noise):
        axes.axvspan(-noise, noise, color=INK, alpha=0.10, linewidth=0)
    axes.axvline(0.0, color=INK, linewidth=0.9)
    for i, count in enumerate(tokens):
        group = cells[cells["tokens"] == count]
        y = group["format"].map(list(order).index) + step * (i - (len(tokens) - 1) / 2)
        colour = group["format"].map(colours)
        for times, width in ((SIGMAS, 1.1), (1.0, 3.0)):
            reach = times * group["standard_error"]
            ends = group["difference"] - reach, group["difference"] + reach
            axes.hlines(y, *ends, colors=colour, linewidth=width)
        marker = MARKERS[i % len(MARKERS)]
        axes.scatter(group["difference"], y, s=50, c=colour, marker=marker, linewidths=0, zorder=3)
        if len(tokens) > 1:
            label = f"{count_label(count)} tokens"
            axes.plot([], [], marker, color=INK, linestyle="", label=label)
    axes.set_yticks(range(len(order)), list(order))
    axes.set_ylim(len(order) - 0.45, -0.55)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.set_xlabel("loss above none, nats per token")


def _legend_columns(labels: Sequence[str]) -> int:
    """As many as fit a panel's width, four at most."""
    longest = max(len(label) for label in labels)
    return min(max(44 // (longest + 3), 1), 4)


def _legend_inches(labels: Sequence[str]) -> float:
    return 0.24 * -(-len(labels) // _legend_columns(labels))


def _legend(figure: Figure, axes: Axes) -> None:
    """Below the axes, where it hides nothing; nothing for a single label."""
    handles, labels = axes.get_legend_handles_labels()
    if len(handles) > 1:
        columns = _legend_columns(labels)
        figure.legend(
            handles, labels, loc="outside lower left", ncols=columns, handletextpad=0.2,
            columnspacing=1.2,
        )  # fmt: skip


def _cost_limits(cells: pd.DataFrame, noise: float) -> tuple[float, float]:
    """Common x limits of all panels, so that sizes can be compared by eye."""
    reach = SIGMAS * cells["standard_error"].fillna(0.0)
    floor = noise if np.isfinite(noise) else 0.0
    low = min(float((cells["difference"] - reach).min()), -floor)
    high = max(float((cells["difference"] + reach).max()), floor)
    margin = 0.04 * (high - low) or 0.01
    return low - margin, high + margin


def cost_by_format(
    cells: pd.DataFrame, order: Sequence[str], colours: Mapping[str, str], noise: float
) -> list[Panel]:
    """Difference to `none` by format, one panel a model size; columns as in `draw_cost`."""
    shown = [name for name in order if name in set(cells["format"])]
    limits = _cost_limits(cells, noise)
    token_counts = cells["tokens"].nunique()
    height = (
        1.25
        + len(shown) * (0.26 + 0.11 * (token_counts - 1))
        + 0.12 * token_counts * (token_counts > 1)
    )
    panels = []
    for size in sizes(cells):
        with mpl.rc_context(_STYLE):
            figure = _figure(PANEL_WIDTH, height)
            axes = figure.add_subplot()
            draw_cost(axes, cells[cells["params"] == size], shown, colours, noise)
            axes.set_xlim(limits)
            axes.set_title(f"{count_label(size)} parameters")
            _legend(figure, axes)
            title = f"Loss above none by format at {count_label(size)} parameters"
            panels.append(_panel(figure, f"cost_{size:.0f}", title))
    return panels


def headline(
    cells: pd.DataFrame, order: Sequence[str], colours: Mapping[str, str], noise: float
) -> bytes:
    """The same as one PNG of 1200 x 500 pixels, for a README: at most three sizes, largest last.

    Returns:
        The PNG file's bytes, white behind.
    """
    shown = [name for name in order if name in set(cells["format"])]
    chosen = sizes(cells)[-3:]
    with mpl.rc_context(_STYLE):
        figure = _figure(8.0, 500 / 150)
        FigureCanvasAgg(figure)
        grid = figure.subplots(1, len(chosen), sharey=True, squeeze=False)
        for axes, size in zip(grid[0], chosen, strict=True):
            draw_cost(axes, cells[cells["params"] == size], shown, colours, noise)
            axes.set_xlim(_cost_limits(cells, noise))
            axes.set_title(f"{count_label(size)} parameters")
        _legend(figure, grid[0][0])
        buffer = io.BytesIO()
        figure.savefig(
            buffer, format="png", dpi=150, facecolor="white", metadata={"Software": None}
        )
    return buffer.getvalue()


# --- losses ------------------------------------------------------------------------------------


def loss_by_bits(
    cells: pd.DataFrame, baseline: pd.DataFrame, colours: Mapping[str, str]
) -> list[Panel]:
    """Mean loss against bits, one panel a size, the largest token count; a line marks `none`.

    Args:
        cells: Quantized cells: `format`, `params`, `tokens`, `bits`, `loss`, `loss_error`.
        baseline: Unquantized cells: `params`, `tokens`, `loss`.
        colours: Format -> colour.
    """
    panels = []
    for size in sizes(cells):
        group = cells[cells["params"] == size]
        group = group[group["tokens"] == group["tokens"].max()].sort_values(["bits", "loss"])
        tokens = float(group["tokens"].max())
        names = [str(name) for name in group["format"]]
        # Names stand beside their marks while these are few and short, else in a legend.
        direct = len(names) <= 12 and max(map(len, names)) <= 9
        none = baseline[(baseline["params"] == size) & (baseline["tokens"] == tokens)]
        with mpl.rc_context(_STYLE):
            figure = _figure(PANEL_WIDTH, 3.5 + (0 if direct else _legend_inches(names)))
            axes = figure.add_subplot()
            for value in none["loss"]:
                axes.axhline(value, color=INK, linewidth=1.0, linestyle=(0, (4, 3)))
                axes.annotate(
                    "none", (1.0, value), xycoords=("axes fraction", "data"), ha="right",
                    xytext=(0, -11), textcoords="offset points", fontsize=9.5,
                )  # fmt: skip
            for i, row in enumerate(records(group)):
                same = group["bits"] == row.bits
                rank = int((group["loss"][same] < row.loss).sum()) - (int(same.sum()) - 1) / 2
                x = float(row.bits) + 0.16 * rank
                error = row.loss_error if np.isfinite(row.loss_error) else 0.0
                colour = colours[str(row.format)]
                axes.errorbar(
                    x, row.loss, yerr=error, fmt="o" if direct else MARKERS[i % len(MARKERS)],
                    color=colour, elinewidth=1.6, label=None if direct else str(row.format),
                )  # fmt: skip
                if direct:
                    # Of several in one place the labels point away from each other.
                    left = rank < 0 and row.bits > group["bits"].min()
                    axes.annotate(
                        str(row.format), (x, row.loss), xytext=(-7 if left else 7, 4),
                        textcoords="offset points", ha="right" if left else "left", fontsize=9.5,
                    )  # fmt: skip
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.margins(x=0.12, y=0.12)
            axes.set_xlabel("bits per element, scales not counted")
            axes.set_ylabel("loss, nats per token")
            axes.set_title(f"{count_label(size)} parameters, {count_label(tokens)} tokens")
            _legend(figure, axes)
            title = f"Loss against bits at {count_label(size)} parameters"
            panels.append(_panel(figure, f"bits_{size:.0f}", title))
    return panels


def loss_by_tokens(
    cells: pd.DataFrame,
    order: Sequence[str],
    colours: Mapping[str, str],
    curves: pd.DataFrame | None,
) -> list[Panel]:
    """Mean loss against training tokens by format, one panel a size, with the fitted curves.

    Args:
        cells: All cells: `format`, `params`, `tokens`, `loss`.
        order: Formats in the order of the legend.
        colours: Format -> colour.
        curves: The law on a grid: `format`, `params`, `tokens`, `predicted`; None without a fit.
    """
    panels = []
    shown = [name for name in order if name in set(cells["format"])]
    for size in sizes(cells):
        with mpl.rc_context(_STYLE):
            figure = _figure(PANEL_WIDTH, 3.2 + _legend_inches(shown))
            axes = figure.add_subplot()
            for i, name in enumerate(shown):
                points = cells[(cells["params"] == size) & (cells["format"] == name)]
                points = points.sort_values("tokens")
                joined = "" if curves is not None else "-"
                axes.plot(
                    points["tokens"], points["loss"], joined + MARKERS[i % len(MARKERS)],
                    color=colours[name], markersize=5, linewidth=1.2, label=name,
                )  # fmt: skip
                if curves is not None:
                    line = curves[(curves["params"] == size) & (curves["format"] == name)]
                    axes.plot(line["tokens"], line["predicted"], color=colours[name], linewidth=1.2)
            axes.set_xscale("log")
            _count_ticks(axes, cells["tokens"].unique())
            axes.set_xlabel("training tokens")
            axes.set_ylabel("loss, nats per token")
            axes.set_title(f"{count_label(size)} parameters")
            _legend(figure, axes)
            title = f"Loss against tokens by format at {count_label(size)} parameters"
            panels.append(_panel(figure, f"tokens_{size:.0f}", title))
    return panels


def _count_ticks(axes: Axes, values: Iterable[float]) -> None:
    """Ticks at counts that were run, not at powers of ten; so many that their labels fit."""
    counts = np.array(sorted(float(value) for value in values))
    room = np.log(counts[-1] / counts[0]) / 7 if len(counts) > 1 else 0.0
    ticks: list[float] = []
    for count in counts:
        if not ticks or np.log(count / ticks[-1]) >= room:
            ticks.append(count)
    axes.set_xticks(ticks)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: count_label(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.minorticks_off()


def cost_by_layout(cells: pd.DataFrame) -> list[Panel]:
    """Heat map of the difference to `none` over exponent and mantissa, one panel a size.

    Args:
        cells: Quantized cells: `exponent`, `mantissa`, `params`, `tokens`, `difference`; the
            largest token count is drawn, several block sizes or recipes are averaged.
    """
    drawn = cells[cells["tokens"] == cells.groupby("params")["tokens"].transform("max")]
    top = float(drawn["difference"].max())
    panels = []
    for size in sizes(drawn):
        grid = drawn[drawn["params"] == size].pivot_table(
            index="mantissa", columns="exponent", values="difference", aggfunc="mean"
        )
        with mpl.rc_context(_STYLE):
            figure = _figure(PANEL_WIDTH, 1.2 + 0.42 * len(grid))
            axes = figure.add_subplot()
            values = grid.to_numpy(float)
            shades = mpl.colormaps["viridis"]
            for (i, j), value in np.ndenumerate(values):
                if np.isfinite(value):
                    share = min(max(value / top, 0.0), 1.0) if top > 0 else 0.0
                    box = Rectangle((j - 0.48, i - 0.46), 0.96, 0.92)
                    box.set(facecolor=shades(0.15 + 0.8 * share), linewidth=0)
                    axes.add_patch(box)
                    text = f"{round(value, 3) + 0.0:+.3f}".replace("-", "−")  # no minus zero
                    axes.text(
                        j, i, text, ha="center", va="center",
                        color="#111111" if share > 0.5 else "#ffffff", fontsize=9.5,
                    )  # fmt: skip
            axes.set_xticks(range(len(grid.columns)), list(grid.columns.map(whole)))
            axes.set_yticks(range(len(grid.index)), list(grid.index.map(whole)))
            axes.set_xlim(-0.5, len(grid.columns) - 0.5)
            axes.set_ylim(-0.5, len(grid.index) - 0.5)
            axes.grid(visible=False)
            axes.spines[:].set_visible(False)
            axes.tick_params(length=0)
            axes.set_xlabel("exponent bits")
            axes.set_ylabel("mantissa bits")
            axes.set_title(f"{count_label(size)} parameters")
            title = f"Loss above none by exponent and mantissa at {count_label(size)} parameters"
            panels.append(_panel(figure, f"layout_{size:.0f}", title))
    return panels


# --- the fit -----------------------------------------------------------------------------------


def predicted_v_observed(
    rows: pd.DataFrame, order: Sequence[str], colours: Mapping[str, str], noise_log: float
) -> list[Panel]:
    """Two panels: observed against predicted loss, and residuals in percent of the loss.

    Args:
        rows: The fitted runs: `format`, `loss`, `predicted` (nats per token).
        order: Formats in the order of the legend.
        colours: Format -> colour.
        noise_log: Standard deviation of log loss between seeds; shaded, NaN shades nothing.
    """
    shown = [name for name in order if name in set(rows["format"])]
    percent = 100 * np.log(rows["loss"] / rows["predicted"])
    panels = []
    for name, title in (
        ("fit", "Observed against predicted loss"),
        ("residuals", "Residuals in percent of the loss"),
    ):
        with mpl.rc_context(_STYLE):
            figure = _figure(PANEL_WIDTH, 3.4 + _legend_inches(shown))
            axes = figure.add_subplot()
            if name == "fit":
                ends = [rows["predicted"].min(), rows["predicted"].max()]
                axes.plot(ends, ends, color=INK, linewidth=0.9)
            else:
                axes.axhline(0.0, color=INK, linewidth=0.9)
                if np.isfinite(noise_log):
                    band = 100 * noise_log
                    axes.axhspan(-band, band, color=INK, alpha=0.10, linewidth=0)
            for i, label in enumerate(shown):
                mine = rows["format"] == label
                y = rows["loss"] if name == "fit" else percent
                axes.scatter(
                    rows["predicted"][mine], y[mine], s=22, c=colours[label], alpha=0.85,
                    marker=MARKERS[i % len(MARKERS)], linewidths=0, label=label,
                    rasterized=len(rows) > MANY_MARKS,
                )  # fmt: skip
            axes.set_xlabel("predicted loss, nats per token")
            axes.set_ylabel("observed loss" if name == "fit" else "observed − predicted, %")
            axes.set_title(title)
            _legend(figure, axes)
            panels.append(_panel(figure, name, title))
    return panels


def layout_shares(layouts: Sequence[Mapping[str, Any]]) -> list[Panel]:
    """Stacked bars: in what share of bootstrap draws each exponent/mantissa split wins.

    One hue, darker = more often: these are layouts of the law, not formats of the study, so
    they take no format's colour.  Outlined bars lie outside the bits that were trained.

    Args:
        layouts: Rows of fit.json's `derived.layouts`: `bits`, `shares`, `extrapolated`.
    """
    rows = [row for row in layouts if row["bits"] <= 8]
    with mpl.rc_context(_STYLE):
        figure = _figure(PANEL_WIDTH * 1.15, 0.9 + 0.42 * len(rows))
        axes = figure.add_subplot()
        for y, row in enumerate(rows):
            left = 0.0
            ranked = sorted(row["shares"].items(), key=lambda item: (-item[1], item[0]))
            for rank, (name, share) in enumerate(ranked):
                shade = (0.95, 0.55, 0.33, 0.2)[min(rank, 3)] * (0.45 if row["extrapolated"] else 1)
                axes.barh(y, share, left=left, height=0.72, color="#3b7dd8", alpha=shade)
                if share >= 0.09:
                    text = f"{name} {100 * share:.0f}%"
                    white = shade > 0.6
                    axes.text(
                        left + share / 2, y, text if share >= 0.17 else name, ha="center",
                        va="center", fontsize=9.5, color="#ffffff" if white else INK,
                    )  # fmt: skip
                left += share
        labels = [f"{row['bits']} bits" + (" *" if row["extrapolated"] else "") for row in rows]
        axes.set_yticks(range(len(rows)), labels)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlim(0, 1)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f}%"))
        axes.tick_params(axis="y", length=0)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("share of bootstrap draws (* outside the bits that were trained)")
        title = "How often each exponent/mantissa split wins in the bootstrap"
        return [_panel(figure, "layout_shares", title)]
