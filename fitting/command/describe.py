"""A fit as a file: load a table, fit it, and write the result as strict JSON."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd

from fitting.command.options import FitOptions, refuse_unknown
from fitting.command.rows import best_of_each, keep
from fitting.entry.errors import UsageError
from fitting.files.atomic import write_atomic
from fitting.files.own_json import ResultsError
from fitting.fit.bootstrap import bootstrap, intervals, standard_errors, vague
from fitting.fit.derived import IDENTIFIED, basis_of, derived, doubts, identified
from fitting.fit.evidence import comparison, evidence
from fitting.fit.fit_file import FIT, SavedFit, saved_fit
from fitting.fit.lack_of_fit import lack_of_fit
from fitting.fit.prediction import predict
from fitting.fit.result import Fit
from fitting.fit.search import fit as fit_law
from fitting.law.conclusion import Assumptions, entries, entries_of
from fitting.law.speeds import Speeds
from fitting.law.terms import FitError
from fitting.laws.catalogue import get
from fitting.results.swept import is_key
from fitting.results.table import load, require_columns, select_rows
from fitting.seeds.cells import extra_keys
from fitting.seeds.noise import noise_floor

ENOUGH_DRAWS = 0.95
MOST_LISTED = 6
"""Values of a swept key that a warning lists."""
FEWEST = 10_000
"""Parameters or tokens; a table whose largest count is below this counts in a larger unit."""
FEW_CLUSTERS = 10
"""Clusters below which intervals from resampling them cover too rarely (Cameron et al. 2008)."""


def run_fit(options: FitOptions) -> SavedFit:
    """Load, select, fit, bootstrap; write `<out>/fit.json` and `<out>/results.csv`.

    Args:
        options: `results`, `law` and `out` must be set; `study` is not used here.

    Returns:
        The content of fit.json; the same inputs give the same bytes.

    Raises:
        UsageError: `where` cannot be evaluated or keeps no row, or `out` cannot be written.
        ResultsError: The results cannot be read, or a column is missing or holds no numbers.
        FitError: See `fitting.fit.search.fit`.
    """
    assumed = Assumptions(
        options.cost_k,
        options.speedup_forward,
        options.speedup_backward,
        Speeds.parse(options.speedup_measured),
    )
    law = get(options.law)
    laws = list({name: get(name) for name in (options.law, *options.compare)}.values())
    needed = [column for each in laws for column in each.columns]
    refuse_unknown(options.columns, laws)
    table = load(options.results, options.columns, ptq="bits_post" in needed)
    table = _numeric(table, needed, options.results)
    unseen = None
    if options.predict:
        unseen = _numeric(load(options.predict, options.columns), needed, options.predict)
        require_columns(unseen, (*law.columns, *law.schemes), f"predict={options.predict}")
    kept, chosen = best_of_each(keep(table, options.where), options.best_per, laws)
    for rival in laws[1:]:
        require_columns(kept, ("loss", *rival.columns, *rival.schemes), f"compare={rival.name}")
    few = _few_clusters(kept, options.cluster)
    fitted = fit_law(
        kept,
        law,
        objective=options.objective,
        delta=options.objective_delta,
        overestimate=options.objective_overestimate,
        freeze=options.freeze,
        bounds=options.bounds,
        weights=options.weights or None,
        starts=options.starts,
        seed=options.seed,
    )
    if options.bootstrap < 0:
        raise FitError(f"bootstrap={options.bootstrap}: must be 0 (none) or at least 2")
    draws = None
    if options.bootstrap:
        cluster = options.cluster or None
        draws = bootstrap(kept, fitted, options.bootstrap, options.seed, cluster)
    compared: dict[str, object] = {}
    failed = []
    if options.compare:
        try:
            compared["comparison"] = comparison(
                kept,
                laws,
                objective=options.objective,
                delta=options.objective_delta,
                overestimate=options.objective_overestimate,
                weights=options.weights or None,
            )
        except FitError as error:
            failed.append(f"the laws could not be compared: {error}")
    foretold: dict[str, object] = {}
    if unseen is not None and draws is not None:
        foretold = {"predicted": predict(fitted, draws, unseen), "predict": options.predict}
    also = chosen + few + _shared_runs(kept, options.cluster) + failed
    report = describe(fitted, draws, kept, table, assumed, also)
    report |= entries(evidence(kept, fitted, options.evidence)) | entries_of(compared)
    report |= entries_of(foretold) | {"where": options.where or None, "seed": options.seed}
    report["cluster"] = options.cluster or None
    if options.best_per:
        report["best_per"] = list(options.best_per)
    out = Path(options.out)
    text = json.dumps(report, indent=1, sort_keys=True, allow_nan=False)
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_atomic(table.to_csv(index=False, lineterminator="\n"), out / "results.csv")
        write_atomic(text + "\n", out / FIT)
    except OSError as error:
        raise UsageError(f"out={out}: cannot be written ({error.strerror})") from error
    return saved_fit(report, out / FIT, law)


def _numeric(table: pd.DataFrame, columns: Iterable[str], path: str) -> pd.DataFrame:
    """The table with a law's columns as numbers."""
    for name in (c for c in columns if c in table):
        try:
            table[name] = pd.to_numeric(table[name])
        except (ValueError, TypeError) as error:
            raise ResultsError(f"column {name!r} of {path} is not numeric: {error}") from error
    return table


