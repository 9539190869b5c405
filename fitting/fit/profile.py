"""Profile intervals: how far a parameter can be pushed before the fit gets noticeably worse.

One parameter is held at a value and all others are fitted anew.  The interval ends where the
objective F has risen by t^2 c / 2, t being Student's 97.5 % point and

    c = mean psi(r)^2 / mean psi'(r),    psi = rho'

(Schrader & Hettmansperger 1980; for least squares c is the residual variance, and this is the F
test).  Unlike the bootstrap it assumes that residuals are alike everywhere, and unlike standard
errors it follows a curved valley to its end: an interval may be open on one side.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable

import numpy as np
import pandas as pd
from scipy import optimize, stats

from fitting.fit.bootstrap import other_places, warm_thresholds
from fitting.fit.centred import Centred
from fitting.fit.minimise import minimise
from fitting.fit.result import Fit
from fitting.fit.search import in_coordinates, row_weights
from fitting.law.curves import Array
from fitting.law.terms import FitError
from fitting.results.table import select_rows

PRECISION = 1e-3
"""Share of an interval's half width (at most a factor of e) to which its ends are found."""
DOUBLINGS = 4
"""Outward steps in which the distance doubles; then it grows by `LEAP` at a time."""
LEAP = 8.0
FAR_BEYOND = 1e3
"""Times the rise that is looked for: higher objectives, and where there is none, count as this."""
NORMAL_MEDIAN = 0.6745
"""Median size of a standard normal deviate."""
OPEN = 50.0
"""Distance in log(parameter), or in an exponent, beyond which an interval is open."""
LEAST_STEP = 1e-12
"""Share of `OPEN` that the first step out is at least: a direction may seem to have no width."""


def profile_intervals(
    table: pd.DataFrame, fitted: Fit, names: tuple[str, ...] = (), level: float = 0.95
) -> dict[str, tuple[float, float]]:
    """Profile interval of each parameter that is not frozen, (low, high).

    Args:
        table: The table that `fitted` was fitted to.
        fitted: The fit, converged.
        names: Which parameters; all that are free if there are none.
        level: Confidence level of the intervals.

    Returns:
        Parameter -> ends.  An end is 0 or infinite (or the parameter's bound) where no value makes
        the fit noticeably worse.

    Raises:
        FitError: A name is not that of a free parameter, there are no more rows than parameters,
            or no residual is anywhere near zero.
    """
    free = [n for n in fitted.law.parameters if n not in fitted.frozen]
    for name in names:
        if name not in free:
            raise FitError(f"profile: {name} is not a free parameter; there are {', '.join(free)}")
    rows, _ = select_rows(table)
    dof = fitted.rows.used - len(free)
    if dof < 1:
        raise FitError(f"profile: {fitted.rows.used} rows for {len(free)} free parameters")
    weight = row_weights(rows, fitted.weights)
    path = warm_thresholds(fitted)
    student = float(stats.t.ppf(0.5 + level / 2, dof))
    rise = 0.5 * student**2 * _scale(fitted, weight, path[-1], dof)
    centred = in_coordinates(fitted, rows)
    point = centred.encode(fitted.parameters)
    lowest, _, curvature = centred.problem.evaluate(point[None], weight[None], path[-1], True)
    reach = dict(zip(centred.free, _reach(centred, curvature[0], rise), strict=True))
    others = [centred.decode(theta) for theta in other_places(fitted, centred, weight, point)]

    def excess(name: str) -> Callable[[float], float]:
        """The objective's excess over its limit where a parameter is held at a value."""
        solved = {fitted.parameters[name]: fitted.parameters}

        def at(value: float) -> float:
            held = in_coordinates(fitted, rows, {name: value})
            nearest = solved[min(solved, key=lambda other: abs(other - value))]
            # From what was found next to it, and from the optimum, which may be another valley.
            begin = list({id(p): p for p in (nearest, fitted.parameters, *others)}.values())
            starts = np.array([held.encode({**p, name: value}) for p in begin])
            theta, objective, _ = minimise(held.problem, starts, weight[None], path)
            objective = np.where(np.isfinite(objective), objective, np.inf)
            best = int(objective.argmin())
            if not math.isfinite(objective[best]):  # the law is not defined there
                return math.inf
            above = float(objective[best] - lowest[0]) - rise
            if above < FAR_BEYOND * rise:
                solved[value] = held.decode(theta[best])
            return above

        return at

    result = {}
    for name in names or free:
        step = reach[name] / fitted.law.multiplier(name, fitted.parameters)
        result[name] = _ends(fitted, name, step, rise, excess)
    return result


