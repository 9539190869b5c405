"""Figures of losses: one function per figure, each a matplotlib `Figure` without global state.

A figure is a list of panels (one per model size), because panels reflow on a narrow screen and
one wide picture does not.  Colours, ink and legends come from `fitting.figures.style`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from fitting.figures.style import (
    INK,
    MARKERS,
    PANEL_WIDTH,
    STYLE,
    Panel,
    count_axis,
    legend_below,
    legend_inches,
    new_figure,
    panel,
    png,
    short,
    span,
)
from fitting.figures.svg import tag, tag_entry
from fitting.naming import TableRow, records, sizes
from fitting.seeds.verdicts import enough
from fitting.words import at, count_label, number, plural, signed

ABOVE_NONE = "loss above none, nats per token"
MOST_IN_HEADLINE = 26
"""Formats that can be read in a picture of 500 pixels' height."""

# --- the difference to no quantization -------------------------------------------------------


def cell_words(cell: TableRow) -> str:
    """The words shown under a pointer over a cell's mark; columns of `draw_cost`, and `loss`."""
    words = f"{cell.format}\n{at(cell.params, cell.tokens)}\n"
    words += f"{signed(cell.difference)} nats above none"
    if np.isfinite(cell.standard_error):
        words = words.replace(" nats", f" ± {number(cell.standard_error, 2)} nats")
    return f"{words}\nmean loss {cell.loss:.4f}"


def draw_cost(
    axes: Axes,
    cells: pd.DataFrame,
    order: Sequence[str],
    colours: Mapping[str, str],
    noise: float,
    words: Callable[[TableRow], str] = cell_words,
) -> None:
    """Difference from `none` by format on `axes`: a dot, a thick bar of one standard error.

    A thin bar is as many as a verdict needs: it touches zero where the sign cannot be told.

    Args:
        axes: Drawn on.
        cells: One model size: `format`, `params`, `tokens`, `loss`, `difference`, `standard_error`
            (nats per token) and its degrees of freedom `dof`.
        order: Rows from top to bottom.
        colours: Format -> colour.
        noise: Standard deviation between seeds (nats per token), shaded; NaN shades nothing.
        words: The words shown under a pointer over a row's mark.
    """
    tokens = sorted(cells["tokens"].unique())
    step = 0.62 / max(len(tokens), 2)
    if np.isfinite(noise):
        axes.axvspan(-noise, noise, color=INK, alpha=0.10, linewidth=0)
    axes.axvline(0.0, color=INK, linewidth=0.9)
    for row, name in enumerate(order):
        group = cells[cells["format"] == name].sort_values("tokens")
        place = group["tokens"].map(tokens.index)
        y = row + step * (place - (len(tokens) - 1) / 2)
        for reach, width in ((_reach(group), 1.1), (group["standard_error"], 3.0)):
            ends = group["difference"] - reach, group["difference"] + reach
            tag(axes.hlines(y, *ends, colors=colours[name], linewidth=width), name)
        for x, height, i, cell in zip(group["difference"], y, place, records(group), strict=True):
            marker = MARKERS[i % len(MARKERS)]
            (mark,) = axes.plot(x, height, marker, color=colours[name], markersize=7, zorder=3)
            tag(mark, name, [words(cell)])
    for i, count in enumerate(tokens if len(tokens) > 1 else []):
        label = f"{count_label(count)} tokens"
        axes.plot([], [], MARKERS[i % len(MARKERS)], color=INK, linestyle="", label=label)
    axes.set_yticks(range(len(order)), [short(name) for name in order])
    axes.set_ylim(len(order) - 0.45, -0.55)
    for name, text in zip(order, axes.get_yticklabels(), strict=False):  # none on a shared axis
        tag_entry([text], name)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.set_xlabel(ABOVE_NONE)


def _reach(cells: pd.DataFrame) -> pd.Series:
    """The size that a difference must exceed to count as one; NaN where nothing can be told."""
    reach: pd.Series = cells["standard_error"] * enough(cells["dof"])
    return reach.where(np.isfinite(reach))


def _cost_limits(cells: pd.DataFrame, noise: float) -> tuple[float, float]:
    """Common x limits of all panels, so that sizes can be compared by eye."""
    reach = _reach(cells).fillna(0.0)
    floor = noise if np.isfinite(noise) else 0.0
    low = min(float((cells["difference"] - reach).min()), -floor)
    high = max(float((cells["difference"] + reach).max()), floor)
    return low, high


def cost_by_format(
    cells: pd.DataFrame,
    order: Sequence[str],
    colours: Mapping[str, str],
    noise: Mapping[float, float],
    *,
    words: Callable[[TableRow], str] = cell_words,
    name: str = "cost",
    label: str = ABOVE_NONE,
) -> list[Panel]:
    """Difference from `none` by format, one panel per model size; arguments as in `draw_cost`.

    `noise` is that of each size; sizes whose noise is unknown have none.

    For another difference, give other words, another name and another label for its axis.
    """
    shown = [name for name in order if name in set(cells["format"])]
    limits = _cost_limits(cells, max(noise.values(), default=np.nan))
    token_counts = int(cells.groupby("params")["tokens"].nunique().max())
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
            own = noise.get(size, np.nan)
            draw_cost(axes, cells[cells["params"] == size], shown, colours, own, words)
            span(axes.xaxis, *limits, own)
            axes.set_xlabel(label)
            axes.set_title(f"{count_label(size)} parameters")
            legend_below(figure, axes)
            title = f"{label.partition(',')[0]} by format at {count_label(size)} parameters"
            panels.append(panel(figure, f"{name}_{size:.0f}", title[:1].upper() + title[1:]))
    return panels