def _few_clusters(table: pd.DataFrame, column: str) -> list[str]:
    """A warning that a column has too few values to resample, if it does.

    Raises:
        UsageError: It has fewer than two values.
        ResultsError: There is no such column.
    """
    if not column:
        return []
    require_columns(table, (column,), f"cluster={column}")
    count = select_rows(table)[0][column].nunique(dropna=False)
    if count < 2:
        raise UsageError(f"cluster={column}: has fewer than two values, nothing to resample")
    if count >= FEW_CLUSTERS:
        return []
    return [f"{column} has {count} values: intervals from resampling so few are too narrow"]


def _shared_runs(table: pd.DataFrame, cluster: str) -> list[str]:
    """A warning if several rows are of one run, as from `fitting.results.load` with `ptq`."""
    if cluster or "run_id" not in table or not table["run_id"].duplicated().any():
        return []
    return ["rows of one run share its noise: cluster=run_id draws all of them or none"]


def describe(
    fitted: Fit,
    draws: pd.DataFrame | None,
    table: pd.DataFrame,
    every: pd.DataFrame | None = None,
    assumed: Assumptions | None = None,
    also: Sequence[str] = (),
) -> dict[str, object]:
    """A fit as strict JSON, without NaN: None stands for what the data do not tell.

    Args:
        fitted: The fit.
        draws: The draws of its bootstrap, or None.
        table: The table that was fitted.
        every: The table from which that one was selected; None if it is the same.
        assumed: The assumptions of its law's conclusions.
        also: Warnings about the table, which come last.
    """
    warnings = list(fitted.warnings)
    unusable = {r: n for r, n in fitted.rows.excluded.items() if r.startswith("loss not")}
    if unusable:
        listed = ", ".join(f"{count} {reason}" for reason, count in unusable.items())
        warnings.append(f"rows without a usable loss were left out: {listed}")
    low_high: dict[str, list[float | None]] = {n: [None, None] for n in fitted.parameters}
    errors: dict[str, float | None] = dict.fromkeys(fitted.parameters)
    converged = None
    if draws is not None:
        converged = int(draws["converged"].sum())
        if converged < ENOUGH_DRAWS * len(draws):
            warnings.append(
                f"only {converged} of {len(draws)} bootstrap draws converged: "
                "the intervals are rough"
            )
        wide = [n for n in vague(draws) if fitted.identified[n] and n not in fitted.frozen]
        if wide:
            warnings.append(
                f"{', '.join(wide)}: hardly identified, the 95 % interval spans a factor of 50 or "
                "includes zero"
            )
        unknown = {*fitted.flat, *fitted.frozen}  # no data behind them, so no interval
        low_high |= {n: list(v) for n, v in intervals(draws).items() if n not in unknown}
        errors |= {n: v for n, v in standard_errors(draws).items() if n not in unknown}
    known = identified(fitted, draws)
    concluded = derived(fitted, basis_of(fitted, draws, table, every, assumed), known)
    warnings += doubts(fitted.law, concluded, known)
    rows, _ = select_rows(table)
    floor = noise_floor(rows)
    warnings += (
        _mixtures(fitted, rows)
        + _units(fitted, rows)
        + lack_of_fit(fitted, rows, floor.std_log, floor.dof)
    )
    if not floor.dof:
        warnings.append("no cell was run with two seeds: the noise floor is unknown")
    used = ("run_id", "loss", *fitted.law.columns, *fitted.law.schemes, fitted.weights)
    present = [c for c in dict.fromkeys(used) if c in rows]
    canonical = rows[present].to_csv(index=False, lineterminator="\n").encode()
    return entries_of(
        {
            "law": fitted.law.name,
            "source": fitted.law.source,
            "objective": fitted.objective,
            "parameters": fitted.parameters,
            "intervals": low_high,
            "standard_errors": errors,
            "status": fitted.status,
            "starts": fitted.starts,
            "rows": fitted.rows,
            "frozen": list(fitted.frozen),
            "bounds": dict(fitted.bounds),
            "weights": fitted.weights,
            "bootstrap": {"draws": 0 if draws is None else len(draws), "converged": converged},
            "derived": {IDENTIFIED: known, **concluded.values},
            "noise_floor": floor,
            "warnings": [*warnings, *also],
            "inputs_sha256": hashlib.sha256(canonical).hexdigest(),
            "run_ids": [str(r) for r in rows["run_id"]] if "run_id" in rows else None,
        }
    )


def _mixtures(fitted: Fit, rows: pd.DataFrame) -> list[str]:
    """Warnings about swept keys that the law does not know, nor tells by its columns."""
    known = [*fitted.law.columns, *fitted.law.schemes]
    alike = rows.groupby(known, dropna=False)
    warnings = []
    for key in (c for c in extra_keys(rows) if is_key(c) and c not in known):
        if alike[key].nunique(dropna=False).max() == 1:
            continue
        values = [str(value) for value in sorted(rows[key].dropna().unique(), key=str)]
        if len(values) < 2:
            continue
        listed = ", ".join(values[:MOST_LISTED]) + (", ..." if len(values) > MOST_LISTED else "")
        first = values[0] if pd.api.types.is_numeric_dtype(rows[key]) else repr(values[0])
        warnings.append(
            f"runs differ in {key} ({listed}), which the law does not know: this fit is a "
            f'mixture; keep one value with where="{key} == {first}"'
        )
    return warnings


def _units(fitted: Fit, rows: pd.DataFrame) -> list[str]:
    """Warnings about counts so small that they must be in millions or billions."""
    return [
        f"{name} is at most {rows[name].max():g}: in billions? coefficients, counts and costs here "
        f"are in single units; give columns.{name}='<its name> * 1e9'"
        for name in ("params", "tokens")
        if name in fitted.law.columns and rows[name].max() < FEWEST
    ]
