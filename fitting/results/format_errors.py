"""Errors of number formats that a table only names.

A law over errors reads `err_weight` and the like.  Runs of ours record them; for a table of another
origin they follow from the names of the formats.  `columns.format_weight=...` is

    scheme                                      a column of names
    mxfp4                                       one name for all rows
    "E{exponent}M{mantissa}-block{group}"       a text with columns in braces
    "scheme: QuEST=mxfp4_quest, RTN=mxfp4"      a column, with the formats that its words stand for
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from experiments.quant.formats import FormatError
from experiments.quant.normal_error import error_of
from experiments.quant.recipe import SLOTS
from fitting.files.own_json import ResultsError

if TYPE_CHECKING:
    import pandas as pd

    from fitting.results.record import RunRecord

ERRORS = tuple(slot.error for slot in SLOTS.values())
"""The columns of the errors of P1 to P6."""
FORMATS = {name.replace("err_", "format_", 1): name for name in ERRORS} | {"format_gmse": "gmse"}
"""Columns of formats' names -> the column of their errors."""
SHRINKAGE = tuple(name.replace("err_", "shrinkage_", 1) for name in ERRORS)
"""The columns of <x, Q(x)> / <x, x> - 1 of P1 to P6, as measured on a run's tensors."""
MEASURED = (*(f"{name}_measured" for name in ERRORS), *SHRINKAGE)
"""Columns of what was measured on a run's tensors: the errors, and the shrinkage."""
_COLUMN = re.compile(r"\{([^{}]*)\}")


def measured_errors(record: RunRecord) -> dict[str, float]:
    """The columns of a run's errors on its own tensors, from the means of its diagnostics.

    0 for an operand that is not quantized, NaN for one that was not measured.
    """
    quantized = record.operands.split()
    errors, shrunk = {}, {}
    for (label, slot), shrinkage in zip(SLOTS.items(), SHRINKAGE, strict=True):
        decibels, less = (_mean(record, label, measure) for measure in ("qsnr", "shrinkage"))
        errors[f"{slot.error}_measured"] = 10 ** (-decibels / 10) if label in quantized else 0.0
        shrunk[shrinkage] = less if label in quantized else 0.0
    return errors | shrunk


def _mean(record: RunRecord, label: str, measure: str) -> float:
    """A measure's mean over layers and time; NaN where it was not measured."""
    of_operand = record.diagnostics.get(label, {})
    found = of_operand.get(measure, {}).get("mean") if isinstance(of_operand, dict) else None
    return float(found) if isinstance(found, int | float) else math.nan


def named_errors(table: pd.DataFrame, columns: Mapping[str, str]) -> dict[str, pd.Series]:
    """The columns of formats and errors for those of `columns` that name formats.

    Args:
        table: The table as it was read.
        columns: Our name -> what names its formats, as above.

    Raises:
        ResultsError: No such column, no format of such a name, or its error is named as well.
    """
    found: dict[str, pd.Series] = {}
    for ours in FORMATS.keys() & columns.keys():
        if (theirs := FORMATS[ours]) in columns:
            raise ResultsError(
                f"columns.{ours}={columns[ours]} and columns.{theirs}={columns[theirs]}: both say "
                f"what {theirs} is; give one of them"
            )
        names = _names(table, ours, columns[ours])
        errors = {}
        for name in names.unique():
            try:
                errors[name] = error_of(name)
            except FormatError as error:
                raise ResultsError(f"columns.{ours}={columns[ours]}: {error}") from error
        found |= {ours: names, FORMATS[ours]: names.map(errors)}
    return found


def _names(table: pd.DataFrame, ours: str, theirs: str) -> pd.Series:
    """The name of a format for each row."""
    import pandas as pd

    column, sign, meanings = theirs.partition(":")
    if theirs in table.columns or (sign and column.strip() in table.columns):
        words = table[column.strip() if sign else theirs]
        names = words.astype(object).where(words.notna(), "none").map(_text)
        pairs = (meaning.partition("=") for meaning in meanings.split(",") if meaning.strip())
        formats = {word.strip(): name.strip() for word, _, name in pairs}
        if unknown := sorted(formats.keys() - set(names)):
            raise ResultsError(
                f"columns.{ours}={theirs}: {unknown[0]!r} is not in column {column.strip()!r}, "
                f"which has {', '.join(sorted(names.unique()))}"
            )
        return names.map(lambda name: formats.get(name, name))
    parts = _COLUMN.split(theirs)
    names = pd.Series(parts[0], index=table.index)
    for column, behind in zip(parts[1::2], parts[2::2], strict=True):
        if column not in table.columns:
            known = ", ".join(map(str, table.columns))
            raise ResultsError(
                f"columns.{ours}={theirs}: no such column {column!r}; the table has {known}"
            )
        names = names + table[column].map(_text) + behind
    return names


def _text(value: object) -> str:
    """A field in a name: whole numbers without a point."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
