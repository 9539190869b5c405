"""Robust log-residual objectives over log-sum-exp models: many starts or weightings at once.

The objective is sum_i w_i rho(log L_i - log Lhat_i(theta)), rho Huber's function, with
log Lhat_i = log sum_k exp(offset_ki + regressor_ki @ theta), where some of these affine forms may
first be bent into one term by a curve (`fitting.curves`).  First and second derivatives are exact,
and one call advances a whole batch (starts, bootstrap draws) by damped Newton steps: scipy's
minimisers take one problem at a time and are some hundred times slower on a thousand draws.

A far start would see nothing but Huber's linear branch, whose curvature is zero, and full Newton
steps from it tend to end where a term has vanished.  So blind starts come down a path of
thresholds: least squares by Gauss-Newton first, then each threshold from where the last one ended.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from fitting.curves import Array, Curve

Mask: TypeAlias = npt.NDArray[np.bool_]

MAX_STEPS = 300
DECREMENT = 1e-11
"""Converged where a full Newton step would gain less than this share of the objective."""
COARSE_DECREMENT = 1e-6
"""The same on the way down: only the last threshold is solved to the end."""
ROUNDING = 1e-25
"""The same per row, absolute: squared residuals of exact data stop here."""
RIDGE = 1e-12
"""Of the curvature's trace: keeps directions that the data say nothing about where they are."""
LONGEST_STEP = 0.5
"""In any parameter, a coefficient's being its log: far starts overshoot into a vanished term."""
CHUNK = 100_000
"""Doubles in one [batch, forms, rows] array: a few such arrays stay in the cache."""


