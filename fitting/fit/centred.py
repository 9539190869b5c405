"""A law on a table in coordinates that suit the solver, and where its search begins."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from fitting.fit.problem import Mask, Problem
from fitting.law.curves import Array
from fitting.law.terms import FitError, Law

SMALL = 0.01
"""Share of the median loss below which a term has all but vanished."""
SMALLEST_VALUE = 1e-300
"""The least value of a positive parameter; one over it is the largest of any."""
LARGEST_UNIT = 300.0
"""Logarithm of a coefficient's unit: an exponent frozen at 50 asks for more than float64 holds."""


@dataclass(frozen=True)
class Centred:
    """A law on a table in the solver's coordinates.

    The solver's point of a coefficient is the log of what its term contributes at the centre of
    the rows that have the term, of a shift what its form is where it is largest; any other
    parameter's is its coordinate (`fitting.law`).  Without this, a coefficient (loss at N = 1)
    and its exponent would be correlated beyond .999, and a coefficient's bounds would depend on
    whether the exponent is frozen.
    """

    problem: Problem
    law: Law
    free: tuple[str, ...]
    frozen: Mapping[str, float]
    bounds: Mapping[str, tuple[float, float]]
    to_raw: Array
    """[free, free]: coordinates = to_raw @ (theta - origin)."""
    origin: Array
    low: Array
    """[free]: blind starts are spread from here .."""
    high: Array
    """.. to here .."""
    spread: Array
    """[free, free]: .. and are the solver's points after theta = spread @ start + shift."""
    shift: Array
    """[free]"""
    units: Mapping[str, float]
    """Coefficient -> log of the unit in which it is measured in the coordinates.

    Under a power (A^gamma N^-(alpha gamma)) a frozen exponent is multiplied by a free parameter, so
    that no origin of the coordinate can take it in; the coefficient's unit can.
    """

    @classmethod
    def of(
        cls,
        law: Law,
        rows: pd.DataFrame,
        freeze: Mapping[str, float],
        bounds: Mapping[str, tuple[float, float]] | None = None,
        overestimate: float = 1.0,
    ) -> Centred:
        """A law on a table.

        Args:
            law: The law.
            rows: One row per run, with the law's columns.
            freeze: Parameters held at a value.
            bounds: Parameters with bounds of their own.  A coefficient that has any is not
                centred: bounds hold in the solver's coordinates.
            overestimate: How many times a row counts whose prediction is too high.

        Raises:
            FitError: A frozen or bounded name or value or a column does not suit the law, or it
                predicts nothing for a row.
        """
        law.check(freeze, "freeze.")
        bounds = bounds or {}
        _check_bounds(law, bounds, freeze)
        design = law.design(rows, freeze)
        regressors, offsets = design.regressors, design.offsets
        if nothing := int(np.isneginf(offsets).all(axis=0).sum()):
            raise FitError(
                f"law={law.name}: predicts zero for {nothing} of {len(rows)} rows, whatever its "
                f"parameters{law.domain and ': '}{law.domain}"
            )
        free = tuple(name for name in law.parameters if name not in freeze)
        log_loss = np.log(rows["loss"].to_numpy(dtype=np.float64))
        median = float(np.median(log_loss))
        centre = np.eye(len(free))
        origin = np.zeros(len(free))
        units: dict[str, float] = {}
        held = design.held.copy()
        # Lower and upper bounds, and the ends of the starts.
        ranges = np.empty((4, len(free)))
        terms: list[tuple[int, int]] = []
        for j, name in enumerate(free):
            kind = law.parameters[name]
            ranges[:, j] = (*kind.bounds, *kind.start)
            if kind.logarithmic:
                ranges[:, j] = np.log(ranges[:, j])
            if kind.kind == "coefficient":
                ranges[:, j] += median
            if kind.kind in ("coefficient", "shift"):
                form = int(np.abs(regressors[:, :, j]).sum(axis=1).argmax())
                present = np.isfinite(offsets[form])
                if kind.kind == "coefficient" and not kind.parent and name not in bounds:
                    terms.append((j, form))
                if kind.kind == "coefficient" and kind.parent and design.held[form].any():
                    unit = -float(design.held[form, present].mean())
                    units[name] = float(np.clip(unit, -LARGEST_UNIT, LARGEST_UNIT))
                    held[form] += units[name]
                if kind.kind == "shift":
                    present = _largest(regressors[form].sum(axis=1) + offsets[form])
                if present.any():
                    centre[j] = regressors[form, present].mean(axis=0)
                    origin[j] = offsets[form, present].mean()
        spread = np.eye(len(free))
        shift = np.zeros(len(free))
        if bounds:
            own = [j for j, name in enumerate(free) if name in bounds]
            inverse = np.linalg.inv(centre)
            at = origin.copy()
            centre[own], origin[own] = np.eye(len(free))[own], 0.0
            spread = centre @ inverse
            shift = origin - spread @ at
            for j in own:
                ranges[:2, j] = _encoded_bounds(law, free[j], bounds[free[j]])
        # theta = centre @ coordinates + origin: a form is offset + x to_raw (theta - origin).
        to_raw: Array = np.linalg.inv(centre).astype(np.float64)
        shifted = regressors @ to_raw
        # What is left of a centred column by rounding would look like information.
        shifted[np.abs(shifted) < 1e-12] = 0.0
        lower, upper, low, high = ranges
        moved = offsets - shifted @ origin
        curves = design.holding(held).curves
        small = median + math.log(SMALL)
        limits = lower, upper
        problem = Problem(
            *(shifted, moved, log_loss, *limits, curves, tuple(terms), overestimate, small)
        )
        return cls(
            *(problem, law, free, dict(freeze), dict(bounds), to_raw, origin),
            *(low, high, spread, shift, units),
        )

    def decode(self, theta: Array) -> dict[str, float]:
        """The law's parameters, frozen ones included, at one point of the solver."""
        return {name: float(value[0]) for name, value in self.decode_many(theta[None]).items()}

    def decode_many(self, theta: Array) -> dict[str, Array]:
        """`decode` of each point [batch, free]: parameter -> its values, [batch]."""
        values = self.law.decode_many((theta - self.origin) @ self.to_raw.T, self.frozen)
        for name, unit in self.units.items():
            values[name] = values[name] * math.exp(unit)
        return values

    def encode(self, parameters: Mapping[str, float]) -> Array:
        """The solver's point for the law's parameters, moved into the bounds.

        A search may have ended where a parameter exceeds float64, or has no value because its
        parent is zero: then the nearest possible value, or any.
        """
        in_units = {n: parameters[n] * math.exp(-unit) for n, unit in self.units.items()}
        held = representable(self.law, {**parameters, **in_units})
        raw = self.law.encode(held, self.frozen)
        theta = np.linalg.solve(self.to_raw, raw) + self.origin
        return np.clip(theta, self.problem.lower, self.problem.upper)

    def large(self, j: int) -> float:
        """The point with the term of the coefficient at position `j` as large as is plausible.

        Half the smallest loss, or where the coefficient's blind starts end if that is less.
        """
        return min(float(self.problem.log_loss.min()) - math.log(2), float(self.high[j]))

    def doubtful(self) -> Array:
        """The size below which a term's coefficient may belong elsewhere: `Problem.vanishing`.

        Twice where its blind starts begin: 10 % of the loss, of a penalty 0.6 %.
        """
        return self.low + math.log(2)

    def starts(self, count: int, seed: int) -> Array:
        """Points spread evenly over the parameters' ranges, [count, free].

        A Kronecker lattice on powers of the generalised golden ratio, shifted by `seed`: as even
        as a grid at any count and in any dimension.  Points where the law is not defined do not
        count.

        Raises:
            FitError: The law is defined in too few places.
        """
        dimensions = len(self.free)
        ratio = 2.0
        for _ in range(60):  # the root of x^(d+1) = x + 1
            ratio = (1 + ratio) ** (1 / (dimensions + 1))
        shift = np.random.default_rng(seed).random(dimensions)
        steps = ratio ** -np.arange(1.0, dimensions + 1)
        for tried in (count, 8 * count, 64 * count):
            unit = (shift + np.outer(np.arange(tried), steps)) % 1.0
            points = (self.low + unit * (self.high - self.low)) @ self.spread.T + self.shift
            points = np.clip(points, self.problem.lower, self.problem.upper)
            if self.problem.curves:
                points = points[self.problem.defined(points)]
            if len(points) >= count:
                return points[:count]
        raise FitError(
            f"law={self.law.name}: defined in {len(points)} of {tried} points tried; "
            f"{self.law.domain}"
        )


