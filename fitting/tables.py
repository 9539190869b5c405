"""The report's tables: each as text for the page and as data for its CSV file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from fitting.findings import interval, number, pinned, signed, z_score
from fitting.laws import BESIROGLU_2024, KUMAR_2024, KUMAR_2024_PTQ, QUARTET_2025, SUN_2025
from fitting.naming import UNQUANTIZED, count_label, records

ROWS_ON_PAGE = 800
"""A table longer than this goes on in its CSV file only: the page stays below 1 MB."""
PUBLISHED: Mapping[str, Mapping[str, float]] = {
    "floating_point": SUN_2025,
    "chinchilla": BESIROGLU_2024,
    "quartet": QUARTET_2025,
    "precision": KUMAR_2024,
    "ptq": KUMAR_2024_PTQ,
}


@dataclass(frozen=True)
class View:
    """One table: as text for the page and as data for its CSV file."""

    name: str
    header: list[tuple[str, str]]
    """(title, CSS class) of each column."""
    rows: list[tuple[str, list[str]]]
    """(CSS class, cells) of each row; a row of class `group` has one cell, its heading."""
    data: pd.DataFrame
    title: str = ""
    note: str = ""
    """What its columns mean, in a sentence or two."""

    @property
    def shown(self) -> list[tuple[str, list[str]]]:
        """The rows that the page holds."""
        return self.rows[:ROWS_ON_PAGE]


def losses(cells: pd.DataFrame, done: pd.DataFrame) -> View:
    """Losses by size, tokens and format, each against `none`.

    Args:
        cells: `fitting.uncertainty.compare_cells` with `format` and `params`.
        done: Runs with a loss: `format`, `params`, `tokens`, `loss`.
    """
    header = [("format", ""), ("above none", "num"), ("z", "num"),
              ("verdict", "verdict"), ("mean loss", "num"), ("seeds", "num"),
              ("bits", "num")]  # fmt: skip
    rows: list[tuple[str, list[str]]] = []
    base = done[done["format"] == UNQUANTIZED]
    key: Any
    for key, group in cells.groupby(["params", "tokens"], sort=True):
        params, tokens = key
        rows.append(("group", [f"{count_label(params)} parameters, {count_label(tokens)} tokens"]))
        none = base[(base["params"] == params) & (base["tokens"] == tokens)]["loss"]
        if len(none):
            text = [UNQUANTIZED, "", "", "baseline", _loss(none.mean()), str(len(none)), ""]
            rows.append(("none", text))
        for cell in records(group):
            verdict = str(cell.verdict)
            if not cell.seeds and not cell.diverged:
                verdict = "no result"
            elif cell.diverged and cell.seeds:
                verdict += f", {cell.diverged} of {cell.seeds + cell.diverged} diverged"
            difference = signed(cell.difference)
            if np.isfinite(cell.standard_error):
                difference += f" ± {number(cell.standard_error, 2)}"
            text = [str(cell.format), difference, z_score(cell.z), verdict, _loss(cell.loss)]
            text += [f"{cell.seeds:.0f}", f"{cell.bits:.0f}"]
            rows.append((str(cell.verdict).replace(" ", "-"), text))
    return View("losses", header, rows, cells)


def _loss(value: float) -> str:
    return f"{value:.4f}" if np.isfinite(value) else "–"


def parameters(fit: Mapping[str, Any]) -> View:
    """The law's parameters with intervals and the published constants beside them."""
    identified = fit.get("derived", {}).get("identified", {})
    words = pinned(fit)
    published = PUBLISHED.get(fit["law"], {})
    header = [("parameter", ""), ("value", "num"), ("95 % interval", "num"),
              ("std. error", "num"), ("published", "num"),
              ("pinned by this study", "")]  # fmt: skip
    rows, data = [], []
    for name, value in fit["parameters"].items():
        bounds = (fit.get("intervals") or {}).get(name) or [None, None]
        error = (fit.get("standard_errors") or {}).get(name)
        known = identified.get(name)
        cells = [name, number(value), interval(bounds), number(error, 2)]
        cells += [number(published.get(name)), words[name]]
        rows.append(("muted" if words[name] == "no" else "", cells))
        data.append((name, value, bounds[0], bounds[1], error, published.get(name), known))
    columns = ["parameter", "value", "low", "high", "standard_error", "published", "identified"]
    return View("parameters", header, rows, pd.DataFrame(data, columns=columns))


def flat(entries: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """JSON rows as a CSV table: lists and objects stay JSON in their field."""
    nested = (dict, list)
    return pd.DataFrame(
        [
            {k: json.dumps(v, sort_keys=True) if isinstance(v, nested) else v for k, v in e.items()}
            for e in entries
        ]
    )


def runs(table: pd.DataFrame) -> View:
    """Every run: one row of `table`, a results table with `format`."""
    columns = {
        "run_id": "", "status": "", "format": "", "recipe": "", "model": "", "params": "num",
        "tokens": "num", "seed": "num", "loss": "num", "tokens_per_second": "num", "reason": "",
    }  # fmt: skip
    present = {name: kind for name, kind in columns.items() if name in table}
    words = {"params": count_label, "tokens": count_label, "tokens_per_second": count_label}
    words |= {"loss": _loss, "seed": lambda value: number(value, 12)}
    rows = [
        (
            "" if row["status"] == "finished" else str(row["status"]),
            [words.get(name, _word)(row[name]) for name in present],
        )
        for _, row in table.iterrows()
    ]
    header = [(name.replace("_", " "), kind) for name, kind in present.items()]
    return View("runs", header, rows, table)


def _word(value: object) -> str:
    return "" if pd.isna(value) else str(value)  # type: ignore[call-overload]
