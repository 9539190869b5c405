"""Critical data size: the tokens beyond which more data raise the loss of a quantized model."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from fitting.analysis.costs import block_words
from fitting.analysis.layouts import layout_name
from fitting.law.conclusion import (
    Basis,
    Column,
    Conclusion,
    Interval,
    Number,
    Sample,
    Table,
    Values,
    estimate,
)
from fitting.words import count, count_label, interval_of


@dataclass(frozen=True)
class CriticalTokens:
    """The critical data size of a model's size and a format."""

    params: float
    format: str
    tokens: Number
    """None where infinite."""
    interval: Interval
    extrapolated: bool
    """Whether it lies beyond the largest token count of the table."""
    block_size: float | None = None


def critical_tokens(
    parameters: Sample,
    params: float,
    exponent: float,
    mantissa: float,
    block_size: float,
) -> Values:
    """Training tokens beyond which more data raise the loss.

    D_crit = (d gamma N^alpha (E+.5)^delta (M+.5)^nu / log2 B)^(1/(2 beta)) (Sun et al.);
    infinite without quantization (B = 1) or where the law does not depend on data (beta = 0).

    Args:
        parameters: Those of `floating_point`: numbers, or arrays or columns of draws.
        params: N.
        exponent: Exponent bits.
        mantissa: Mantissa bits.
        block_size: B, values that share a scale.

    Returns:
        Tokens: a number, or an array for arrays.

    >>> from fitting.laws.catalogue import SUN_2025
    >>> f"{critical_tokens(SUN_2025, 1e9, 4, 3, 128):.4g}"
    '2.733e+13'
    """
    with np.errstate(divide="ignore", over="ignore"):
        log_power = (
            np.log(parameters["d"])
            + np.log(parameters["gamma"])
            + np.multiply(parameters["alpha"], math.log(params))
            + np.multiply(parameters["delta"], math.log(exponent + 0.5))
            + np.multiply(parameters["nu"], math.log(mantissa + 0.5))
            - np.log(np.log2(block_size))
        )
        beta = np.asarray(parameters["beta"], dtype=np.float64)
        tokens = np.exp(log_power / np.where(beta > 0, 2 * beta, np.nan))
    tokens = np.where(beta > 0, tokens, np.inf)
    return float(tokens) if tokens.ndim == 0 else tokens


def _found(basis: Basis) -> list[CriticalTokens]:
    """The critical data size of each size and quantized format of a table."""
    if basis.lacks(("alpha", "d", "beta", "gamma", "delta", "nu")):
        return []
    largest = float(basis.rows["tokens"].max())
    cells = basis.quantized[["params", "exponent", "mantissa", "block_size"]].drop_duplicates()
    found = []
    for params, exponent, mantissa, block_size in sorted(
        cells.itertuples(index=False, name=None), key=lambda c: (c[0], c[1] + c[2], c[1], c[3])
    ):
        tokens = [critical_tokens(p, params, exponent, mantissa, block_size) for p in basis.samples]
        found.append(
            CriticalTokens(
                float(params),
                layout_name(int(exponent), int(mantissa)),
                *estimate(tokens).pair,
                float(tokens[0]) > largest,
                float(block_size),
            )
        )
    return found


_Col = Column[CriticalTokens]
CRITICAL_TOKENS = Conclusion(
    "critical_tokens",
    list[CriticalTokens],
    _found,
    (
        Table(
            "critical_tokens",
            "Critical data size",
            (
                _Col("parameters", lambda row: count_label(row.params)),
                _Col("format", lambda row: row.format, number=False),
                Column("block size", block_words),
                _Col("critical tokens", lambda row: count(row.tokens)),
                _Col("95 % interval", lambda row: interval_of(row.interval, count)),
            ),
            "Beyond this many training tokens the law says that more data raise the loss.",
        ),
    ),
    missing="No critical data sizes, costs of precision or optimal bits: they need a fit of the "
    "floating-point law whose exponents and coefficients the data determine.",
)
"""The conclusion under the floating-point law; other laws find it in another way."""
