"""The report: a study's runs and its fit as one self-contained HTML page.

`write_report` reads the results, `fit.json` and `study.json`, and writes `index.html` with its
figures inline (also as files), the tables as CSV and a MANIFEST of SHA-256 sums.  The same inputs
give the same bytes: no time, no path and no random id gets into a file.  What a study cannot show
(no fit, one run, all diverged, foreign columns) becomes a sentence on the page, not an error.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
import re
import shlex
from collections.abc import Callable, Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd

from fitting import conclusions, figures, findings, law_figures, tables
from fitting.findings import number, plural
from fitting.naming import UNQUANTIZED, count_label, sizes
from fitting.results import write_atomic
from fitting.study import (
    Study,
    fitted_runs,
    load_study,
    predict,
    read_json,
    sha256_of,
    used_runs,
)
from fitting.style import Panel
from fitting.tables import View
from fitting.uncertainty import NoiseFloor

PAGE = "index.html"
HEADLINE = "headline.png"
MANIFEST = "MANIFEST.json"
LISTED = 24
"""Values that are listed one by one; of more the page says how many and the range."""
PANELS_ON_PAGE = 6
"""Model sizes drawn; a study of more has them all in its tables."""
PACKAGES = ("lowbit-scaling", "numpy", "scipy", "pandas", "matplotlib", "jinja2")


# --- figures -----------------------------------------------------------------------------------


def _figures(study: Study) -> dict[str, list[Panel]]:
    """All panels of the page by figure."""
    drawn: dict[str, list[Panel]] = {}
    done = study.done
    if done.empty:
        return drawn
    keys = ["format", "params", "tokens"]
    means: pd.DataFrame = done.groupby(keys)["loss"].mean().reset_index()
    chosen = _spaced(sizes(done))
    means = means[means["params"].isin(chosen)]
    if study.cells is not None:
        cells = study.cells[np.isfinite(study.cells["difference"].astype(float))]
        cells = cells[cells["params"].isin(chosen)]
        base = means[means["format"] == UNQUANTIZED]
        drawn["cost"] = figures.cost_by_format(
            cells, study.order, study.colours, study.noise.std_loss
        )
        drawn["bits"] = figures.loss_by_bits(cells, base, study.colours)
        if cells["exponent"].nunique() > 1 and cells["mantissa"].nunique() > 1:
            drawn["layout"] = figures.cost_by_layout(cells)
    fitted = fitted_runs(study)
    if means["tokens"].nunique() > 1 and means["format"].nunique() <= LISTED:
        curves = _curves(study, means) if fitted is not None else None
        drawn["tokens"] = figures.loss_by_tokens(means, study.order, study.colours, curves)
    if fitted is not None:
        drawn["fit"] = figures.predicted_v_observed(
            fitted, study.order, study.colours, study.noise.std_log
        )
    if study.fit is not None:
        drawn |= law_figures.conclusions(study.fit, study.done)
    return drawn


def _spaced(values: list[float]) -> list[float]:
    """At most PANELS_ON_PAGE of the sizes, evenly spaced, both ends kept."""
    if len(values) <= PANELS_ON_PAGE:
        return values
    steps = np.linspace(0, len(values) - 1, PANELS_ON_PAGE).round().astype(int)
    return [values[i] for i in steps]


def _curves(study: Study, means: pd.DataFrame) -> pd.DataFrame:
    """The law along tokens, within the study's range, for each format and size that was run."""
    assert study.fit is not None
    rows = study.done.drop_duplicates(["format", "params"])
    rows = rows[rows["params"].isin(means["params"])]
    grid = np.geomspace(means["tokens"].min(), means["tokens"].max(), 24)
    rows = rows.drop(columns="tokens").merge(pd.DataFrame({"tokens": grid}), how="cross")
    rows["predicted"] = predict(study.fit, rows)
    return rows.sort_values(["format", "params", "tokens"], ignore_index=True)


# --- words -------------------------------------------------------------------------------------


