"""Robust log-residual objectives over log-sum-exp models, with exact derivatives.

The objective is sum_i w_i rho(log L_i - log Lhat_i(theta)), rho Huber's function, which may count
a prediction that is too high more than one that is too low, with
log Lhat_i = log sum_k exp(offset_ki + regressor_ki @ theta), where some of these affine forms may
first be bent into one term by a curve (`fitting.law.curves`).  First and second derivatives are
exact, and one call evaluates a whole batch of points (starts, bootstrap draws).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from fitting.law.curves import Array, Curve, Expansion, Pair

Mask: TypeAlias = npt.NDArray[np.bool_]

CHUNK = 12_000
"""Doubles in one [batch, rows] array, 100 kB: the dozens that are in use fit into the cache."""
_ONE = np.ones((1, 1))


@dataclass(frozen=True)
class _Products:
    """Products of two forms' regressors, and where in a Hessian they belong."""

    forms: Pair
    outer: Array
    """[rows, own of the one * own of the other]"""
    columns: slice
    """Place among the products of all pairs, one after the other."""


@dataclass(frozen=True)
class _Term:
    """A term at each point of a batch: an exponential of a form, or a curve over several."""

    share: Array
    """Its share of the loss, [batch, rows]."""
    slopes: list[Array]
    """Derivatives of its log by its forms, as curves give them."""
    bends: dict[Pair, Array]
    """Second derivatives of its log."""


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
    overestimate: float = 1.0
    """How many times a row counts whose prediction is too high."""
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
        log_predicted, terms = self._forward(theta[None])
        jacobian = np.zeros((len(self.log_loss), len(theta)))
        slopes = (term.share * slope for term in terms for slope in term.slopes)
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
            if len(weights) > 1 and (theta == theta[0]).all():
                return self._evaluate(theta[:1], weights, delta, gauss_newton)
            for begin in range(0, len(theta), size):
                piece = slice(begin, begin + size)
                w = weights[piece] if len(weights) > 1 else weights
                parts.append(self._evaluate(theta[piece], w, delta, gauss_newton))
        value, gradient, curvature = (np.concatenate(part) for part in zip(*parts, strict=True))
        return value, gradient, curvature

    def _evaluate(
        self, theta: Array, weights: Array, delta: float, gauss_newton: bool
    ) -> tuple[Array, Array, Array]:
        """`evaluate` of a batch that fits into the cache, or of one point under many weights."""
        log_predicted, terms = self._forward(theta)
        common = weights if len(theta) == 1 < len(weights) else None

        def total(rows: Array, columns: Array) -> Array:
            """Sums over the rows of [batch, rows] x [rows, columns]."""
            if common is None:
                summed: Array = rows @ columns
            else:
                summed = common @ (rows[0][:, None] * columns)
            return summed

        weights = weights if common is None else np.ones((1, 1))
        residual = self.log_loss - log_predicted
        if self.overestimate != 1:
            weights = weights * np.where(residual < 0, self.overestimate, 1.0)
        influence = np.clip(residual, -delta, delta)
        pull = weights * influence
        # psi (r - psi/2) is r^2/2 within the threshold, delta (|r| - delta/2) beyond it.
        value = total(pull * (residual - 0.5 * influence), np.ones((len(self.log_loss), 1)))[:, 0]
        if gauss_newton:
            size = np.maximum(np.abs(residual), np.finfo(float).tiny)
            inner = weights * np.minimum(1.0, delta / size)
        else:
            # d2 log Lhat = (what bends) - g g': its second half joins Gauss-Newton's product.
            inner = weights * (influence == residual)
            inner += pull

        batch, p = len(value), theta.shape[1]
        gradient = np.zeros((batch, p))
        slopes = [term.share * slope for term in terms for slope in term.slopes]
        for slope, (columns, own) in zip(slopes, self._own, strict=True):
            gradient[:, columns] -= total(pull * slope, own)
        # Of two forms of one term: what is times the product of its slopes, and of its bends.
        bending = [pull * term.share for term in terms]
        squared = [inner * term.share**2 for term in terms]
        if not gauss_newton:
            squared = [of_term - bend for of_term, bend in zip(squared, bending, strict=True)]
        place = [(t, a) for t, term in enumerate(terms) for a in range(len(term.slopes))]
        pairs, layout = self._products
        sums = np.empty((batch, len(layout)))
        of_form = -1
        for products in pairs:
            k, j = products.forms
            if not products.outer.shape[1]:
                continue
            (t, a), (u, b) = place[k], place[j]
            if k != of_form:
                of_form, within, across = k, squared[t] * terms[t].slopes[a], inner * slopes[k]
            if t != u:
                factor = across * slopes[j]
            else:
                factor = within * terms[t].slopes[b]
                if not gauss_newton and (a, b) in terms[t].bends:
                    factor -= bending[t] * terms[t].bends[a, b]
            sums[:, products.columns] = total(factor, products.outer)
        return value, gradient, (sums @ layout).reshape(batch, p, p)

    @property
    def _bent_forms(self) -> int:
        return sum(curve.forms for curve in self.curves)

    def _forward(self, theta: Array) -> tuple[Array, list[_Term]]:
        """Log of the terms' sum, [batch, rows], and the terms, the curves' first."""
        logs = []
        for k, ((columns, own), offset) in enumerate(zip(self._own, self.offsets, strict=True)):
            rows = slice(1) if self._alike[k] else slice(None)  # the same in all of them
            form = theta[:, columns] @ own[rows].T
            logs.append(form + offset[rows] if offset.any() else form)
        expansions: list[Expansion] = []
        first = 0
        for curve in self.curves:
            expansions.append(curve(logs[first : first + curve.forms]))
            first += curve.forms
        expansions += [(log, [_ONE], {}) for log in logs[first:]]
        # Centred, the logs are of order one.  Far out they overflow, and that is no descent.
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
            shares = [np.exp(value) for value, *_ in expansions]
            total = sum(shares[1:], start=shares[0])
            log_total: Array = np.log(total)
            inverse = 1 / total
            for share in shares:
                share *= inverse
        both = zip(shares, expansions, strict=True)
        return log_total, [_Term(share, slopes, bends) for share, (_, slopes, bends) in both]
