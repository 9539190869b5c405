"""Conclusions from a fitted law, which know their numbers and their words.

A law brings its conclusions along.  Each is computed from a `Basis`, is kept in fit.json under its
key, and defines the table, and possibly the chart, in which a person reads it:

    @dataclass(frozen=True)
    class Doubling:
        params: float
        loss: Number
        loss_interval: Interval

    def found(basis: Basis) -> list[Doubling]:
        sizes = sorted(map(float, basis.rows["params"].unique()))
        losses = [basis.estimate(lambda p: p["E"] + p["A"] / (2 * n) ** p["alpha"]) for n in sizes]
        return [Doubling(n, *loss.pair) for n, loss in zip(sizes, losses)]

    DOUBLINGS = Conclusion("doublings", list[Doubling], found, tables=(
        Table("doublings", "Loss at twice the size", (
            Column("parameters", lambda row: count_label(row.params)),
            Column("loss", lambda row: between(row.loss, row.loss_interval, number)),
        ), chart=Chart("params", "loss")),
    ))

Numbers are plain data, so that fit.json can be checked as it is read; None stands for an unknown
number or, as an end of an interval, for infinity.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Annotated, Any, Generic, TypeAlias, TypeVar, cast

import numpy as np
import pandas as pd
from pydantic import Field

from fitting.entry.errors import Refusal
from fitting.law.curves import Array
from fitting.law.speeds import IDEAL, Speeds

Number: TypeAlias = float | None
Interval: TypeAlias = tuple[Number, Number]
"""The ends of a 95 % interval."""
Count: TypeAlias = Annotated[int, Field(ge=0)]
Values: TypeAlias = Any
"""A number, or an array with one for each draw of a bootstrap: formulas take either."""
Sample: TypeAlias = Mapping[str, Values]
"""A law's parameters, as numbers or as draws."""
Row = TypeVar("Row")
Value = TypeVar("Value")

UNKNOWN: Interval = (None, None)
LEVEL = 0.95
"""The level of intervals that are derived from draws."""
ENOUGH_KNOWN = 0.95
"""Share of the draws in which a derived quantity must have a value, else it has no interval."""
COST = 6 / 16
"""k of a run's cost C = k P N D: with it, 16 bits cost the usual 6 N D."""


@dataclass(frozen=True)
class Assumptions:
    """Assumptions of conclusions, which a user may set."""

    cost_k: float = COST
    """k of a run's cost C = k P N D."""
    speedup_forward: float = IDEAL
    """Speed of the FP4 forward pass over FP8."""
    speedup_backward: float = IDEAL
    """Speed of the FP4 backward pass over FP8."""
    measured: Speeds | None = field(default_factory=lambda: Speeds.parse("nvfp4"))
    """Measured speeds of FP4, to be set beside these."""

    def __post_init__(self) -> None:
        """Refuse anything but positive numbers."""
        for option, value in (
            ("cost.k", self.cost_k),
            ("speedup.forward", self.speedup_forward),
            ("speedup.backward", self.speedup_backward),
        ):
            if not (value > 0 and math.isfinite(value)):
                raise Refusal(f"{option}={value:g}: must be a positive number")

    @property
    def speeds(self) -> Speeds:
        """Speeds that follow from those of the passes."""
        return Speeds.of_passes(self.speedup_forward, self.speedup_backward)


@dataclass(frozen=True)
class Estimate:
    """A number that follows from a fit, with its interval."""

    value: Number
    interval: Interval
    extrapolated: bool | None = None
    """Whether it goes beyond the data; None if it cannot."""

    @property
    def pair(self) -> tuple[Number, Interval]:
        """The value and its interval."""
        return self.value, self.interval


@dataclass(frozen=True)
class Basis:
    """The basis of conclusions: a fit, its bootstrap and its runs."""

    parameters: Mapping[str, float]
    draws: Mapping[str, Array] | None
    """Parameter -> its values in the bootstrap's draws, [draws]; None without a bootstrap."""
    rows: pd.DataFrame
    """The fitted runs that have a loss."""
    every: pd.DataFrame
    """The runs with a loss in the table from which the fitted ones were selected."""
    arbitrary: Collection[str] = ()
    """Parameters about which the runs say nothing."""
    assumed: Assumptions = field(default_factory=Assumptions)

    @property
    def samples(self) -> list[Sample]:
        """Arguments for formulas: the parameters and, if there are draws, those of the draws."""
        return [self.parameters] if self.draws is None else [self.parameters, self.draws]

    @property
    def quantized(self) -> pd.DataFrame:
        """The fitted rows that are quantized, as `block_size` says."""
        rows: pd.DataFrame = self.rows[self.rows["block_size"] > 1]
        return rows

    def lacks(self, names: Collection[str]) -> bool:
        """Whether any of these parameters is arbitrary."""
        return bool(set(names) & set(self.arbitrary))

    def estimate(self, formula: Callable[[Sample], Values]) -> Estimate:
        """A formula of the parameters with its interval."""
        return estimate([formula(sample) for sample in self.samples])


