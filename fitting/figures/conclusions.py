"""Figures of a fitted law's conclusions: each beside its table, under the table's name.

Whatever goes beyond the data is dashed or hatched, and a legend or a label says "extrapolated".
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from fitting.analysis.costs import COST_OF_BITS, Cost
from fitting.analysis.critical import CRITICAL_TOKENS, CriticalTokens
from fitting.analysis.efficiency import EFFICIENCIES
from fitting.analysis.layouts import LAYOUTS, Layout
from fitting.analysis.optima import OPTIMAL_PRECISION, OptimalPrecision, Optimum, cost_formula
from fitting.analysis.precision_map import MAP
from fitting.figures.efficiency import efficiencies, precision_map
from fitting.figures.style import (
    BLUE,
    INK,
    MARKERS,
    ORANGE,
    PANEL_WIDTH,
    STYLE,
    Panel,
    count_axis,
    format_colours,
    legend_below,
    legend_inches,
    new_figure,
    panel,
)
from fitting.figures.svg import tag
from fitting.fit.fit_file import SavedFit
from fitting.law.conclusion import UNKNOWN, AnyTable, Interval, Number, TableRows
from fitting.words import (
    BEYOND,
    by_share,
    count,
    count_label,
    interval,
    interval_of,
    number,
    open_interval,
    whole,
)

MOST_LINES = 6
"""Formats drawn in one panel."""
LEAST_PERCENT = 0.1
"""Percent of additional parameters or tokens below which nothing is drawn."""


def conclusions(
    fit: SavedFit, rows: pd.DataFrame, colours: Mapping[str, str]
) -> dict[str, list[Panel]]:
    """The figures that a fit supports, by the name of the table they stand beside.

    Args:
        fit: fit.json as read.
        rows: The runs of the page that have a loss.
        colours: Format -> colour, as in the other figures of the page.
    """
    found = fit.concluded
    drawn: dict[str, list[Panel]] = {}
    if shares := [row for row in found.of(LAYOUTS) or [] if row.bits <= 8 and row.shares]:
        drawn["layouts"] = layout_shares(shares)
    if costs := found.of(COST_OF_BITS):
        drawn["cost_of_bits"] = cost_of_bits(costs)
    if schemes := found.of(EFFICIENCIES):
        drawn["efficiencies"] = efficiencies(schemes)
    if critical := _lines([row for row in found.of(CRITICAL_TOKENS) or [] if row.tokens]):
        drawn["critical_tokens"] = critical_tokens(critical, float(rows["tokens"].max()), colours)
    optimal = found.of(OPTIMAL_PRECISION) or OptimalPrecision()
    if len(given := optimal.fixed_tokens or []) > 1:
        at = [(row.tokens, f"{count(row.tokens)} tokens", row) for row in given]
        drawn["bits_for_tokens"] = optimal_bits(at, "training tokens", "bits_for_tokens")
    if len(joint := optimal.joint or []) > 1:
        at = [(row.cost, f"cost {number(row.cost, 3)}", row) for row in joint]
        drawn["bits_jointly"] = optimal_bits(at, f"cost {cost_formula(found)}", "bits_jointly")
    if found.of(MAP):
        drawn["map"] = precision_map(fit, rows)
    for table, charted in fit.tables():
        if table.chart and (panels := chart(table, charted)):
            drawn[table.name] = panels
    return drawn


def layout_shares(layouts: Sequence[Layout]) -> list[Panel]:
    """Stacked bars: in what share of bootstrap draws each exponent/mantissa split wins.

    One hue, darker = more often: these are layouts of the law, not formats of the study, so
    they take no format's colour.  Hatched bars lie outside the bits that were trained.

    Args:
        layouts: Those that have shares.
    """
    with mpl.rc_context(STYLE):
        figure = new_figure(PANEL_WIDTH * 1.15, 0.9 + 0.42 * len(layouts))
        axes = figure.add_subplot()
        for y, row in enumerate(layouts):
            left = 0.0
            for rank, (name, share) in enumerate(by_share(row.shares)):
                shade = (0.95, 0.55, 0.33, 0.2)[min(rank, 3)] * (0.45 if row.extrapolated else 1)
                [bar] = axes.barh(y, share, left=left, height=0.72, color=BLUE, alpha=shade)
                tag(bar, "", [f"{row.bits} bits: {name}\nwins {100 * share:.1f} % of draws"])
                if share >= 0.09:
                    text = f"{name} {100 * share:.0f}%"
                    white = shade > 0.6
                    axes.text(
                        left + share / 2, y, text if share >= 0.17 else name, ha="center",
                        va="center", fontsize=9.5, color="#ffffff" if white else INK,
                    )  # fmt: skip
                left += share
            if row.extrapolated:
                axes.barh(
                    y, left, height=0.72, facecolor="none", edgecolor=BLUE, hatch="///", linewidth=0
                )
        labels = [f"{row.bits} bits" for row in layouts]
        axes.set_yticks(range(len(layouts)), labels)
        axes.set_ylim(len(layouts) - 0.5, -0.5)
        axes.set_xlim(0, 1)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f}%"))
        axes.tick_params(axis="y", length=0)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("share of bootstrap draws")
        if any(row.extrapolated for row in layouts):
            label = f"{BEYOND}: no run had so many bits"
            handle = Patch(facecolor="none", edgecolor=BLUE, hatch="///", linewidth=0, label=label)
            figure.legend(handles=[handle], loc="outside lower left")
        title = "How often each exponent/mantissa split wins in the bootstrap"
        return [panel(figure, "layout_shares", title)]


def cost_of_bits(entries: Sequence[Cost]) -> list[Panel]:
    """Percent of additional parameters, or tokens, that make up for few bits.

    Args:
        entries: The numbers of bits.
    """
    with mpl.rc_context(STYLE):
        figure = new_figure(PANEL_WIDTH, 3.4 + 2 * legend_inches(["parameters, extrapolated"] * 4))
        axes = figure.add_subplot()
        least = 1 + LEAST_PERCENT / 100
        for i, (factors, what, colour) in enumerate(
            (
                (
                    [(e.params_factor, e.params_factor_interval) for e in entries],
                    "parameters",
                    BLUE,
                ),
                ([(e.tokens_factor, e.tokens_factor_interval) for e in entries], "tokens", ORANGE),
            )
        ):
            some = [
                (e, factor, ends or UNKNOWN)
                for e, (factor, ends) in zip(entries, factors, strict=True)
                if factor is not None and factor > least
            ]
            points = [
                (float(e.bits or 0) + 0.12 * (i - 0.5), factor, ends, e.extrapolated)
                for e, factor, ends in some
            ]
            tips = [
                f"{e.bits} bits: {100 * (factor - 1):,.3g} % more {what}\n"
                f"(factor {open_interval(ends)})"
                for e, factor, ends in some
            ]
            _points(axes, points, tips, MARKERS[i], colour, what, lambda f: 100 * (f - 1))
        axes.set_yscale("log")
        axes.set_ylim(bottom=LEAST_PERCENT)  # intervals may reach further down
        _plain_logs(axes, "%")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("bits per element, at their best split")
        axes.set_ylabel("more needed for equal loss")
        legend_below(figure, axes)
        return [panel(figure, "cost_of_bits", "More parameters or tokens needed, by bits")]


def _lines(entries: Sequence[CriticalTokens]) -> dict[str, list[CriticalTokens]]:
    """Critical data sizes by format, smallest size first.

    Formats of one size only are left out; of many formats, only a few are kept, evenly spaced.
    """
    lines: dict[str, list[CriticalTokens]] = {}
    blocks = {row.block_size for row in entries}
    for row in sorted(entries, key=lambda row: row.params):
        block = "" if row.block_size is None or len(blocks) < 2 else f"/{whole(row.block_size)}"
        lines.setdefault(f"{row.format}{block}", []).append(row)
    names = [name for name in lines if len(lines[name]) > 1]
    if len(names) > MOST_LINES:
        steps = np.linspace(0, len(names) - 1, MOST_LINES).round().astype(int)
        names = [names[i] for i in steps]
    return {name: lines[name] for name in names}


def critical_tokens(
    lines: Mapping[str, Sequence[CriticalTokens]], longest: float, known: Mapping[str, str]
) -> list[Panel]:
    """Critical data size against model size, one line per format, beyond the longest run hatched.

    Args:
        lines: Format -> its critical data sizes, those that are finite.
        longest: The largest token count that was trained.
        known: Colours of the study's formats; used if they cover all of these.
    """
    names = list(lines)
    colours = known if set(names) <= set(known) else format_colours(names)
    with mpl.rc_context(STYLE):
        figure = new_figure(PANEL_WIDTH, 3.4 + legend_inches([*names, BEYOND]))
        axes = figure.add_subplot()
        for i, (name, rows) in enumerate(lines.items()):
            points = [(r.params, r.tokens or 0.0, r.interval, r.extrapolated) for r in rows]
            x, y = [p[0] for p in points], [p[1] for p in points]
            beyond = any(p[3] for p in points)
            style = (0, (4, 2)) if beyond else "-"
            (line,) = axes.plot(x, y, color=colours[name], linewidth=1.2, linestyle=style)
            tag(line, name)
            tips = [
                f"{name}, {count_label(r.params)} parameters\ncritical at "
                f"{count(r.tokens)} tokens ({_counts(r.interval)})"
                for r in rows
            ]
            marker = MARKERS[i % len(MARKERS)]
            _points(axes, points, tips, marker, colours[name], name, float, False)
        axes.set_xscale("log")
        axes.set_yscale("log")
        low, high = axes.get_ylim()
        if high > longest:
            axes.axhspan(
                max(longest, low), high, facecolor="none", edgecolor=to_rgba(INK, 0.16),
                hatch="///", linewidth=0, label=BEYOND,
            )  # fmt: skip
        axes.set_ylim(low, high)
        count_axis(axes.xaxis, sorted({row.params for rows in lines.values() for row in rows}))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: count_label(value)))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("parameters")
        axes.set_ylabel("critical tokens")
        legend_below(figure, axes)
        return [panel(figure, "critical_tokens", "Critical data size against parameters by format")]


def optimal_bits(
    entries: Sequence[tuple[Number, str, Optimum]], axis: str, name: str
) -> list[Panel]:
    """Compute-optimal bits against tokens or cost.

    Args:
        entries: For each optimum its place on the x axis, that place in words, and the optimum.
        axis: What is on the x axis.
        name: The panel's.
    """
    known = [
        (x, where, e, e.bits) for x, where, e in entries if x is not None and e.bits is not None
    ]
    with mpl.rc_context(STYLE):
        figure = new_figure(PANEL_WIDTH, 3.2 + legend_inches(["within the data", BEYOND]))
        axes = figure.add_subplot()
        points = [(x, bits, e.bits_interval, e.extrapolated) for x, _, e, bits in known]
        for left, right in itertools.pairwise(points):
            beyond = left[3] or right[3]
            axes.plot(
                [left[0], right[0]], [left[1], right[1]], color=BLUE, linewidth=1.2,
                linestyle=(0, (4, 2)) if beyond else "-",
            )  # fmt: skip
        tips = [
            f"{where}\n{bits:.2f} bits ({open_interval(e.bits_interval)})"
            for _, where, e, bits in known
        ]
        _points(axes, points, tips, "o", BLUE, "within the data", float)
        axes.set_xscale("log")
        if axis.endswith("tokens"):
            count_axis(axes.xaxis, [p[0] for p in points])
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel(axis)
        axes.set_ylabel("best bits")
        title = "for given data" if axis.endswith("tokens") else "jointly with size and data"
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower left", ncols=2)
        return [panel(figure, name, f"Compute-optimal bits {title}")]


def chart(table: AnyTable, rows: TableRows) -> list[Panel]:
    """A conclusion's rows as its table's chart says: marks with intervals, joined by lines.

    Args:
        table: With a chart.
        rows: Its rows; those without a number on either axis are left out.
    """
    how = table.chart
    assert how is not None
    lines: dict[str, list[object]] = {}
    for row in rows:
        if getattr(row, how.x) is not None and getattr(row, how.y) is not None:
            lines.setdefault(str(getattr(row, how.by)) if how.by else "", []).append(row)
    if not lines:
        return []
    titles = {"params": "parameters", "tokens": "training tokens"}
    x_title, y_title = (titles.get(name, name.replace("_", " ")) for name in (how.x, how.y))
    colours = format_colours(list(lines))
    with mpl.rc_context(STYLE):
        figure = new_figure(PANEL_WIDTH, 3.2 + legend_inches([*lines, BEYOND]))
        axes = figure.add_subplot()
        for i, (name, some) in enumerate(lines.items()):
            some.sort(key=lambda row: float(getattr(row, how.x)))
            points = [
                (
                    float(getattr(row, how.x)),
                    float(getattr(row, how.y)),
                    getattr(row, f"{how.y}_interval", None) or UNKNOWN,
                    bool(getattr(row, "extrapolated", False)),
                )
                for row in some
            ]
            colour = colours[name] if how.by else BLUE
            axes.plot([p[0] for p in points], [p[1] for p in points], color=colour, linewidth=1.2)
            tips = [
                f"{name}{', ' * bool(name)}{x_title} {number(x, 3)}\n"
                f"{y_title} {number(y)} ({interval(ends)})"
                for x, y, ends, _ in points
            ]
            label = name or "within the data"
            _points(axes, points, tips, MARKERS[i % len(MARKERS)], colour, label, float)
        if how.logarithmic:
            axes.set_xscale("log")
            axes.set_yscale("log")
        count_axis(axes.xaxis, sorted({float(getattr(row, how.x)) for row in rows}))
        axes.set_xlabel(x_title)
        axes.set_ylabel(y_title)
        legend_below(figure, axes)
        return [panel(figure, table.name, table.title)]


# --- pieces -----------------------------------------------------------------------------------


def _points(
    axes: Axes,
    points: Sequence[tuple[float, float, Sequence[float | None], bool]],
    tips: Sequence[str],
    marker: str,
    colour: str,
    label: str,
    scale: Callable[[float], float],
    name_beyond: bool = True,
) -> None:
    """Marks with their intervals, hollow and dashed where extrapolated.

    Args:
        axes: Drawn on.
        points: (x, y, interval or Nones, extrapolated).
        tips: The words shown under a pointer over each.
        marker: As matplotlib names it.
        colour: Colour of the marks.
        label: In the legend, with the word for extrapolated where name_beyond is set.
        scale: Function of y that is drawn.
        name_beyond: Whether hollow marks get a line of their own in the legend.
    """
    for beyond in (False, True):
        some = [p for p in points if p[3] is beyond]
        if not some:
            continue
        for x, _, (low, high), _ in some:
            if low is not None and high is not None and scale(low) > 0:
                (bar,) = axes.plot(
                    [x, x], [scale(low), scale(high)], color=colour, linewidth=1.1,
                    linestyle=(0, (2, 1.5)) if beyond else "-",
                )  # fmt: skip
                tag(bar, label)
        text = f"{label}, {BEYOND}" if beyond and name_beyond else label
        if label == "within the data":
            text = BEYOND if beyond else label
        if beyond and not name_beyond and len(some) < len(points):
            text = "_"
        (marks,) = axes.plot(
            [p[0] for p in some], [scale(p[1]) for p in some], marker, color=colour, markersize=7,
            markerfacecolor="none" if beyond else colour, markeredgewidth=1.2 * beyond,
            linestyle="", label=text,
        )  # fmt: skip
        tag(marks, label, [tip for p, tip in zip(points, tips, strict=True) if p[3] is beyond])


def _counts(bounds: Interval) -> str:
    """An interval of counts, open where it is infinite."""
    return "no interval" if bounds[0] is None else interval_of(bounds, count_label)


def _plain_logs(axes: Axes, unit: str) -> None:
    """Decades of a logarithmic y axis as plain numbers with a unit."""
    axes.yaxis.set_major_locator(LogLocator(numticks=6))
    axes.yaxis.set_major_formatter(
        FuncFormatter(lambda value, _: f"{value:,.0f}{unit}" if value >= 1 else f"{value:g}{unit}")
    )
    axes.yaxis.set_minor_formatter(NullFormatter())
