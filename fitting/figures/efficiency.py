"""Figures of the law `quartet`: the worth of each scheme, and which precision wins where."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.colors import ListedColormap
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter

from fitting.analysis.efficiency import Efficiency
from fitting.analysis.precision_map import BACKWARD, FORWARD, MEASURED, SPEEDUPS, budget_losses
from fitting.figures.style import (
    BLUE,
    INK,
    ORANGE,
    PANEL_WIDTH,
    STYLE,
    Panel,
    count_axis,
    legend_below,
    legend_inches,
    new_figure,
    panel,
)
from fitting.figures.svg import tag
from fitting.fit.fit_file import SavedFit
from fitting.law.speeds import CHOICES, Speeds
from fitting.words import BEYOND, open_interval

CHOICE_COLOURS = ("#8a8f96", "#56B4E9", "#E69F00", "#009E73")
"""Colours of `efficiency.CHOICES`, in their order."""
GRID = 60
"""Points of the map on each axis."""
WIDER = 4.0
"""Factor by which the map reaches beyond the data at each end."""


def efficiencies(entries: Sequence[Efficiency]) -> list[Panel]:
    """Share of parameters (forward pass) and of tokens (backward pass) that a scheme is worth.

    Args:
        entries: The schemes.
    """
    passes = {
        "forward": ("o", BLUE, "parameters, eff_N"),
        "backward": ("s", ORANGE, "tokens, eff_D"),
        "both": ("D", BLUE, "parameters, rho"),
    }
    names = list(dict.fromkeys(entry.scheme for entry in entries))
    with mpl.rc_context(STYLE):
        figure = new_figure(PANEL_WIDTH, 1.5 + 0.4 * len(names))
        axes = figure.add_subplot()
        axes.axvline(1.0, color=INK, linewidth=0.9)
        for key, (marker, colour, label) in passes.items():
            some = [
                entry for entry in entries if entry.pass_ == key and entry.efficiency is not None
            ]
            y = [names.index(e.scheme) + (0.14 if key == "backward" else -0.14) for e in some]
            for height, entry in zip(y, some, strict=True):
                low, high = entry.efficiency_interval
                if low is not None and high is not None:
                    tag(axes.hlines(height, low, high, colors=colour, linewidth=3.0), label)
            x = [entry.efficiency or 0.0 for entry in some]
            if some:
                (marks,) = axes.plot(x, y, marker, color=colour, markersize=7, label=label)
                tips = [
                    f"{e.scheme}, {key} pass\n{e.efficiency:.3f} "
                    f"({open_interval(e.efficiency_interval)}) of its {label}"
                    for e in some
                ]
                tag(marks, label, tips)
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.tick_params(axis="y", length=0)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("share that the scheme is worth")
        legend_below(figure, axes)
        return [panel(figure, "efficiencies", "Efficiency by scheme and pass")]


def precision_map(fit: SavedFit, rows: pd.DataFrame) -> list[Panel]:
    """Which forward:backward precision has the lowest loss, over sizes and tokens per parameter.

    One map with the speeds that were assumed and one with measured ones.  Hatched where the
    winner's model is larger than that of any run, or has more or fewer tokens per parameter.

    Args:
        fit: fit.json of the law `quartet`.
        rows: The runs of the page that have a loss: `params` and `tokens`.
    """
    assumed, measured = fit.concluded.of(SPEEDUPS), fit.concluded.of(MEASURED)
    if assumed is None or not fit.concluded.of(FORWARD) or not fit.concluded.of(BACKWARD):
        return []
    title = "Which forward:backward precision wins by size and tokens per parameter"
    passes = Speeds.of_passes(assumed.forward, assumed.backward)
    faster = f"{assumed.forward:.3g} × forward and {assumed.backward:.3g} × backward"
    maps = [_map(fit, rows, passes, "map", f"{title}, FP4 {faster} as fast as FP8")]
    if measured is not None:
        speeds = Speeds(measured.serving, measured.training)
        both = measured.training["FP4:FP4"]
        as_measured = f"{title}, FP4:FP4 {both:.3g} × as fast, as measured ({measured.typed})"
        maps.append(_map(fit, rows, speeds, "map_measured", as_measured))
    return maps


def _map(fit: SavedFit, rows: pd.DataFrame, speeds: Speeds, name: str, title: str) -> Panel:
    """`precision_map` at some speeds."""
    p = fit.parameters
    ratio = rows["tokens"] / rows["params"]
    spans = [(float(v.min()), float(v.max())) for v in (rows["params"], ratio)]
    x, y = (np.geomspace(low / WIDER, high * WIDER, GRID) for low, high in spans)
    n, r = np.meshgrid(x, y)
    forward, backward = fit.concluded.of(FORWARD), fit.concluded.of(BACKWARD)
    eff = p[f"eff_N[{forward}]"], p[f"eff_D[{backward}]"]
    losses = np.stack(list(budget_losses(p, *eff, n, n * r, speeds).values()))
    best = losses.argmin(axis=0)
    larger, longer = (
        np.array(v)[best] for v in zip(*(speeds.gains(c) for c in CHOICES), strict=True)
    )
    trained = n * larger, r * longer / larger
    inside = np.all(
        [(v >= low) & (v <= high) for v, (low, high) in zip(trained, spans, strict=True)], axis=0
    )
    present = [i for i in range(len(CHOICES)) if (best == i).any()]
    with mpl.rc_context(STYLE):
        figure = new_figure(PANEL_WIDTH * 1.15, 3.7 + 2 * legend_inches(list(CHOICES)))
        axes = figure.add_subplot()
        axes.pcolormesh(
            n, r, best, cmap=ListedColormap(list(CHOICE_COLOURS)), vmin=-0.5, vmax=3.5,
            shading="nearest", alpha=0.75, rasterized=True,
        )  # fmt: skip
        axes.contourf(
            n, r, inside.astype(float), levels=[-0.5, 0.5], colors="none", hatches=["///"],
        )  # fmt: skip
        axes.contour(n, r, inside.astype(float), levels=[0.5], colors=[INK], linewidths=0.8)
        budgets = rows[["params", "tokens"]].drop_duplicates()
        axes.scatter(
            budgets["params"], budgets["tokens"] / budgets["params"], s=9, c=INK, linewidths=0
        )
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.grid(visible=False)
        count_axis(axes.xaxis, sorted({float(v) for v in rows["params"]}))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.set_xlabel("parameters of the FP8:FP8 budget")
        axes.set_ylabel("tokens per parameter")
        handles = [
            Patch(facecolor=CHOICE_COLOURS[i], alpha=0.75, label=CHOICES[i]) for i in present
        ]
        handles.append(Patch(facecolor="none", edgecolor=INK, hatch="///", label=BEYOND))
        figure.legend(handles=handles, loc="outside lower left", ncols=3)
        return panel(figure, name, title)
