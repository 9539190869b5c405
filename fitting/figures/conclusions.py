"""Figures of what a fitted law says: each beside its table, under the table's name.

What goes beyond the data is dashed or hatched, and a legend or a label says "extrapolated".
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from fitting.analysis.trades import cost_formula
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
from fitting.words import BEYOND, count_label, number, open_interval, whole

MOST_LINES = 6
"""Formats drawn in one panel."""
LEAST_PERCENT = 0.1
"""What more is needed than that is drawn."""


def conclusions(
    fit: Mapping[str, Any], rows: pd.DataFrame, colours: Mapping[str, str]
) -> dict[str, list[Panel]]:
    """The figures that a fit supports, by the name of the table they stand beside.

    Args:
        fit: fit.json as read.
        rows: The runs of the page that have a loss.
        colours: Format -> colour, as in the other figures of the page.
    """
    derived = fit.get("derived", {})
    drawn: dict[str, list[Panel]] = {}
    shares = [row for row in derived.get("layouts", []) if row["bits"] <= 8 and row["shares"]]
    if shares:
        drawn["layouts"] = layout_shares(shares)
    if derived.get("cost_of_bits"):
        drawn["cost_of_bits"] = cost_of_bits(derived["cost_of_bits"])
    if derived.get("efficiencies"):
        drawn["efficiencies"] = efficiencies(derived["efficiencies"])
    critical = _lines([row for row in derived.get("critical_tokens", []) if row["tokens"]])
    if critical:
        drawn["critical_tokens"] = critical_tokens(critical, float(rows["tokens"].max()), colours)
    optimal = derived.get("optimal_precision", {})
    for name, key, axis in (
        ("bits_for_tokens", "fixed_tokens", "tokens"),
        ("bits_jointly", "joint", "cost"),
    ):
        if len(optimal.get(key, [])) > 1:
            drawn[name] = optimal_bits(optimal[key], axis, name, cost_formula(derived))
    if derived.get("map"):
        drawn["map"] = precision_map(fit, rows)
    return drawn


def layout_shares(layouts: Sequence[Mapping[str, Any]]) -> list[Panel]:
    """Stacked bars: in what share of bootstrap draws each exponent/mantissa split wins.

    One hue, darker = more often: these are layouts of the law, not formats of the study, so
    they take no format's colour.  Hatched bars lie outside the bits that were trained.

    Args:
        layouts: Rows of fit.json's `derived.layouts`: `bits`, `shares`, `extrapolated`.
    """
    with mpl.rc_context(STYLE):
        figure = new_figure(PANEL_WIDTH * 1.15, 0.9 + 0.42 * len(layouts))
        axes = figure.add_subplot()
        for y, row in enumerate(layouts):
            left = 0.0
            ranked = sorted(row["shares"].items(), key=lambda item: (-item[1], item[0]))
            for rank, (name, share) in enumerate(ranked):
                shade = (0.95, 0.55, 0.33, 0.2)[min(rank, 3)] * (0.45 if row["extrapolated"] else 1)
                [bar] = axes.barh(y, share, left=left, height=0.72, color=BLUE, alpha=shade)
                tag(bar, "", [f"{row['bits']} bits: {name}\nwins {100 * share:.1f} % of draws"])
                if share >= 0.09:
                    text = f"{name} {100 * share:.0f}%"
                    white = shade > 0.6
                    axes.text(
                        left + share / 2, y, text if share >= 0.17 else name, ha="center",
                        va="center", fontsize=9.5, color="#ffffff" if white else INK,
                    )  # fmt: skip
                left += share
            if row["extrapolated"]:
                axes.barh(
                    y, left, height=0.72, facecolor="none", edgecolor=BLUE, hatch="///", linewidth=0
                )
        labels = [f"{row['bits']} bits" for row in layouts]
        axes.set_yticks(range(len(layouts)), labels)
        axes.set_ylim(len(layouts) - 0.5, -0.5)
        axes.set_xlim(0, 1)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f}%"))
        axes.tick_params(axis="y", length=0)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("share of bootstrap draws")
        if any(row["extrapolated"] for row in layouts):
            label = f"{BEYOND}: no run had so many bits"
            handle = Patch(facecolor="none", edgecolor=BLUE, hatch="///", linewidth=0, label=label)
            figure.legend(handles=[handle], loc="outside lower left")
        title = "How often each exponent/mantissa split wins in the bootstrap"
        return [panel(figure, "layout_shares", title)]


def cost_of_bits(entries: Sequence[Mapping[str, Any]]) -> list[Panel]:
    """How many percent more parameters, or tokens, make up for so few bits.

    Args:
        entries: fit.json's `derived.cost_of_bits`.
    """
    with mpl.rc_context(STYLE):
        figure = new_figure(PANEL_WIDTH, 3.4 + 2 * legend_inches(["parameters, extrapolated"] * 4))
        axes = figure.add_subplot()
        for i, (key, what, colour) in enumerate(
            (("params_factor", "parameters", BLUE), ("tokens_factor", "tokens", ORANGE))
        ):
            least = 1 + LEAST_PERCENT / 100
            some = [e for e in entries if e[key] is not None and e[key] > least]
            points = [
                (e["bits"] + 0.12 * (i - 0.5), e[key], e[f"{key}_interval"], e["extrapolated"])
                for e in some
            ]
            tips = [
                f"{e['bits']} bits: {100 * (e[key] - 1):,.3g} % more {what}\n"
                f"(factor {open_interval(e[f'{key}_interval'])})"
                for e in some
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


def _lines(entries: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """Rows of fit.json's `derived.critical_tokens` by format, smallest size first.

    Formats of one size only are left out, and of many all but a few, evenly spaced.
    """
    lines: dict[str, list[Mapping[str, Any]]] = {}
    blocks = {row.get("block_size") for row in entries}
    for row in sorted(entries, key=lambda row: float(row["params"])):
        block = f"/{whole(row['block_size'])}" if len(blocks) > 1 else ""
        lines.setdefault(f"{row['format']}{block}", []).append(row)
    names = [name for name in lines if len(lines[name]) > 1]
    if len(names) > MOST_LINES:
        steps = np.linspace(0, len(names) - 1, MOST_LINES).round().astype(int)
        names = [names[i] for i in steps]
    return {name: lines[name] for name in names}


def critical_tokens(
    lines: Mapping[str, Sequence[Mapping[str, Any]]], longest: float, known: Mapping[str, str]
) -> list[Panel]:
    """Critical data size against model size, a line a format, beyond the longest run hatched.

    Args:
        lines: Format -> its rows of fit.json's `derived.critical_tokens`, those that are finite.
        longest: The largest token count that was trained.
        known: Colours of the formats of the study; used where it has them all.
    """
    names = list(lines)
    colours = known if set(names) <= set(known) else format_colours(names)
    with mpl.rc_context(STYLE):
        figure = new_figure(PANEL_WIDTH, 3.4 + legend_inches([*names, BEYOND]))
        axes = figure.add_subplot()
        for i, (name, rows) in enumerate(lines.items()):
            points = [(r["params"], r["tokens"], r["interval"], r["extrapolated"]) for r in rows]
            x, y = [p[0] for p in points], [p[1] for p in points]
            beyond = any(p[3] for p in points)
            style = (0, (4, 2)) if beyond else "-"
            (line,) = axes.plot(x, y, color=colours[name], linewidth=1.2, linestyle=style)
            tag(line, name)
            tips = [
                f"{name}, {count_label(r['params'])} parameters\ncritical at "
                f"{count_label(r['tokens'])} tokens ({_counts(r['interval'])})"
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
        count_axis(
            axes.xaxis, sorted({float(row["params"]) for rows in lines.values() for row in rows})
        )
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: count_label(value)))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("parameters")
        axes.set_ylabel("critical tokens")
        legend_below(figure, axes)
        return [panel(figure, "critical_tokens", "Critical data size against parameters by format")]


def optimal_bits(
    entries: Sequence[Mapping[str, Any]], axis: str, name: str, cost: str
) -> list[Panel]:
    """Compute-optimal bits against tokens or cost.

    Args:
        entries: fit.json's `derived.optimal_precision`, one of its lists.
        axis: The key of what is on the x axis: tokens or cost.
        name: The panel's.
        cost: What the cost is, as a formula.
    """
    with mpl.rc_context(STYLE):
        figure = new_figure(PANEL_WIDTH, 3.2 + legend_inches(["within the data", BEYOND]))
        axes = figure.add_subplot()
        points = [(e[axis], e["bits"], e["bits_interval"], e["extrapolated"]) for e in entries]
        for left, right in itertools.pairwise(points):
            beyond = left[3] or right[3]
            axes.plot(
                [left[0], right[0]], [left[1], right[1]], color=BLUE, linewidth=1.2,
                linestyle=(0, (4, 2)) if beyond else "-",
            )  # fmt: skip
        at = [
            f"{count_label(e[axis])} tokens" if axis == "tokens" else f"cost {number(e[axis], 3)}"
            for e in entries
        ]
        tips = [
            f"{where}\n{e['bits']:.2f} bits ({open_interval(e['bits_interval'])})"
            for where, e in zip(at, entries, strict=True)
        ]
        _points(axes, points, tips, "o", BLUE, "within the data", float)
        axes.set_xscale("log")
        if axis == "tokens":
            count_axis(axes.xaxis, [p[0] for p in points])
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("training tokens" if axis == "tokens" else f"cost {cost}")
        axes.set_ylabel("best bits")
        title = "for given data" if axis == "tokens" else "jointly with size and data"
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower left", ncols=2)
        return [panel(figure, name, f"Compute-optimal bits {title}")]


# --- pieces -----------------------------------------------------------------------------------


def _points(
    axes: Axes,
    points: Sequence[tuple[float, float, Sequence[float | None], bool]],
    tips: Sequence[str],
    marker: str,
    colour: str,
    label: str,
    scale: Any,
    name_beyond: bool = True,
) -> None:
    """Marks with their intervals, hollow and dashed where extrapolated.

    Args:
        axes: Drawn on.
        points: (x, y, interval or Nones, extrapolated).
        tips: What a pointer over each shows.
        marker: As matplotlib names it.
        colour: Of the marks.
        label: In the legend, with the word for extrapolated where name_beyond is set.
        scale: What is drawn, of y.
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


def _counts(bounds: Sequence[float | None]) -> str:
    """An interval of counts, open where it is infinite."""
    low, high = ("∞" if bound is None else count_label(bound) for bound in bounds)
    return "no interval" if bounds[0] is None else f"{low} to {high}"


def _plain_logs(axes: Axes, unit: str) -> None:
    """Decades of a logarithmic y axis as plain numbers with a unit."""
    axes.yaxis.set_major_locator(LogLocator(numticks=6))
    axes.yaxis.set_major_formatter(
        FuncFormatter(lambda value, _: f"{value:,.0f}{unit}" if value >= 1 else f"{value:g}{unit}")
    )
    axes.yaxis.set_minor_formatter(NullFormatter())
