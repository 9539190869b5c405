"""The report's tables: each as text for the page and as data for its CSV file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from fitting.analysis.layouts import layout_name
from fitting.figures import interaction
from fitting.fit.fit_file import SavedFit
from fitting.law.conclusion import UNKNOWN, Number, entries
from fitting.naming import TableRow, are_none, records
from fitting.page.sentences import pinned
from fitting.results.format_errors import SHRINKAGE
from fitting.words import (
    BEYOND,
    between,
    count_label,
    decimals,
    interval,
    number,
    open_interval,
    percent,
    signed,
    z_score,
)

ROWS_ON_PAGE = 600
"""Rows of a table that the page holds; the rest is in its CSV file only, which keeps the page
below 1 MB."""


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
    """Losses by size, tokens and format, each against `none` (the unquantized run).

    Args:
        cells: `fitting.seeds.compare.compare_cells` with `format` and `params`.
        done: Runs with a loss: `format`, `params`, `tokens`, `loss`.
    """
    header = [("format", ""), ("above none", "num"), ("z", "num"),
              ("verdict", "verdict"), ("mean loss", "num"), ("seeds", "num"),
              ("bits", "num")]  # fmt: skip
    rows: list[tuple[str, list[str]]] = []
    base = done[are_none(done["format"])]
    key: TableRow
    for key, group in cells.groupby(["params", "tokens"], sort=True):
        params, tokens = key
        rows.append(("group", [f"{count_label(params)} parameters, {count_label(tokens)} tokens"]))
        none = base[(base["params"] == params) & (base["tokens"] == tokens)]
        for name, losses_of in none.groupby("format")["loss"]:
            count = str(len(losses_of))
            text = [str(name), "", "", "baseline", _loss(losses_of.mean()), count, ""]
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


def parameters(fit: SavedFit) -> View:
    """The law's parameters with intervals and the published constants beside them."""
    words = pinned(fit)
    published = {} if fit.model.published is None else fit.model.published.parameters
    header = [("parameter", ""), ("value", "num"), ("95 % interval", "num"),
              ("profile interval", "num"), ("std. error", "num"), ("published", "num"),
              ("pinned by this study", "")]  # fmt: skip
    rows, data = [], []
    for name, value in fit.parameters.items():
        bounds, error = fit.interval(name), fit.standard_errors.get(name)
        known = fit.identified.get(name)
        ends = fit.profile_intervals.get(name)
        cells = [name, number(value), interval(bounds), open_interval(ends)]
        cells += [number(error, 2), number(published.get(name)), words[name]]
        rows.append(("muted" if words[name] == "no" else "", cells))
        data.append((name, value, *bounds, *(ends or UNKNOWN), error, published.get(name), known))
    columns = ["parameter", "value", "low", "high", "profile_low", "profile_high"]
    columns += ["standard_error", "published", "identified"]
    return View("parameters", header, rows, pd.DataFrame(data, columns=columns))


def held_out(fit: SavedFit) -> View | None:
    """Predictions for runs that the law was not fitted to; None where nothing was held out."""
    held = fit.held_out
    if held is None or not (named := held.named):
        return None
    rows = [
        (
            "muted" if entry.extrapolated else "",
            [
                name,
                f"{entry.rows:,}",
                f"{entry.trained:,}",
                percent(entry.rms),
                percent(entry.bias, sign=True),
                f"{number(entry.extrapolation, 3)} ×",
                BEYOND if entry.extrapolated else "",
            ],
        )
        for name, entry in named
    ]
    header = [("held out", ""), ("runs", "num"), ("fitted to", "num"), ("rms error", "num"),
              ("bias", "num"), ("compute", "num"), ("beyond data?", "")]  # fmt: skip
    floor = fit.noise_floor.std_log
    noise = "unknown" if floor is None else percent(floor)
    note = (
        "The law was fitted without these runs and then predicted their losses. Errors are in "
        "percent of the loss; the bias is positive where the law predicts too low a loss. Compute: "
        "the largest among the held-out runs over the largest among the others. "
    )
    for what, rms in (
        ("left-out sizes", held.sizes_rms), ("left-out formats", held.formats_rms),
        ("left-out token counts", held.tokens_rms), ("sizes from smaller ones", held.growing_rms),
    ):  # fmt: skip
        if rms is not None:
            note += f"All {what} together: {percent(rms)}. "
    note += f"The fit's own residuals: {percent(held.residual_rms)}; noise floor: {noise}."
    data = flat([{"held_out": name, **entries(entry)} for name, entry in named])
    return View("held_out", header, rows, data, "Held-out predictions", note)


