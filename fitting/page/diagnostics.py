"""Quantization diagnostics on the page: QSNR per layer and operand over training.

A run leaves them in its `metrics.jsonl`: rows with the keys "qsnr_<operand>/<layer>", in dB.  A
results file may have a `diagnostics.csv` beside it with the same values, one column per layer.  As
a table they have the columns `COLUMNS`; everything here takes that table.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fitting.figures.style import (
    PANEL_WIDTH,
    STYLE,
    Panel,
    legend_below,
    legend_inches,
    new_figure,
    panel,
    shades,
)
from fitting.figures.svg import tag
from fitting.files.atomic import sha256_of
from fitting.files.own_json import ResultsError
from fitting.naming import TableRow, records
from fitting.page.tables import View
from fitting.results.record import DamagedWarning
from fitting.results.table import require_columns
from fitting.words import number

COLUMNS = ("run_id", "step", "layer", "operand", "value")
"""`step` in optimizer steps, `operand` one of P1..P6, `value` the QSNR in dB."""
_KEYS = ("run_id", "step", "operand")
METRICS = "metrics.jsonl"
FILE = "diagnostics.csv"
KEY = re.compile(r"qsnr_(?P<operand>P[1-6])/(?P<layer>.+)")
MOST_FORMATS = 7


def read(results: Path) -> tuple[pd.DataFrame, dict[str, str]]:
    """The diagnostics of a folder of runs, or those beside a results file; possibly without rows.

    Returns:
        The table, and the SHA-256 of each file with a row in it.

    Raises:
        ResultsError: A file is there but cannot be read.
    """
    if not results.is_dir():
        path = results.with_name(FILE)
        if not path.is_file():
            return pd.DataFrame(columns=list(COLUMNS)), {}
        try:
            table = pd.read_csv(path)
        except ValueError as error:
            raise ResultsError(f"{path}: cannot be read ({error})") from error
        require_columns(table, _KEYS, str(path))
        long = table.melt(list(_KEYS), var_name="layer").dropna(subset="value")
        return long[list(COLUMNS)].reset_index(drop=True), {FILE: sha256_of(path)}
    sums: dict[str, str] = {}
    rows: list[tuple[str, int, str, str, float]] = []
    for path in sorted(results.glob(f"*/{METRICS}")):
        if not path.is_file():  # reading a pipe would wait forever
            continue
        try:
            own = list(_of_run(path))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            line = f"{path}: not a row of metrics ({error}); its diagnostics are left out"
            warnings.warn(line, DamagedWarning, stacklevel=2)
            continue
        rows += own
        if own:
            sums[f"{path.parent.name}/{METRICS}"] = sha256_of(path)
    return pd.DataFrame(rows, columns=list(COLUMNS)), sums


def _of_run(path: Path) -> Iterator[tuple[str, int, str, str, float]]:
    """The diagnostics in a run's metrics, one row per value."""
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        if "qsnr_" not in line:
            continue
        row = json.loads(line)
        step = int(row["step"])
        for key, value in row.items():
            if match := KEY.fullmatch(key):
                yield path.parent.name, step, match["layer"], match["operand"], float(value)


def to_file(table: pd.DataFrame) -> str:
    """The text of a `diagnostics.csv`, values to four digits.

    Args:
        table: `COLUMNS`.
    """
    wide = table.pivot(index=list(_KEYS), columns="layer", values="value").sort_index()
    text: str = wide.to_csv(lineterminator="\n", float_format="%.4g")
    return text


