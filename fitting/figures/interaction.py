"""The picture of a split that may depend on a factor: differences with their intervals."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pandas as pd

from fitting.figures.style import BLUE, INK, ORANGE, PANEL_WIDTH, STYLE, Panel, new_figure, panel
from fitting.figures.svg import tag
from fitting.naming import TableRow, records
from fitting.seeds.interaction import most_measured
from fitting.seeds.verdicts import EQUAL_WITHIN


def splits_by(found: pd.DataFrame) -> list[Panel]:
    """One line for each value of the factors, and for each change, of the splits with most runs.

    Of the changes at one value of another factor only those that were shown to be there.

    Args:
        found: `fitting.seeds.interaction.layouts_by`, with `factor`.
    """
    shown = [
        row
        for row in records(most_measured(found))
        if np.isfinite(row.low)
        and not (row.against and within(row) and row.verdict not in ("better", "worse"))
    ]
    if not shown:
        return []
    with mpl.rc_context(STYLE):
        figure = new_figure(PANEL_WIDTH * 1.3, 1.2 + 0.3 * len(shown))
        axes = figure.add_subplot()
        axes.axvline(0.0, color=INK, linewidth=0.9)
        axes.axvspan(-EQUAL_WITHIN, EQUAL_WITHIN, color=INK, alpha=0.10, linewidth=0)
        for y, row in enumerate(shown):
            colour = ORANGE if row.against else BLUE
            axes.plot([row.low, row.high], [y, y], color=colour, linewidth=3.0)
            (mark,) = axes.plot(row.difference, y, "o", color=colour, markersize=7)
            splits = f"{row.second} minus {row.first}"
            tag(mark, "", [f"{label(row)}\n{splits}: {row.difference:+.4f}, {row.pairs} pairs"])
        axes.set_yticks(range(len(shown)), [label(row) for row in shown])
        axes.set_ylim(len(shown) - 0.5, -0.5)
        axes.tick_params(axis="y", length=0)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel(f"loss in {shown[0].second} − in {shown[0].first}, nats per token")
        return [panel(figure, "lead", "Which split is better, and whether that changes")]


def label(row: TableRow) -> str:
    """What a row compares: a recipe or a scale, or what it replaces, and with which scale."""
    compared = f"{row.at} instead of {row.against}" if row.against else str(row.at)
    return compared + (f", {within(row)}" if within(row) else "")


def within(row: TableRow) -> str:
    """What of another factor a row holds for: "fp32 scales"; "" where it holds for all of it."""
    return str(row.factor).partition(" with ")[2]
