"""What a page is made of: a study's runs, its `study.json`, its `fit.json`, read and checked.

A broken file, or a fit that does not suit the results, raises a `ResultsError` of one line.  What
is merely missing (no fit, no repeated seed, nothing to compare) is None, with the reason in words.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from fitting.figures.style import format_colours
from fitting.files.atomic import sha256_of
from fitting.files.own_json import Json, JsonObject, ResultsError
from fitting.fit.fit_file import FIT, SavedFit, read_fit
from fitting.law.terms import FitError, Law
from fitting.naming import format_names, format_order
from fitting.results.record import COLUMNS, FAILURE, RESULT
from fitting.results.study_file import STUDY, read_about
from fitting.results.swept import constant
from fitting.results.table import load, read_records, require_columns, select_rows
from fitting.seeds.cells import CELL, with_conditions
from fitting.seeds.compare import compare_cells, compare_layouts
from fitting.seeds.interaction import layouts_by
from fitting.seeds.noise import NoiseFloor, losses_of_seeds, noise_floor
from fitting.seeds.spread import Spread
from fitting.seeds.tuning import Tuning, tuning_of

FORMAT_COLUMNS = ("exponent", "mantissa", "block_size")
PROVENANCE = ("git_sha", "git_dirty", "device", "threads", "compute_dtype")


WITHIN = "recipe with {} scales"
"""The recipe as a factor where the scale may change what it does."""


@dataclass(frozen=True)
class Study:
    """Everything a page is made of, loaded and checked."""

    results: Path
    table: pd.DataFrame
    """One row per run, as it was trained, with `format` in words."""
    about: Mapping[str, Json]
    """study.json: name, title, description, planned, notes, config, provenance; all optional."""
    fit: SavedFit | None
    cells: pd.DataFrame | None
    """Quantized cells against `none` (`seeds.compare_cells`) with `format`, `params`."""
    no_cells: str
    """Why `cells` is None, in words."""
    layouts: pd.DataFrame
    """Splits of equal width as measured (`seeds.compare_layouts`); may be empty."""
    by_factor: pd.DataFrame
    """The same at each recipe and scale, and how they change (`seeds.layouts_by`), with `factor`;
    may be empty."""
    tuning: Tuning | None
    """What bases and adapters cost; None where the study is not of both."""
    noise: NoiseFloor
    spread: Spread
    """The same, by size where sizes differ in it."""
    order: list[str]
    colours: dict[str, str]
    scored: pd.DataFrame
    """`table`, with the rows after post-training quantization too if the fit is to their losses."""
    inputs: dict[str, str] = field(default_factory=dict)
    """Input file -> SHA-256."""

    @property
    def done(self) -> pd.DataFrame:
        """The runs that have a loss."""
        return select_rows(self.table)[0]


def load_study(results: Path, fit_dir: Path, law: Law | None = None) -> Study:
    """Read results, fit and description.

    Rows of runs whose weights were quantized after training (`format_post`) are for the fit alone:
    everything else on a page is about the runs as they were trained.

    Args:
        results: A folder of runs, or a CSV or parquet file (`fitting.results.table.load`) with its
            `study.json`, if it has one, beside it.
        fit_dir: Where `fit.json` lies, if there is one.
        law: A law of the user's own, in case the fit is of that law.

    Raises:
        ResultsError: Nothing at `results`, a broken file, or a table without loss, params, tokens.
    """
    fit = read_fit(fit_dir / FIT, law)
    if results.is_dir():
        table, about = read_runs(results, ptq=fit is not None and fit.after_training)
        folders = [folder for folder in sorted(results.iterdir()) if folder.is_dir()]
        read = [STUDY, *(f"{d.name}/{name}" for d in folders for name in (RESULT, FAILURE))]
    else:
        table, about = load(results), _about(results.parent)
        read = [results.name, STUDY]
    place = results if results.is_dir() else results.parent
    inputs = {name: sha256_of(place / name) for name in read if (place / name).is_file()}
    require_columns(table, ("loss", "params", "tokens"), "the report")
    if fit is not None:
        inputs[FIT] = sha256_of(fit_dir / FIT)
    return _study(results, table, about, fit, inputs)


def read_runs(folder: Path, ptq: bool = False) -> tuple[pd.DataFrame, JsonObject]:
    """The results table of a folder of runs, possibly without rows, and what else its page says.

    Args:
        folder: `runs/<study>`.
        ptq: As `fitting.results.table.load` takes it.

    Returns:
        The table, and the content of study.json without the planned runs' work, with `name`,
        `config` (the keys in which all runs agree, `fitting.results.swept`) and `provenance` (the
        distinct values of commit, device and the like in the runs' records).
    """
    about: JsonObject = {"name": folder.name} | _about(folder)
    about.pop("work", None)
    records, damaged = read_records(folder)
    if damaged:
        about["damaged"] = len(damaged)
    if shared := constant([record.config for record in records]):
        about["config"] = shared
    table = load(folder, ptq=ptq) if records else pd.DataFrame(columns=list(COLUMNS))
    values = {
        key: sorted({str(r.provenance[key]) for r in records if key in r.provenance})
        for key in PROVENANCE
    }
    about["provenance"] = {key: found for key, found in values.items() if found}
    return table, about


def _about(folder: Path) -> JsonObject:
    """The content of study.json; empty where there is none."""
    try:
        return read_about(folder)
    except FileNotFoundError:
        return {}


def _study(
    results: Path,
    table: pd.DataFrame,
    about: Mapping[str, Json],
    fit: SavedFit | None,
    inputs: dict[str, str],
) -> Study:
    """Name the formats, pool the seeds' noise and compare cells, or say why that cannot be."""
    scored = table.copy()
    if set(FORMAT_COLUMNS) <= _numbers(scored):
        scored["format"] = format_names(scored, among=scored)
        scored["format"] = with_conditions(scored["format"], scored, among=scored)
        order = format_order(scored)
    else:
        scored["format"] = _kinds(scored, fit)
        order = sorted(scored["format"].unique())
    table = scored
    if "format_post" in scored:
        table = scored[scored["format_post"] == "none"].reset_index(drop=True)
    done = select_rows(table)[0]
    noise = NoiseFloor(std_log=np.nan, std_loss=np.nan, dof=0, cells=0)
    if len(done):
        noise = noise_floor(table)
    spread = losses_of_seeds(table)
    cells, no_cells, layouts, by_factor = None, "", pd.DataFrame(), pd.DataFrame()
    missing = [name for name in (*CELL, "seed") if name not in table]
    missing += [c for c in FORMAT_COLUMNS if c not in {*missing, *_numbers(table)}]
    if missing:
        no_cells = f"The table has no column {', '.join(missing)}: formats cannot be compared."
    elif done.empty:
        no_cells = "No run ended with a loss: there is nothing to compare."
    else:
        compared = compare_cells(table)
        compared["params"] = compared.pop("params")  # after the columns it was compared by
        plain = table.assign(format=format_names(table, among=table))
        compared["format"] = with_conditions(
            format_names(compared, among=table), compared, among=plain
        )
        of_seeds, _ = spread.of_rows(compared)
        compared["loss_error"] = of_seeds / np.sqrt(compared["seeds"].clip(lower=1))
        judged = compared[np.isfinite(compared["difference"].astype(float))]
        if judged.empty:
            no_cells = (
                "No quantized cell has an unquantized counterpart (none), a run of the same model "
                "and tokens that is equal in all else: nothing can be compared."
            )
        else:
            cells = compared
        layouts = compare_layouts(table)
        by_factor = _by_factor(table)
    return Study(
        results, table, about, fit, cells, no_cells, layouts, by_factor, tuning_of(table), noise,
        spread, order, format_colours(order), scored, inputs,
    )  # fmt: skip


def _by_factor(table: pd.DataFrame) -> pd.DataFrame:
    """Splits at each scale and recipe, for the factors that were crossed with splits.

    Where both were, the recipes are compared at each scale: what one does may depend on the other.
    """
    by_scale, by_recipe = (layouts_by(table, factor) for factor in ("scale", "recipe"))
    found = {"scale": by_scale}
    if _is_crossed(by_scale) and _is_crossed(by_recipe):
        for scale in sorted(by_scale["at"].unique()):
            # Unquantized runs are left out there, whatever their scale is called.
            found[WITHIN.format(scale)] = layouts_by(table[table["scale"] == scale], "recipe")
    else:
        found["recipe"] = by_recipe
    crossed = [each.assign(factor=name) for name, each in found.items() if _is_crossed(each)]
    return pd.concat(crossed, ignore_index=True) if crossed else pd.DataFrame()


def _is_crossed(found: pd.DataFrame) -> bool:
    """Whether splits were compared at several values of a factor."""
    return len(found) > 0 and bool((found["against"] != "").any())


def _numbers(table: pd.DataFrame) -> set[str]:
    """The columns that hold numbers; in a table without rows, any may."""
    return {str(c) for c in table if table.empty or pd.api.types.is_numeric_dtype(table[c])}


def _kinds(table: pd.DataFrame, fit: SavedFit | None) -> pd.Series:
    """What tells runs without a number format apart: the law's other columns, as "QuEST:BF16"."""
    columns = [] if fit is None else [*fit.model.columns, *fit.model.schemes]
    columns = [c for c in columns if c not in ("params", "tokens") and c in table]
    if not columns:
        return pd.Series("all runs", index=table.index)
    words = [
        table[c].map("{:.4g}".format) if pd.api.types.is_numeric_dtype(table[c]) else table[c]
        for c in columns
    ]
    kinds: pd.Series = words[0].astype(str)
    for more in words[1:]:
        kinds = kinds + ":" + more.astype(str)
    return kinds


def fitted_runs(study: Study) -> pd.DataFrame | None:
    """The runs that the fit used, with `predicted`; None where there is no fit."""
    if study.fit is None:
        return None
    rows = used_runs(study).copy()
    rows["predicted"] = predict(study.fit, rows)
    return rows


def used_runs(study: Study) -> pd.DataFrame:
    """The rows of the fit's runs, where fit.json names them; else all that have a loss."""
    run_ids = None if study.fit is None else study.fit.run_ids
    rows = select_rows(study.scored)[0]
    return rows[rows["run_id"].isin(run_ids)] if run_ids and "run_id" in rows else rows


def predict(fit: SavedFit, rows: pd.DataFrame) -> np.ndarray:
    """The fitted law's losses (nats per token), shape (len(rows),).

    Raises:
        ResultsError: A column is missing, or the law is not defined for a value or parameter.
    """
    try:
        return fit.model.predict(fit.values, rows)
    except FitError as error:
        raise ResultsError(f"{FIT} does not suit the results: {error}") from error
