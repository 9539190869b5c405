"""What follows from a fit, as tables of words: the same in the terminal and on the page.

A row that goes beyond the data says so in a column of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from fitting.fit.fit_file import SavedFit
from fitting.law.conclusion import AnyTable, Column, Derived, Estimate, Table, TableRows, entries
from fitting.page.tables import View, flat
from fitting.words import BEYOND, interval, number

BEYOND_COLUMN = ("beyond data?", "")


def views(fit: SavedFit) -> list[View]:
    """All conclusions that a fit has, in the order in which its law reports them."""
    made = [view(table, rows, fit.concluded) for table, rows in fit.tables() if rows]
    return made + _single_values(fit)


def view(table: AnyTable, rows: TableRows, derived: Derived) -> View:
    """A table of rows, one line each, without the columns that are empty in all of them."""
    told = [(column, [column.words(row) for row in rows]) for column in table.columns]
    shown = [(c, words) for c, words in told if any(word is not None for word in words)]
    header = [(column.title, "num" * column.number) for column, _ in shown]
    lines = [list(cells) for cells in zip(*(words for _, words in shown), strict=True)]
    beyond = [getattr(row, "extrapolated", None) for row in rows]
    if beyond[0] is not None:
        header.append(BEYOND_COLUMN)
        lines = [[*line, BEYOND if out else ""] for line, out in zip(lines, beyond, strict=True)]
    text = [("muted" if out else "", line) for line, out in zip(lines, beyond, strict=True)]
    note = table.note if isinstance(table.note, str) else table.note(rows, derived)
    made = View(table.name, header, text, flat([entries(row) for row in rows]), table.title, note)
    return _grouped(made, [table.group(row) for row in rows]) if table.group else made


def _single_values(fit: SavedFit) -> list[View]:
    """The conclusions that are single numbers, in one table."""
    found = [(c.title, fit.concluded.of(c)) for c in fit.model.conclusions if c.title]
    values = {title: value for title, value in found if isinstance(value, Estimate)}
    if not values:
        return []
    titles = iter(values)
    table = Table[Estimate](
        "conclusions",
        "Conclusions",
        (
            Column("what", lambda row: next(titles), number=False),
            Column("value", lambda row: number(row.value, 3)),
            Column("95 % interval", lambda row: interval(row.interval)),
        ),
    )
    made = view(table, list(values.values()), fit.concluded)
    data = flat([{"what": title, **entries(value)} for title, value in values.items()])
    return [replace(made, data=data)]


def _grouped(made: View, headings: Sequence[str]) -> View:
    """The table with a heading before the first of the rows that share it."""
    rows: list[tuple[str, list[str]]] = []
    for heading, before, row in zip(headings, ["", *headings], made.rows, strict=False):
        rows += [row] if heading == before else [("group", [heading]), row]
    return replace(made, rows=rows)
