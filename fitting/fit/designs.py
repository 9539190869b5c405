"""The limits of a design: columns that do not vary, move together, or mix different things.

None of this needs a loss: it could have been known before the first run.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from fitting.law.terms import Law

COLLINEAR = 0.99
"""Correlation of log params and log tokens beyond which they move together."""


def doubts_of_design(law: Law, rows: pd.DataFrame, freeze: Mapping[str, float]) -> list[str]:
    """Sentences on what no fit could learn from these rows, whatever their losses.

    Args:
        law: The law.
        rows: The fitted runs, with the law's columns and, if there are such columns, `operands`,
            `recipe` and `run_id`.
        freeze: Parameters held at a value.
    """
    warnings = []
    exponents = {c: _exponents_of(law, rows, c, freeze) for c in law.columns}
    constant = _constant_exponents(law, rows)
    for column, names in exponents.items():
        lost = [n for n in names if n in constant]
        if lost:
            warnings.append(
                f"{column} has one value in the rows that matter: {', '.join(lost)} cannot be "
                "told from the coefficient of the same term; vary it, or freeze"
            )
    for column in ("params", "tokens"):
        distinct = rows[column].nunique() if exponents.get(column) else 0
        if distinct == 2:
            warnings.append(
                f"{column} has two values: {', '.join(exponents[column])} and the irreducible "
                "loss need three or more to be told apart"
            )
    if all(exponents.get(c) and rows[c].nunique() > 1 for c in ("params", "tokens")):
        logs = np.log(rows[["params", "tokens"]].to_numpy(dtype=np.float64))
        correlation = float(np.corrcoef(logs, rowvar=False)[0, 1])
        if abs(correlation) >= COLLINEAR:
            both = ", ".join(dict.fromkeys([*exponents["params"], *exponents["tokens"]]))
            warnings.append(
                f"params and tokens move together (correlation of logs {correlation:.3f}): "
                f"{both} and their coefficients cannot be told apart; vary tokens at fixed params"
            )
    if "block_size" in law.columns:
        quantized = rows[rows["block_size"] > 1]
        if quantized.empty:
            warnings.append("no row has block_size above 1: nothing quantized, nothing to learn")
        for column in ("operands", "recipe"):
            if column in quantized and quantized[column].nunique(dropna=False) > 1:
                values = ", ".join(sorted(str(v) for v in quantized[column].unique()))
                warnings.append(
                    f"quantized rows differ in {column} ({values}): the law holds for one choice "
                    "of quantized tensors and rounding, so this fit is a mixture"
                )
    duplicates = int(rows.duplicated().sum())
    if "run_id" in rows:
        duplicates = max(duplicates, int(rows["run_id"].duplicated().sum()))
    if duplicates:
        warnings.append(
            f"{duplicates} rows repeat another row: each counts as a run, "
            "so the intervals are too narrow"
        )
    return warnings


def _exponents_of(
    law: Law, rows: pd.DataFrame, column: str, freeze: Mapping[str, float]
) -> list[str]:
    """The free exponents whose regressor depends on a column."""
    other = rows[column] / 2 if column in law.below else rows[column] * 2 + 1
    before = law.design(rows).regressors
    after = law.design(rows.assign(**{column: other})).regressors
    changed = np.abs(after - before).max(axis=(0, 1)) > 0
    return [n for n, c in zip(law.parameters, changed, strict=True) if c and n not in freeze]


def _constant_exponents(law: Law, rows: pd.DataFrame) -> set[str]:
    """Exponents whose regressor has one value in every term, where that term is not zero."""
    design = law.design(rows)
    ranges = np.zeros(design.regressors.shape[2])
    for term, offset in zip(design.regressors, design.offsets, strict=True):
        present = term[np.isfinite(offset)]
        if len(present):
            ranges = np.maximum(ranges, np.ptp(present, axis=0))
    return {
        name
        for (name, kind), extent in zip(law.parameters.items(), ranges, strict=True)
        if not kind.logarithmic and extent < 1e-12
    }
