"""The report's figures: one function a figure, each a matplotlib `Figure` without global state.

A figure is a list of panels (one per model size), because panels reflow on a narrow screen and
one wide picture does not.  Colours, ink and legends come from `fitting.style`.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from fitting.naming import count_label, records, sizes, whole
from fitting.style import (
    INK,
    MARKERS,
    PANEL_WIDTH,
    STYLE,
    Panel,
    legend_below,
    legend_inches,
    new_figure,
    panel,
)
from fitting.verdicts import enough

MANY_MARKS = 1000
"""Marks from which a cloud of points becomes a bitmap inside the SVG, to keep it small."""


# --- the difference to no quantization -------------------------------------------------------


def draw_cost(
    axes: Axes, cells: pd.DataFrame, order: Sequence[str], colours: Mapping[str, str], noise: float
) -> None:
    """Difference to `none` by format on `axes`: a dot, a thick bar of one standard error.

    A thin bar is as many as a verdict needs: it touches zero where one cannot tell.

    Args:
        axes: Drawn on.
        cells: One model size: `format`, `tokens`, `difference`, `standard_error` (nats per token)
            and its degrees of freedom `dof`.
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
        for reach, width in ((_reach(group), 1.1), (group["standard_error"], 3.0)):
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


def _reach(cells: pd.DataFrame) -> pd.Series:
    """What a difference must exceed to be called one; NaN where nothing can be told."""
    reach: pd.Series = cells["standard_error"] * enough(cells["dof"])
    return reach.where(np.isfinite(reach))


def _cost_limits(cells: pd.DataFrame, noise: float) -> tuple[float, float]:
    """Common x limits of all panels, so that sizes can be compared by eye."""
    reach = _reach(cells).fillna(0.0)
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
        with mpl.rc_context(STYLE):
            figure = new_figure(PANEL_WIDTH, height)
            axes = figure.add_subplot()
            draw_cost(axes, cells[cells["params"] == size], shown, colours, noise)
            axes.set_xlim(limits)
            axes.set_title(f"{count_label(size)} parameters")
            legend_below(figure, axes)
            title = f"Loss above none by format at {count_label(size)} parameters"
            panels.append(panel(figure, f"cost_{size:.0f}", title))
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
    with mpl.rc_context(STYLE):
        figure = new_figure(8.0, 500 / 150)
        FigureCanvasAgg(figure)
        grid = figure.subplots(1, len(chosen), sharey=True, squeeze=False)
        for axes, size in zip(grid[0], chosen, strict=True):
            draw_cost(axes, cells[cells["params"] == size], shown, colours, noise)
            axes.set_xlim(_cost_limits(cells, noise))
            axes.set_title(f"{count_label(size)} parameters")
        legend_below(figure, grid[0][0])
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
        crowded = group["bits"].value_counts().max() > 2
        direct = len(names) <= 12 and max(map(len, names)) <= 9 and not crowded
        none = baseline[(baseline["params"] == size) & (baseline["tokens"] == tokens)]
        with mpl.rc_context(STYLE):
            figure = new_figure(PANEL_WIDTH, 3.5 + (0 if direct else legend_inches(names)))
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
            legend_below(figure, axes)
            title = f"Loss against bits at {count_label(size)} parameters"
            panels.append(panel(figure, f"bits_{size:.0f}", title))
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
        with mpl.rc_context(STYLE):
            here = set(cells.loc[cells["params"] == size, "format"])
            figure = new_figure(PANEL_WIDTH, 3.2 + legend_inches([n for n in shown if n in here]))
            axes = figure.add_subplot()
            for i, name in enumerate(shown):
                if name not in here:
                    continue
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
            legend_below(figure, axes)
            title = f"Loss against tokens by format at {count_label(size)} parameters"
            panels.append(panel(figure, f"tokens_{size:.0f}", title))
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
        with mpl.rc_context(STYLE):
            figure = new_figure(PANEL_WIDTH, 1.2 + 0.42 * len(grid))
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
            panels.append(panel(figure, f"layout_{size:.0f}", title))
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
        with mpl.rc_context(STYLE):
            figure = new_figure(PANEL_WIDTH, 3.4 + legend_inches(shown))
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
            legend_below(figure, axes)
            panels.append(panel(figure, name, title))
    return panels
