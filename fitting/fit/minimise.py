"""Robust log-residual objectives over log-sum-exp models: many starts or weightings at once.

The objective is sum_i w_i rho(log L_i - log Lhat_i(theta)), rho Huber's function, with
log Lhat_i = log sum_k exp(offset_ki + regressor_ki @ theta), where some of these affine forms may
first be bent into one term by a curve (`fitting.law.curves`).  First and second derivatives are
exact, and one call advances a whole batch (starts, bootstrap draws) by damped Newton steps: scipy's
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

from fitting.law.curves import Array, Curve, Pair

Mask: TypeAlias = npt.NDArray[np.bool_]

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
CHUNK = 25_000
"""Doubles in one [batch, rows] array, 200 kB: the dozen that are in use fit into 2 MB of cache."""


@dataclass(frozen=True)
class _Products:
    """Products of two forms' regressors, and where in a Hessian they belong."""

    forms: Pair
    outer: Array
    """[rows, own of the one * own of the other]"""
    columns: slice
    """Place among the products of all pairs, one after the other."""


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
    coefficients: tuple[tuple[int, int], ...] = ()
    """Parameters that are logarithms of coefficients, each with the one form that it is in."""
    small: float = -np.inf
    """Logarithm of a term, largest over the rows, from which down it has all but vanished.

    Along the logarithm of such a term's coefficient the objective is a plain without a slope, on
    which a search would end wherever it came to lie; the coefficient itself has a slope at zero.
    """

    @cached_property
    def _own(self) -> list[tuple[npt.NDArray[np.intp], Array]]:
        """The parameters [own] of each form and their regressors [rows, own]: few of them all."""
        own = []
        for regressors in self.regressors:
            columns = np.flatnonzero(regressors.any(axis=0))
            own.append((columns, np.ascontiguousarray(regressors[:, columns])))
        return own

    @cached_property
    def _alike(self) -> list[bool]:
        """Whether a form of a curve is the same in all rows."""
        own = zip(self._own, self.offsets, strict=True)
        alike = [not np.ptp(rows, axis=0).any() and not np.ptp(at) for (_, rows), at in own]
        return alike[: self._bent_forms] + [False] * (len(alike) - self._bent_forms)

    @cached_property
    def _products(self) -> tuple[list[_Products], Array]:
        """Products of each pair of forms k <= l, laid out by [products, parameters^2]."""
        p = self.regressors.shape[2]
        pairs, layout = [], []
        first = 0
        for k, (rows_of, left) in enumerate(self._own):
            for j, (columns_of, right) in enumerate(self._own[k:], start=k):
                outer = left[:, :, None] * right[:, None, :]
                outer = outer.reshape(len(left), left.shape[1] * right.shape[1])
                where = np.zeros((len(rows_of), len(columns_of), p, p))
                for a, row in enumerate(rows_of):
                    for b, column in enumerate(columns_of):
                        where[a, b, row, column] += 1
                        if j > k:
                            where[a, b, column, row] += 1
                layout.append(where.reshape(outer.shape[1], p * p))
                end = first + outer.shape[1]
                pairs.append(_Products((k, j), outer, slice(first, end)))
                first = end
        return pairs, np.concatenate(layout)

    def defined(self, theta: Array) -> Mask:
        """Where every row has a prediction, [batch]."""
        finite: Mask = np.isfinite(self._forward(theta)[0])
        return np.asarray(finite.all(axis=1))

    def vanishing(self, theta: Array, limits: Array | None = None) -> Mask:
        """Mask of coefficients whose term is nowhere above a limit, same shape as `theta`.

        Args:
            theta: [batch, parameters].
            limits: [parameters], logarithms of terms; None for `small`.
        """
        limits = np.full(theta.shape[1], self.small) if limits is None else limits
        found = np.zeros(theta.shape, dtype=bool)
        low = theta < limits  # centred: a term's largest value is not less
        for j, form in self.coefficients:
            near = np.flatnonzero(low[:, j])
            if not near.size:
                continue
            columns, own = self._own[form]
            if len(columns) > 1:
                logs = theta[np.ix_(near, columns)] @ own.T + self.offsets[form]
                near = near[logs.max(axis=1) < limits[j]]
            found[near, j] = True
        return found

    def unvarying(self, theta: Array, limits: Array) -> Mask:
        """Mask of coefficients whose term varies by less than a limit over the rows, same shape.

        Args:
            theta: [batch, parameters].
            limits: [parameters], logarithms of differences of a term.
        """
        found = np.zeros(theta.shape, dtype=bool)
        for j, form in self.coefficients:
            # A term that some rows lack is zero there.
            with np.errstate(over="ignore"):
                terms = np.exp(self._logs(theta, form))
                found[:, j] = np.ptp(terms, axis=1) < np.exp(limits[j])
        return found

    def _logs(self, theta: Array, form: int) -> Array:
        """One affine form at each point in each row, [batch, rows]."""
        columns, own = self._own[form]
        logs: Array = theta[:, columns] @ own.T + self.offsets[form]
        return logs

    def constants(self) -> list[int]:
        """Coefficients of terms that are the same in all rows."""
        alone = (
            (j, *self._own[form], self.offsets[form])
            for j, form in self.coefficients
            if form >= self._bent_forms
        )
        return [
            j
            for j, columns, own, offset in alone
            if list(columns) == [j] and not np.ptp(own) and not np.ptp(offset)
        ]

    def steep(self, theta: Array) -> list[Array]:
        """Points with a power's term small, and as steep as its exponent's bound allows.

        Where all rows have a term much alike it may serve better as one that only few rows have,
        and between the two the objective has no slope.

        Args:
            theta: [batch, parameters].

        Returns:
            As many points, one array for each term of a coefficient and a bounded exponent.
        """
        found = []
        constants = self.constants()[:1]
        for j, form in self.coefficients:
            columns, _ = self._own[form]
            powers = [int(k) for k in columns if k != j and np.isfinite(self.upper[k])]
            if len(columns) != 2 or not powers:
                continue
            point = theta.copy()
            level = self._logs(theta, form).min(axis=1)
            for constant in constants:  # the part of the term that all rows share is a constant
                point[:, constant] = np.logaddexp(point[:, constant], level)
            point[:, powers[0]] = self.upper[powers[0]]
            point[:, j] += self.small - self._logs(point, form).max(axis=1)
            found.append(np.clip(point, self.lower, self.upper))
        return found

    def predict(self, theta: Array) -> tuple[Array, Array]:
        """Log loss and its gradient at one point: [rows], [rows, parameters]."""
        log_predicted, slopes, _ = self._forward(theta[None])
        jacobian = np.zeros((len(self.log_loss), len(theta)))
        for slope, (columns, own) in zip(slopes, self._own, strict=True):
            jacobian[:, columns] += slope[0][:, None] * own
        return log_predicted[0], jacobian

    def evaluate(
        self, theta: Array, weights: Array, delta: float, gauss_newton: bool = False
    ) -> tuple[Array, Array, Array]:
        """Objective, gradient, and Hessian or a positive semidefinite majorant of it.

        Args:
            theta: [batch, parameters].
            weights: Weights of the rows, [batch, rows] or [1, rows].
            delta: Huber's threshold; infinity for least squares (sum of r^2 / 2).
            gauss_newton: Whether to return the majorant: Gauss-Newton's with weights
                min(1, delta/|r|), by which Newton's method is IRLS, which descends.

        Returns:
            [batch], [batch, parameters], [batch, parameters, parameters].
        """
        size = max(1, CHUNK // len(self.log_loss))
        parts = []
        # Far out terms overflow or vanish all together: infinite or NaN, which is no descent.
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
            for begin in range(0, len(theta), size):
                piece = slice(begin, begin + size)
                w = weights[piece] if len(weights) > 1 else weights
                parts.append(self._evaluate(theta[piece], w, delta, gauss_newton))
        value, gradient, curvature = (np.concatenate(part) for part in zip(*parts, strict=True))
        return value, gradient, curvature

    def _evaluate(
        self, theta: Array, weights: Array, delta: float, gauss_newton: bool
    ) -> tuple[Array, Array, Array]:
        """`evaluate` of a batch that fits into the cache."""
        log_predicted, slopes, bends = self._forward(theta)
        residual = self.log_loss - log_predicted
        influence = np.clip(residual, -delta, delta)
        pull = weights * influence
        # psi (r - psi/2) is r^2/2 within the threshold, delta (|r| - delta/2) beyond it.
        value = np.einsum("br,br->b", pull, residual - 0.5 * influence)
        if gauss_newton:
            size = np.maximum(np.abs(residual), np.finfo(float).tiny)
            inner = weights * np.minimum(1.0, delta / size)
        else:
            # d2 log Lhat = (what bends) - g g': its second half joins Gauss-Newton's product.
            inner = weights * (influence == residual)
            inner += pull

        batch, p = theta.shape
        gradient = np.zeros((batch, p))
        pulls = [pull * slope for slope in slopes]
        for weighted, (columns, own) in zip(pulls, self._own, strict=True):
            gradient[:, columns] -= weighted @ own
        pairs, layout = self._products
        sums = np.empty((batch, len(layout)))
        of_form = -1
        for products in pairs:
            k, j = products.forms
            if not products.outer.shape[1]:
                continue
            if k != of_form:
                of_form, form = k, inner * slopes[k]
            factor = form * slopes[j]
            if not gauss_newton:
                if (k, j) in bends:
                    factor -= pull * bends[k, j]
                elif k == j and k >= self._bent_forms:
                    factor -= pulls[k]  # the exponential of a form bends by its share
            np.matmul(factor, products.outer, out=sums[:, products.columns])
        return value, gradient, (sums @ layout).reshape(batch, p, p)

    @property
    def _bent_forms(self) -> int:
        return sum(curve.forms for curve in self.curves)

    def _forward(self, theta: Array) -> tuple[Array, list[Array], dict[Pair, Array]]:
        """Log of the terms' sum, [batch, rows], and what it owes to each form.

        Second: its derivative by each form, [batch, rows] each; a form that is a term has that
        term's share.  Third: of two forms k <= l of one curve the part of the second derivative
        that is not the product of the two first ones, [batch, rows].
        """
        logs = []
        for k, ((columns, own), offset) in enumerate(zip(self._own, self.offsets, strict=True)):
            rows = slice(1) if self._alike[k] else slice(None)  # the same in all of them
            form = theta[:, columns] @ own[rows].T
            logs.append(form + offset[rows] if offset.any() else form)
        values, parts, first = [], [], 0
        for curve in self.curves:
            value, gradient, seconds = curve(logs[first : first + curve.forms])
            values.append(value)
            parts.append((first, gradient, seconds))
            first += curve.forms
        # Centred, the logs are of order one.  Far out they overflow, and that is no descent.
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
            shares = [np.exp(value) for value in (*values, *logs[first:])]
            total = sum(shares[1:], start=shares[0])
            log_total: Array = np.log(total)
            inverse = 1 / total
            for share in shares:
                share *= inverse
        slopes: list[Array] = []
        bends: dict[Pair, Array] = {}
        for share, (begin, gradient, seconds) in zip(shares, parts, strict=False):
            slopes += [share * slope for slope in gradient]
            for a, slope in enumerate(gradient):
                for b in range(a, len(gradient)):
                    second = slope * gradient[b] + seconds.get((a, b), 0.0)
                    bends[begin + a, begin + b] = share * second
        return log_total, [*slopes, *shares[len(parts) :]], bends


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
    if not starts.shape[1]:  # nothing is free
        value = problem.evaluate(starts, weights, deltas[-1])[0]
        return starts, value, np.ones(len(starts), dtype=bool)
    theta = starts
    for delta in deltas[:-1]:
        theta, _, _ = _descend(problem, theta, weights, delta, COARSE_DECREMENT, delta == np.inf)
    return _descend(problem, theta, weights, deltas[-1], tolerance, False)


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