def _headline(study: Study) -> tuple[str, list[str]]:
    """The lead paragraph and the findings below it."""
    if study.table.empty:
        return "This study has no finished run yet: there is nothing to report.", []
    if study.done.empty:
        bad = study.table["status"].value_counts()
        counted = findings.series(f"{count} {status}" for status, count in sorted(bad.items()))
        return f"No run of this study ended with a loss ({counted}): there is nothing to fit.", []
    points = []
    if study.cells is None:
        lead = study.no_cells
        if study.fit is not None:
            runs = plural(study.fit["rows"]["used"], "run")
            lead = f"The law {study.fit['law']} was fitted to {runs}. {study.no_cells}"
    else:
        cells = study.cells[np.isfinite(study.cells["difference"].astype(float))]
        means, details = findings.lowest_bits(cells)
        lead = " ".join(means)
        points += details
        points.append(findings.not_told_apart(cells, study.order))
        by_bits = findings.order_by_bits(cells)
        points += [by_bits] if by_bits else []
    if len(study.done) == 1:
        points.append("One run only: no spread, no comparison and no fit can come from it.")
    if study.fit is None:
        points.append("There is no fit of this study yet (no fit.json): run lowbit-fit first.")
    else:
        points += findings.parameters_pinned(study.fit)
        optional = (
            findings.best_layouts(study.fit),
            findings.measured_layouts(study.layouts),
            findings.compute_optimal(study.fit),
            findings.cost_of_fewest_bits(study.fit),
        )
        points += [sentence for sentence in optional if sentence]
    return lead, points


def _noise_words(noise: NoiseFloor, cells: pd.DataFrame | None) -> str:
    if not np.isfinite(noise.std_loss):
        return (
            "Noise floor: unknown. No cell was repeated with another seed, so no difference on "
            "this page can be called real."
        )
    words = (
        f"Noise floor: another seed changes the loss by {number(noise.std_loss, 2)} nats per token "
        f"({100 * noise.std_log:.2g} % of it; one standard deviation, pooled over "
        f"{plural(noise.cells, 'repeated cell')}, {noise.dof} degrees of freedom)."
    )
    if cells is not None and (cells["pairs"] > 0).any():
        dof = cells.loc[cells["pairs"] > 0, "dof"].iloc[0]
        words += (
            " Differences to none are paired by seed, which cancels what both runs share; their "
            f"standard errors rest on {dof:.0f} degrees of freedom."
        )
    return words


def _scale_words(order: Iterable[str]) -> str:
    """What "/32", "row" and "tensor" mean in the names of formats; nothing if none has them."""
    said: dict[str, str] = {}  # the first name of each kind
    for name in order:
        label = re.match(r"E\S+?M\S+?(?:/(?P<count>\S+)| (?P<who>row|tensor)(?= |$))", name)
        if label:
            unit = f"{label['count']} values" if label["count"] else label["who"]
            verb = "" if said else "shares a scale "
            said.setdefault(label["who"] or "block", f"{label[0]} {verb}per {unit}")
    return ", ".join(said.values()) + "." if said else ""


def _facts(study: Study) -> list[tuple[str, str]]:
    """What was run, as terms and values."""
    table = study.table
    facts: list[tuple[str, str]] = []
    if table.empty:
        return facts

    def distinct(column: str, words: Callable[[Any], str] = str) -> str | None:
        if column not in table:
            return None
        values = sorted(set(table[column].dropna()) - {""})
        if len(values) > LISTED:
            return f"{len(values):,} values, {words(values[0])} to {words(values[-1])}"
        return ", ".join(words(value) for value in values) if values else None

    for term, value in (
        ("Model sizes", distinct("params", count_label)),
        ("Training tokens", distinct("tokens", count_label)),
        ("Formats", ", ".join(study.order)),
        ("Recipes", distinct("recipe")),
        ("Operands quantized", distinct("operands")),
        ("Seeds", distinct("seed", lambda value: number(value, 12))),
        ("Compute", _total(table, "flops", lambda value: f"{number(value, 3)} FLOPs")),
        ("Wall time", _total(table, "wall_seconds", findings.duration)),
        ("Corpus", distinct("corpus")),
        ("Quantizer", distinct("quantize_backend")),
    ):
        if value:
            facts.append((term, value))
    for key, values in study.provenance.items():
        if key == "git_dirty":
            said = {"True": "yes", "False": "no"}
            facts.append(("Uncommitted changes", ", ".join(said.get(v, v) for v in values)))
        else:
            facts.append((key.replace("_", " ").capitalize(), ", ".join(values)))
    return facts


