"""The share of a model's parameters that is left in the noise of quantization, from errors alone.

The unified law reads no exponent or mantissa bits, only the relative squared error e of each
operand, which `experiments.quant.normal_error` computes for any format.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from fitting.analysis.layouts import layout_name
from fitting.law.conclusion import Sample, Values
from fitting.law.curves import Array
from fitting.results.format_errors import ERRORS

FORWARD_ERRORS = ("err_input", "err_weight")
"""Columns with the relative squared errors of the operands of the forward pass, P1 and P2."""
OPERANDS = {"err_input": "inputs", "err_weight": "weights"}
BACKWARD_ERRORS = {
    "c_grad_input": ("err_grad_input_grad_output", "err_grad_input_weight"),
    "c_grad_weight": ("err_grad_weight_grad_output", "err_grad_weight_input"),
}
"""Parameters of the backward pass -> the columns of the errors that they weigh: dX and dW."""


def signal_share(p: Sample, errors: Mapping[str, Values]) -> Values:
    """N_eff/N = 1/(prod (1 + c_x s_x) + sum c_y s_y), s = e/(1 - e): what noise leaves.

    Args:
        p: Parameters of `unified`; without `c_input` inputs cost as much as weights, and without
            a constant of the backward pass that one costs nothing.
        errors: Relative squared errors by column; operands that are not named are exact.

    >>> from experiments.quant.normal_error import error_of
    >>> e = error_of("mxfp4")
    >>> round(signal_share({"c": 30}, {"err_input": e, "err_weight": e}), 3)
    0.506
    """
    noise = {name: np.divide(e, np.subtract(1, e)) for name, e in errors.items()}
    total = np.asarray(1.0)
    for name, constant in (("err_weight", p["c"]), ("err_input", p.get("c_input", p["c"]))):
        total = total * (1 + np.multiply(constant, noise.get(name, 0.0)))
    for name, columns in BACKWARD_ERRORS.items():
        if name in p:
            total = total + np.multiply(p[name], sum(noise.get(c, 0.0) for c in columns))
    share = 1 / total
    return float(share) if np.ndim(share) == 0 else share


def share_of_rows(p: Sample, rows: pd.DataFrame) -> Array:
    """N_eff/N of each row of a table, [rows]."""
    known = {c: rows[c].to_numpy(dtype=np.float64) for c in ERRORS if c in rows}
    return np.broadcast_to(np.asarray(signal_share(p, known), dtype=np.float64), len(rows))


def quantized_forward(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows whose forward pass is quantized."""
    seen: pd.DataFrame = rows[(rows[list(FORWARD_ERRORS)] > 0).any(axis=1)]
    return seen


def format_of(rows: pd.DataFrame) -> str:
    """A name for rows of one format, as the table has it."""
    first = rows.iloc[0]
    named = [str(first[n]) for n in ("format_input", "format_weight") if n in rows]
    if named:
        return " × ".join(dict.fromkeys(named))
    if {"exponent", "mantissa", "granularity", "block_size", "scale"} <= set(rows):
        layout = layout_name(int(first["exponent"]), int(first["mantissa"]))
        return f"{layout}-{first['granularity']}{first['block_size']:.4g}-{first['scale']}"
    return " × ".join(f"error {first[n]:.3g}" for n in FORWARD_ERRORS if first[n] > 0)