@dataclass(frozen=True)
class Problem:
    """Data and model of one fit, in coordinates that suit the solver."""

    regressors: Array
    """[forms, rows, parameters]"""
    offsets: Array
    """[forms, rows]; -inf where a term is zero."""
    log_loss: Array
    """[rows]"""
    lower: Array
    """[parameters]"""
    upper: Array
    """[parameters]"""
    curves: tuple[Curve, ...] = ()
    """Each takes its forms, in order from the first, and makes a term; other forms are terms."""

    @cached_property
    def _forms(self) -> list[tuple[npt.NDArray[np.intp], Array, Array]]:
        """Of each form: its parameters, their regressors, and the products of those by pairs.

        [own], [own, rows], [rows, own * own]: most forms have few of the parameters.
        """
        forms = []
        for regressors in self.regressors:
            columns = np.flatnonzero(regressors.any(axis=0))
            own = regressors[:, columns]
            outer = (own[:, :, None] * own[:, None, :]).reshape(len(own), -1)
            forms.append((columns, np.ascontiguousarray(own.T), outer))
        return forms

    def defined(self, theta: Array) -> Mask:
        """Where every row has a prediction, [batch]."""
        finite: Mask = np.isfinite(self._forward(theta)[0])
        return np.asarray(finite.all(axis=1))

    def predict(self, theta: Array) -> tuple[Array, Array]:
        """Log loss and its gradient at one point: [rows], [rows, parameters]."""
        log_predicted, slopes, _ = self._forward(theta[None])
        return log_predicted[0], self._jacobian(slopes)[0].T

    def evaluate(
        self, theta: Array, weights: Array, delta: float
    ) -> tuple[Array, Array, Array, Array]:
        """Objective, gradient, Hessian, and a positive semidefinite majorant of the Hessian.

        Args:
            theta: [batch, parameters].
            weights: Of the rows, [batch, rows] or [1, rows].
            delta: Huber's threshold; infinity for least squares (sum of r^2 / 2).

        Returns:
            [batch], [batch, parameters], twice [batch, parameters, parameters].  The majorant is
            Gauss-Newton's with weights min(1, delta/|r|): iterating it is IRLS, which descends.
        """
        log_predicted, slopes, bends = self._forward(theta)
        residual = self.log_loss - log_predicted
        size = np.abs(residual)
        inside = size <= delta
        slope = np.clip(residual, -delta, delta)
        with np.errstate(invalid="ignore", over="ignore"):
            rho = np.where(inside, 0.5 * residual**2, delta * (size - 0.5 * delta))
            relative = np.where(inside, 1.0, delta / np.maximum(size, np.finfo(float).tiny))
        value = (weights * rho).sum(axis=1)

        jacobian = self._jacobian(slopes)
        pull = weights * slope
        gradient = -(jacobian @ pull[:, :, None])[:, :, 0]
        transposed = jacobian.transpose(0, 2, 1)
        majorant = (jacobian * (weights * relative)[:, None, :]) @ transposed
        # d2 log Lhat = sum_k share_k x_k x_k' - g g': its second half joins the first product.
        hessian = (jacobian * (weights * inside + pull)[:, None, :]) @ transposed
        for k, (columns, _, outer) in enumerate(self._forms):
            if k < len(bends):
                self._add_bends(hessian, k, bends[k], pull)
                continue
            shape = (len(theta), len(columns), len(columns))
            curvature = ((slopes[:, k] * pull) @ outer).reshape(shape)
            hessian[:, columns[:, None], columns] -= curvature
        return value, gradient, hessian, majorant

    def _forward(self, theta: Array) -> tuple[Array, Array, list[Array]]:
        """Log of the terms' sum, [batch, rows], and what it owes to each form.

        Second: its derivative by each form, [batch, forms, rows]; a form that is a term has that
        term's share.  Third: for each form k of a curve the part of the second derivatives that
        is not the product of two first ones, by k and the forms l >= k of the same curve, [batch,
        l, rows].
        """
        forms, rows, p = self.regressors.shape
        logs = (theta @ self.regressors.reshape(forms * rows, p).T).reshape(-1, forms, rows)
        logs += self.offsets
        if not self.curves:
            return (*_softmax(logs), [])
        first, values, parts = 0, [], []
        for curve in self.curves:
            value, gradient, hessian = curve(logs[:, first : first + curve.forms])
            values.append(value)
            parts.append((gradient, hessian + gradient[:, :, None] * gradient[:, None]))
            first += curve.forms
        result, share = _softmax(np.concatenate([np.stack(values, 1), logs[:, first:]], axis=1))
        slopes = [share[:, [k]] * gradient for k, (gradient, _) in enumerate(parts)]
        slopes.append(share[:, len(parts) :])
        bends = [
            share[:, [k]] * second[:, form, form:]
            for k, (_, second) in enumerate(parts)
            for form in range(second.shape[1])
        ]
        return result, np.concatenate(slopes, axis=1), bends

    def _add_bends(self, hessian: Array, k: int, bends: Array, pull: Array) -> None:
        """Subtract from the objective's Hessian what form k of a curve and later ones add to it."""
        columns, own, _ = self._forms[k]
        for step in range(bends.shape[1]):
            others, other, _ = self._forms[k + step]
            outer = (own[:, None] * other).reshape(-1, own.shape[1])
            shape = (len(pull), len(columns), len(others))
            curvature = ((bends[:, step] * pull) @ outer.T).reshape(shape)
            hessian[:, columns[:, None], others] -= curvature
            if step:
                hessian[:, others[:, None], columns] -= curvature.transpose(0, 2, 1)

    def _jacobian(self, slopes: Array) -> Array:
        """Derivatives of the log of the sum, [batch, parameters, rows]."""
        batch, _, rows = slopes.shape
        jacobian = np.zeros((batch, self.regressors.shape[2], rows))
        for k, (columns, regressors, _) in enumerate(self._forms):
            for column, regressor in zip(columns, regressors, strict=True):
                jacobian[:, column] += slopes[:, k] * regressor
        return jacobian


def _softmax(logs: Array) -> tuple[Array, Array]:
    """Log of the terms' sum [batch, rows] and each term's share of it [batch, terms, rows]."""
    top = logs.max(axis=1)
    share = np.exp(logs - top[:, None, :])
    total = share.sum(axis=1)
    share /= total[:, None, :]
    return top + np.log(total), share


