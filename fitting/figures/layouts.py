"""Figures of exponent and mantissa: the map of both, and the loss against one for each other.

Only one kind of format is drawn, those that differ in nothing but exponent and mantissa; if a study
has several (block sizes, scales, recipes), the one with the most splits, named by `kind_words`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from fitting.analysis.layouts import Layout
from fitting.figures.losses import cell_words
from fitting.figures.style import (
    INK,
    MARKERS,
    PANEL_WIDTH,
    STYLE,
    Panel,
    legend_below,
    legend_inches,
    new_figure,
    panel,
    shades,
    span,
)
from fitting.figures.svg import tag
from fitting.naming import records, sizes
from fitting.results.swept import is_key
from fitting.seeds.compare import SPLIT
from fitting.seeds.verdicts import WORSE
from fitting.words import count_label, number, signed, whole

KIND = ("granularity", "block_size", "scale", "recipe", "operands")
CLEAR = 0.3
"""Distance, in cells, at which the law's line no longer touches a number."""
MOST_SIZES = 3
"""Sizes drawn as small multiples: two panels each."""


def of_one_kind(cells: pd.DataFrame) -> pd.DataFrame:
    """The cells of the kind with the most splits, at the largest token count of each size.

    Args:
        cells: Quantized cells: `exponent`, `mantissa`, `params`, `tokens` and, as far as there are
            such columns, `KIND` and what was swept (`fitting.results.swept`).
    """
    columns = [str(name) for name in cells if name in KIND or is_key(name)]
    kind = cells[sorted(set(columns) - set(SPLIT))].copy()
    if "granularity" in cells:  # the block size of a row or tensor is the model's
        kind["block_size"] = kind["block_size"].where(cells["granularity"] == "block", 0.0)
    label = kind.apply(lambda row: "|".join(map(str, row)), axis=1)
    split = cells["exponent"].map(str) + "," + cells["mantissa"].map(str)
    cells = cells[label == split.groupby(label).nunique().idxmax()]
    longest: pd.DataFrame = cells[
        cells["tokens"] == cells.groupby("params")["tokens"].transform("max")
    ]
    return longest


def has_map(cells: pd.DataFrame) -> bool:
    """Whether cells of one kind vary in exponent and in mantissa."""
    return cells["exponent"].nunique() > 1 and cells["mantissa"].nunique() > 1


def kind_words(cells: pd.DataFrame) -> str:
    """What the drawn formats have in common: "scales per 32 values, e8m0; recipe sun"."""
    said = []
    if "granularity" in cells:
        who = cells["granularity"].iloc[0]
        block = f"{whole(cells['block_size'].iloc[0])} values" if who == "block" else who
        said.append(f"one scale per {block}")
    told = ["recipe", *(name for name in cells if is_key(name) and name not in SPLIT)]
    values = {name: cells[name].iloc[0] for name in told if name in cells}
    said += [f"{name} {value}" for name, value in values.items() if not pd.isna(value)]
    return ", ".join(said)


class Best(NamedTuple):
    """The law's best split of a number of bits, as real numbers."""

    bits: int
    exponent: float
    mantissa: float


def cost_map(cells: pd.DataFrame, layouts: Sequence[Layout]) -> list[Panel]:
    """Heat map of the difference from `none` over exponent and mantissa, one panel per size.

    Args:
        cells: `of_one_kind`, with `format`, `difference`, `standard_error`, `loss`, `verdict`.
        layouts: The law's best split by bits, which becomes a line.
    """
    top = float(cells["difference"].max())
    columns, rows = (_range(cells[name]) for name in ("exponent", "mantissa"))
    best = [
        Best(row.bits, row.exponent_opt, row.mantissa_opt)
        for row in layouts
        if row.exponent_opt is not None
        and row.mantissa_opt is not None
        and columns[0] - 0.5 <= row.exponent_opt <= columns[-1] + 0.5
        and rows[0] - 0.5 <= row.mantissa_opt <= rows[-1] + 0.5
    ]
    viridis = mpl.colormaps["viridis"]
    panels = []
    for size in sizes(cells):
        with mpl.rc_context(STYLE):
            figure = new_figure(PANEL_WIDTH, 1.25 + 0.46 * len(rows))
            axes = figure.add_subplot()
            for cell in records(cells[cells["params"] == size]):
                share = min(max(cell.difference / top, 0.0), 1.0) if top > 0 else 0.0
                # The root spreads out the many small differences below a few large ones.
                colour = viridis(0.12 + 0.83 * np.sqrt(share))
                x, y = float(cell.exponent), float(cell.mantissa)
                box = Rectangle((x - 0.47, y - 0.46), 0.94, 0.92, facecolor=colour, linewidth=0)
                axes.add_patch(box)
                tag(box, "", [cell_words(cell)])
                side, level = _free_corner(x, y, best)
                axes.text(
                    x + 0.43 * side, y + 0.27 * level, signed(cell.difference, 3),
                    ha="right" if side > 0 else "left", va="center", fontsize=9.0,
                    color="#111111" if np.sqrt(share) > 0.6 else "#ffffff",
                    fontstyle="normal" if cell.verdict == WORSE else "italic",
                )  # fmt: skip
            axes.set_xlim(columns[0] - 0.5, columns[-1] + 0.5)
            axes.set_ylim(rows[0] - 0.5, rows[-1] + 0.5)
            if best:
                _best_line(axes, best)
            axes.set_xticks(columns)
            axes.set_yticks(rows)
            axes.grid(visible=False)
            axes.spines[:].set_visible(False)
            axes.tick_params(length=0)
            axes.set_xlabel("exponent bits")
            axes.set_ylabel("mantissa bits")
            tokens = count_label(cells.loc[cells["params"] == size, "tokens"].iloc[0])
            axes.set_title(f"{count_label(size)} parameters, {tokens} tokens")
            title = f"Loss above none by exponent and mantissa at {count_label(size)} parameters"
            panels.append(panel(figure, f"layout_{size:.0f}", title))
    return panels


