"""The worth of precision under the floating-point law: optimal bits, effective parameters, trades.

Formulas are of Sun et al. 2501.02423 in the letters of its Eq. 1 (`fitting.laws.catalogue`), at the
best split of P bits, E + 1/2 = delta P/(delta + nu) and M + 1/2 = nu P/(delta + nu).  A run of N
parameters, D tokens and P bits costs C = k P N D; k = 6/16 makes that 6 N D at 16 bits.

Every function takes numbers, or arrays of draws for the parameters.
"""

from __future__ import annotations

import math

import numpy as np

from fitting.law.conclusion import COST, Sample, Values
from fitting.law.curves import Array
from fitting.law.terms import FitError

QUIET = np.errstate(divide="ignore", over="ignore", invalid="ignore")
"""Silences NumPy: draws with a parameter at a bound may have no optimum, but infinity or NaN."""
NEEDED = ("n", "alpha", "d", "beta", "gamma", "delta", "nu")
"""The parameters on which every conclusion here rests."""


def gamma_rho(p: Sample) -> Values:
    """Precision's scale at the best split: gamma delta^delta nu^nu / (delta + nu)^(delta + nu)."""
    delta, nu = np.asarray(p["delta"], float), np.asarray(p["nu"], float)
    log = np.log(p["gamma"]) + _xlogx(delta) + _xlogx(nu) - _xlogx(delta + nu)
    return _plain(np.exp(log))


def gamma_n(p: Sample) -> Values:
    """gamma_rho n, of the effective number of parameters."""
    return gamma_rho(p) * p["n"]


def gamma_d(p: Sample) -> Values:
    """(delta + nu - alpha)/(n alpha gamma_rho), of the optimal bits for given data.

    Zero where delta + nu <= alpha: fewer bits are then always better.
    """
    gain = np.subtract(np.add(p["delta"], p["nu"]), p["alpha"])
    return _plain(np.maximum(gain, 0) / (p["n"] * p["alpha"] * gamma_rho(p)))


def gamma_size(p: Sample) -> Values:
    """(beta + delta + nu)/(d beta gamma_rho), of the optimal bits for a given size (gamma_N)."""
    return (p["beta"] + p["delta"] + p["nu"]) / (p["d"] * p["beta"] * gamma_rho(p))


def optimal_precision_term(
    p: Sample, params: float, tokens: float, bits: float, block_size: float
) -> Values:
    """rho_opt: the loss that P bits at their best split add, in nats per token.

    (D^beta/N^alpha) log2(B)/(gamma_rho P^(delta + nu)).

    >>> from fitting.laws.catalogue import SUN_2025
    >>> round(optimal_precision_term(SUN_2025, 1e9, 1e11, 8, 128), 6)
    0.000431
    """
    scale = np.power(tokens, p["beta"]) / np.power(params, p["alpha"])
    return _plain(scale * _over_power(p, bits, block_size) / gamma_rho(p))


def effective_params(p: Sample, tokens: float, bits: float, block_size: float) -> Values:
    """N_eff/N: size of the unquantized model that does as well, at the best split of P bits.

    1/(1 + D^beta log2(B)/(gamma_n P^(delta + nu)))^(1/alpha); the same for every N.  One over it
    is the factor in parameters that precision costs at equal loss and data.
    """
    lost = np.power(tokens, p["beta"]) * _over_power(p, bits, block_size) / gamma_n(p)
    return _plain((1 + lost) ** (-1 / np.asarray(p["alpha"], float)))


def effective_params_of_format(
    p: Sample, tokens: float, exponent: float, mantissa: float, block_size: float
) -> Values:
    """N_eff/N of a given split instead of the best one."""
    inverse = _over_format(p, exponent, mantissa, block_size)
    lost = np.power(tokens, p["beta"]) * inverse / (p["gamma"] * np.asarray(p["n"], float))
    return _plain((1 + lost) ** (-1 / np.asarray(p["alpha"], float)))