def _check_bounds(
    law: Law, bounds: Mapping[str, tuple[float, float]], freeze: Mapping[str, float]
) -> None:
    """Refuse impossible bounds, and bounds of parameters that cannot have any."""
    for name, (low, high) in bounds.items():
        given = f"bounds.{name}={low:g}..{high:g}"
        law.check({name: 1.0}, "bounds.")
        if not low < high:
            raise FitError(f"{given}: the lower bound must be below the upper one")
        if name in freeze:
            raise FitError(f"{given}: {name} is frozen at {freeze[name]:g}; give one or the other")
        if law.parameters[name].parent is not None:
            raise FitError(
                f"{given}: law={law.name} fits {name} as a part of a product, which cannot be "
                "bounded; freeze it instead"
            )
        if law.parameters[name].positive and low < 0:
            raise FitError(f"{given}: {name} is positive in law={law.name}; begin at 0 or above")


def _encoded_bounds(law: Law, name: str, bounds: tuple[float, float]) -> tuple[float, float]:
    """Bounds of a parameter as bounds of its coordinate."""
    kind = law.parameters[name]
    with np.errstate(divide="ignore"):
        low, high = np.array(bounds, dtype=np.float64)
        if kind.logarithmic:
            return float(np.log(low)), float(np.log(high))
        return (float(1 / high), float(1 / low)) if kind.kind == "rate" else (low, high)


def representable(law: Law, parameters: Mapping[str, float]) -> dict[str, float]:
    """The nearest values that the law can take; one for NaN, which has no effect."""
    least = {n: SMALLEST_VALUE if law.parameters[n].positive else -math.inf for n in parameters}
    return {
        n: 1.0 if math.isnan(v) else min(max(v, least[n]), 1 / SMALLEST_VALUE)
        for n, v in parameters.items()
    }


def _largest(values: Array) -> Mask:
    """Mask of the first largest value, same shape."""
    where = np.zeros(values.shape, dtype=bool)
    where[values.argmax()] = True
    return where
