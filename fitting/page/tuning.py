"""Fine-tuning on a page: its table, and the sentences that answer what it was run to answer."""

from __future__ import annotations

import numpy as np
import pandas as pd

from fitting.figures.tuning import WHOLE, base_names, largest, rank_names
from fitting.naming import UNQUANTIZED, TableRow, records, sizes
from fitting.page.tables import View
from fitting.results.table import ADAPTER_FORMAT, RANK
from fitting.seeds.tuning import NEVER, Tuning
from fitting.words import at, count_label, decimals, plural

NOTE = (
    "Loss above the unquantized base of the same size, tokens and seed of which all weights are "
    "tuned, nats per token, with 95 % intervals; of that base itself the loss. Trained so: the "
    "base was rounded while it was trained, and is while it is tuned; rounded when tuned: only "
    "then. Adapters stand beside the rounded base and are not rounded with it."
)


def view(tuning: Tuning) -> View:
    """Bases by what is tuned and by the adapter's format, one column per token count."""
    cells = tuning.cells
    counts = sorted(cells["tokens"].unique())
    named = cells.assign(base=base_names(cells), tuned=rank_names(cells))
    rows: list[tuple[str, list[str]]] = []
    for params in sizes(cells):
        rows.append(("group", [f"{count_label(params)} parameters"]))
        size = named[named["params"] == params]
        for _, group in size.groupby(["base", RANK, ADAPTER_FORMAT], dropna=False):
            told = {row.tokens: _difference(row) for row in records(group)}
            row: TableRow = records(group)[0]
            own = "–" if row.tuned == WHOLE else row.adapter_format
            rows.append(("", [row.base, row.tuned, own, *(told.get(n, "–") for n in counts)]))
    header = [("base", ""), ("tuned", ""), ("adapter's format", "")]
    header += [(f"{count_label(count)} tokens", "num") for count in counts]
    title = "Loss by base, rank, adapter's format and tokens"
    return View("tuning", header, rows, cells, title, NOTE)


def _difference(row: TableRow) -> str:
    if not np.isfinite(row.difference):
        return f"{row.loss:.4f}"
    return decimals(row.difference, (row.low, row.high), 4)


def answer(tuning: Tuning) -> list[str]:
    """Sentences: what bases cost with all weights tuned, what ranks cost, what few bits cost."""
    shown, costs = largest(tuning.cells), tuning.costs
    judged = shown[np.isfinite(shown["difference"].astype(float))]
    if judged.empty:
        return []
    plain = judged[judged[ADAPTER_FORMAT] == UNQUANTIZED]
    plain = plain.assign(base=base_names(plain))
    sentences = []
    whole = plain[plain[RANK].isna()].sort_values("difference")
    if len(whole):
        where = at(shown["params"].iloc[0], shown["tokens"].iloc[0])
        sentences.append(
            f"With all weights tuned, a rounded base loses {_span(whole, 'base')} nats per token "
            f"to an unquantized one, at {where}."
        )
    own = plain[(plain["rounded"] == NEVER) & plain[RANK].notna()]
    if len(own):
        own = own.assign(tuned=rank_names(own)).sort_values("difference")
        sentences.append(
            f"Adapters on the unquantized base lose {_span(own, 'tuned')} nats per token to tuning "
            "all of its weights."
        )
    if not costs.empty:
        coarse = largest(costs)
        most = coarse[coarse[RANK] == coarse[RANK].max()].sort_values("difference")
        pairs = plural(int(most["pairs"].max()), "pair")
        sentences.append(
            f"Rounding an adapter of rank {most[RANK].iloc[0]:.0f} itself costs "
            f"{_span(most, ADAPTER_FORMAT)} nats per token ({pairs})."
        )
    return sentences


def _span(rows: pd.DataFrame, name: str) -> str:
    """The least and the largest difference with their intervals, each with what has it."""
    ends = [rows.iloc[0]] if len(rows) == 1 else [rows.iloc[0], rows.iloc[-1]]
    said = [decimals(row["difference"], (row["low"], row["high"]), 3) for row in ends]
    each = zip(said, ends, strict=True)
    return " to ".join(f"{words.removesuffix(')')}; {row[name]})" for words, row in each)
