"""Comparisons of cells and of layouts as measured, without any law."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import numpy as np
import pandas as pd

from fitting.results.format_errors import ERRORS, FORMATS, MEASURED
from fitting.results.table import require_columns, select_rows
from fitting.seeds.cells import CELL, cell_keys, condition_keys
from fitting.seeds.noise import losses_of_seeds
from fitting.seeds.spread import Spread, error_of_mean
from fitting.seeds.verdicts import BETTER, CANNOT_TELL, enough, judge

SPLIT = (
    *("exponent", "mantissa", "bits_with_scales", "format"),
    *("precision.exponent", "precision.mantissa", "precision.kind", "precision.specials"),
    *(*ERRORS, *FORMATS, *FORMATS.values(), *MEASURED),
)
"""Columns in which splits of one width differ by definition."""
PAIR = ("bits", "exponent_a", "mantissa_a", "exponent_b", "mantissa_b")
"""Columns of `pairs_of_splits` that say which two splits are compared."""


def compare_cells(table: pd.DataFrame) -> pd.DataFrame:
    """Each quantized cell against the unquantized runs that agree with it in all else.

    Paired by seed where both sides share seeds (the same seed means the same initial weights and
    the same data, so that noise cancels); otherwise the difference of the two means.  The standard
    error comes from the spread pooled over cells (`fitting.seeds.spread`), so that a cell with one
    seed has one too: of the paired differences where there are pairs, of the losses elsewhere.

    Args:
        table: Results with the columns of `CELL`, `seed`, `status` and `loss`.

    Returns:
        One row per quantized cell, by bits, then by `CELL`: `fitting.seeds.cells.cell_keys`, which
        begin with `CELL`; `bits`; `seeds` (runs with a loss), `diverged` (runs that diverged),
        `pairs` (seeds shared with the unquantized cell); `loss` and `loss_none` (means);
        `difference` (nats per token, positive = worse); `standard_error` and its degrees of freedom
        `dof`; `z` = difference / standard_error; `verdict`: "worse" or "better" from |z| >=
        `fitting.seeds.verdicts.enough` on, "cannot tell" below, or without repeated seeds, or with
        nothing to compare with; "diverged" if no run of the cell has a loss.

    Raises:
        ResultsError: A column is missing.
    """
    require_columns(table, (*CELL, "seed", "status", "loss"), "comparing cells")
    within, keys = condition_keys(table), cell_keys(table)
    columns = [*keys, "bits", "seeds", "diverged", "pairs", "loss", "loss_none", "difference"]
    columns += ["standard_error", "dof", "z", "verdict"]
    done = select_rows(table)[0].drop_duplicates([*keys, "seed"])
    unquantized = _unquantized(done, within)
    quantized = table[table["granularity"] != "none"]
    if quantized.empty:
        return pd.DataFrame(columns=columns)

    pairs = done[done["granularity"] != "none"].merge(
        unquantized, on=[*within, "seed"], suffixes=("", "_none")
    )
    pairs["difference"] = pairs["loss"] - pairs["loss_none"]
    spread = Spread.of(pairs, keys, "difference")
    result = quantized.groupby(keys, dropna=False)["status"].agg(
        diverged=lambda status: int((status == "diverged").sum())
    )
    result = result.join(done.groupby(keys, dropna=False)["loss"].agg(seeds="size", loss="mean"))
    result["pairs"], result["paired"] = spread.groups["size"], spread.groups["mean"]
    means = unquantized.groupby(within, dropna=False)["loss"].agg(none="size", loss_none="mean")
    result = result.reset_index().merge(means.reset_index(), on=within, how="left")
    result[["seeds", "pairs"]] = result[["seeds", "pairs"]].fillna(0).astype(int)
    result["bits"] = 1 + result["exponent"] + result["mantissa"]
    judged = _judged(result, spread, losses_of_seeds(table))
    ordered: pd.DataFrame = judged.sort_values(
        ["bits", *keys],
        ignore_index=True,
        key=lambda c: c.astype(str) if c.dtype == object else c,
    )[columns]
    return ordered


def _unquantized(done: pd.DataFrame, within: list[str]) -> pd.DataFrame:
    """The loss of the unquantized runs of each condition and seed."""
    reference = done[done["granularity"] == "none"].groupby([*within, "seed"], dropna=False)
    return reference["loss"].mean().reset_index()


def _judged(cells: pd.DataFrame, spread: Spread, floor: Spread) -> pd.DataFrame:
    """Cells with their difference from `none`, its standard error, z and verdict.

    Args:
        cells: Quantized cells beside the unquantized runs of their conditions.
        spread: That of differences of runs that share a seed.
        floor: That of losses, for cells without such pairs.
    """
    paired = (cells["pairs"] > 0).to_numpy()
    difference = np.where(paired, cells["paired"], cells["loss"] - cells["loss_none"])
    no_loss = cells["seeds"] == 0
    std, dof_of_pairs = spread.of_rows(cells)
    floor_std, floor_dof = floor.of_rows(cells)
    error = pd.Series(
        np.where(
            paired,
            std / np.sqrt(cells["pairs"].mask(~paired)),
            floor_std * np.sqrt(1 / cells["seeds"].mask(no_loss) + 1 / cells["none"]),
        ),
        index=cells.index,
    )
    z, dof = difference / error.mask(error == 0), np.where(paired, dof_of_pairs, floor_dof)
    diverged = no_loss & (cells["diverged"] > 0)
    verdict = np.where(diverged, "diverged", judge(z, dof))
    return cells.assign(difference=difference, standard_error=error, z=z, dof=dof, verdict=verdict)


def pairs_of_splits(rows: pd.DataFrame, context: Sequence[str]) -> pd.DataFrame:
    """Runs of two splits of one width side by side, _a with more exponent bits than _b.

    Args:
        rows: Quantized runs with a loss.
        context: Columns in which both agree, the seed among them.

    Returns:
        Columns of the runs with _a and _b, `bits`, and `difference`, the loss of _b minus that of
        _a.
    """
    rows = rows.drop_duplicates([*context, "exponent", "mantissa"])
    rows = rows.assign(bits=1 + rows["exponent"] + rows["mantissa"])
    both = rows.merge(rows, on=[*context, "bits"], suffixes=("_a", "_b"))
    both = both[both["exponent_a"] > both["exponent_b"]]
    return both.assign(difference=both["loss_b"] - both["loss_a"])


def compare_layouts(table: pd.DataFrame) -> pd.DataFrame:
    """Exponent/mantissa splits of one width against each other, as measured, whatever a law says.

    Paired: only runs that agree in everything but the split, seed included, are compared.  The
    standard error comes from the spread of these differences, pooled over pairs of splits.

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
    both = pairs_of_splits(rows, context)
    layouts = list(PAIR)
    without_seed = [c for c in context if c != "seed"]
    spread = Spread.of(both, [*layouts, *without_seed], "difference")
    found = []
    for key, group in both.groupby(layouts):
        bits, *split = (int(value) for value in cast("tuple[float, ...]", key))
        names = [f"E{split[0]}M{split[1]}", f"E{split[2]}M{split[3]}"]
        difference = float(group["difference"].mean())
        if difference < 0:
            names.reverse()
        error, dof = error_of_mean(*spread.of_rows(group), group.get("params", group["bits"]))
        z = abs(difference) / error if error > 0 else math.nan
        verdict = BETTER if z >= enough(dof) else CANNOT_TELL
        found.append((bits, *names, abs(difference), error, dof, z, len(group), verdict))
    columns = ["bits", "better", "other", "difference", "standard_error", "dof", "z", "pairs"]
    return pd.DataFrame(found, columns=[*columns, "verdict"])
