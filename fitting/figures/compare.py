"""Figures of two studies: losses of common cells, their differences, parameters side by side."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
import pandas as pd

from fitting.figures import losses as loss_figures
from fitting.figures.style import (
    BLUE,
    INK,
    MARKERS,
    ORANGE,
    PANEL_WIDTH,
    STYLE,
    Panel,
    count_axis,
    legend_below,
    legend_inches,
    new_figure,
    panel,
    ratio_axis,
)
from fitting.figures.svg import tag
from fitting.fit.fit_file import SavedFit
from fitting.naming import TableRow, sizes
from fitting.words import at, count_label, interval, number, signed

FARTHEST = 1e4
"""Ratio of a parameter to the other study's beyond which it is cut off at the figure's edge."""


def curves(
    cells: pd.DataFrame, names: Sequence[str], order: Sequence[str], colours: Mapping[str, str]
) -> list[Panel]:
    """Loss against tokens of common cells, one panel per size: the first study solid and filled."""
    panels = []
    for size in sizes(cells):
        here = cells[cells["params"] == size]
        shown = [name for name in order if name in set(here["format"])]
        with mpl.rc_context(STYLE):
            figure = new_figure(PANEL_WIDTH, 3.2 + legend_inches([*shown, *names]))
            axes = figure.add_subplot()
            for i, name in enumerate(shown):
                points = here[here["format"] == name].sort_values("tokens")
                for side, study in zip("ab", names, strict=True):
                    (line,) = axes.plot(
                        points["tokens"], points[f"loss_{side}"], MARKERS[i % len(MARKERS)],
                        color=colours[name], markersize=7, linewidth=1.2,
                        linestyle="-" if side == "a" else (0, (4, 2)),
                        markerfacecolor=colours[name] if side == "a" else "none",
                        markeredgewidth=0.0 if side == "a" else 1.2,
                        label=name if side == "a" else None,
                    )  # fmt: skip
                    losses = zip(points["tokens"], points[f"loss_{side}"], strict=True)
                    tips = [f"{study}: {name}\n{at(size, t)}\n{loss:.4f}" for t, loss in losses]
                    tag(line, name, tips)
            for study, style in zip(names, ("-", (0, (4, 2))), strict=True):
                axes.plot([], [], color=INK, linewidth=1.2, linestyle=style, label=study)
            axes.set_xscale("log")
            count_axis(axes.xaxis, sorted(map(float, set(cells["tokens"]))))
            axes.set_xlabel("training tokens")
            above = " above none" if cells["above_none"].iloc[0] else ""
            axes.set_ylabel(f"loss{above}, nats per token")
            axes.set_title(f"{count_label(size)} parameters")
            legend_below(figure, axes)
            title = f"Loss against tokens in both studies at {count_label(size)} parameters"
            panels.append(panel(figure, f"curves_{size:.0f}", title))
    return panels


def differences(
    cells: pd.DataFrame, names: Sequence[str], order: Sequence[str], colours: Mapping[str, str]
) -> list[Panel]:
    """Second study minus first by format, one panel per size, drawn like a cost above `none`."""

    def words(cell: TableRow) -> str:
        error = number(cell.standard_error, 2)
        where = f"{cell.format}\n{at(cell.params, cell.tokens)}"
        return f"{where}\n{signed(cell.difference)} ± {error} nats: {cell.verdict}"

    return loss_figures.cost_by_format(
        cells, order, colours, {}, words=words, name="differences",
        label=f"{names[1]} minus {names[0]}, nats per token",
    )  # fmt: skip


def ratios(a: SavedFit, b: SavedFit, names: Sequence[str]) -> list[Panel]:
    """The parameters of both studies with intervals, over the first study's values."""
    shown = {n: v for n, v in a.parameters.items() if v and v > 0 and b.parameters.get(n)}
    if not shown:
        return []
    with mpl.rc_context(STYLE):
        figure = new_figure(PANEL_WIDTH, 1.4 + 0.42 * len(shown))
        axes = figure.add_subplot()
        axes.axvline(1.0, color=INK, linewidth=0.9)
        axes.set_xscale("log")
        for fit, study, colour, marker, shift in (
            (a, names[0], BLUE, "o", -0.14),
            (b, names[1], ORANGE, "s", 0.14),
        ):
            for y, name in enumerate(shown):
                base, value = shown[name], fit.parameters[name] or math.nan
                low, high = fit.interval(name)
                if low is not None and high is not None:
                    ends = _shown(low / base), _shown(high / base)
                    (bar,) = axes.plot(ends, [y + shift] * 2, color=colour, linewidth=3.0)
                    tag(bar, study)
                (mark,) = axes.plot(
                    _shown(value / base), y + shift, marker, color=colour, markersize=7,
                    label=None if y else study,
                )  # fmt: skip
                tag(mark, study, [f"{study}: {name} = {number(value)}\n{interval((low, high))}"])
        axes.set_yticks(range(len(shown)), shown)
        axes.set_ylim(len(shown) - 0.5, -0.5)
        axes.tick_params(axis="y", length=0)
        axes.grid(visible=False, axis="y")
        ratio_axis(axes.xaxis)
        axes.set_xlabel(f"over {names[0]}'s value")
        legend_below(figure, axes)
        return [panel(figure, "parameters", "Parameters of both studies")]


def _shown(ratio: float) -> float:
    return float(np.clip(ratio, 1 / FARTHEST, FARTHEST))
