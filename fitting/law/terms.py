"""A scaling law as the solver sees it: terms over a table's columns, and parameters.

A law is a sum of terms, each the exponential of an affine function of the parameters: a coefficient
counts by its logarithm, an exponent times the logarithm of a column.  So log loss is a log-sum-exp
of affine forms, which has exact and cheap derivatives (`fitting.fit.problem`), and a law is one
function that lists its terms, its columns and its parameters:

    def power_law(c):                                            # L = E + A/N^alpha
        return [Term({"A": 1, "alpha": -np.log(c["params"])}), Term({"E": 1})]

    MINE = Law("mine", "this paper, Eq. 1", power_law, columns={"params": POSITIVE},
               parameters={"A": COEFFICIENT, "alpha": EXPONENT, "E": COEFFICIENT})

A term that is no such exponential is `Bent`: a curve over several affine forms.  Parameter names
are the papers' letters.  Logarithms are natural unless written log2.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

import numpy as np
import pandas as pd

from fitting.entry.errors import Refusal
from fitting.law.conclusion import Conclusion
from fitting.law.curves import Array, Curve
from fitting.results.table import require_columns

Columns: TypeAlias = Mapping[str, Array]
Kind: TypeAlias = Literal["coefficient", "exponent", "factor", "rate", "shift"]

POSITIVE = float(np.finfo(np.float64).tiny)
LARGEST = 1e150
"""Bound of a table's values, such that products of two are finite."""
LOSSLESS = ("BF16", "FP8", "none")
"""Schemes whose efficiency is one by definition."""


class FitError(Refusal):
    """A law, a table or an option cannot be used as asked, with what would be right."""


@dataclass(frozen=True)
class Parameter:
    """The properties of one parameter that a fit must know.

    A law is affine in the parameters' coordinates.  That of a `coefficient` or a `factor`, which
    are positive, is the logarithm; of an `exponent` or a `shift` the value itself; of a `rate`,
    which stands for a decay length, one over it.

    A coefficient belongs to one term; its bounds and starts are what that term contributes at the
    centre of the table, as a share of the median loss, so that they suit every table.  A shift's
    are those of its form where that is largest, a rate's those of one over the parameter.

    A parameter that stands under another one, its `parent` (A^gamma: gamma is A's), has a
    coordinate multiplied by the parent and the parent's parents, and bounds and starts of that.
    """

    kind: Kind
    bounds: tuple[float, float]
    start: tuple[float, float]
    """Where blind starts are spread: log-uniform where the coordinate is a log, else uniform."""
    parent: str | None = None

    @property
    def logarithmic(self) -> bool:
        """Whether the coordinate is a logarithm."""
        return self.kind in ("coefficient", "factor")

    @property
    def positive(self) -> bool:
        """Whether the parameter must be."""
        return self.kind in ("coefficient", "factor", "rate")


COEFFICIENT = Parameter("coefficient", bounds=(1e-10, 20.0), start=(0.05, 0.7))
PENALTY_COEFFICIENT = Parameter("coefficient", bounds=(1e-8, 20.0), start=(0.003, 0.1))
EXPONENT = Parameter("exponent", bounds=(0.0, 5.0), start=(0.1, 0.8))
FORMAT_EXPONENT = Parameter("exponent", bounds=(0.0, 20.0), start=(0.5, 5.0))


@dataclass(frozen=True)
class Term:
    """exp(offset + sum over its parameters of factor * coordinate)."""

    factors: Mapping[str, Array | float]
    """Parameter -> its regressor: [rows], or one number for all of them."""
    offset: Array | float = 0.0
    """[rows] or one number; -inf where the term is exactly zero."""


@dataclass(frozen=True)
class Bent:
    """exp(curve(x_1, x_2, ..)): each x the exponent of one `Term`."""

    curve: Curve
    forms: Sequence[Term]