def predicted(fit: SavedFit) -> View | None:
    """Runs that the fit was not given, as predicted and as they came out; None without any."""
    if not fit.predicted:
        return None
    rows = [
        (
            "",
            [
                each.name,
                count_label(each.params),
                count_label(each.tokens),
                between(each.loss, each.interval, _loss),
                "–" if each.measured is None else _loss(each.measured),
                f"{each.inside} of {each.runs}" if each.runs else "–",
            ],
        )
        for each in fit.predicted
    ]
    header = [("format", ""), ("parameters", "num"), ("tokens", "num"),
              ("predicted (95 % of runs)", "num"), ("measured", "num"),
              ("runs inside", "num")]  # fmt: skip
    runs, inside = (sum(getattr(e, key) for e in fit.predicted) for key in ("runs", "inside"))
    note = (
        "The fit was not given these runs. The interval is that of a single run: the law's own "
        "uncertainty and the spread of the fitted runs around it. "
    )
    if runs:
        note += f"In all {inside} of {runs} runs lie within theirs."
    data = flat([entries(each) for each in fit.predicted])
    return View("predicted", header, rows, data, "Predicted before it was seen", note)


def comparison(fit: SavedFit) -> View | None:
    """Rival laws on the same rows, the best predictor of left-out sizes first; None without any."""
    rivals = fit.comparison
    if not rivals:
        return None
    aic, bic = min(_finite(r.aic) for r in rivals), min(_finite(r.bic) for r in rivals)
    errors: list[tuple[str, list[Number]]] = [
        ("rms of fit", [rival.rms for rival in rivals]),
        ("left-out formats", [rival.rms_formats for rival in rivals]),
        ("left-out sizes", [rival.rms_sizes for rival in rivals]),
        ("left-out token counts", [rival.rms_tokens for rival in rivals]),
        ("sizes from smaller", [rival.rms_growing for rival in rivals]),
        ("largest compute", [rival.rms_largest for rival in rivals]),
    ]
    # In fits of an older version, or where a table has too few.
    never = ("left-out formats", "left-out token counts", "sizes from smaller")
    errors = [(t, v) for t, v in errors if t not in never or any(x is not None for x in v)]
    rows = [
        (
            "",
            [
                rival.law,
                str(rival.parameters),
                *(percent(values[place]) for _, values in errors),
                f"{rival.sizes_won} of {rival.sizes}",
                _above(rival.aic, aic),
                _above(rival.bic, bic),
            ],
        )
        for place, rival in enumerate(rivals)
    ]
    header = [("law", ""), ("parameters", "num"), *((title, "num") for title, _ in errors),
              ("sizes won", "num"), ("ΔAIC", "num"), ("ΔBIC", "num")]  # fmt: skip
    there = {title for title, _ in errors}
    each = "format, size or token count" if never[0] in there else "size"
    growing = "of each size as predicted from the smaller ones; " if never[2] in there else ""
    note = (
        "Each law is fitted to the same rows with all its parameters free. Rms errors, in percent "
        f"of the loss: of the fit's own residuals; of each {each} as predicted from the others; "
        f"{growing}of the runs of the largest compute as predicted from the rest. Sizes won: those "
        "that this law predicts better than any other law here, out of those that all of them can "
        "predict. ΔAIC and ΔBIC: difference from the lowest."
    )
    data = flat([entries(rival) for rival in rivals])
    return View("comparison", header, rows, data, "Laws compared", note)