def of_study(table: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
    """One run per format: of the largest size, then the most tokens, then the lowest seed.

    Args:
        table: `COLUMNS`.
        runs: The study's runs: `run_id`, `format`, `params`, `tokens`, `seed`.

    Returns:
        The table's rows of these runs, with `format`.
    """
    if table.empty or "run_id" not in runs:
        return table.iloc[:0].assign(format="")
    known = runs[runs["run_id"].isin(table["run_id"])]
    keys = [("params", False), ("tokens", False), ("seed", True), ("run_id", True)]
    present = [(name, up) for name, up in keys if name in known]
    known = known.sort_values([n for n, _ in present], ascending=[up for _, up in present])
    chosen = known.drop_duplicates("format")[["run_id", "format"]]
    return table.merge(chosen, on="run_id").sort_values(
        ["format", "operand", "layer", "step"], ignore_index=True
    )


def over_training(rows: pd.DataFrame, order: Sequence[str], colours: dict[str, str]) -> list[Panel]:
    """QSNR over training, one panel per operand, one line per format: median and band of layers.

    Args:
        rows: `of_study`.
        order: Formats in the order of the legend; at most `MOST_FORMATS` are drawn.
        colours: Format -> colour.
    """
    shown = [name for name in order if name in set(rows["format"])][:MOST_FORMATS]
    panels = []
    for operand, group in rows.groupby("operand", sort=True):
        here = [name for name in shown if name in set(group["format"])]
        with mpl.rc_context(STYLE):
            figure = new_figure(PANEL_WIDTH, 3.0 + legend_inches(here or [""]))
            axes = figure.add_subplot()
            for name in here:
                mine = group[group["format"] == name]
                found = mine.groupby("step")["value"].agg(["median", "min", "max"])
                band = axes.fill_between(
                    found.index, found["min"], found["max"], color=colours[name], alpha=0.16,
                    linewidth=0,
                )  # fmt: skip
                tag(band, name)
                (line,) = axes.plot(
                    found.index, found["median"], "-o", color=colours[name], markersize=5,
                    linewidth=1.2, label=name,
                )  # fmt: skip
                tips = [
                    f"{name}, {operand}, step {step:,}\nmedian {low['median']:.1f} dB\n"
                    f"worst {low['min']:.1f} dB: {_worst(mine, step)}"
                    for step, low in found.iterrows()
                ]
                tag(line, name, tips)
            _finish(figure, axes, f"{operand}")
            panels.append(panel(figure, f"qsnr_{operand}", f"QSNR of {operand} over training"))
    return panels


def _worst(rows: pd.DataFrame, step: TableRow) -> str:
    here = rows[rows["step"] == step]
    return str(here.loc[here["value"].idxmin(), "layer"])


def by_layer(rows: pd.DataFrame, order: Sequence[str]) -> list[Panel]:
    """QSNR of the format with the fewest bits: one panel per operand, one line per layer."""
    shown = [name for name in order if name in set(rows["format"])]
    panels: list[Panel] = []
    if not shown:
        return panels
    for operand, group in rows[rows["format"] == shown[0]].groupby("operand", sort=True):
        layers = list(dict.fromkeys(group["layer"]))
        colours = shades(layers)
        labels = layers if len(layers) <= MOST_FORMATS else []
        with mpl.rc_context(STYLE):
            figure = new_figure(PANEL_WIDTH, 3.0 + (legend_inches(labels) if labels else 0.0))
            axes = figure.add_subplot()
            for layer in layers:
                line = group[group["layer"] == layer]
                (marks,) = axes.plot(
                    line["step"], line["value"], "-o", color=colours[layer], markersize=4.5,
                    linewidth=1.1, label=layer if labels else None,
                )  # fmt: skip
                tips = [
                    f"{layer}\n{operand}, step {r.step:,}: {r.value:.1f} dB" for r in records(line)
                ]
                tag(marks, layer, tips)
            _finish(figure, axes, f"{operand}, {shown[0]}")
            title = f"QSNR of {operand} by layer, {shown[0]}"
            panels.append(panel(figure, f"qsnr_layers_{operand}", title))
    return panels


def _finish(figure: Figure, axes: Axes, title: str) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.set_xlabel("step")
    axes.set_ylabel("QSNR, dB")
    axes.set_title(title)
    legend_below(figure, axes)


def summary(rows: pd.DataFrame, order: Sequence[str]) -> View | None:
    """QSNR by format and operand: the mean layer at the start and the end, and the worst layer."""
    if rows.empty:
        return None
    entries: list[tuple[TableRow, ...]] = []
    for name in [name for name in order if name in set(rows["format"])]:
        for operand, group in rows[rows["format"] == name].groupby("operand", sort=True):
            by_step = group.groupby("step")["value"].mean()
            worst = group.groupby("layer")["value"].mean()
            entries.append(
                (name, operand, group["layer"].nunique(), by_step.iloc[0], by_step.iloc[-1],
                 worst.idxmin(), worst.min())
            )  # fmt: skip
    names = ["format", "operand", "layers", "first_db", "last_db", "worst_layer", "worst_db"]
    text = [
        ("", [f, o, str(n), *(number(v, 3) for v in (first, last)), w, number(low, 3)])
        for f, o, n, first, last, w, low in entries
    ]
    header = [("format", ""), ("operand", ""), ("layers", "num"), ("QSNR at the start", "num"),
              ("at the end", "num"), ("worst layer", ""), ("its QSNR", "num")]  # fmt: skip
    note = (
        "QSNR: energy of an operand over that of its quantization error, in dB; 6 dB are one bit. "
        "One run per format, the largest; means over layers; the worst layer has the lowest mean "
        "over training."
    )
    data = pd.DataFrame(entries, columns=names)
    return View("diagnostics", header, text, data, "QSNR by operand", note)