def _reach(centred: Centred, curvature: Array, rise: float) -> Array:
    """How far each coordinate moves, the others following, until a parabola has risen this much.

    The curvature is scaled to a diagonal of one: along the logarithm of a coefficient that has all
    but vanished it is tiny, and no less known for that.
    """
    size = np.sqrt(np.diag(curvature).clip(1e-300))
    inverse = np.linalg.pinv(curvature / np.outer(size, size), hermitian=True)
    to_raw = centred.to_raw / size
    raw = np.einsum("ij,jk,ik->i", to_raw, inverse, to_raw)
    reach: Array = np.sqrt(2 * rise * raw.clip(0.0))
    return reach


def _ends(
    fitted: Fit,
    name: str,
    step: float,
    rise: float,
    excess: Callable[[str], Callable[[float], float]],
) -> tuple[float, float]:
    """The values below and above a parameter's optimum at which the objective reaches its limit."""
    kind = fitted.law.parameters[name]
    best = fitted.parameters[name]
    # A shift's bounds are those of the form that it is in, and a child's those of a product.
    own = kind.bounds if kind.kind == "exponent" and kind.parent is None else None
    bounds = fitted.bounds.get(name, own or (0.0 if kind.positive else -math.inf, math.inf))
    if kind.kind == "rate":
        step *= best  # its coordinate is 1 / best, the distance log(best)
    at = excess(name)

    def end(sign: float, bound: float) -> float:
        def value(distance: float) -> float:
            return best * math.exp(sign * distance) if kind.positive else best + sign * distance

        @functools.cache  # a search begun elsewhere may end elsewhere: what was found stays
        def beyond(distance: float) -> float:
            return min(at(value(distance)), FAR_BEYOND * rise) if distance else -rise

        room = min(abs(bound - best), OPEN)
        if kind.positive:
            room = abs(math.log(bound / best)) if 0 < bound < math.inf else OPEN
        near, far = 0.0, min(max(step, LEAST_STEP * OPEN), room)
        for growth in itertools.chain([2.0] * DOUBLINGS, itertools.repeat(LEAP)):
            if beyond(far) > 0:
                precision = PRECISION * min(near or far, 1.0)
                return value(float(optimize.brentq(beyond, near, far, xtol=precision)))
            if far >= room:
                return bound
            near, far = far, min(growth * far, room)
        raise AssertionError("the distance grows until there is no room")

    return end(-1.0, bounds[0]), end(1.0, bounds[1])


def _scale(fitted: Fit, weights: Array, delta: float, dof: int) -> float:
    """The unit of the objective's rise: mean psi^2 / mean psi', with psi = clip(r, delta).

    Where r < 0 counts several times, psi does, too.

    psi' is the share of residuals within `delta`.  Where these are few it is estimated from those
    within a wider band, as if their density were level there.
    """
    total = float(weights.sum())
    residual = fitted.residuals.to_numpy()
    size = np.abs(residual)
    counts = np.where(residual < 0, fitted.objective.times, 1.0)
    typical = float(np.median(size[weights > 0])) / NORMAL_MEDIAN
    band = max(delta, typical / math.pow(len(residual), 0.2))
    density = float(weights @ (counts * (size <= band))) / total * min(1.0, delta / band)
    if not density:
        raise FitError("profile: no residual is near zero, so there is no scale to judge a rise by")
    squares = float(weights @ (counts * np.minimum(size, delta)) ** 2) / total
    return squares * len(residual) / dof / density
