"""Fine-tuning as measured: what a coarse base, a small adapter and its few bits cost.

A run is set against one of the same size, tokens and seed that differs in what is asked about:
against the unquantized base tuned with all its weights, and against the adapter in high precision.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import special

from fitting.naming import UNQUANTIZED, format_names, is_quantized
from fitting.results.table import ADAPTER_FORMAT, RANK, select_rows
from fitting.seeds.spread import Spread
from fitting.seeds.verdicts import judge

NEVER, NOW, ALWAYS = "", "rounded when tuned", "trained so"
"""When the weights of a base were rounded."""
_LABEL, _TRAINED = "base.label", "err_trained"
_NEEDED = {
    *(RANK, ADAPTER_FORMAT, _LABEL, _TRAINED, "seed"),
    *("exponent", "mantissa", "granularity", "block_size"),
}
_KNOWN = {"E2M1/16 e4m3": "NVFP4", "E2M1/32 e8m0": "MXFP4", "E4M3/32 e8m0": "MXFP8"}
"""Formats that have a name of their own."""
_LEVEL = 0.95
_AT = ["params", "tokens", "seed"]
CELL = ("params", "tokens", "base", "rounded", RANK, ADAPTER_FORMAT)
"""Columns that make a cell of `against_the_best`."""


@dataclass(frozen=True)
class Tuning:
    """What a study of bases and adapters measured."""

    cells: pd.DataFrame
    """`against_the_best`"""
    costs: pd.DataFrame
    """`cost_of_bits`"""


def tuning_of(table: pd.DataFrame) -> Tuning | None:
    """What a study measured; None unless its bases differ, tuned with all weights and adapters."""
    needed = {
        RANK,
        ADAPTER_FORMAT,
        _LABEL,
        _TRAINED,
        "exponent",
        "granularity",
        "block_size",
        "seed",
    }
    if not needed <= set(table) or select_rows(table)[0][RANK].isna().nunique() < 2:
        return None
    return Tuning(against_the_best(table), cost_of_bits(table))


def against_the_best(table: pd.DataFrame) -> pd.DataFrame:
    """Cells of a study of fine-tuning, each against the runs that lack nothing.

    Args:
        table: Results, with the columns that `tuning_of` needs.

    Returns:
        One row per cell, `CELL`: `base` is the format of its weights, `rounded` one of `NEVER`,
        `NOW` and `ALWAYS`, `rank` NaN where all weights are tuned.  `loss`, the mean over `seeds`;
        `difference`, its mean difference from the unquantized base of which all weights are tuned,
        nats per token, with `standard_error` (`fitting.seeds.spread`), `dof`, `pairs`, `low` and
        `high` (95 %), `verdict`; NaN for those runs themselves.
    """
    rows = _named(table)
    best = rows[(rows["rounded"] == NEVER) & rows[RANK].isna()]
    others = rows.drop(best.index)
    pairs = others.merge(_means(best, _AT), on=_AT)
    pairs["difference"] = pairs["loss"] - pairs["other"]
    told = _told(pairs, CELL)
    means = rows.groupby([*CELL], dropna=False)["loss"].agg(loss="mean", seeds="size")
    found: pd.DataFrame = means.reset_index().merge(told, on=[*CELL], how="left")
    return found.sort_values([*CELL], ignore_index=True)


def cost_of_bits(table: pd.DataFrame) -> pd.DataFrame:
    """What adapters lose by their own format, each against itself in high precision.

    Args:
        table: Results, with the columns that `tuning_of` needs.

    Returns:
        One row per size, token count, rank and format: the mean over bases and seeds of the
        `difference`, with the columns of `against_the_best`.
    """
    rows = _named(table)
    rows = rows[rows[RANK].notna()]
    beside = [*_AT, "base", "rounded", RANK]
    whole = rows[ADAPTER_FORMAT] == UNQUANTIZED
    pairs = rows[~whole].merge(_means(rows[whole], beside), on=beside)
    pairs["difference"] = pairs["loss"] - pairs["other"]
    found = _told(pairs, ("params", "tokens", RANK, ADAPTER_FORMAT))
    return found.sort_values(["params", "tokens", RANK, ADAPTER_FORMAT], ignore_index=True)


def formats_of_bases(rows: pd.DataFrame, among: pd.DataFrame) -> pd.Series:
    """The format of each row's base in words, whatever stands beside it; among a whole study."""
    names = format_names(rows, among=among)
    return names.map(lambda name: _KNOWN.get(name) or re.sub(r"^E0M(\d+)", _integer, name))


def _named(table: pd.DataFrame) -> pd.DataFrame:
    """The runs that have a loss, with the format of their base and when it was rounded."""
    rows = select_rows(table)[0].copy()
    rows["base"] = formats_of_bases(rows, table)
    always = rows[_TRAINED].astype(float) > 0
    rows["rounded"] = np.select([~is_quantized(rows), always], [NEVER, ALWAYS], NOW)
    return rows


def _integer(match: re.Match[str]) -> str:
    return f"INT{int(match[1]) + 1}"


def _means(rows: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    return rows.groupby([*keys])["loss"].mean().rename("other").reset_index()


def _told(pairs: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    """Mean differences of the pairs of each cell, judged by the spread within cells."""
    spread = Spread.of(pairs, keys, "difference")
    found = spread.groups.rename(columns={"size": "pairs", "mean": "difference"}).reset_index()
    std, found["dof"] = spread.of_rows(found)
    found["standard_error"] = std / np.sqrt(found["pairs"])
    margin = -special.stdtrit(found["dof"], (1 - _LEVEL) / 2) * found["standard_error"]
    found["low"], found["high"] = found["difference"] - margin, found["difference"] + margin
    found["verdict"] = judge(found["difference"] / found["standard_error"], found["dof"])
    return found.drop(columns="var")
