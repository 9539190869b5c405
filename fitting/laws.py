"""Scaling laws: what loss to expect from a run's size, data and number format.

A law here is a sum of terms, each the exponential of an affine function of the parameters: a
coefficient counts by its logarithm, an exponent times the logarithm of a column.  So log loss is a
log-sum-exp of affine forms, which has exact and cheap derivatives (`fitting.fit`), and a law is
one function that lists its terms, its columns and its parameters:

    def power_law(c):                                            # L = E + A/N^alpha
        return [Term({"A": 1, "alpha": -np.log(c["params"])}), Term({"E": 1})]

    MINE = Law("mine", "this paper, Eq. 1", power_law, columns={"params": POSITIVE},
               parameters={"A": COEFFICIENT, "alpha": EXPONENT, "E": COEFFICIENT})

Parameter names are the papers' letters.  Logarithms are natural unless written log2.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import pandas as pd

from fitting.results import require_columns

Array: TypeAlias = npt.NDArray[np.float64]
Columns: TypeAlias = Mapping[str, Array]

POSITIVE = float(np.finfo(np.float64).tiny)


class FitError(ValueError):
    """A law, a table or an option cannot be used as asked, with what would be right."""


@dataclass(frozen=True)
class Parameter:
    """What a fit must know of one parameter.

    A coefficient is positive, enters as its logarithm and belongs to one term; its bounds and
    starts are what that term contributes at the centre of the table, as a share of the median
    loss, so that they suit every table.  An exponent enters, is bounded and started as it is.
    """

    coefficient: bool
    bounds: tuple[float, float]
    start: tuple[float, float]
    """Where blind starts are spread: log-uniform for a coefficient, uniform for an exponent."""


COEFFICIENT = Parameter(True, bounds=(1e-5, 20.0), start=(0.05, 0.7))
PENALTY_COEFFICIENT = Parameter(True, bounds=(1e-8, 20.0), start=(0.003, 0.1))
EXPONENT = Parameter(False, bounds=(0.0, 5.0), start=(0.1, 0.8))
FORMAT_EXPONENT = Parameter(False, bounds=(0.0, 20.0), start=(0.5, 5.0))


@dataclass(frozen=True)
class Term:
    """exp(offset + sum over its parameters of factor * value), the value a coefficient's log."""

    factors: Mapping[str, Array | float]
    """Parameter -> its regressor: [rows], or one number for all of them."""
    offset: Array | float = 0.0
    """[rows] or one number; -inf where the term is exactly zero."""


@dataclass(frozen=True)
class Law:
    """One scaling law over named columns of a results table."""

    name: str
    source: str
    """Paper and equation."""
    terms: Callable[[Columns], list[Term]]
    columns: Mapping[str, float]
    """Column -> its smallest value for which the law is defined."""
    parameters: Mapping[str, Parameter]
    """In the order in which they are reported."""

    def design(self, table: pd.DataFrame) -> tuple[Array, Array]:
        """Regressors and offsets of the terms' logarithms for each row.

        Returns:
            Regressors [terms, rows, parameters] and offsets [terms, rows]: the logarithm of term
            k in row i is offset[k, i] + regressor[k, i] @ `encode(parameters)`.

        Raises:
            ResultsError: The table lacks a column.
            FitError: A column has values for which the law is not defined.
        """
        require_columns(table, tuple(self.columns), f"law={self.name}")
        values = {c: table[c].to_numpy(dtype=np.float64) for c in self.columns}
        for column, minimum in self.columns.items():
            bad = values[column][~(np.isfinite(values[column]) & (values[column] >= minimum))]
            if bad.size:
                right = "positive" if minimum == POSITIVE else f"at least {minimum:g}"
                raise FitError(
                    f"law={self.name}: column {column!r} must be finite and {right}, but is not "
                    f"in {bad.size} of {len(table)} rows (the first has {bad[0]:g})"
                )
        terms = self.terms(values)
        position = {name: j for j, name in enumerate(self.parameters)}
        regressors = np.zeros((len(terms), len(table), len(position)))
        offsets = np.zeros((len(terms), len(table)))
        for k, term in enumerate(terms):
            offsets[k] = term.offset
            for name, factor in term.factors.items():
                regressors[k, :, position[name]] = factor
        return regressors, offsets

    def encode(self, parameters: Mapping[str, float]) -> Array:
        """The vector that the terms are affine in: logarithms of coefficients, exponents as is.

        Raises:
            FitError: A parameter is missing, unknown, not finite, or a coefficient not positive.
        """
        self.check(parameters)
        missing = [name for name in self.parameters if name not in parameters]
        if missing:
            raise FitError(f"law={self.name}: no value for {', '.join(missing)}")
        return np.array(
            [
                np.log(parameters[name]) if kind.coefficient else parameters[name]
                for name, kind in self.parameters.items()
            ]
        )

    def decode(self, vector: Array) -> dict[str, float]:
        """The parameters that `encode` maps to `vector`."""
        return {
            name: float(np.exp(value)) if kind.coefficient else float(value)
            for (name, kind), value in zip(self.parameters.items(), vector, strict=True)
        }

    def check(self, parameters: Mapping[str, float]) -> None:
        """Refuse values of parameters that the law does not have or that it cannot take."""
        for name, value in parameters.items():
            if name not in self.parameters:
                raise FitError(
                    f"{name}={value}: law={self.name} has no such parameter; "
                    f"it has {', '.join(self.parameters)}"
                )
            coefficient = self.parameters[name].coefficient
            if not np.isfinite(value) or (coefficient and value <= 0):
                right = "a positive number" if coefficient else "a finite number"
                raise FitError(f"{name}={value}: must be {right} in law={self.name}")

    def term_values(self, parameters: Mapping[str, float], table: pd.DataFrame) -> Array:
        """What each term adds to the loss, nats per token, [terms, rows]; errors as `predict`."""
        regressors, offsets = self.design(table)
        values: Array = np.exp(offsets + regressors @ self.encode(parameters))
        return values

    def predict(self, parameters: Mapping[str, float], table: pd.DataFrame) -> Array:
        """The law's loss for each row, nats per token, [rows].

        Raises:
            ResultsError: The table lacks a column.
            FitError: A column or a parameter has a value for which the law is not defined.

        >>> LAWS["chinchilla"].predict(BESIROGLU_2024, pd.DataFrame({"params": [70e9],
        ...     "tokens": [1.4e12]})).round(3)
        array([1.974])
        """
        total: Array = self.term_values(parameters, table).sum(axis=0)
        return total


