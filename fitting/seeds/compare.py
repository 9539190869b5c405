"""Cells and layouts against each other, as measured, without any law."""

from __future__ import annotations

import math
from typing import cast

import numpy as np
import pandas as pd

from fitting.results.table import require_columns, select_rows
from fitting.seeds.cells import CELL, cell_keys, condition_keys
from fitting.seeds.noise import noise_floor
from fitting.seeds.verdicts import BETTER, CANNOT_TELL, enough, judge

SPLIT = (
    *("exponent", "mantissa", "bits_with_scales", "format"),
    *("precision.exponent", "precision.mantissa", "precision.kind", "precision.specials"),
)
"""Columns in which the splits of one width differ by themselves."""


def compare_cells(table: pd.DataFrame) -> pd.DataFrame:
    """Each quantized cell against the unquantized runs that agree with it in all else.

    Paired by seed where both sides share seeds (the same seed means the same initial weights and
    the same data, so that noise cancels); otherwise the difference of the two means.  The standard
    error comes from the spread pooled over all cells, so that a cell with one seed has one too:
    of the paired differences where there are pairs, of the losses (`noise_floor`) elsewhere.

    Args:
        table: Results with the columns of `CELL`, `seed`, `status` and `loss`.

    Returns:
        One row per quantized cell, by bits, then by `CELL`: `fitting.seeds.cells.cell_keys`, which
        begin with `CELL`; `bits`; `seeds` (runs with a loss), `diverged` (runs that diverged),
        `pairs` (seeds shared with the unquantized cell); `loss` and `loss_none` (means);
        `difference` (nats per token, positive = worse); `standard_error` and its degrees of freedom
        `dof`; `z` = difference / standard_error; `verdict`: "worse" or "better" from |z| >=
        `fitting.seeds.verdicts.enough` on, "cannot tell" below, or without repeated seeds, or with
        nothing to compare with; "diverged" where no run of the cell has a loss.

    Raises:
        ResultsError: A column is missing.
    """
    require_columns(table, (*CELL, "seed", "status", "loss"), "comparing cells")
    within, keys = condition_keys(table), cell_keys(table)
    columns = [*keys, "bits", "seeds", "diverged", "pairs", "loss", "loss_none", "difference"]
    columns += ["standard_error", "dof", "z", "verdict"]
    done = select_rows(table)[0].drop_duplicates([*keys, "seed"])
    reference = done[done["granularity"] == "none"].groupby([*within, "seed"], dropna=False)["loss"]
    unquantized = reference.mean().reset_index()
    quantized = table[table["granularity"] != "none"]
    if quantized.empty:
        return pd.DataFrame(columns=columns)

    pairs = done[done["granularity"] != "none"].merge(
        unquantized, on=[*within, "seed"], suffixes=("", "_none")
    )
    pairs["difference"] = pairs["loss"] - pairs["loss_none"]
    spread = pairs.groupby(keys, dropna=False)["difference"].agg(["size", "mean", "var"])
    paired_dof = int((spread["size"] - 1).sum())
    squares = float((spread["var"] * (spread["size"] - 1)).sum())  # var is NaN for size 1: skipped
    paired_std = math.sqrt(squares / paired_dof) if paired_dof else math.nan
    floor = noise_floor(table)

    result = quantized.groupby(keys, dropna=False)["status"].agg(
        diverged=lambda status: int((status == "diverged").sum())
    )
    result = result.join(done.groupby(keys, dropna=False)["loss"].agg(seeds="size", loss="mean"))
    result["pairs"], result["paired"] = spread["size"], spread["mean"]
    means = unquantized.groupby(within, dropna=False)["loss"].agg(none="size", loss_none="mean")
    result = result.reset_index().merge(means.reset_index(), on=within, how="left")
    result[["seeds", "pairs"]] = result[["seeds", "pairs"]].fillna(0).astype(int)
    result["bits"] = 1 + result["exponent"] + result["mantissa"]

    has_pairs = (result["pairs"] > 0).to_numpy()
    unpaired = result["loss"] - result["loss_none"]
    result["difference"] = np.where(has_pairs, result["paired"], unpaired)
    no_loss = result["seeds"] == 0
    result["standard_error"] = np.where(
        has_pairs,
        paired_std / np.sqrt(result["pairs"].mask(~has_pairs)),
        floor.std_loss * np.sqrt(1 / result["seeds"].mask(no_loss) + 1 / result["none"]),
    )
    result["z"] = result["difference"] / result["standard_error"].mask(
        result["standard_error"] == 0
    )
    result["dof"] = np.where(has_pairs, paired_dof, floor.dof)
    diverged = no_loss & (result["diverged"] > 0)
    result["verdict"] = np.where(diverged, "diverged", judge(result["z"], result["dof"]))
    ordered: pd.DataFrame = result.sort_values(
        ["bits", *keys],
        ignore_index=True,
        key=lambda c: c.astype(str) if c.dtype == object else c,
    )[columns]
    return ordered


