"""Damped Newton steps on many problems at once (`fitting.fit.problem`): starts, bootstrap draws.

scipy's minimisers take one problem at a time and are some hundred times slower on a thousand draws.

A far start would see nothing but Huber's linear branch, whose curvature is zero, and full Newton
steps from it tend to end where a term has vanished.  So blind starts come down a path of
thresholds: least squares by Gauss-Newton first, then each threshold from where the last one ended.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fitting.fit.problem import Mask, Problem
from fitting.law.curves import Array

MAX_STEPS = 300
DECREMENT = 1e-17
"""Converged where a full Newton step would gain less than this share of the objective."""
COARSE_DECREMENT = 1e-6
"""The same on the way down: only the last threshold is solved to the end."""
ROUNDING = 1e-25
"""The same per row, absolute: squared residuals of exact data stop here."""
RIDGE = 1e-12
"""Share of the curvature's trace that keeps directions in place of which the data say nothing."""
LONGEST_STEP = 0.5
"""In any parameter, a coefficient's being its log: far starts overshoot into a vanished term."""
FURTHEST_DOWN = 0.9
"""Share of itself that a vanishing term loses in one step, unless it is to go all the way."""
FIRST_DAMPING = 0.03
LIGHT_DAMPING = 0.1
"""Damping up to which a Newton step promises about as much as the undamped one."""
SAME = 1e-3
"""Share of the objective by which two optima may differ, as far as curvature goes, and be one."""


def minimise(
    problem: Problem,
    starts: Array,
    weights: Array,
    deltas: Sequence[float],
    tolerance: float = DECREMENT,
    known: Array | None = None,
) -> tuple[Array, Array, Mask]:
    """Minimise from each start under its weights; bounds hold throughout.

    Args:
        problem: The data and the model.
        starts: [batch, parameters], within the bounds.
        weights: Non-negative, [batch, rows], or [1, rows] for all.
        deltas: Huber thresholds, falling, infinity first for least squares by Gauss-Newton; the
            last one is the objective's.
        tolerance: Share of the objective that a full Newton step must gain to be worth taking.
        known: [batch, parameters], optima that were found already: a search whose next step leads
            to its own is ended, and its objective given as infinite.

    Returns:
        Optima [batch, parameters], objectives [batch], and where steps sufficed [batch].
    """
    if not starts.shape[1]:  # nothing is free
        value = problem.evaluate(starts, weights, deltas[-1])[0]
        return starts, value, np.ones(len(starts), dtype=bool)
    theta = starts
    for delta in deltas[:-1]:
        theta, _, _ = _descend(problem, theta, weights, delta, COARSE_DECREMENT, delta == np.inf)
    return _descend(problem, theta, weights, deltas[-1], tolerance, False, known)


def at_bounds(problem: Problem, theta: Array) -> Mask:
    """Mask of parameters that sit on a bound, same shape as `theta`."""
    reached: Mask = (theta <= problem.lower) | (theta >= problem.upper)
    return reached


def _descend(
    problem: Problem,
    starts: Array,
    weights: Array,
    delta: float,
    tolerance: float,
    gauss_newton: bool,
    known: Array | None = None,
) -> tuple[Array, Array, Mask]:
    """Damped Newton steps: solve (H + damping * majorant) step = -gradient on the free parameters.

    With `gauss_newton` the majorant, which is never indefinite, stands in for the Hessian H.
    A step that does not descend is not taken, raises the damping and has the majorant, which
    elsewhere is that of some steps ago, made anew: with much damping it is a short IRLS step,
    which always descends.
    """
    theta = starts.copy()
    value, gradient, curvature = problem.evaluate(theta, weights, delta, gauss_newton)
    majorant = curvature
    if not gauss_newton:
        majorant = problem.evaluate(theta, weights, delta, True)[2]
    damping = np.full(len(theta), FIRST_DAMPING)
    live = np.arange(len(theta))
    converged = np.zeros(len(theta), dtype=bool)
    floor = ROUNDING * weights.sum(axis=1).max()
    for _ in range(MAX_STEPS):
        lam = damping[live]
        derivatives = (gradient[live], curvature[live], majorant[live])
        step, decrement = _step(problem, theta[live], *derivatives, lam, gauss_newton)
        small = np.abs(decrement) <= tolerance * value[live] + floor
        # A gain small under heavy damping proves nothing, unless no step is short enough.
        ended = small & (lam <= LIGHT_DAMPING)
        converged[live[ended]] = True
        # A term about to vanish counts as gone: the last steps to zero would gain nothing.
        at_zero = step[ended] == problem.lower - theta[live[ended]]
        theta[live[ended]] = np.where(at_zero, problem.lower, theta[live[ended]])
        if known is not None:
            apart = theta[live] + step - known[live]
            between = 0.5 * np.einsum("bi,bij,bj->b", apart, majorant[live], apart)
            again = (lam <= LIGHT_DAMPING) & (between <= SAME * value[live]) & ~ended
            theta[live[again]], value[live[again]] = known[live[again]], np.inf
            converged[live[again]] = True
            ended |= again
        live, step, decrement, small = (x[~ended] for x in (live, step, decrement, small))
        if not live.size:
            break

        trial = np.clip(theta[live] + step, problem.lower, problem.upper)
        w = weights[live] if len(weights) > 1 else weights
        new = problem.evaluate(trial, w, delta, gauss_newton)
        better = (decrement > 0) & (new[0] <= value[live])
        taken, refused = live[better], live[~better]
        theta[taken] = trial[better]
        for old, fresh in zip((value, gradient, curvature), new, strict=True):
            old[taken] = fresh[better]
        damping[taken] = np.maximum(damping[taken] * 0.3, 1e-10)
        damping[refused] *= 10
        if refused.size and not gauss_newton:
            w = weights[refused] if len(weights) > 1 else weights
            majorant[refused] = problem.evaluate(theta[refused], w, delta, True)[2]
        ended = small & ~better
        converged[live[ended]] = True
        live = live[~ended & (damping[live] < 1e12)]
        if not live.size:
            break
    return theta, value, converged


