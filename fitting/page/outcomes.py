"""What was run: the facts of a study, its outcomes with their reasons and cost, its grid.

None of it needs a loss; what went wrong stands beside what was planned.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from fitting.figures.style import BLUE, INK, ORANGE, PANEL_WIDTH, STYLE, Panel, new_figure, panel
from fitting.figures.svg import tag
from fitting.files.own_json import JsonObject
from fitting.naming import TableRow
from fitting.page.study import Study
from fitting.page.tables import View
from fitting.results.record import STATUSES
from fitting.results.table import SUPERSEDED
from fitting.words import at, count_label, duration, number, plural

LISTED = 24
"""Values that are listed one by one; of more, the page gives the count and the range."""
MOST_COLUMNS = 24
"""Combinations of size and tokens drawn; more cannot be told apart in a panel."""
ROOM = 0.3
"""Share of a panel's width in which "98.3k parameters" can stand."""
MOST_REASONS = 12
"""Reasons in the table of outcomes, the most frequent first."""


def facts(study: Study) -> list[tuple[str, str]]:
    """What was run, as terms and values."""
    table = study.table
    found: list[tuple[str, str]] = []
    if table.empty:
        return found

    def distinct(column: str, words: Callable[[TableRow], str] = str) -> str | None:
        if column not in table:
            return None
        values = sorted(set(table[column].dropna()) - {""})
        if len(values) > LISTED:
            return f"{len(values):,} values, {words(values[0])} to {words(values[-1])}"
        return ", ".join(words(value) for value in values) if values else None

    for term, value in (
        ("Model sizes", distinct("params", count_label)),
        ("Training tokens", distinct("tokens", count_label)),
        ("Formats", ", ".join(_formats(study))),
        ("Recipes", distinct("recipe")),
        ("Operands quantized", distinct("operands")),
        ("Seeds", distinct("seed", lambda value: number(value, 12))),
        ("Corpus", distinct("corpus")),
        ("Quantizer", distinct("quantize_backend")),
    ):
        if value:
            found.append((term, value))
    for key, values in study.about.get("provenance", {}).items():
        if key == "git_dirty":
            said = {"True": "yes", "False": "no"}
            found.append(("Uncommitted changes", ", ".join(said.get(v, v) for v in values)))
        else:
            found.append((key.replace("_", " ").capitalize(), ", ".join(values)))
    return found


def counts(study: Study) -> list[tuple[str, int]]:
    """Runs by outcome; missing = planned, but with neither a result nor a failure."""
    status = study.table["status"].value_counts()
    found = [(name, int(status.get(name, 0))) for name in STATUSES]
    found += [(str(name), int(n)) for name, n in sorted(status.items()) if name not in STATUSES]
    planned = study.about.get("planned")
    if planned:
        there = set(study.table["run_id"]) if "run_id" in study.table else set()
        found.append(("missing", len(set(planned) - there)))
    return found


def outcomes(table: pd.DataFrame) -> View | None:
    """Runs, device time and FLOPs by outcome and its reason; None if only runs could be counted.

    Args:
        table: A results table; `wall_seconds`, `flops`, `reason`, `format` as far as there are
            such columns.
    """
    costs = {"wall_seconds", "flops"} & set(table)
    if table.empty or (not costs and (table["status"] == "finished").all()):
        return None
    given = table.get("reason", pd.Series("", index=table.index))
    table = table.assign(reason=["" if pd.isna(word) else str(word) for word in given])
    entries: list[JsonObject] = []
    key: TableRow
    for key, group in table.groupby(["status", "reason"], sort=True):
        status, why = key
        entries.append(
            {
                "status": status,
                "reason": why,
                "runs": len(group),
                "device_hours": _sum(group, "wall_seconds") / 3600,
                "flops": _sum(group, "flops"),
                "formats": ", ".join(sorted(set(group["format"]))),
            }
        )
    entries.sort(key=lambda e: (*_place(e["status"]), -e["runs"], e["reason"]))
    data = pd.DataFrame(entries)
    shown = entries[:MOST_REASONS]
    totals = {key: float(data[key].sum(skipna=False)) for key in ("device_hours", "flops")}
    rows = []
    for e in shown:
        cells = [e["status"], str(e["runs"]), _hours(e["device_hours"]), number(e["flops"], 3)]
        lost = e["status"] != "finished"
        rows.append(("muted" * lost, [*cells, e["reason"] or "–", e["formats"] if lost else "–"]))
    total = [_hours(totals["device_hours"]), number(totals["flops"], 3)]
    rows.append(("total", ["all", str(len(table)), *total, "", ""]))
    header = [("outcome", ""), ("runs", "num"), ("device time", "num"), ("FLOPs", "num"),
              ("reason", "wide"), ("formats", "wide")]  # fmt: skip
    if {e["status"] for e in entries} == {"finished"}:  # nothing that needs a reason
        header, rows = header[:4], [(kind, cells[:4]) for kind, cells in rows]
    note = "Device time: wall time over all attempts, on the one device or process that a run has."
    if len(entries) > len(shown):
        note += f" The CSV file also has {plural(len(entries) - len(shown), 'rarer reason')}."
    return View("outcomes", header, rows, data, "Outcomes and cost", note)