def headline(
    cells: pd.DataFrame,
    order: Sequence[str],
    colours: Mapping[str, str],
    noise: Mapping[float, float],
) -> bytes:
    """The difference from `none` as a PNG of 1200 x 500 pixels: at most three sizes, largest last.

    Returns:
        The PNG file's bytes, on white; nothing where there are more formats than can be read.
    """
    shown = [name for name in order if name in set(cells["format"])]
    if len(shown) > MOST_IN_HEADLINE:
        return b""
    chosen = sizes(cells)[-3:]
    with mpl.rc_context(STYLE):
        figure = new_figure(8.0, 500 / 150)
        grid = figure.subplots(1, len(chosen), sharey=True, squeeze=False)
        for axes, size in zip(grid[0], chosen, strict=True):
            own = noise.get(size, np.nan)
            draw_cost(axes, cells[cells["params"] == size], shown, colours, own)
            span(axes.xaxis, *_cost_limits(cells, max(noise.values(), default=np.nan)), own)
            axes.set_title(f"{count_label(size)} parameters")
        legend_below(figure, grid[0][0])
        return png(figure)


# --- losses ------------------------------------------------------------------------------------


def loss_by_bits(
    cells: pd.DataFrame, baseline: pd.DataFrame, colours: Mapping[str, str]
) -> list[Panel]:
    """Mean loss against bits, one panel per size, the largest token count; a line marks `none`.

    Args:
        cells: Quantized cells: `format`, `params`, `tokens`, `bits`, `loss`, `loss_error`,
            `difference`, `standard_error`.
        baseline: Unquantized cells: `format`, `params`, `tokens`, `loss`.
        colours: Format -> colour.
    """
    panels = []
    for size in sizes(cells):
        group = cells[cells["params"] == size]
        group = group[group["tokens"] == group["tokens"].max()].sort_values(["bits", "loss"])
        tokens = float(group["tokens"].max())
        names = [str(name) for name in group["format"]]
        # Names stand beside their marks if they are few and short, else in a legend.
        crowded = group["bits"].value_counts().max() > 2
        direct = len(names) <= 12 and max(map(len, names)) <= 9 and not crowded
        none = baseline[(baseline["params"] == size) & (baseline["tokens"] == tokens)]
        with mpl.rc_context(STYLE):
            figure = new_figure(PANEL_WIDTH, 3.5 + (0 if direct else legend_inches(names)))
            axes = figure.add_subplot()
            for label, value in zip(none["format"], none["loss"], strict=True):
                axes.axhline(value, color=INK, linewidth=1.0, linestyle=(0, (4, 3)))
                axes.annotate(
                    label, (1.0, value), xycoords=("axes fraction", "data"), ha="right",
                    xytext=(0, -11), textcoords="offset points", fontsize=9.5,
                )  # fmt: skip
            for i, row in enumerate(records(group)):
                same = group["bits"] == row.bits
                rank = int((group["loss"][same] < row.loss).sum()) - (int(same.sum()) - 1) / 2
                x = float(row.bits) + 0.16 * rank
                error = row.loss_error if np.isfinite(row.loss_error) else 0.0
                colour = colours[str(row.format)]
                tag(axes.vlines(x, row.loss - error, row.loss + error, colors=colour), row.format)
                (mark,) = axes.plot(
                    x, row.loss, "o" if direct else MARKERS[i % len(MARKERS)], color=colour,
                    markersize=7, label=None if direct else str(row.format),
                )  # fmt: skip
                tag(mark, row.format, [cell_words(row)])
                if direct:
                    # Where several share a place, their labels point away from each other.
                    left = rank < 0 and row.bits > group["bits"].min()
                    text = axes.annotate(
                        str(row.format), (x, row.loss), xytext=(-7 if left else 7, 4),
                        textcoords="offset points", ha="right" if left else "left", fontsize=9.5,
                    )  # fmt: skip
                    tag(text, row.format)
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
    """Mean loss against training tokens by format, one panel per size, with the fitted curves.

    Args:
        cells: All cells: `format`, `params`, `tokens`, `loss`, `seeds` (how many it is a mean of).
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
                (marks,) = axes.plot(
                    points["tokens"], points["loss"], joined + MARKERS[i % len(MARKERS)],
                    color=colours[name], markersize=6, linewidth=1.2, label=name,
                )  # fmt: skip
                tips = [
                    f"{name}\n{at(size, row.tokens)}\nloss {row.loss:.4f}, "
                    f"{'mean of ' if row.seeds > 1 else ''}{plural(row.seeds, 'seed')}"
                    for row in records(points)
                ]
                tag(marks, name, tips)
                if curves is not None:
                    line = curves[(curves["params"] == size) & (curves["format"] == name)]
                    (law,) = axes.plot(line["tokens"], line["predicted"], color=colours[name])
                    law.set_linewidth(1.2)
                    tag(law, name)
            axes.set_xscale("log")
            count_axis(axes.xaxis, sorted(map(float, cells["tokens"].unique())))
            axes.set_xlabel("training tokens")
            axes.set_ylabel("loss, nats per token")
            axes.set_title(f"{count_label(size)} parameters")
            legend_below(figure, axes)
            title = f"Loss against tokens by format at {count_label(size)} parameters"
            panels.append(panel(figure, f"tokens_{size:.0f}", title))
    return panels
