"""The content of fit.json as types, and a reader that trusts none of it.

`fitting.command.describe` writes the file; pages, comparisons and publications are made from it,
and by then it may have been edited, merged by hand or written by another version.  None stands for
what the data do not tell.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from fitting.files.own_json import DamagedError, JsonObject, ResultsError, read_object
from fitting.fit.derived import IDENTIFIED
from fitting.fit.evidence import HeldOut, Information, Rival
from fitting.fit.prediction import Predicted
from fitting.fit.result import Rows, Starts
from fitting.law.conclusion import UNKNOWN, AnyTable, Count, Derived, Interval, Number, TableRows
from fitting.law.terms import Law
from fitting.laws.catalogue import LAWS

FIT = "fit.json"
REMEDY = "run lowbit-fit again"
Shape = TypeVar("Shape")


@dataclass(frozen=True)
class SavedObjective:
    """The minimised objective; no value if it overflowed."""

    name: str
    delta: Number
    value: Number
    overestimate: Number = None


@dataclass(frozen=True)
class Bootstrap:
    """Draws, and those that converged."""

    draws: Count = 0
    converged: int | None = None


@dataclass(frozen=True)
class NoiseFloor:
    """`fitting.seeds.noise.NoiseFloor`."""

    std_log: Number = None
    std_loss: Number = None
    dof: Count = 0
    cells: Count = 0


@dataclass(frozen=True)
class _Content:
    """A whole fit.json; older files lack the keys that have a default."""

    law: str
    objective: SavedObjective
    parameters: dict[str, Number]
    status: str
    starts: Starts
    rows: Rows
    warnings: list[str]
    source: str = ""
    intervals: dict[str, Interval] | None = None
    standard_errors: dict[str, Number] = field(default_factory=dict)
    frozen: list[str] = field(default_factory=list)
    bounds: dict[str, Interval] = field(default_factory=dict)
    weights: str | None = None
    bootstrap: Bootstrap | None = None
    derived: JsonObject = field(default_factory=dict)
    noise_floor: NoiseFloor = field(default_factory=NoiseFloor)
    inputs_sha256: str = ""
    run_ids: list[str] | None = None
    profile_intervals: dict[str, Interval] = field(default_factory=dict)
    information: Information | None = None
    held_out: HeldOut | None = None
    not_computed: dict[str, str] = field(default_factory=dict)
    comparison: list[Rival] = field(default_factory=list)
    predicted: list[Predicted] = field(default_factory=list)
    """Runs that the fit was not given, as it predicts them."""
    predict: str | None = None
    """Where these lay, as it was typed."""
    where: str | None = None
    best_per: list[str] = field(default_factory=list)
    seed: int | None = None
    cluster: str | None = None


@dataclass(frozen=True, kw_only=True)
class SavedFit(_Content):
    """A fit.json as read, with its law and the conclusions of that law."""

    model: Law
    identified: Mapping[str, bool]
    """Parameter -> whether neither the fit nor its draws doubt it."""
    concluded: Derived

    @property
    def after_training(self) -> bool:
        """Whether the fitted losses are those of weights quantized after training."""
        return "bits_post" in self.model.columns

    @property
    def values(self) -> dict[str, float]:
        """The parameters as numbers; NaN for one without a value."""
        return numbers(self.parameters)

    def tables(self) -> Iterator[tuple[AnyTable, TableRows]]:
        """The tables of its conclusions, each with its rows."""
        for conclusion in self.model.conclusions:
            value = self.concluded.of(conclusion)
            if value is not None:
                yield from ((table, table.rows_of(value)) for table in conclusion.tables)

    def interval(self, name: str) -> Interval:
        """A parameter's 95 % interval."""
        return (self.intervals or {}).get(name, UNKNOWN)


@dataclass(frozen=True)
class Pilot:
    """The parts of a fit.json that are needed to judge a design."""

    parameters: dict[str, Number]
    law: str = ""
    noise_floor: dict[str, Number] | None = None


def read_fit(path: Path, law: Law | None = None) -> SavedFit | None:
    """The content of a fit.json, its parameters in the law's order; None if there is no file.

    Args:
        path: The file.
        law: A law of the user's own, in case the file is a fit of it; ours need not be named.

    Raises:
        DamagedError: It cannot be read, or a value of it is of another type.
        ResultsError: It lacks a key, or is of an unknown law, or has other parameters.
    """
    try:
        return saved_fit(read_object(path, REMEDY), path, law)
    except FileNotFoundError:
        return None


def saved_fit(data: Mapping[str, object], path: Path, own: Law | None = None) -> SavedFit:
    """The content of a fit.json, checked; arguments and errors as of `read_fit`."""
    content = _checked(data, _Content, path)
    law = own if own is not None and own.name == content.law else LAWS.get(content.law)
    if law is None:
        raise ResultsError(
            f"{path}: law={content.law} is not one of {', '.join(LAWS)}; if it is yours, name its "
            "file and variable: law=FILE.py:NAME"
        )
    law = law.with_schemes(content.parameters)
    if set(content.parameters) != set(law.parameters):
        raise ResultsError(
            f"{path}: parameters {', '.join(content.parameters)}, but law={law.name} "
            f"has {', '.join(law.parameters)}"
        )
    shapes = {c.key: c.shape for c in law.conclusions} | {IDENTIFIED: dict[str, bool]}
    derived = {
        key: _as(value, shapes[key], path, f"derived.{key}")
        for key, value in content.derived.items()
        if key in shapes
    }
    known = derived.pop(IDENTIFIED, {})
    ordered = {name: content.parameters[name] for name in law.parameters}
    held = vars(content) | {"parameters": ordered}
    return SavedFit(**held, model=law, identified=known, concluded=Derived(derived))


def numbers(parameters: Mapping[str, Number]) -> dict[str, float]:
    """Parameters as numbers; NaN where the file has no value."""
    return {name: math.nan if value is None else value for name, value in parameters.items()}


def read_pilot(path: Path) -> Pilot:
    """The content of a pilot's fit.json, or of one into which a paper's constants were typed.

    Raises:
        FileNotFoundError: There is none.
        DamagedError: It cannot be read, or a value of it is of another type.
        ResultsError: It lacks `parameters`.
    """
    return _checked(read_object(path, REMEDY), Pilot, path)


def _checked(data: Mapping[str, object], kind: type[Shape], path: Path) -> Shape:
    """A JSON object with all that is needed, each value of the right type."""
    needed = [f.name for f in fields(kind) if f.default is f.default_factory is MISSING]  # type: ignore[arg-type]
    if missing := [key for key in sorted(needed) if key not in data]:
        raise ResultsError(f"{path}: lacks {', '.join(missing)}; {REMEDY}")
    return _as(data, kind, path)


def _as(value: object, kind: type[Shape], path: Path, place: str = "") -> Shape:
    """A JSON value as a type of ours."""
    try:
        return TypeAdapter(kind).validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        raise DamagedError(path, _first(error, place), REMEDY) from error


def _first(error: ValidationError, place: str) -> str:
    """The first wrong value, as `rows.used='3': Input should be a valid integer`."""
    first = error.errors(include_url=False, include_context=False)[0]
    where = ".".join(str(part) for part in (*filter(None, [place]), *first["loc"]))
    return f"{where}={first['input']!r:.60}: {first['msg']}"
