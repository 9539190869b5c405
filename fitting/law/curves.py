"""Terms of a law that are no exponentials of affine functions, with their exact derivatives.

A curve maps a few affine functions of the parameters, its forms x_1 .. x_m, to the logarithm of one
term.  Value, gradient and Hessian in the forms are all that `fitting.fit.minimise` needs: what
parameters are behind the forms is the law's business.  Outside its domain a curve is NaN.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[np.float64]
Derivatives: TypeAlias = tuple[Array, Array, Array]
"""A function's value, first and second derivative."""

LARGEST_LOG = 5.7
"""tanh(e^5.7) is 1 in float64, and sinh(2 e^5.7) still finite."""
LARGEST_EXPONENT = 700.0
"""e^700 is finite in float64."""


class Curve(ABC):
    """The logarithm of one term as a function of several forms."""

    forms: int

    @abstractmethod
    def __call__(self, x: Array) -> Derivatives:
        """Value [batch, rows], gradient [batch, forms, rows], Hessian [batch, forms, forms, rows].

        Args:
            x: The forms, [batch, forms, rows].
        """

    def holding(self, held: Array) -> Curve:
        """The curve with other constants [forms, rows], which its own parameter multiplies."""
        if held.any():
            raise TypeError(f"{type(self).__name__} has no parameter that multiplies constants")
        return self


@dataclass(frozen=True)
class Power(Curve):
    """(e^(x_1/g + held_1) + e^(x_2/g + held_2))^g with x_3 = log g: a sum raised to a power.

    Forms that are already multiplied by g keep what they contribute to the loss when g moves.
    """

    held: Array | float = 0.0
    """[2, rows]: the part of the exponents that g multiplies."""
    forms: int = 3

    def __call__(self, x: Array) -> Derivatives:
        """See `Curve`."""
        terms, power = x[:, :2], np.exp(x[:, 2])
        logs = terms / power[:, None] + self.held
        top = logs.max(axis=1, keepdims=True)
        share = np.exp(logs - top)
        total = share.sum(axis=1, keepdims=True)
        share /= total
        log_sum = (top + np.log(total))[:, 0]
        mean = (share * terms).sum(axis=1)
        spread = mean[:, None] - terms

        value = power * log_sum
        gradient = np.empty_like(x)
        gradient[:, :2] = share
        gradient[:, 2] = value - mean
        hessian = np.empty((len(x), 3, 3, x.shape[2]))
        hessian[:, 0, 0] = hessian[:, 1, 1] = share[:, 0] * share[:, 1] / power
        hessian[:, 0, 1] = hessian[:, 1, 0] = -hessian[:, 0, 0]
        hessian[:, :2, 2] = hessian[:, 2, :2] = share * spread / power[:, None]
        hessian[:, 2, 2] = gradient[:, 2] + (share * spread**2).sum(axis=1) / power
        return value, gradient, hessian

    def holding(self, held: Array) -> Curve:
        """See `Curve`."""
        return Power(held[:2])


@dataclass(frozen=True)
class Capacity(Curve):
    """x_1 - x_2 (s(x_3) + s(x_4) + ..): the log of A (N c)^-alpha, c a product of capacities.

    x_1 is log A - alpha log N, x_2 is alpha, s the log of one capacity.
    """

    log_capacity: Callable[[Array], Derivatives]
    parts: int

    @property
    def forms(self) -> int:  # type: ignore[override]
        """Two and one for each part."""
        return 2 + self.parts

    def __call__(self, x: Array) -> Derivatives:
        """See `Curve`."""
        exponent = x[:, 1:2]
        log, slope, bend = self.log_capacity(x[:, 2:])
        total = log.sum(axis=1)
        gradient = np.empty_like(x)
        gradient[:, 0], gradient[:, 1] = 1.0, -total
        gradient[:, 2:] = -exponent * slope
        hessian = np.zeros((len(x), self.forms, self.forms, x.shape[2]))
        hessian[:, 1, 2:] = hessian[:, 2:, 1] = -slope
        for part in range(self.parts):
            hessian[:, 2 + part, 2 + part] = -exponent[:, 0] * bend[:, part]
        return x[:, 0] - x[:, 1] * total, gradient, hessian