def _formats(study: Study) -> list[str]:
    """The formats of a study; of one that tunes bases, theirs alone, without the adapters."""
    return study.order if study.tuning is None else sorted(set(study.tuning.cells["base"]))


def _place(status: str) -> tuple[int, str]:
    """Place of an outcome in a list: ours in their order, then a foreign table's."""
    return (STATUSES.index(status) if status in STATUSES else len(STATUSES)), status


def _sum(group: pd.DataFrame, column: str) -> float:
    return float(group[column].sum()) if column in group else float("nan")


def _hours(hours: float) -> str:
    return duration(3600 * hours) if np.isfinite(hours) else "–"


def grid(table: pd.DataFrame, order: Sequence[str]) -> list[Panel]:
    """Runs by format, size and tokens: how many, and where some diverged or failed.

    Args:
        table: One row per run: `format`, `params`, `tokens`, `status`; `reason` where there is one.
        order: Formats from top to bottom.

    Returns:
        No panel where there are more combinations of size and tokens than can be drawn.
    """
    table = table[table["status"] != SUPERSEDED]
    columns = sorted(set(zip(table["params"], table["tokens"], strict=True)))
    names = [name for name in order if name in set(table["format"])]
    if not 0 < len(columns) <= MOST_COLUMNS or len(names) > 2 * LISTED:
        return []
    with mpl.rc_context(STYLE):
        figure = new_figure(PANEL_WIDTH * 1.15, 1.4 + 0.27 * len(names))
        axes = figure.add_subplot()
        key: TableRow
        for key, runs in table.groupby(["format", "params", "tokens"]):
            name, params, tokens = key
            x, y = columns.index((params, tokens)), names.index(str(name))
            said = runs["status"].value_counts()
            lost = len(runs) - int(said.get("finished", 0))
            colour, alpha = (ORANGE, 0.75) if lost else (BLUE, 0.28)
            box = Rectangle((x - 0.46, y - 0.44), 0.92, 0.88, linewidth=0)
            box.set(facecolor=colour, alpha=alpha)
            axes.add_patch(box)
            words = ", ".join(f"{said[s]} {s}" for s in sorted(said.index, key=_place))
            reasons = sorted(set(runs.get("reason", pd.Series(dtype=str)).dropna()) - {""})
            tag(box, "", ["\n".join([f"{name}", at(params, tokens), words, *reasons[:2]])])
            text = f"{len(runs) - lost}/{len(runs)}" if lost else str(len(runs))
            axes.text(x, y, text, ha="center", va="center", fontsize=9 if len(columns) < 13 else 7)
        axes.set_xlim(-0.5, len(columns) - 0.5)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.set_yticks(range(len(names)), names)
        axes.set_xticks(range(len(columns)), [count_label(tokens) for _, tokens in columns])
        if len(columns) > 8:
            axes.tick_params(axis="x", rotation=90)
        _size_headings(axes, [params for params, _ in columns])
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
        axes.set_xlabel("training tokens, under each model size")
        return [panel(figure, "grid", "Runs by format, size and tokens")]


def _size_headings(axes: Axes, sizes: Sequence[float]) -> None:
    """The size above its columns, separated from the next by a line."""
    each = [sizes.count(size) for size in sorted(set(sizes))]
    words = " parameters" if min(each) / len(sizes) >= ROOM else ""
    for size in sorted(set(sizes)):
        first, count = sizes.index(size), sizes.count(size)
        axes.annotate(
            f"{count_label(size)}{words}", (first + (count - 1) / 2, 1.0), xytext=(0, 4),
            xycoords=("data", "axes fraction"), textcoords="offset points", ha="center",
            fontweight="bold", fontsize=9.5,
        )  # fmt: skip
        if first:
            axes.axvline(first - 0.5, color=INK, linewidth=0.8)