BY_FACTOR = (
    "Loss of the second split minus that of the first, nats per token, from runs that agree in all "
    "else, seed included; with 95 % intervals. Positive: the first is better. Below each: by how "
    "much another recipe or scale changes that. Shaded, and called equal: shown to be "
    "within 0.005, by two one-sided tests."
)


def splits_by_factor(found: pd.DataFrame) -> View:
    """Splits of one width at each recipe and scale, and how these change their difference."""
    rows = [
        (
            "",
            [
                f"{row.first} or {row.second}",
                interaction.label(row),
                decimals(row.difference, (row.low, row.high), 4) if np.isfinite(row.low) else "–",
                f"{row.pairs:,}",
                row.verdict if not row.against else {"better": "favours the first", "worse":
                "favours the second"}.get(row.verdict, row.verdict),
            ],
        )
        for row in records(found)
    ]  # fmt: skip
    header = [("splits", ""), ("recipe or scale", ""), ("difference", "num"), ("pairs", "num"),
              ("verdict on the first", "")]  # fmt: skip
    return View("splits_by_factor", header, rows, found, "Splits by recipe and by scale", BY_FACTOR)


SHRUNK = (
    "The sum of x Q(x) over the sum of x squared, less one: by how much rounding shrinks the "
    "values along themselves. The mean over layers, measurements and runs, of each operand as it "
    "is rounded, after a rotation where there is one."
)


def shrinkage(found: pd.DataFrame) -> View:
    """How much each split shrinks each operand, by recipe and scale."""
    names = {name: " ".join(name.split("_")[1:]) for name in SHRINKAGE}
    rows = [
        (
            "",
            [
                layout_name(int(row["exponent"]), int(row["mantissa"])),
                str(row["recipe"]),
                str(row["scale"]),
                *("–" if pd.isna(row[name]) else percent(row[name], sign=True) for name in names),
                f"{row['runs']:,}",
            ],
        )
        for row in found.to_dict("records")
    ]
    header = [("split", ""), ("recipe", ""), ("scale", ""),
              *((title, "num") for title in names.values()), ("runs", "num")]  # fmt: skip
    return View("shrinkage", header, rows, found, "How much rounding shrinks each operand", SHRUNK)


def _finite(value: float | None) -> float:
    return -np.inf if value is None else value  # an exact fit: no value is lower


def _above(value: float | None, lowest: float) -> str:
    return "0" if _finite(value) == lowest else number(_finite(value) - lowest, 3)


def flat(rows: Sequence[Mapping[str, object]]) -> pd.DataFrame:
    """JSON rows as a CSV table: lists and objects stay JSON in their field."""
    nested = (dict, list)
    return pd.DataFrame(
        [
            {k: json.dumps(v, sort_keys=True) if isinstance(v, nested) else v for k, v in e.items()}
            for e in rows
        ]
    )


def runs(table: pd.DataFrame) -> View:
    """Every run: one row of `table`, a results table with `format`; the rest is in results.csv."""
    columns = {
        "run_id": "", "status": "", "format": "", "recipe": "", "model": "", "params": "num",
        "tokens": "num", "seed": "num", "loss": "num", "tokens_per_second": "num", "reason": "",
    }  # fmt: skip
    present = {name: kind for name, kind in columns.items() if name in table}
    words = {"params": count_label, "tokens": count_label, "tokens_per_second": count_label}
    words |= {"loss": _loss, "seed": _seed}
    texts = [[words.get(name, _word)(value) for value in table[name]] for name in present]
    rows = [
        ("" if status == "finished" else str(status), list(cells))
        for status, *cells in zip(table["status"], *texts, strict=True)
    ]
    header = [(name.replace("_", " "), kind) for name, kind in present.items()]
    return View("runs", header, rows, table[list(present)])


def _seed(value: float | None) -> str:
    return _word(value) if isinstance(value, str) else number(value, 12)


def _word(value: object) -> str:
    return "" if pd.isna(value) else str(value)  # type: ignore[call-overload]
