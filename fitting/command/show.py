"""A fit in the terminal: its parameters, how far to trust them, and every conclusion."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fitting.analysis.conditions import HOLDS_FOR
from fitting.command.expected import FILE
from fitting.fit.fit_file import SavedFit
from fitting.page.conclusions import views
from fitting.page.tables import View, comparison, held_out, predicted
from fitting.words import open_interval

if TYPE_CHECKING:
    import pandas as pd

FILE_WIDTH = 150
MOST_ROWS = 16
"""Rows of a conclusion that are printed; fit.json has them all."""


def show(fit: SavedFit, out: Path) -> None:
    """Print what fit.json holds.

    Args:
        fit: The fit as written.
        out: The folder of its fit.json.
    """
    # Into a file or a pipe there is room; Rich would assume 80 columns.
    console = Console(highlight=False, width=None if sys.stdout.isatty() else FILE_WIDTH)
    console.print(f"[bold]{fit.law}[/] ({fit.source})")
    console.print(_parameters(fit))
    summary = _summary(fit)
    width = max(map(len, summary)) + 2
    for key, text in summary.items():
        console.print(f"  {key:{width}s}{text}", markup=False)
    console.print()
    for view in (predicted(fit), held_out(fit), comparison(fit), *views(fit)):
        if view is None:
            continue
        console.print(_conclusion(view))
        if len(view.rows) > MOST_ROWS:
            more = len(view.rows) - MOST_ROWS
            console.print(f"  {more} more rows are in {out / 'fit.json'}", markup=False)
        console.print(view.note, style="dim", markup=False)
        console.print()
    for name, reason in fit.not_computed.items():
        console.print(f"no {name}: {reason}", style="dim", markup=False)
    for warning in fit.warnings:
        console.print(f"warning: {warning}", style="yellow", markup=False)
    console.print(f"wrote {out / 'fit.json'}", markup=False, soft_wrap=True)


def _summary(fit: SavedFit) -> dict[str, str]:
    """The facts by which to judge a fit, by term."""
    objective, starts, rows = fit.objective, fit.starts, fit.rows
    delta = f", delta {objective.delta:g}" if objective.delta is not None else ""
    if objective.overestimate is not None:
        delta += f", runs below the law {objective.overestimate:g} times"
    excluded = "".join(f", {count} {reason}" for reason, count in rows.excluded.items())
    floor = fit.noise_floor.std_log
    summary = {
        "status": fit.status,
        "objective": f"{_figure(objective.value, 9)} ({objective.name}{delta}, sum over rows)",
        "starts": f"{starts.agreeing} of {starts.tried} agree",
        "rows": f"{rows.used} used{excluded}",
        "noise floor": "unknown" if floor is None else f"{100 * floor:.3g} % of loss",
    }
    if fit.information is not None:
        aic, bic = fit.information.aic, fit.information.bic
        summary["information"] = f"AIC {_figure(aic)}, BIC {_figure(bic)}"
    for key, column in (("weights", fit.weights), ("cluster", fit.cluster)):
        if column:
            summary[key] = column
    for name, ends in fit.bounds.items():
        summary[f"bounds {name}"] = open_interval(ends)
    if holds := fit.concluded.of(HOLDS_FOR):
        for column, values in (("operands", holds.operands), ("recipe", holds.recipe)):
            if values:
                summary[f"holds for {column}"] = "; ".join(values)
    return summary


def show_expected(expected: pd.DataFrame, out: Path) -> None:
    """Print the result of `fitting.command.expected.expected_intervals`."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else FILE_WIDTH)
    table = Table(box=SIMPLE_HEAD)
    table.add_column("parameter")
    for header in ("assumed", "expected 95 % interval"):
        table.add_column(header, justify="right")
    for name, row in expected.iterrows():
        ends = f"{_figure(row['low'])} to {_figure(row['high'])}"
        table.add_row(str(name), _figure(row["assumed"]), ends)
    console.print(table)
    fits = int(expected["fits"].iloc[0])
    console.print(f"of {fits} fits to made-up losses; wrote {out / FILE}", soft_wrap=True)


def _parameters(fit: SavedFit) -> Table:
    table = Table(box=SIMPLE_HEAD)
    for header in ("parameter", "value", "95 % interval", "profile", "std. error", "identified"):
        left = header == "parameter"  # its names are never cut: schemes may differ at the end
        table.add_column(header, justify="left" if left else "right", overflow="fold")
    for name, value in fit.parameters.items():
        table.add_row(
            escape(name),
            _figure(value, 6),
            open_interval(fit.interval(name)),
            open_interval(fit.profile_intervals.get(name)),
            _figure(fit.standard_errors.get(name)),
            "frozen" if name in fit.frozen else "yes" if fit.identified.get(name) else "NO",
        )
    return table


def _conclusion(view: View) -> Table:
    """A conclusion's first rows; those beyond the data are dim and marked."""
    table = Table(title=f"[bold]{view.title}[/]", title_justify="left", box=SIMPLE_HEAD)
    for title, kind in view.header:
        table.add_column(title, justify="right" if kind == "num" else "left", overflow="fold")
    for kind, cells in view.rows[:MOST_ROWS]:
        if kind == "group":
            table.add_section()
        style = {"muted": "dim", "group": "bold"}.get(kind)
        table.add_row(*map(escape, cells), style=style)
    return table


def _figure(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}g}"