def _step(
    problem: Problem,
    theta: Array,
    gradient: Array,
    curvature: Array,
    majorant: Array,
    damping: Array,
    gauss_newton: bool,
) -> tuple[Array, Array]:
    """Damped Newton steps [batch, parameters], cut to size, and what whole ones promise [batch].

    Where a coefficient's term has all but vanished the step is Newton's in the coefficient,
    in units of what it is now: -1 takes it to zero, for which its lower bound stands.
    """
    pushed = (theta <= problem.lower) & (gradient > 0) | (theta >= problem.upper) & (gradient < 0)
    linear = ~pushed & problem.vanishing(theta)
    bend = curvature
    if linear.any() and not gauss_newton:
        bend = curvature.copy()
        diagonal = np.arange(theta.shape[1])
        # d2F/du2 at u = 1 where theta = log u + constant.
        bend[:, diagonal, diagonal] -= np.where(linear, gradient, 0.0)
    step = _solve(bend, majorant, damping, gradient, pushed, linear)
    zero = linear & (step <= -1)
    again = zero.any(axis=1)
    if again.any():  # the others' steps are those that suit a term that is gone
        held = (pushed | zero)[again]
        step[again] = _solve(
            bend[again], majorant[again], damping[again], gradient[again], held, linear[again]
        )
    decrement: Array = -0.5 * (gradient * step).sum(axis=1)
    if not linear.any():
        longest = np.abs(step).max(axis=1, keepdims=True)
        step *= np.minimum(1.0, LONGEST_STEP / np.maximum(longest, 1e-300))
        return step, decrement
    decrement += np.where(zero, gradient, 0.0).sum(axis=1)
    longest = np.abs(np.where(linear, 0.0, step)).max(axis=1, keepdims=True)
    room = np.expm1(np.where(linear, problem.small - theta, 0.0) + LONGEST_STEP)
    excess = np.where(linear & (step > 0), step / room, 0.0).max(axis=1, keepdims=True)
    step /= np.maximum(np.maximum(longest / LONGEST_STEP, excess), 1.0)
    step = np.where(linear, np.log1p(np.maximum(step, -FURTHEST_DOWN)), step)
    return np.where(zero, problem.lower - theta, step), decrement


def _solve(
    curvature: Array, majorant: Array, damping: Array, gradient: Array, held: Mask, linear: Mask
) -> Array:
    """Solutions of (curvature + damping majorant) step = -gradient, zero in what is held.

    The curvature along what is `linear` may be far smaller than the others': it has its own ridge.
    """
    matrix = curvature + damping[:, None, None] * majorant
    matrix *= ~(held[:, :, None] | held[:, None, :])
    trace = (1 + damping[:, None]) * np.trace(majorant, axis1=1, axis2=2)[:, None]
    diagonal = np.arange(gradient.shape[1])
    size = np.where(linear, matrix[:, diagonal, diagonal], trace)
    matrix[:, diagonal, diagonal] += np.where(held, 1.0, RIDGE * np.abs(size) + 1e-300)
    g = np.where(held, 0.0, gradient)
    step: Array = -np.linalg.solve(matrix, g[:, :, None])[:, :, 0].astype(np.float64)
    return step