def estimate(values: Sequence[Values]) -> Estimate:
    """A formula's value and interval, from its results at `Basis.samples`."""
    low, high = percentiles(values[1]) if len(values) > 1 else (math.nan, math.nan)
    return Estimate(json_number(float(values[0])), (json_number(low), json_number(high)))


def percentiles(values: Array) -> tuple[float, float]:
    """The 95 % percentile interval of something derived from draws, (low, high).

    Infinite draws count, an interval may end there.  NaN for both where more than a few draws have
    no value (0/0 where two exponents are zero): those that have one are then no sample of it.
    """
    known = values[~np.isnan(values)]
    if not len(known) or len(known) < ENOUGH_KNOWN * len(values):
        return math.nan, math.nan
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(known, [tail, 1 - tail], method="nearest")
    return float(low), float(high)


def json_number(value: float) -> Number:
    """A number as JSON can say it: no NaN and no infinity."""
    return float(value) if math.isfinite(value) else None


@dataclass(frozen=True)
class Column(Generic[Row]):
    """A column of a conclusion's table."""

    title: str
    words: Callable[[Row], str | None]
    """A row's cell; a column without cells is left out."""
    number: bool = True
    """Whether its cells are numbers, which are right-aligned."""


@dataclass(frozen=True)
class Chart:
    """A conclusion's rows as marks with their intervals, joined by lines."""

    x: str
    """Field of a row."""
    y: str
    """Field of a row; its interval is the field of that name and `_interval`, if there is one."""
    by: str = ""
    """Field whose values separate the lines."""
    logarithmic: bool = True
    """Whether both axes are logarithmic."""


@dataclass(frozen=True)
class Table(Generic[Row]):
    """A table in which a person reads the rows of a conclusion."""

    name: str
    """Name of its CSV file and of the figure beside it."""
    title: str
    columns: Sequence[Column[Row]]
    note: str | Callable[[Sequence[Row], Derived], str] = ""
    """The meaning of its columns, in a sentence or two."""
    group: Callable[[Row], str] | None = None
    """The heading of a row, which stands before the first of those that share it."""
    chart: Chart | None = None
    rows: Callable[[Any], Sequence[Row]] | None = None
    """Its rows in the conclusion's value; None where that is the list of them."""

    def rows_of(self, value: object) -> Sequence[Row]:
        """Its rows in the value of its conclusion."""
        return self.rows(value) if self.rows else cast("Sequence[Row]", value)


TableRows: TypeAlias = Sequence[Any]
AnyTable: TypeAlias = Table[Any]


@dataclass(frozen=True)
class Conclusion(Generic[Value]):
    """Something that follows from a fitted law."""

    key: str
    """Its name in `derived` of fit.json."""
    shape: type[Value]
    """`Estimate`, a number, a text, a frozen dataclass, or a list of such."""
    found: Callable[[Basis], Value | None]
    """Computes the value; None if nothing follows."""
    tables: Sequence[AnyTable] = ()
    """Tables in which a person reads the value, if it holds rows."""
    title: str = ""
    """The name of the quantity, for an `Estimate`."""
    doubts: Callable[[Value, Mapping[str, bool]], Sequence[str]] | None = None
    """Makes warnings from the value and from which parameters are identified."""
    missing: str = ""
    """A sentence for when nothing follows, with what would be needed."""
    lead: Callable[[Value], str] | None = None
    """Makes the sentence with which a page about a fit of this law begins."""


@dataclass(frozen=True)
class Derived:
    """All that follows from a fit, by the conclusions' keys."""

    values: Mapping[str, object] = field(default_factory=dict)

    def of(self, conclusion: Conclusion[Value]) -> Value | None:
        """The value of a conclusion; None if nothing was concluded."""
        return cast("Value | None", self.values.get(conclusion.key))


def plain(value: object) -> object:
    """A value as JSON can say it: dataclasses as objects, None for what is not finite."""
    if isinstance(value, Mapping):
        return entries_of(value)
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if hasattr(value, "__dataclass_fields__"):
        return entries(value)
    if isinstance(value, np.generic):  # of a table's column
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def entries_of(values: Mapping[str, object]) -> dict[str, object]:
    """The values of a mapping as JSON can say them."""
    return {str(name): plain(value) for name, value in values.items()}


def entries(row: object) -> dict[str, object]:
    """The fields of a row by name, in alphabetical order as fit.json has them.

    A field that is None by default is left out where it is, unless its interval is there.
    """
    told = {}
    for each in sorted(fields(cast("Any", row)), key=lambda each: each.name):
        value = getattr(row, each.name)
        known = value is not None or getattr(row, f"{each.name}_interval", None) is not None
        if known or each.default is not None:
            # A keyword of Python's is a field with an underscore after it.
            told[each.name.rstrip("_")] = plain(value)
    return told