def _chinchilla(c: Columns) -> list[Term]:
    """L = A/N^alpha + B/D^beta + E."""
    return [
        Term({"A": 1, "alpha": -np.log(c["params"])}),
        Term({"B": 1, "beta": -np.log(c["tokens"])}),
        Term({"E": 1}),
    ]


def _floating_point(c: Columns) -> list[Term]:
    """L = n/N^alpha + d/D^beta + epsilon + D^beta/N^alpha log2(B)/(gamma (E+.5)^delta (M+.5)^nu).

    N parameters, D tokens, E exponent and M mantissa bits, B values that share a scale; B = 1 is
    the unquantized run, whose last term is exactly zero.
    """
    log_n, log_d = np.log(c["params"]), np.log(c["tokens"])
    with np.errstate(divide="ignore"):  # log2(1) = 0: no quantization, no term
        log_log2_block = np.log(np.log2(c["block_size"]))
    return [
        Term({"n": 1, "alpha": -log_n}),
        Term({"d": 1, "beta": -log_d}),
        Term({"epsilon": 1}),
        Term(
            {
                "beta": log_d,
                "alpha": -log_n,
                "gamma": -1,
                "delta": -np.log(c["exponent"] + 0.5),
                "nu": -np.log(c["mantissa"] + 0.5),
            },
            offset=log_log2_block,
        ),
    ]


LAWS: dict[str, Law] = {
    law.name: law
    for law in (
        Law(
            "chinchilla",
            "Hoffmann et al. 2203.15556, Eq. 2; refitted by Besiroglu et al. 2404.10102",
            _chinchilla,
            columns={"params": POSITIVE, "tokens": POSITIVE},
            parameters={
                "A": COEFFICIENT,
                "alpha": EXPONENT,
                "B": COEFFICIENT,
                "beta": EXPONENT,
                "E": COEFFICIENT,
            },
        ),
        Law(
            "floating_point",
            "Sun et al. 2501.02423, Eq. 1",
            _floating_point,
            columns={
                "params": POSITIVE,
                "tokens": POSITIVE,
                "exponent": 0.0,
                "mantissa": 0.0,
                "block_size": 1.0,
            },
            parameters={
                "n": COEFFICIENT,
                "alpha": EXPONENT,
                "d": COEFFICIENT,
                "beta": EXPONENT,
                "epsilon": COEFFICIENT,
                "gamma": PENALTY_COEFFICIENT,
                "delta": FORMAT_EXPONENT,
                "nu": FORMAT_EXPONENT,
            },
        ),
    )
}

SUN_2025: dict[str, float] = {
    "n": 69.2343,
    "alpha": 0.2368,
    "d": 68973.0621,
    "beta": 0.5162,
    "epsilon": 1.9061,
    "gamma": 11334.5197,
    "delta": 3.1926,
    "nu": 2.9543,
}
"""Constants of `floating_point`: Sun et al. 2501.02423, Table 2."""

BESIROGLU_2024: dict[str, float] = {
    "A": 482.01,
    "alpha": 0.3478,
    "B": 2085.43,
    "beta": 0.3658,
    "E": 1.8172,
}
"""Constants of `chinchilla`: Besiroglu et al. 2404.10102, the replication of Hoffmann et al."""


def get(name: str) -> Law:
    """The law of this name.

    Raises:
        FitError: There is none.
    """
    if name not in LAWS:
        raise FitError(f"law={name}: no such law; there are {', '.join(LAWS)}")
    return LAWS[name]
