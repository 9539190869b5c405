"""Figures that judge a fit: against the data, on runs it has not seen, beside published constants.

Every run is a mark that names it.  Residuals and errors are in percent of the loss and stand
beside the noise floor, which is the best that any law could do.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
import pandas as pd

from fitting.figures.style import (
    BLUE,
    INK,
    MARKERS,
    PANEL_WIDTH,
    STYLE,
    Panel,
    legend_below,
    legend_inches,
    new_figure,
    panel,
    ratio_axis,
)
from fitting.figures.svg import tag
from fitting.fit.evidence import HeldOut
from fitting.fit.fit_file import SavedFit
from fitting.law.conclusion import UNKNOWN
from fitting.naming import TableRow, records
from fitting.words import count_label, interval, number, percent, whole

MANY_MARKS = 800
"""Marks beyond which a cloud of points becomes a bitmap inside the SVG, to keep it small."""
FARTHEST = 1e3
"""Ratio of a parameter to its published value, or its inverse, that is the figure's edge."""


def predicted_v_observed(
    rows: pd.DataFrame, order: Sequence[str], colours: Mapping[str, str], noise_log: float
) -> list[Panel]:
    """Two panels: observed against predicted loss, and residuals in percent of the loss.

    Args:
        rows: The fitted runs: `format`, `loss`, `predicted` (nats per token), `params`, `tokens`;
            `run_id` and `seed` where there are such columns.
        order: Formats in the order of the legend.
        colours: Format -> colour.
        noise_log: Standard deviation of log loss between seeds; shaded, NaN shades nothing.
    """
    shown = [name for name in order if name in set(rows["format"])]
    rows = rows.assign(residual=100 * np.log(rows["loss"] / rows["predicted"]))
    bitmap = len(rows) > MANY_MARKS
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
                mine = rows[rows["format"] == label]
                (marks,) = axes.plot(
                    mine["predicted"], mine["loss" if name == "fit" else "residual"],
                    MARKERS[i % len(MARKERS)], color=colours[label], alpha=0.85, markersize=4.7,
                    label=label, rasterized=bitmap,
                )  # fmt: skip
                tag(marks, label, [] if bitmap else [_run_words(run) for run in records(mine)])
            axes.set_xlabel("predicted loss, nats per token")
            axes.set_ylabel("observed loss" if name == "fit" else "observed − predicted, %")
            axes.set_title(title)
            legend_below(figure, axes)
            panels.append(panel(figure, name, title))
    return panels


def _run_words(run: TableRow) -> str:
    """The words shown under a pointer over a run's mark."""
    name = [str(run.run_id)] if hasattr(run, "run_id") else []
    seed = f", seed {whole(run.seed)}" if hasattr(run, "seed") and pd.notna(run.seed) else ""
    counts = f"{count_label(run.params)} parameters, {count_label(run.tokens)} tokens{seed}"
    off = percent(run.residual / 100, sign=True)
    law = f"loss {run.loss:.4f}, predicted {run.predicted:.4f} ({off})"
    return "\n".join([*name, f"{run.format}, {counts}", law])


def held_out(held: HeldOut | None, noise_log: float) -> list[Panel]:
    """Errors on runs that the law was not fitted to: mean and spread, beside the noise floor.

    Args:
        held: What was held out, if anything.
        noise_log: As in `predicted_v_observed`.

    Returns:
        No panel where nothing was held out.
    """
    entries = [] if held is None else held.named
    if not entries:
        return []
    with mpl.rc_context(STYLE):
        figure = new_figure(PANEL_WIDTH, 1.1 + 0.34 * len(entries))
        axes = figure.add_subplot()
        axes.axvline(0.0, color=INK, linewidth=0.9)
        if np.isfinite(noise_log):
            axes.axvspan(-100 * noise_log, 100 * noise_log, color=INK, alpha=0.10, linewidth=0)
        for y, (name, entry) in enumerate(entries):
            rms, bias = (math.nan if v is None else v for v in (entry.rms, entry.bias))
            mean = 100 * bias
            spread = 100 * np.sqrt(max(rms**2 - bias**2, 0.0))
            beyond = entry.extrapolated
            axes.plot(
                [mean - spread, mean + spread], [y, y], color=BLUE, linewidth=3.0,
                alpha=0.5 if beyond else 1.0, linestyle=(0, (1, 0.6)) if beyond else "-",
            )  # fmt: skip
            (mark,) = axes.plot(mean, y, "o", color=BLUE, markersize=8)
            if beyond:
                mark.set(markerfacecolor="none", markeredgewidth=1.4)
            errors = f"{percent(entry.bias, sign=True)}, rms {percent(entry.rms)}"
            tag(mark, "", [f"{name} held out: {entry.rows} runs\nmean error {errors}"])
        axes.set_yticks(range(len(entries)), [name for name, _ in entries])
        axes.set_ylim(len(entries) - 0.5, -0.5)
        axes.tick_params(axis="y", length=0)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("observed − predicted, % of the loss")
        return [panel(figure, "held_out", "Errors on runs that the law was not fitted to")]


def beside_published(fit: SavedFit) -> list[Panel]:
    """Each parameter over its published value with both intervals; no panel if none is published.

    Args:
        fit: fit.json as read.
    """
    published = {} if fit.model.published is None else fit.model.published.parameters
    found = {n: v for n, v in fit.parameters.items() if published.get(n) and v and v > 0}
    names = list(found)
    if not names:
        return []
    with mpl.rc_context(STYLE):
        figure = new_figure(PANEL_WIDTH, 1.1 + 0.34 * len(names))
        axes = figure.add_subplot()
        axes.axvline(1.0, color=INK, linewidth=0.9)
        axes.set_xscale("log")
        for y, name in enumerate(names):
            value, known = found[name], published[name]
            profile = fit.profile_intervals.get(name, UNKNOWN)
            for (low, high), width, mark in ((profile, 1.1, "|"), (fit.interval(name), 3.0, "")):
                if low is not None or high is not None:
                    ends = _shown((low or 0.0) / known), _shown((high or np.inf) / known)
                    axes.plot(
                        ends, [y, y], color=BLUE, linewidth=width, marker=mark, markeredgewidth=1.1
                    )
            (value_mark,) = axes.plot(_shown(value / known), y, "o", color=BLUE, markersize=7)
            words = f"{name} = {number(value)} ({interval(fit.interval(name))})"
            tag(value_mark, "", [f"{words}\npublished: {number(known)}"])
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.tick_params(axis="y", length=0)
        axes.grid(visible=False, axis="y")
        ratio_axis(axes.xaxis)
        axes.set_xlabel("this study over the published value")
        return [panel(figure, "parameters", "Parameters over their published values")]


def _shown(ratio: float) -> float:
    return float(np.clip(ratio, 1 / FARTHEST, FARTHEST))