@dataclass(frozen=True)
class PowerOfCapacity(Curve):
    """((N c)^-alpha A + B/D^beta)^g, c a product of capacities: `Power` over `Capacity`.

    x_1 is g (log A - alpha log N), x_2 is g alpha, x_3 is g (log B - beta log D), x_4 is log g;
    each further form is one capacity's.
    """

    log_capacity: Callable[[Array], Derivatives]
    parts: int
    held: Array | float = 0.0
    """[3, rows]: the parts of x_1/g, x_2/g and x_3/g that do not move with g."""

    @property
    def forms(self) -> int:  # type: ignore[override]
        """Four and one for each part."""
        return 4 + self.parts

    def __call__(self, x: Array) -> Derivatives:
        """See `Curve`."""
        batch, forms, rows = x.shape
        power = np.exp(x[:, 3])
        inside = x[:, :3] / power[:, None]
        held = np.broadcast_to(self.held, (3, rows))
        log, slope, bend = self.log_capacity(x[:, 4:])
        total = log.sum(axis=1)
        alpha = inside[:, 1] + held[1]

        # u and v are the logs of the two terms in the brackets, free_u and free_v what moves with
        # 1/g of them; d below are their derivatives by every form.
        free_u, free_v = inside[:, 0] - inside[:, 1] * total, inside[:, 2]
        u, v = free_u + held[0] - held[1] * total, free_v + held[2]
        log_sum = np.logaddexp(u, v)
        share = np.exp(u - log_sum)
        du, dv = np.zeros_like(x), np.zeros_like(x)
        du[:, 0], du[:, 1], du[:, 3] = 1 / power, -total / power, -free_u
        du[:, 4:] = -alpha[:, None] * slope
        dv[:, 2], dv[:, 3] = 1 / power, -free_v
        inner = share[:, None] * du + (1 - share)[:, None] * dv
        apart = du - dv

        value = power * log_sum
        gradient = power[:, None] * inner
        gradient[:, 3] += value
        hessian = (share * (1 - share))[:, None, None] * apart[:, :, None] * apart[:, None]
        bent = np.zeros((batch, forms, forms, rows))  # the second derivatives of u
        bent[:, 0, 3] = bent[:, 3, 0] = -1 / power
        bent[:, 1, 3] = bent[:, 3, 1] = total / power
        bent[:, 3, 3] = free_u
        bent[:, 1, 4:] = bent[:, 4:, 1] = -slope / power[:, None]
        bent[:, 3, 4:] = bent[:, 4:, 3] = inside[:, 1:2] * slope
        for part in range(4, forms):
            bent[:, part, part] = -alpha * bend[:, part - 4]
        hessian += share[:, None, None] * bent
        hessian[:, 2, 3] -= (1 - share) / power
        hessian[:, 3, 2] -= (1 - share) / power
        hessian[:, 3, 3] += (1 - share) * free_v
        hessian *= power[:, None, None]
        # The factor g in front moves with x_4, too.
        hessian[:, 3] += power[:, None] * inner
        hessian[:, :, 3] += power[:, None] * inner
        hessian[:, 3, 3] += value
        return value, gradient, hessian

    def holding(self, held: Array) -> Curve:
        """See `Curve`."""
        return replace(self, held=held[:3])


def log_saturation(t: Array) -> Derivatives:
    """Log of 1 - e^t, for t < 0."""
    t = np.maximum(np.where(t < 0, t, np.nan), -LARGEST_EXPONENT)
    odds = 1 / np.expm1(-t)
    return np.log(-np.expm1(t)), -odds, -odds * (1 + odds)


def log_tanh(x: Array) -> Derivatives:
    """Log of tanh(e^x); an infinite x is a capacity of one."""
    y = np.exp(np.clip(x, -LARGEST_EXPONENT, LARGEST_LOG))
    slope = 2 * y / np.sinh(2 * y)
    return np.log(np.tanh(y)), slope, slope * (1 - 2 * y / np.tanh(2 * y))


def log_signal(t: Array) -> Derivatives:
    """Log of 1/(1 + e^t): what is left of a signal with e^t of noise; t may be -infinity."""
    t = np.clip(t, -LARGEST_EXPONENT, LARGEST_EXPONENT)
    noise = 1 / (1 + np.exp(-t))
    return -np.logaddexp(0.0, t), -noise, -noise * (1 - noise)