@dataclass(frozen=True)
class Design:
    """A law on a table, some of its parameters frozen."""

    regressors: Array
    """[forms, rows, free parameters]"""
    offsets: Array
    """[forms, rows]: form k in row i is offset[k, i] + regressor[k, i] @ coordinates."""
    curves: tuple[Curve, ...]
    """Each takes its forms, in order from the first, and makes a term; other forms are terms."""
    held: Array
    """[forms, rows]: what frozen parameters add to a form and the form's own power multiplies."""

    def holding(self, held: Array) -> Design:
        """The design with other constants [forms, rows] in its curves."""
        first, curves = 0, []
        for curve in self.curves:
            curves.append(curve.holding(held[first : first + curve.forms]))
            first += curve.forms
        return replace(self, curves=tuple(curves), held=held)

    def log_terms(self, coordinates: Array) -> Array:
        """Logarithms of the terms, [terms, rows]; NaN where the law is not defined."""
        forms = self.offsets + self.regressors @ coordinates
        first, bent = 0, []
        for curve in self.curves:
            bent.append(curve(list(forms[first : first + curve.forms, None]))[0])
            first += curve.forms
        logs: Array = np.concatenate([*bent, forms[first:]])
        return logs


@dataclass(frozen=True)
class Published:
    """Constants that a paper gives for its law."""

    parameters: Mapping[str, float]
    paper: str
    """As it is cited: arXiv:2501.02423."""
    url: str
    place: str = ""
    """Where in the paper: Table 2."""