def tokens_for_equal_loss(
    p: Sample,
    params: float,
    tokens: float,
    exponent: float,
    mantissa: float,
    block_size: float,
) -> Values:
    """The factor in tokens that makes up for a format, against the unquantized run.

    Infinite where no amount of data is enough: the loss has its minimum at the critical data size
    D_crit.  From d/(m D)^beta + rho(m D) = d/D^beta: with u = m^beta and r = (D/D_crit)^(2 beta),
    r u^2 - u + 1 = 0, whose smaller root is real for r <= 1/4.
    """
    scale = np.power(tokens, 2 * np.asarray(p["beta"], float)) / np.power(params, p["alpha"])
    r = scale * _over_format(p, exponent, mantissa, block_size) / (p["gamma"] * np.asarray(p["d"]))
    with np.errstate(divide="ignore"):
        u = 2 / (1 + np.sqrt(np.maximum(1 - 4 * r, 0)))  # no cancellation
        factor = np.where(r <= 0.25, u ** (1 / np.asarray(p["beta"], float)), np.inf)
    return _plain(factor)


def optimal_bits_for_tokens(p: Sample, tokens: float, block_size: float) -> Values:
    """P of least loss at given data and any cost: P^(delta + nu) = gamma_D D^beta log2 B.

    >>> from fitting.laws.catalogue import SUN_2025
    >>> round(optimal_bits_for_tokens(SUN_2025, 1e12, 128), 4)
    5.179
    """
    log = np.log(gamma_d(p)) + np.log(tokens) * np.asarray(p["beta"]) + _log_log2(block_size)
    return _plain(np.exp(log / (np.asarray(p["delta"]) + p["nu"])))


def optimal_bits_for_params(
    p: Sample, params: float, cost: float, block_size: float, k: float = COST
) -> Values:
    """P of least loss at a given size and cost C = k P N D, the rest of which is data.

    P^(delta + nu + 2 beta) = gamma_N (C/k)^(2 beta) N^-(alpha + 2 beta) log2 B.
    """
    beta = np.asarray(p["beta"], float)
    log = np.log(gamma_size(p)) + 2 * beta * math.log(cost / k) + _log_log2(block_size)
    log -= (p["alpha"] + 2 * beta) * math.log(params)
    return _plain(np.exp(log / (np.asarray(p["delta"]) + p["nu"] + 2 * beta)))


def compute_optimal(
    p: Sample, cost: float, block_size: float, k: float = COST
) -> tuple[Values, Values, Values]:
    """Bits, parameters and tokens of least loss at cost C = k P N D (Sun et al., Eq. 25).

    >>> from fitting.laws.catalogue import SUN_2025
    >>> bits, params, tokens = compute_optimal(SUN_2025, 1e21, 128)
    >>> f"{bits:.4f} bits, {params:.3e} parameters, {tokens:.3e} tokens"
    '4.1903 bits, 7.930e+09 parameters, 8.025e+10 tokens'
    """
    alpha, beta = np.asarray(p["alpha"], float), np.asarray(p["beta"], float)
    both = np.add(p["delta"], p["nu"])
    log_data = np.log(gamma_d(p)) + _log_log2(block_size)
    log = (alpha + beta) / beta * log_data + alpha * math.log(cost / k)
    log = log + np.log(p["d"] * beta / (p["n"] * alpha))
    log = log + np.log(np.maximum(both - alpha, 0) / (both + beta))
    log_bits = log / (both * (alpha + beta) / beta + alpha)
    log_tokens = (both * log_bits - log_data) / beta
    log_params = math.log(cost / k) - log_bits - log_tokens
    bits, params, tokens = (_plain(np.exp(x)) for x in (log_bits, log_params, log_tokens))
    return bits, params, tokens


def _over_power(p: Sample, bits: float, block_size: float) -> Array:
    """log2(B)/P^(delta + nu)."""
    over: Array = np.log2(block_size) / np.power(bits, np.add(p["delta"], p["nu"]))
    return over


def _over_format(p: Sample, exponent: float, mantissa: float, block_size: float) -> Array:
    """log2(B)/((E + .5)^delta (M + .5)^nu)."""
    power = np.power(exponent + 0.5, p["delta"]) * np.power(mantissa + 0.5, p["nu"])
    over: Array = np.log2(block_size) / power
    return over


def _log_log2(block_size: float) -> float:
    if block_size <= 1:
        raise FitError(f"block_size={block_size:g}: must be above 1, else nothing is quantized")
    return math.log(math.log2(block_size))


def _xlogx(x: Array) -> Array:
    """The product x log x, zero at zero."""
    result: Array = x * np.log(np.where(x > 0, x, 1.0))
    return result


def _plain(values: Values) -> Values:
    """A number for numbers, an array for draws."""
    return float(values) if np.ndim(values) == 0 else values