def _total(table: pd.DataFrame, column: str, words: Callable[[float], str]) -> str | None:
    if column not in table:
        return None
    return f"{words(float(table[column].sum()))}, all runs together"


def _counts(study: Study) -> list[tuple[str, int]]:
    """Runs by outcome; missing = planned, but neither result nor failure is there."""
    status = study.table["status"].value_counts()
    counts = [(name, int(status.get(name, 0))) for name in ("finished", "diverged", "failed")]
    planned = study.about.get("planned")
    if planned:
        there = set(study.table["run_id"]) if "run_id" in study.table else set()
        counts.append(("missing", len(set(planned) - there)))
    return counts


def _commands(study: Study) -> list[str]:
    """What to type to get this page again."""
    fit_where = report_where = f"study={study.results.name}"
    if not study.results.is_dir():
        fit_where = f"results={study.results.name} out=."
        report_where = f"results={study.results.name} fit=."
    if study.fit is None:
        return [f"lowbit-report {report_where}"]
    fit, objective = study.fit, study.fit["objective"]
    options = {
        "law": fit["law"],
        "objective": objective["name"],
        "objective.delta": objective["delta"],
        "compare": ",".join(row["law"] for row in fit.get("comparison", [])) or None,
        "where": fit.get("where"),
        "weights": fit.get("weights"),
        "bootstrap": fit.get("bootstrap", {}).get("draws"),
        "cluster": fit.get("cluster"),
        "starts": fit["starts"]["tried"],
        "seed": fit.get("seed"),
        "cost.k": fit.get("derived", {}).get("cost_k"),
        **{f"speedup.{name}": s for name, s in fit.get("derived", {}).get("speedups", {}).items()},
        **{f"freeze.{name}": fit["parameters"][name] for name in fit.get("frozen", [])},
        **{f"bounds.{name}": _ends(*ends) for name, ends in fit.get("bounds", {}).items()},
    }
    typed = [shlex.quote(f"{key}={value}") for key, value in options.items() if value is not None]
    return [" ".join(["lowbit-fit", fit_where, *typed]), f"lowbit-report {report_where}"]


def _ends(low: float | None, high: float | None) -> str:
    """Bounds as typed; JSON has no infinity."""
    return f"{'-inf' if low is None else low}..{'inf' if high is None else high}"


def _versions() -> list[str]:
    versions = [f"python {platform.python_version()}"]
    for name in PACKAGES:
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:  # ours, run from a checkout
            versions.append(f"{name} not installed")
    return versions


# --- writing -----------------------------------------------------------------------------------