def _range(values: pd.Series) -> list[int]:
    return list(range(int(values.min()), int(values.max()) + 1))


def _free_corner(x: float, y: float, best: Sequence[Best]) -> tuple[int, int]:
    """The corner of a cell where a number stands clear of the line: right or left, up or down."""
    corners = [(1, -1), (1, 1), (-1, 1), (-1, -1)]
    if not best:
        return corners[0]
    steps = np.linspace(0, len(best) - 1, 20 * len(best))
    line_x, line_y = (
        np.interp(steps, range(len(best)), values)
        for values in ([row.exponent for row in best], [row.mantissa for row in best])
    )
    clear = [
        float(np.hypot(line_x - (x + 0.22 * side), line_y - (y + 0.27 * level)).min())
        for side, level in corners
    ]
    enough = [corner for corner, room in zip(corners, clear, strict=True) if room >= CLEAR]
    return enough[0] if enough else corners[int(np.argmax(clear))]


def _best_line(axes: Axes, inside: Sequence[Best]) -> None:
    """The law's best split by bits, real numbers of bits."""
    x = [row.exponent for row in inside]
    y = [row.mantissa for row in inside]
    axes.plot(x, y, color="#ffffff", linewidth=2.4, alpha=0.7)
    axes.plot(x, y, color="#111111", linewidth=1.0)
    (marks,) = axes.plot(
        x, y, "o", color="#ffffff", markeredgecolor="#111111", markeredgewidth=1.0, markersize=5
    )
    tips = [
        f"{row.bits} bits: the law's best split\n"
        f"exponent {number(row.exponent, 3)}, mantissa {number(row.mantissa, 3)}"
        for row in inside
    ]
    tag(marks, "", tips)


def cost_by_split(
    cells: pd.DataFrame, curves: pd.DataFrame | None, noise: Mapping[float, float]
) -> list[Panel]:
    """Difference from `none` against exponent bits for each mantissa, and the reverse.

    Args:
        cells: As in `cost_map`.
        curves: The law's difference on a grid: `params`, `exponent`, `mantissa`, `difference`, and
            `along` ("exponent" or "mantissa", which of them is not whole); None without.
        noise: Size -> standard deviation between seeds (nats per token), where it is known.

    Returns:
        Two panels per size, for at most `MOST_SIZES` of the largest sizes.
    """
    panels = []
    pairs = (("exponent", "mantissa"), ("mantissa", "exponent"))
    limits = _limits(cells)
    for size in sizes(cells)[-MOST_SIZES:]:
        for along, each in pairs:
            here = cells[cells["params"] == size]
            names = {value: f"{each} {value}" for value in _range(here[each])}
            names = {value: name for value, name in names.items() if (here[each] == value).any()}
            colours = shades(list(names.values()))
            with mpl.rc_context(STYLE):
                figure = new_figure(PANEL_WIDTH, 3.1 + legend_inches(list(names.values())))
                axes = figure.add_subplot()
                axes.axhline(0.0, color=INK, linewidth=0.9)
                for i, (value, name) in enumerate(names.items()):
                    points = here[here[each] == value].sort_values(along)
                    y, error = points["difference"], points["standard_error"]
                    bars = axes.vlines(points[along], y - error, y + error, colors=colours[name])
                    tag(bars, name)
                    if curves is not None:
                        line = curves[(curves["params"] == size) & (curves["along"] == along)]
                        line = line[line[each] == value]
                        (law,) = axes.plot(line[along], line["difference"], color=colours[name])
                        law.set_linewidth(1.2)
                        tag(law, name)
                    (marks,) = axes.plot(
                        points[along], points["difference"],
                        ("" if curves is not None else "-") + MARKERS[i % len(MARKERS)],
                        color=colours[name], markersize=7, linewidth=1.2, label=name,
                    )  # fmt: skip
                    tag(marks, name, [cell_words(cell) for cell in records(points)])
                span(axes.yaxis, *limits, noise.get(size, np.nan))
                axes.xaxis.set_major_locator(MaxNLocator(integer=True))
                axes.set_xlabel(f"{along} bits")
                axes.set_ylabel("loss above none, nats")
                only = f", {names.popitem()[1]}" if len(names) == 1 else ""  # it has no legend
                axes.set_title(f"{count_label(size)} parameters{only}")
                legend_below(figure, axes)
                title = f"Loss above none against {along} bits at {count_label(size)} parameters"
                panels.append(panel(figure, f"split_{along}_{size:.0f}", title))
    return panels


def _limits(cells: pd.DataFrame) -> tuple[float, float]:
    """Common y limits, so that small multiples can be compared by eye."""
    error = cells["standard_error"].fillna(0.0)
    low = min(float((cells["difference"] - error).min()), 0.0)
    high = float((cells["difference"] + error).max())
    return low, high
