"""The picture of the unified law: the worth of each format, computed and measured."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib as mpl
import numpy as np
import pandas as pd

from fitting.analysis.signal import share_of_rows
from fitting.figures.style import (
    INK,
    PANEL_WIDTH,
    STYLE,
    Panel,
    legend_below,
    legend_inches,
    new_figure,
    panel,
)
from fitting.figures.svg import tag
from fitting.fit.fit_file import SavedFit
from fitting.naming import are_none

MOST_LABELS = 24
"""Formats that a legend lists."""


def shares(fit: SavedFit, rows: pd.DataFrame, colours: Mapping[str, str]) -> list[Panel]:
    """Effective parameters of each format: as the law computes them, and as its runs have them.

    Args:
        fit: A fit of `unified`.
        rows: Its runs, with `format`.
        colours: Format -> colour.

    Returns:
        No panel where nothing is quantized.
    """
    p = fit.values
    with np.errstate(invalid="ignore", divide="ignore"):
        inner = (rows["loss"] - p["E"]) ** (1 / p["gamma"]) - p["B"] / rows["tokens"] ** p["beta"]
        measured = (p["A"] / inner) ** (1 / p["alpha"]) / rows["params"]
    known = rows.assign(computed=share_of_rows(p, rows), measured=np.log(measured))
    known = known[np.isfinite(known["measured"]) & ~are_none(known["format"])]
    if known.empty:
        return []
    grouped = known.groupby(["format", "computed"])["measured"].agg(["mean", "std", "size"])
    points = grouped.reset_index()
    names = [name for name in colours if name in set(points["format"])]
    listed = names if len(names) <= MOST_LABELS else []
    with mpl.rc_context(STYLE):
        figure = new_figure(PANEL_WIDTH, 3.6 + (legend_inches(listed) if listed else 0.0))
        axes = figure.add_subplot()
        low = min(points["computed"].min(), np.exp(points["mean"].min())) / 1.3
        axes.plot([low, 1.0], [low, 1.0], color=INK, linewidth=0.9)
        for name in names:
            mine = points[points["format"] == name]
            middle = np.exp(mine["mean"])
            error = (mine["std"] / np.sqrt(mine["size"])).fillna(0.0)
            axes.vlines(
                mine["computed"],
                np.exp(mine["mean"] - error),
                np.exp(mine["mean"] + error),
                colors=colours[name],
                linewidth=2.0,
            )
            (marks,) = axes.plot(
                mine["computed"], middle, "o", color=colours[name], markersize=7,
                label=name if listed else None,
            )  # fmt: skip
            tips = [
                f"{name}: computed {x:.3g}, measured {y:.3g} N\n{runs} runs"
                for x, y, runs in zip(mine["computed"], middle, mine["size"], strict=True)
            ]
            tag(marks, name, tips)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("computed from the format's error, share of N")
        axes.set_ylabel("as measured, share of N")
        if listed:
            legend_below(figure, axes)
        title = "What each format leaves of the parameters"
        return [panel(figure, "lead", title)]