def write_report(results: Path, fit_dir: Path, out: Path) -> Path:
    """Write the page, its figures, tables and MANIFEST.

    Args:
        results: A folder of runs (with `study.json` if it has one), a CSV or a parquet file.
        fit_dir: Where `fit.json` lies; without one the page says that there is no fit.
        out: Folder to write `index.html`, `headline.png` (the difference to `none` by format,
            where there is one), `figures/*.svg`, `tables/*.csv`, `MANIFEST.json` into; made if
            absent.  Files that an earlier report left there, unchanged since, are removed.

    Returns:
        The path of `index.html`.

    Raises:
        ResultsError: `results` or a JSON file cannot be used.
    """
    study = load_study(results, fit_dir)
    drawn = _figures(study)
    made: list[View | None] = [tables.runs(study.table)]
    if study.cells is not None:
        made.append(tables.losses(study.cells, study.done))
    if study.fit is not None:
        made += [tables.parameters(study.fit), tables.held_out(study.fit)]
        made += [tables.comparison(study.fit), *conclusions.views(study.fit)]
    views = {view.name: view for view in made if view is not None and view.rows}
    files = {f"figures/{p.name}.svg": p.svg for panels in drawn.values() for p in panels}
    for view in views.values():
        files[f"tables/{view.name}.csv"] = view.data.to_csv(index=False, lineterminator="\n")
    files[PAGE] = _render(study, drawn, views)
    content = {name: text.encode() for name, text in files.items()}
    if study.cells is not None:
        cells = study.cells[np.isfinite(study.cells["difference"].astype(float))]
        if not cells.empty:
            content[HEADLINE] = figures.headline(
                cells, study.order, study.colours, study.noise.std_loss
            )
    _write(content, study.inputs, out)
    return out / PAGE


def _render(study: Study, drawn: Mapping[str, list[Panel]], views: Mapping[str, View]) -> str:
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["number"] = number
    environment.filters["tied"] = _tied
    source = resources.files("fitting").joinpath("report.html").read_text(encoding="utf-8")
    lead, points = _headline(study)
    concluded = {view.name for view in conclusions.views(study.fit)} if study.fit else set()
    size_count = study.done["params"].nunique()
    return environment.from_string(source).render(
        title=study.about.get("title") or study.about.get("name") or _name(study.results),
        description=study.about.get("description", ""),
        notes=study.about.get("notes", []),
        lead=lead,
        points=points,
        counts=_counts(study),
        planned=len(study.about.get("planned") or []),
        facts=_facts(study),
        small=findings.small_model(study.done) if len(study.done) else None,
        noise=_noise_words(study.noise, study.cells) if len(study.done) else "",
        no_cells=study.no_cells,
        verdict=findings.verdict_words(study.cells) if study.cells is not None else "",
        measured_layouts=findings.measured_layouts(study.layouts),
        scale_words=_scale_words(study.order),
        sizes_left_out=max(0, size_count - PANELS_ON_PAGE),
        figures=drawn,
        views=views,
        not_concluded=findings.not_concluded(study.fit),
        conclusions=[view for name, view in views.items() if name in concluded],
        fit=study.fit,
        fitted_runs=len(used_runs(study)),
        fit_status=findings.status_words(study.fit.get("status")) if study.fit else "",
        commands=_commands(study),
        versions=_versions(),
        inputs=hashlib.sha256(json.dumps(study.inputs, sort_keys=True).encode()).hexdigest(),
        input_count=len(study.inputs),
    )


def _name(results: Path) -> str:
    """What a study without a name is called: as its table, or as its fit for lowbit-fit's table."""
    written = results.name == "results.csv"
    return results.resolve().parent.name if written else results.stem


def _tied(text: str) -> str:
    """No line break inside a number with its sign or unit."""
    for mark in (" = ", " ± "):
        text = text.replace(mark, mark.replace(" ", "\u00a0"))
    return text.replace(" %", "\u00a0%")


def _write(files: Mapping[str, bytes], inputs: Mapping[str, str], out: Path) -> None:
    sums = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    _remove_stale(out, keep=files)
    for name, content in files.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        write_atomic(content, out / name)
    manifest = {"files": sums, "inputs": dict(inputs)}
    write_atomic(json.dumps(manifest, indent=1, sort_keys=True) + "\n", out / MANIFEST)


def _remove_stale(out: Path, keep: Iterable[str]) -> None:
    """Remove figures and tables of the previous report, if they are as it wrote them."""
    previous = (read_json(out / MANIFEST) or {}).get("files", {})
    for name in sorted(set(previous) - set(keep)):
        path = out / name
        known = name == HEADLINE or path.parent in (out / "figures", out / "tables")
        ours = known and path.is_file()
        if ours and sha256_of(path) == previous[name]:
            path.unlink()