@dataclass(frozen=True)
class Law:
    """One scaling law over named columns of a results table."""

    name: str
    source: str
    """Paper and equation."""
    terms: Callable[[Columns], Sequence[Term | Bent]]
    """Bent terms come first."""
    columns: Mapping[str, float]
    """Column -> its smallest value for which the law is defined."""
    parameters: Mapping[str, Parameter]
    """In the order in which they are reported."""
    below: Mapping[str, float] = field(default_factory=dict)
    """Column -> the value below which its values must be."""
    unquantized: Mapping[str, float] = field(default_factory=dict)
    """Column -> its value where nothing is quantized, of the columns that say how runs are."""
    schemes: Mapping[str, tuple[str, Parameter]] = field(default_factory=dict)
    """Column of names -> its efficiency: eff_N makes one parameter eff_N[name] for each name.

    `terms` finds a column of that name, 1 in the scheme's rows and 0 elsewhere.
    """
    extras: Mapping[str, tuple[tuple[str, ...], Parameter]] = field(default_factory=dict)
    """Parameter -> columns whose effect it is, and its kind: a table that can tell their effect
    from that of the other columns has it.  `terms` finds the columns and its name, as ones."""
    domain: str = ""
    """The condition without which the law is undefined, in words."""
    conclusions: Sequence[Conclusion[Any]] = ()
    """Conclusions from its fits, in the order in which they are reported."""
    published: Published | None = None
    """Constants to compare a fit's with."""
    typed: str = ""
    """The name under which a user gave a law of their own, `FILE.py:NAME`."""

    def with_schemes(self, names: Iterable[str]) -> Law:
        """This law with those efficiencies eff_N[name] and extras of `names` that it can have.

        Other names are passed over: `check` refuses those that are no parameter.
        """
        kinds = {prefix: kind for prefix, kind in self.schemes.values()}
        kinds |= {name: kind for name, (_, kind) in self.extras.items()}
        extra = {n: kinds[n.partition("[")[0]] for n in names if n.partition("[")[0] in kinds}
        return replace(self, parameters={**self.parameters, **extra}) if extra else self

    def without_schemes(self) -> Law:
        """This law without what `on` adds: of another table it may make something else."""
        prefixes = {prefix for prefix, _ in self.schemes.values()} | self.extras.keys()
        kept = {n: k for n, k in self.parameters.items() if n.partition("[")[0] not in prefixes}
        return replace(self, parameters=kept)

    def on(self, table: pd.DataFrame) -> Law:
        """This law with all that the table asks for.

        An efficiency for each scheme that is not lossless, and the extras whose columns differ
        between rows that agree in the law's other columns of formats.

        Raises:
            ResultsError: The table lacks a column.
            FitError: A row has no scheme.
        """
        require_columns(table, tuple(self.schemes), f"law={self.name}")
        for column in self.schemes:
            if missing := int(table[column].isna().sum()):
                raise FitError(
                    f"law={self.name}: column {column!r} is empty in {missing} of {len(table)} "
                    f"rows; write {' or '.join(LOSSLESS)} where nothing is lost"
                )
        found = [
            f"{prefix}[{scheme}]"
            for column, (prefix, _) in self.schemes.items()
            for scheme in sorted(set(table[column].astype(str)) - set(LOSSLESS))
        ]
        return self.with_schemes([*found, *self._told(table)])

    def _told(self, table: pd.DataFrame) -> list[str]:
        """Extras that a table tells from the rest of the law."""
        found = []
        for name, (columns, _) in self.extras.items():
            formats = [c for c in self.columns if c not in ("params", "tokens", *columns)]
            if set(columns) <= set(table) and not table[list(columns)].isna().any(axis=None):
                others = table[list(columns)].drop_duplicates()
                alone = table[formats].drop_duplicates()
                both = table[[*formats, *columns]].drop_duplicates()
                if len(others) > 1 and len(both) > len(alone):
                    found.append(name)
        return found

    def quantized(self, table: pd.DataFrame) -> pd.Series:
        """Mask of the rows in which a column of the law says that something is quantized."""
        found = pd.Series(False, index=table.index)
        for column in self.columns.keys() - {"params", "tokens"}:
            found |= table[column] != self.unquantized.get(column, math.nan)
        for column in self.schemes:
            found |= ~table[column].isin(LOSSLESS)
        return found

    def design(self, table: pd.DataFrame, freeze: Mapping[str, float] | None = None) -> Design:
        """Regressors and offsets of the terms' logarithms for each row.

        Args:
            table: One row per run.
            freeze: Parameters with a fixed value: what they contribute is in the offsets.

        Raises:
            ResultsError: The table lacks a column.
            FitError: A column has values for which the law is not defined.
        """
        freeze = freeze or {}
        terms = self.terms(self._values(table))
        curves = [term.curve for term in terms if isinstance(term, Bent)]
        forms: list[Term] = []
        for term in terms:
            forms += term.forms if isinstance(term, Bent) else [term]
        position = {n: j for j, n in enumerate(p for p in self.parameters if p not in freeze)}
        regressors = np.zeros((len(forms), len(table), len(position)))
        offsets = np.zeros((len(forms), len(table)))
        held = np.zeros((len(forms), len(table)))
        for k, form in enumerate(forms):
            offsets[k] += form.offset
            for name, regressor in form.factors.items():
                # The contribution of a frozen parameter is multiplied by its parent, if it has one.
                value = np.asarray(regressor)
                while name in freeze:
                    kind = self.parameters[name]
                    value = value * _encode(kind, freeze[name])
                    if kind.parent is None:
                        offsets[k] += value
                        break
                    if self.parameters[kind.parent].logarithmic:
                        held[k] += value
                        break
                    name = kind.parent
                else:
                    regressors[k, :, position[name]] += value
        return Design(regressors, offsets, tuple(curves), held).holding(held)

    def _values(self, table: pd.DataFrame) -> dict[str, Array]:
        """The columns that `terms` reads, checked."""
        more = [c for n, (each, _) in self.extras.items() if n in self.parameters for c in each]
        least = {**self.columns, **dict.fromkeys(more, 0.0)}
        require_columns(table, (*least, *self.schemes), f"law={self.name}")
        values = {c: table[c].to_numpy(dtype=np.float64) for c in least}
        for column, minimum in least.items():
            below = self.below.get(column, LARGEST)
            good = (values[column] >= minimum) & (values[column] < below)
            bad = values[column][~good]
            if bad.size:
                right = "positive" if minimum == POSITIVE else f"at least {minimum:g}"
                if column in self.below or below <= bad[0] < math.inf:
                    right += f" and below {below:g}"
                raise FitError(
                    f"law={self.name}: column {column!r} must be finite and {right}, but is not "
                    f"in {bad.size} of {len(table)} rows (the first has {bad[0]:g})"
                )
        values |= {n: np.ones(len(table)) for n in self.extras if n in self.parameters}
        for column, (prefix, _) in self.schemes.items():
            names = table[column].to_numpy(dtype=str)
            known = [n for n in self.parameters if n.startswith(f"{prefix}[")]
            values |= {n: (names == n[len(prefix) + 1 : -1]).astype(np.float64) for n in known}
            lost = set(names) - {n[len(prefix) + 1 : -1] for n in known} - set(LOSSLESS)
            if lost:
                raise FitError(
                    f"law={self.name}: no value for {prefix}[{min(lost)}], {column} has it"
                )
        return values

    def encode(self, parameters: Mapping[str, float], frozen: Iterable[str] = ()) -> Array:
        """Coordinates of the parameters that are not frozen: the terms' forms are affine in them.

        Raises:
            FitError: A parameter is missing, unknown, not finite, or not positive and must be.
        """
        self.check(parameters)
        missing = [name for name in self.parameters if name not in parameters]
        if missing:
            raise FitError(f"law={self.name}: no value for {', '.join(missing)}")
        return np.array(
            [
                _encode(kind, parameters[name]) * self.multiplier(name, parameters)
                for name, kind in self.parameters.items()
                if name not in set(frozen)
            ]
        )

    def decode(self, vector: Array, frozen: Mapping[str, float] | None = None) -> dict[str, float]:
        """The parameters that `encode` maps to `vector`, the frozen ones as given."""
        return {name: float(v[0]) for name, v in self.decode_many(vector[None], frozen).items()}

    def decode_many(
        self, vectors: Array, frozen: Mapping[str, float] | None = None
    ) -> dict[str, Array]:
        """`decode` of each of `vectors` [batch, free]: parameter -> its values, [batch]."""
        values = {name: np.full(len(vectors), value) for name, value in (frozen or {}).items()}
        free = [name for name in self.parameters if name not in values]
        coordinates = dict(zip(free, vectors.T, strict=True))

        def solve(name: str) -> Array:
            if name not in values:
                kind = self.parameters[name]
                value, parent = coordinates[name], kind.parent
                # Under a parent of zero a parameter has no effect and no value.
                with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
                    while parent is not None:
                        value = value / solve(parent)
                        parent = self.parameters[parent].parent
                    if kind.logarithmic:
                        value = np.exp(value)
                    values[name] = 1 / value if kind.kind == "rate" else value
            return values[name]

        return {name: solve(name) for name in self.parameters}

    def multiplier(self, name: str, parameters: Mapping[str, float]) -> float:
        """The factors of a parameter's coordinate: its parent and the parent's parents."""
        parent = self.parameters[name].parent
        return 1.0 if parent is None else parameters[parent] * self.multiplier(parent, parameters)

    def check(self, parameters: Mapping[str, float], option: str = "") -> None:
        """Refuse values of parameters that the law does not have or that it cannot take.

        Args:
            parameters: Name -> value.
            option: What stood before a name as it was typed: "freeze.".
        """
        for name, value in parameters.items():
            if name not in self.parameters:
                raise FitError(
                    f"{option}{name}={value}: law={self.name} has no such parameter; "
                    f"it has {', '.join(self.parameters)}"
                )
            positive = self.parameters[name].positive
            if not np.isfinite(value) or (positive and value <= 0):
                right = "a positive number" if positive else "a finite number"
                raise FitError(f"{option}{name}={value}: must be {right} in law={self.name}")

    def term_values(self, parameters: Mapping[str, float], table: pd.DataFrame) -> Array:
        """What each term adds to the loss, nats per token, [terms, rows]; errors as `predict`."""
        law = self.with_schemes(parameters)
        values: Array = np.exp(law.design(table).log_terms(law.encode(parameters)))
        undefined = np.flatnonzero(~np.isfinite(values.sum(axis=0)))
        if undefined.size:
            first = ", ".join(f"{c}={table[c].iloc[undefined[0]]:g}" for c in self.columns)
            raise FitError(
                f"law={self.name}: not defined with these parameters in {undefined.size} of "
                f"{len(table)} rows{self.domain and ': '}{self.domain} (the first has {first})"
            )
        return values

    def predict(self, parameters: Mapping[str, float], table: pd.DataFrame) -> Array:
        """The law's loss for each row, nats per token, [rows].

        Raises:
            ResultsError: The table lacks a column.
            FitError: A column or a parameter has a value for which the law is not defined.

        >>> from fitting.laws.catalogue import BESIROGLU_2024, LAWS
        >>> LAWS["chinchilla"].predict(BESIROGLU_2024, pd.DataFrame({"params": [70e9],
        ...     "tokens": [1.4e12]})).round(3)
        array([1.974])
        """
        total: Array = self.term_values(parameters, table).sum(axis=0)
        return total


def _encode(kind: Parameter, value: float) -> float:
    if kind.logarithmic:
        return math.log(value)
    return 1 / value if kind.kind == "rate" else value
