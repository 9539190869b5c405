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
import math
from collections.abc import Callable

import numpy as np
import pandas as pd
from scipy import optimize, stats

from fitting.curves import Array
from fitting.fit import Fit, FitError, in_coordinates, row_weights, select_rows
from fitting.minimise import minimise
from fitting.uncertainty import warm_thresholds

PRECISION = 1e-3
"""Of an interval's half width, to which its ends are found."""
DOUBLINGS = 12
"""Of the distance that a parabola would give, after which an interval is open."""
FAR_BEYOND = 1e3
"""Times the rise that is looked for: higher objectives, and where there is none, count as this."""
NORMAL_MEDIAN = 0.6745
"""Median size of a standard normal deviate."""
OPEN = 50.0
"""Distance in log(parameter) from which an interval is open."""


def profile_intervals(
    table: pd.DataFrame, fitted: Fit, names: tuple[str, ...] = (), level: float = 0.95
) -> dict[str, tuple[float, float]]:
    """Profile interval of each parameter that is not frozen, (low, high).

    Args:
        table: The table that `fitted` was fitted to.
        fitted: The fit, converged.
        names: Which parameters; all that are free if there are none.
        level: Of the intervals.

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
    rise = 0.5 * student**2 * _scale(fitted.residuals.to_numpy(), weight, path[-1], dof)
    centred = in_coordinates(fitted, rows)
    point = centred.encode(fitted.parameters)
    lowest, _, curvature = centred.problem.evaluate(point[None], weight[None], path[-1], True)
    inverse = centred.to_raw @ np.linalg.pinv(curvature[0], hermitian=True) @ centred.to_raw.T
    reach = dict(zip(centred.free, np.sqrt(2 * rise * np.diag(inverse).clip(1e-300)), strict=True))

    def excess(name: str) -> Callable[[float], float]:
        """How far the objective is above its limit where a parameter has a value."""
        nearest = dict(fitted.parameters)

        def at(value: float) -> float:
            held = in_coordinates(fitted, rows, {name: value})
            start = held.encode({**nearest, name: value})
            theta, objective, _ = minimise(held.problem, start[None], weight[None], path)
            if not math.isfinite(objective[0]):  # the law is not defined there
                return math.inf
            nearest.update(held.decode(theta[0]))
            return float(objective[0] - lowest[0]) - rise

        return at

    result = {}
    for name in names or free:
        step = reach[name] / fitted.law.multiplier(name, fitted.parameters)
        result[name] = _ends(fitted, name, step, rise, excess)
    return result


def _ends(
    fitted: Fit,
    name: str,
    step: float,
    rise: float,
    excess: Callable[[str], Callable[[float], float]],
) -> tuple[float, float]:
    """Where the objective reaches its limit below and above a parameter's optimum."""
    kind = fitted.law.parameters[name]
    best = fitted.parameters[name]
    own = kind.bounds if kind.kind in ("exponent", "shift") and kind.parent is None else None
    bounds = fitted.bounds.get(name, own or (0.0 if kind.positive else -math.inf, math.inf))
    if kind.kind == "rate":
        step *= best  # its coordinate is 1 / best, the distance log(best)

    def end(sign: float, bound: float) -> float:
        at = excess(name)

        def value(distance: float) -> float:
            return best * math.exp(sign * distance) if kind.positive else best + sign * distance

        @functools.cache  # a search begun elsewhere may end elsewhere: what was found stays
        def beyond(distance: float) -> float:
            return min(at(value(distance)), FAR_BEYOND * rise) if distance else -rise

        room = abs(bound - best)
        if kind.positive:
            room = abs(math.log(bound / best)) if 0 < bound < math.inf else OPEN
        near, far = 0.0, min(step, room)
        for _ in range(DOUBLINGS):
            if beyond(far) > 0:
                return value(float(optimize.brentq(beyond, near, far, xtol=PRECISION * far)))
            if far == room:
                break
            near, far = far, min(2 * far, room)
        return bound

    return end(-1.0, bounds[0]), end(1.0, bounds[1])


def _scale(residual: Array, weights: Array, delta: float, dof: int) -> float:
    """What the rise of the objective is measured in: mean psi^2 / mean psi', psi = clip(r, delta).

    psi' is the share of residuals within `delta`.  Where these are few it is estimated from those
    within a wider band, as if their density were level there.
    """
    total = float(weights.sum())
    size = np.abs(residual)
    typical = float(np.median(size[weights > 0])) / NORMAL_MEDIAN
    band = max(delta, typical / math.pow(len(residual), 0.2))
    density = float(weights @ (size <= band)) / total * min(1.0, delta / band)
    if not density:
        raise FitError("profile: no residual is near zero, so there is no scale to judge a rise by")
    squares = float(weights @ np.minimum(size, delta) ** 2) / total
    return squares * len(residual) / dof / density
