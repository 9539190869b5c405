"""Names in a report: of counts and formats, and the order in which formats are listed."""

from __future__ import annotations

from typing import Any, TypeAlias

import pandas as pd

from fitting.words import whole

UNQUANTIZED = "none"
TableRow: TypeAlias = Any
"""A row of a table, its columns as attributes."""


def is_none(name: str) -> bool:
    """Whether a format's name says that nothing is quantized, possibly with a condition.

    >>> is_none("none"), is_none("none, optim.lr=0.016"), is_none("E2M1")
    (True, True, False)
    """
    return name.partition(",")[0] == UNQUANTIZED


def are_none(names: pd.Series) -> pd.Series:
    """Mask of the formats whose names say that nothing is quantized."""
    return names.map(is_none).astype(bool)


_FORMAT = ("exponent", "mantissa", "block_size", "granularity", "scale")


def is_quantized(table: pd.DataFrame) -> pd.Series:
    """Mask of the quantized rows: by `granularity`, in a foreign table by `block_size` above 1."""
    if "granularity" in table:
        return table["granularity"] != UNQUANTIZED
    return table["block_size"] != 1


def format_names(table: pd.DataFrame, among: pd.DataFrame) -> pd.Series:
    """The format of each row in words: "none", "E2M1", or more where needed to tell formats apart.

    Args:
        table: Rows with `exponent`, `mantissa`, `block_size`; `recipe`, `scale` and `granularity`
            are used if present.  There may be no rows.
        among: The whole study.  A part is written only if it differs between its quantized rows.

    Returns:
        Strings on `table`'s index, "none" for rows that are not quantized.  If a study has several
        recipes and each has one format, the names of the recipes.
    """
    if table.empty:  # a file's columns without a row have no type
        return pd.Series(index=table.index, dtype=str)
    quantized = among[is_quantized(among)]
    told = [c for c in (*_FORMAT, "recipe") if c in among and c in table]
    if "recipe" in told:
        recipes = quantized["recipe"].nunique()
        if 1 < recipes == len(quantized.drop_duplicates(told)):  # a study of recipes
            return table["recipe"].where(is_quantized(table), UNQUANTIZED).astype(str)
    names = "E" + table["exponent"].map(whole) + "M" + table["mantissa"].map(whole)
    if quantized["block_size"].nunique() > 1:
        block = table["block_size"].map(whole).radd("/")
        if "granularity" in table:  # the size of a row or tensor is not a number that readers know
            kind = table["granularity"].astype(str)
            block = block.where(~kind.isin(["row", "tensor"]), " " + kind)
        names = names + block
    for column in ("scale", "recipe"):
        if column in table and column in among and quantized[column].nunique() > 1:
            names = names + " " + table[column].astype(str)
    return names.where(is_quantized(table), UNQUANTIZED).astype(str)


def format_order(table: pd.DataFrame) -> list[str]:
    """The values of column `format`, `none` last: fewest bits first, recipes lowest loss first."""
    plain = table["format"].map(lambda name: str(name).partition(",")[0])
    if "recipe" in table and (plain == table["recipe"]).all() and "loss" in table:
        means = table.groupby("format")["loss"].mean().sort_values(kind="stable")
        names = [str(name) for name in means.index]
        return sorted(names, key=is_none)
    bits = 1 + table["exponent"] + table["mantissa"]
    keys = table[["format", "exponent", "block_size"]].assign(
        last=are_none(table["format"]), bits=bits
    )
    keys = keys.sort_values(["last", "bits", "exponent", "block_size", "format"])
    keys = keys.drop_duplicates("format")
    return [str(name) for name in keys["format"]]


def records(table: pd.DataFrame) -> list[TableRow]:
    """The rows of a table, its columns as attributes."""
    return list(table.itertuples(index=False))


def sizes(table: pd.DataFrame) -> list[float]:
    """The distinct model sizes (`params`), smallest first."""
    return sorted(float(value) for value in table["params"].unique())