def compare_layouts(table: pd.DataFrame) -> pd.DataFrame:
    """Exponent/mantissa splits of one width against each other, as measured, whatever a law says.

    Paired: only runs that agree in everything but the split, seed included, are compared.  The
    standard error comes from the spread of these differences, pooled over all pairs of splits.

    Args:
        table: Results with the columns of `CELL`, `seed`, `status` and `loss`.

    Returns:
        One row per pair of splits, by bits: `bits`, `better` and `other` (e.g. "E2M1"; better by
        the mean), `difference` (other minus better, nats per token), `standard_error`, `dof`,
        `z`, `pairs`, `verdict`: "better" where Student's t with `dof` makes a false alarm as rare
        as three standard errors of a normal do (0.27 %), else "cannot tell".  Empty where no
        width was run with two splits.

    Raises:
        ResultsError: A column is missing.
    """
    require_columns(table, (*CELL, "seed", "status", "loss"), "comparing layouts")
    rows = select_rows(table)[0]
    rows = rows[rows["granularity"] != "none"]
    context = [*cell_keys(rows.drop(columns=[c for c in SPLIT if c in rows])), "seed"]
    rows = rows.drop_duplicates([*context, "exponent", "mantissa"])
    rows = rows.assign(bits=1 + rows["exponent"] + rows["mantissa"])
    both = rows.merge(rows, on=[*context, "bits"], suffixes=("_a", "_b"))
    both = both[both["exponent_a"] > both["exponent_b"]]
    both["difference"] = both["loss_b"] - both["loss_a"]
    layouts = ["bits", "exponent_a", "mantissa_a", "exponent_b", "mantissa_b"]
    without_seed = [c for c in context if c != "seed"]
    spread = both.groupby([*layouts, *without_seed], dropna=False)["difference"]
    groups = spread.agg(["size", "var"])
    dof = int((groups["size"] - 1).sum())
    squares = float((groups["var"] * (groups["size"] - 1)).sum())
    std = math.sqrt(squares / dof) if dof else math.nan
    needed = enough(dof)
    found = []
    for key, group in both.groupby(layouts):
        bits, *split = (int(value) for value in cast("tuple[float, ...]", key))
        names = [f"E{split[0]}M{split[1]}", f"E{split[2]}M{split[3]}"]
        difference = float(group["difference"].mean())
        if difference < 0:
            names.reverse()
        error = std / math.sqrt(len(group))
        z = abs(difference) / error if error > 0 else math.nan
        verdict = BETTER if z >= needed else CANNOT_TELL
        found.append((bits, *names, abs(difference), error, dof, z, len(group), verdict))
    columns = ["bits", "better", "other", "difference", "standard_error", "dof", "z", "pairs"]
    return pd.DataFrame(found, columns=[*columns, "verdict"])
