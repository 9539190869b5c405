"""Pictures of fine-tuning: what a base loses by its format, and an adapter by its own."""

from __future__ import annotations

from collections.abc import Iterable

import matplotlib as mpl
import numpy as np
import pandas as pd

from fitting.figures.style import (
    INK,
    NONE_COLOUR,
    OKABE_ITO,
    PANEL_WIDTH,
    STYLE,
    Panel,
    count_axis,
    legend_below,
    new_figure,
    panel,
)
from fitting.figures.svg import tag
from fitting.naming import UNQUANTIZED, records
from fitting.results.table import ADAPTER_FORMAT, RANK
from fitting.words import at

WHOLE = "all weights"
_APART = 0.16
"""Share of a row's height between the marks in it."""


def by_base(cells: pd.DataFrame) -> list[Panel]:
    """One row per base, one mark per rank of adapters in high precision, and for all weights.

    Args:
        cells: `fitting.seeds.tuning.against_the_best`; the largest size and token count are drawn.
    """
    shown = largest(cells[np.isfinite(cells["difference"].astype(float))])
    shown = shown[shown[ADAPTER_FORMAT] == UNQUANTIZED]
    if shown.empty:
        return []
    beyond = "nats per token above the unquantized base, all weights tuned"
    return _rows(shown, base_names(shown), beyond, "lead", "What a base costs once it is tuned")


def by_bits(costs: pd.DataFrame) -> list[Panel]:
    """One row per format of adapters, one mark per rank.

    Args:
        costs: `fitting.seeds.tuning.cost_of_bits`; the largest size and token count are drawn.
    """
    if costs.empty:
        return []
    shown = largest(costs)
    beyond = "nats per token above the same adapter in high precision"
    title = "What an adapter loses by its own format"
    return _rows(shown, shown[ADAPTER_FORMAT], beyond, "tuning_bits", title)


def by_tokens(cells: pd.DataFrame) -> list[Panel]:
    """One panel per base: losses by tokens, one line per rank of adapters in high precision."""
    shown = cells[cells[ADAPTER_FORMAT] == UNQUANTIZED]
    shown = shown[shown["params"] == shown["params"].max()]
    counts = sorted(shown["tokens"].unique())
    if len(counts) < 2:
        return []
    shown = shown.assign(series=rank_names(shown), base=base_names(shown))
    low, high = shown["loss"].min(), shown["loss"].max()
    panels = []
    for number, (base, group) in enumerate(shown.groupby("base")):
        with mpl.rc_context(STYLE):
            figure = new_figure(PANEL_WIDTH, 3.6)
            axes = figure.add_subplot()
            for name, colour in _colours(shown["series"].unique()).items():
                rows = group[group["series"] == name].sort_values("tokens")
                (line,) = axes.plot(
                    rows["tokens"], rows["loss"], "o-", color=colour, markersize=5, label=name
                )
                tag(line, name, [f"{base}, {name}\nloss {loss:.4f}" for loss in rows["loss"]])
            axes.set_xscale("log")
            count_axis(axes.xaxis, counts)
            axes.set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low))
            axes.set_xlabel("tokens of tuning")
            axes.set_ylabel("loss, nats per token")
            axes.set_title(str(base))
            legend_below(figure, axes)
            panels.append(panel(figure, f"tuning_{number}", f"Loss by tokens, base {base}"))
    return panels


def base_names(cells: pd.DataFrame) -> pd.Series:
    """A base's format and when it was rounded, in words."""
    names: pd.Series = cells["base"] + cells["rounded"].map(lambda when: when and f", {when}")
    return names


def rank_names(cells: pd.DataFrame) -> pd.Series:
    """What is tuned, in words: a rank, or all weights."""
    names: pd.Series = cells[RANK].map(lambda rank: WHOLE if np.isnan(rank) else f"rank {rank:.0f}")
    return names


def largest(cells: pd.DataFrame) -> pd.DataFrame:
    """The cells of the largest size, at its largest token count."""
    size = cells[cells["params"] == cells["params"].max()]
    rows: pd.DataFrame = size[size["tokens"] == size["tokens"].max()]
    return rows


def _rows(
    shown: pd.DataFrame, labels: pd.Series, across: str, name: str, title: str
) -> list[Panel]:
    """Differences with their 95 % intervals: a row for each label, in it a mark for each rank."""
    order = list(shown.groupby(labels)["difference"].mean().sort_values().index)
    series = rank_names(shown)
    colours = _colours(series.unique())
    with mpl.rc_context(STYLE):
        figure = new_figure(PANEL_WIDTH * 1.4, 1.5 + 0.42 * len(order))
        axes = figure.add_subplot()
        axes.axvline(0.0, color=INK, linewidth=0.9)
        for k, (rank, colour) in enumerate(colours.items()):
            lift = (k - (len(colours) - 1) / 2) * _APART
            rows = shown[series == rank]
            y = np.array([order.index(label) for label in labels[rows.index]]) + lift
            axes.hlines(y, rows["low"], rows["high"], color=colour, linewidth=2.0)
            (marks,) = axes.plot(rows["difference"], y, "o", color=colour, markersize=6, label=rank)
            tag(marks, rank, [_words(f"{labels[i]}, {rank}", rows.loc[i]) for i in rows.index])
        axes.set_yticks(range(len(order)), order)
        axes.set_ylim(len(order) - 0.5, -0.5)
        axes.tick_params(axis="y", length=0)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel(across)
        first = records(shown)[0]
        axes.set_title(at(first.params, first.tokens))
        legend_below(figure, axes)
        return [panel(figure, name, title)]


def _words(what: str, row: pd.Series) -> str:
    low, high = f"{row['low']:+.4f}", f"{row['high']:+.4f}"
    return f"{what}\n{row['difference']:+.4f} ({low} to {high}), {row['pairs']:.0f} pairs"


def _colours(names: Iterable[str]) -> dict[str, str]:
    """A colour for each rank, in order, and grey for all weights."""
    ranks = sorted(set(names) - {WHOLE}, key=lambda name: int(name.split()[-1]))
    own = {name: OKABE_ITO[k % len(OKABE_ITO)] for k, name in enumerate(ranks)}
    return own | ({WHOLE: NONE_COLOUR} if WHOLE in names else {})
