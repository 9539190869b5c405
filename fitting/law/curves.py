"""Terms of a law that are no exponentials of affine functions, with their exact derivatives.

A curve maps a few affine functions of the parameters, its forms x_1 .. x_m, to the logarithm of one
term.  Value, gradient and Hessian in the forms are all that `fitting.fit.problem` needs: what
parameters are behind the forms is the law's business.  Outside its domain a curve is NaN.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[np.float64]
Derivatives: TypeAlias = tuple[Array, Array, Array]
"""A function's value, first and second derivative."""
Pair: TypeAlias = tuple[int, int]
Forms: TypeAlias = Sequence[Array]
"""Forms, [batch, rows] each; [batch, 1] for one that is the same in all rows."""
Expansion: TypeAlias = tuple[Array, list[Array], dict[Pair, Array]]
"""A function's value, its derivatives by each form, and those by pairs of forms k <= l, [batch,
rows] or [batch, 1]; a pair that is missing has none."""

LARGEST_LOG = 5.7
"""tanh(e^5.7) is 1 in float64, and sinh(2 e^5.7) still finite."""
LARGEST_EXPONENT = 700.0
"""e^700 is finite in float64."""


class Curve(ABC):
    """The logarithm of one term as a function of several forms."""

    forms: int

    @abstractmethod
    def __call__(self, x: Forms) -> Expansion:
        """The curve and its derivatives, by its forms."""

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

    held: Array | None = None
    """[2, rows]: the part of the exponents that g multiplies, if there is one."""
    forms: int = 3

    def __call__(self, x: Forms) -> Expansion:
        """See `Curve`."""
        power = np.exp(x[2])
        first, second = x[0] / power, x[1] / power
        u, v = first, second
        if self.held is not None:
            u, v = first + self.held[0], second + self.held[1]
        log_sum, share = _log_sum(u, v)
        rest = 1 - share
        both = share * rest
        apart = second - first
        bend = both / power
        slope = power * (log_sum - share * first - rest * second)
        tilt = both * apart
        pairs = {(0, 0): bend, (1, 1): bend, (0, 1): -bend, (0, 2): tilt, (1, 2): -tilt}
        pairs[2, 2] = slope + power * tilt * apart
        return power * log_sum, [share, rest, slope], pairs

    def holding(self, held: Array) -> Curve:
        """See `Curve`."""
        return Power(held[:2] if held.any() else None)


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

    def __call__(self, x: Forms) -> Expansion:
        """See `Curve`."""
        exponent = x[1]
        total, slopes = np.zeros(1), []
        pairs: dict[Pair, Array] = {}
        for k, form in enumerate(x[2:], start=2):
            log, slope, bend = self.log_capacity(form)
            total = total + log
            slopes.append(-exponent * slope)
            pairs |= {(1, k): -slope, (k, k): -exponent * bend}
        return x[0] - exponent * total, [np.ones_like(exponent), -total, *slopes], pairs


@dataclass(frozen=True)
class PowerOfCapacity(Curve):
    """((N c)^-alpha A + B/D^beta)^g, c a capacity: `Power` over a size that noise takes from.

    x_1 is g (log A - alpha log N), x_2 is g alpha, x_3 is g (log B - beta log D), x_4 is log g; the
    further forms are the capacity's.
    """

    log_capacity: Signal
    held: Array | None = None
    """[3, rows]: the parts of x_1/g, x_2/g and x_3/g that do not move with g, if there are any."""

    @property
    def forms(self) -> int:  # type: ignore[override]
        """Four and those of the capacity."""
        return 4 + self.log_capacity.forms

    def __call__(self, x: Forms) -> Expansion:
        """See `Curve`."""
        power = np.exp(x[3])
        total, rise, bends = self.log_capacity(x[4:])
        exponent = alpha = x[1] / power
        # u and v: logs of the two terms in the brackets; first and second what moves with 1/g.
        u = first = x[0] / power - exponent * total
        v = second = x[2] / power
        if self.held is not None:
            alpha = exponent + self.held[1]
            u, v = first + self.held[0] - self.held[1] * total, second + self.held[2]
        log_sum, share = _log_sum(u, v)
        rest = 1 - share
        both = share * rest
        bend = both / power
        apart = second - first
        tilt = both * apart
        slope = power * (log_sum - share * first - rest * second)
        pull = -power * alpha  # of the capacity's log on the power of the size term
        slopes = [share, -share * total, rest, slope, *(pull * share * r for r in rise)]
        pairs = {
            (0, 0): bend, (0, 1): -bend * total, (0, 2): -bend, (0, 3): tilt,
            (1, 1): bend * total**2, (1, 2): bend * total, (1, 3): -tilt * total,
            (2, 2): bend, (2, 3): -tilt,
            (3, 3): slope + power * tilt * apart,
        }  # fmt: skip
        turn = -both * alpha  # of the share, by the capacity's log
        for k, r in enumerate(rise, start=4):
            turned = turn * r
            pairs[0, k], pairs[2, k] = turned, -turned
            pairs[1, k] = -total * turned - share * r
            pairs[3, k] = power * turned * apart
            if self.held is not None:
                pairs[3, k] = pairs[3, k] - power * self.held[1] * share * r
            for j in range(k, 4 + len(rise)):
                pairs[k, j] = pull * turned * rise[j - 4]
        for (j, k), curvature in bends.items():
            pairs[4 + j, 4 + k] = pairs[4 + j, 4 + k] + pull * share * curvature
        return power * log_sum, slopes, pairs

    def holding(self, held: Array) -> Curve:
        """See `Curve`."""
        return replace(self, held=held[:3] if held.any() else None)