def minimise(
    problem: Problem,
    starts: Array,
    weights: Array,
    deltas: Sequence[float],
    tolerance: float = DECREMENT,
) -> tuple[Array, Array, Mask]:
    """Minimise from each start under its weights; bounds hold throughout.

    Args:
        problem: The data and the model.
        starts: [batch, parameters], within the bounds.
        weights: Non-negative, [batch, rows], or [1, rows] for all.
        deltas: Huber thresholds, falling, infinity first for least squares by Gauss-Newton; the
            last one is the objective's.
        tolerance: Share of the objective that a full Newton step must gain to be worth taking.

    Returns:
        Optima [batch, parameters], objectives [batch], and where steps sufficed [batch].
    """
    forms, rows, _ = problem.regressors.shape
    size = max(1, CHUNK // (forms * rows))
    parts = []
    for begin in range(0, len(starts), size):
        chunk = slice(begin, begin + size)
        theta = starts[chunk]
        w = weights[chunk] if len(weights) > 1 else weights
        for delta in deltas[:-1]:
            gauss_newton = delta == np.inf
            theta, _, _ = _descend(problem, theta, w, delta, COARSE_DECREMENT, gauss_newton)
        parts.append(_descend(problem, theta, w, deltas[-1], tolerance, False))
    theta, value, converged = (np.concatenate(part) for part in zip(*parts, strict=True))
    return theta, value, converged


def at_bounds(problem: Problem, theta: Array) -> Mask:
    """Which parameters sit on a bound, same shape as `theta`."""
    reached: Mask = (theta <= problem.lower) | (theta >= problem.upper)
    return reached


def _descend(
    problem: Problem,
    starts: Array,
    weights: Array,
    delta: float,
    tolerance: float,
    gauss_newton: bool,
) -> tuple[Array, Array, Mask]:
    """Damped Newton steps: solve (H + damping * majorant) step = -gradient on the free parameters.

    With `gauss_newton` the majorant, which is never indefinite, stands in for the Hessian H.
    A step that does not descend is not taken and raises the damping; with much damping it is a
    short IRLS step, which always descends.
    """
    theta = starts.copy()
    value, gradient, hessian, majorant = problem.evaluate(theta, weights, delta)
    damping = np.full(len(theta), 1e-2)
    live = np.arange(len(theta))
    converged = np.zeros(len(theta), dtype=bool)
    diagonal = np.arange(theta.shape[1])
    floor = ROUNDING * weights.sum(axis=1).max()
    for _ in range(MAX_STEPS):
        g, m, lam = gradient[live], majorant[live], damping[live]
        pushed = (theta[live] <= problem.lower) & (g > 0) | (theta[live] >= problem.upper) & (g < 0)
        g = np.where(pushed, 0.0, g)
        matrix = (m if gauss_newton else hessian[live]) + lam[:, None, None] * m
        matrix *= ~(pushed[:, :, None] | pushed[:, None, :])
        trace = (1 + lam[:, None]) * np.trace(m, axis1=1, axis2=2)[:, None]
        matrix[:, diagonal, diagonal] += np.where(pushed, 1.0, RIDGE * trace + 1e-300)
        step = -np.linalg.solve(matrix, g[:, :, None])[:, :, 0]
        decrement = -0.5 * (g * step).sum(axis=1)
        small = np.abs(decrement) <= tolerance * value[live] + floor
        longest = np.abs(step).max(axis=1, keepdims=True)
        step *= np.minimum(1.0, LONGEST_STEP / np.maximum(longest, 1e-300))

        trial = np.clip(theta[live] + step, problem.lower, problem.upper)
        w = weights[live] if len(weights) > 1 else weights
        new = problem.evaluate(trial, w, delta)
        better = (decrement > 0) & (new[0] <= value[live])
        taken = live[better]
        theta[taken] = trial[better]
        for old, fresh in zip((value, gradient, hessian, majorant), new, strict=True):
            old[taken] = fresh[better]
        # A gain small under heavy damping proves nothing, unless no step is short enough.
        ended = small & ((lam <= 1e-1) | ~better)
        damping[live] = np.where(better, np.maximum(lam * 0.3, 1e-10), lam * 10)
        converged[live[ended]] = True
        live = live[~ended & (lam < 1e12)]
        if not live.size:
            break
    return theta, value, converged