@dataclass(frozen=True)
class Decay(Curve):
    """x_1 - e^x_2: the log of something that decays exponentially with e^x_2."""

    forms: int = 2

    def __call__(self, x: Forms) -> Expansion:
        """See `Curve`."""
        rate = np.exp(np.minimum(x[1], LARGEST_EXPONENT))
        return x[0] - rate, [np.ones_like(rate), -rate], {(1, 1): -rate}


@dataclass(frozen=True)
class Unrepaired(Curve):
    """x_1 + log(q/(1 + q)) with q = e^x_2 + e^x_3: what is left of e^x_1 by two scarcities.

    All of it where either is without bound, nothing where both are zero.
    """

    forms: int = 3

    def __call__(self, x: Forms) -> Expansion:
        """See `Curve`."""
        log_q, share = _log_sum(x[1], x[2])
        rest = 1 - share
        log_left, repaired = _log_sum(log_q, np.zeros(1))
        repaired = 1 - repaired  # 1/(1 + q), the slope of the log by log q
        both = repaired * share * rest
        bend = -repaired * (1 - repaired)
        pairs = {
            (1, 1): bend * share**2 + both,
            (1, 2): bend * share * rest - both,
            (2, 2): bend * rest**2 + both,
        }
        ones = np.ones_like(log_q)
        return x[0] + log_q - log_left, [ones, repaired * share, repaired * rest], pairs


@dataclass(frozen=True)
class Signal:
    """The log of the signal left: -log(prod_g prod_k (1 + e^x_g s_gk) + sum_j e^x_j t_j).

    Noises of groups multiply, each in the presence of the others; those of a group share a form.
    Noises t_j, each with a form of its own, only add.
    """

    groups: tuple[Array, ...]
    """[parts, rows] each: s, noise over signal; 0 for none."""
    added: Array
    """[forms, rows]: t_j."""

    @property
    def forms(self) -> int:
        """One for each group, then one for each noise that is added."""
        return len(self.groups) + len(self.added)

    def __call__(self, x: Forms) -> Expansion:
        """The log and its derivatives by its forms."""
        scales = [np.exp(np.clip(form, -LARGEST_EXPONENT, LARGEST_EXPONENT)) for form in x]
        product, slopes, bends = np.ones(1), [], []
        for scale, group in zip(scales, self.groups, strict=False):
            slope = bend = np.zeros(group.shape[1])
            for noise in group:
                odds = scale * noise
                lost = odds / (1 + odds)
                product = product * (1 + odds)
                slope = slope + lost
                bend = bend + lost * (1 - lost)
            slopes.append(slope)
            bends.append(bend)
        count = len(self.groups)
        alone = [scale * t for scale, t in zip(scales[count:], self.added, strict=True)]
        total = sum(alone, start=product)
        # Shares of the total that the product and each added noise make up.
        whole = product / total
        parts = [*(whole * slope for slope in slopes), *(noise / total for noise in alone)]
        pairs = {
            (j, k): parts[j] * parts[k] for j in range(len(parts)) for k in range(j, len(parts))
        }
        for j in range(len(parts)):
            pairs[j, j] = pairs[j, j] - (whole * bends[j] if j < count else parts[j])
            for k in range(j, count):
                pairs[j, k] = pairs[j, k] - whole * slopes[j] * slopes[k]
        return -np.log(total), [-part for part in parts], pairs


def _log_sum(u: Array, v: Array) -> tuple[Array, Array]:
    """Log of e^u + e^v, and the first one's share.

    Numpy's logaddexp takes its values one by one; exp and log take eight at a time.
    """
    apart = u - v
    smaller = np.exp(-np.abs(apart))
    share = np.where(apart > 0, 1.0, smaller) / (1 + smaller)
    return np.maximum(u, v) + np.log(1 + smaller), share


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
