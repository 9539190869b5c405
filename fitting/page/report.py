"""The report: a study's runs and its fit as one self-contained HTML page.

`write_report` reads the results, `fit.json` and `study.json`, and writes `index.html` with its
figures inline, the figures and tables as files for papers, and a MANIFEST of SHA-256 sums.  The
same inputs give the same bytes.  What a study cannot show (no fit, one run, all diverged, foreign
columns) becomes a sentence on the page, not an error.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from fitting.analysis.layouts import LAYOUTS
from fitting.analysis.optima import COST_K
from fitting.analysis.precision_map import MEASURED, SPEEDUPS
from fitting.analysis.splits import SPLITS
from fitting.figures import FIGURE_FILES, interaction
from fitting.figures import conclusions as conclusion_figures
from fitting.figures import fits as fit_figures
from fitting.figures import layouts as layout_figures
from fitting.figures import losses as loss_figures
from fitting.figures import tuning as tuning_figures
from fitting.figures.style import Panel, format_colours, png
from fitting.figures.unified import shares
from fitting.law.terms import Law
from fitting.naming import are_none, is_none, sizes
from fitting.page import conclusions, diagnostics, files, outcomes, sentences, tables, tuning
from fitting.page.publish import RESULTS, publish
from fitting.page.study import (
    Study,
    fitted_runs,
    load_study,
    predict,
    used_runs,
)
from fitting.page.tables import View
from fitting.seeds.shrinkage import shrinkage_by
from fitting.seeds.tuning import formats_of_bases
from fitting.seeds.verdicts import BETTER
from fitting.words import BEYOND, count_label, number, plural, series

PANELS_ON_PAGE = 6
"""Model sizes drawn; the tables hold all of them."""
CURVE = 24
"""Points of a fitted curve."""


# --- figures -----------------------------------------------------------------------------------


def _figures(study: Study, measured: pd.DataFrame) -> dict[str, list[Panel]]:
    """All panels of the page by figure.

    Args:
        study: The study.
        measured: Its `diagnostics.of_study`.
    """
    drawn: dict[str, list[Panel]] = {}
    done = study.done
    if not study.table.empty and study.tuning is None:
        drawn["grid"] = outcomes.grid(study.table, study.order)
    if done.empty:
        return drawn
    grouped = done.groupby(["format", "params", "tokens"])["loss"]
    means: pd.DataFrame = grouped.agg(loss="mean", seeds="size").reset_index()
    chosen = _spaced(sizes(done))
    means = means[means["params"].isin(chosen)]
    fitted = fitted_runs(study)
    if means["tokens"].nunique() > 1 and means["format"].nunique() <= outcomes.LISTED:
        curves = _curves(study, means) if fitted is not None else None
        drawn["tokens"] = loss_figures.loss_by_tokens(means, study.order, study.colours, curves)
    cells = _judged(study)
    shown = cells[cells["params"].isin(chosen)] if cells is not None else pd.DataFrame()
    if len(shown) and study.tuning is None:  # whose formats are too many to be told apart
        base = means[are_none(means["format"])]
        noise = _noise(study, shown)
        drawn["cost"] = loss_figures.cost_by_format(shown, study.order, study.colours, noise)
        drawn["bits"] = loss_figures.loss_by_bits(shown, base, study.colours)
        one_kind = layout_figures.of_one_kind(shown)
        if layout_figures.has_map(one_kind):
            layouts = [] if study.fit is None else study.fit.concluded.of(LAYOUTS) or []
            splits = _split_curves(study, one_kind)
            drawn["layout"] = layout_figures.cost_map(one_kind, layouts)
            drawn["split"] = layout_figures.cost_by_split(one_kind, splits, noise)
    if study.fit is not None:
        if fitted is not None and study.fit.concluded.of(SPLITS) is not None:
            drawn["lead"] = shares(study.fit, fitted, study.colours)
        if fitted is not None:
            order, colours = study.order, study.colours
            if study.tuning is not None:
                fitted = fitted.assign(format=formats_of_bases(fitted, study.table))
                order = sorted(set(fitted["format"]), key=lambda name: (is_none(name), name))
                colours = format_colours(order)
            noise_of_logs = study.noise.std_log
            drawn["fit"] = fit_figures.predicted_v_observed(fitted, order, colours, noise_of_logs)
        drawn["held_out"] = fit_figures.held_out(study.fit.held_out, study.noise.std_log)
        drawn["parameters"] = fit_figures.beside_published(study.fit)
        drawn |= conclusion_figures.conclusions(study.fit, done, study.colours)
    if not study.by_factor.empty:
        drawn["lead"] = interaction.splits_by(study.by_factor)
    if study.tuning is not None:
        drawn["lead"] = tuning_figures.by_base(study.tuning.cells)
        drawn["tuning"] = tuning_figures.by_tokens(study.tuning.cells)
        drawn["tuning_bits"] = tuning_figures.by_bits(study.tuning.costs)
    drawn["qsnr"] = diagnostics.over_training(measured, study.order, study.colours)
    drawn["qsnr_layers"] = diagnostics.by_layer(measured, study.order)
    return {name: panels for name, panels in drawn.items() if panels}


def _noise(study: Study, cells: pd.DataFrame) -> dict[float, float]:
    """Size -> the standard deviation between seeds, for the sizes of some cells."""
    return {size: study.spread.at(size)[0] for size in sizes(cells)}


def _judged(study: Study) -> pd.DataFrame | None:
    """The cells with a difference from `none`; None where there are no such cells."""
    if study.cells is None:
        return None
    return study.cells[np.isfinite(study.cells["difference"].astype(float))]


def _spaced(values: list[float]) -> list[float]:
    """At most PANELS_ON_PAGE of the sizes, evenly spaced, both ends kept."""
    if len(values) <= PANELS_ON_PAGE:
        return values
    steps = np.linspace(0, len(values) - 1, PANELS_ON_PAGE).round().astype(int)
    return [values[i] for i in steps]


def _curves(study: Study, means: pd.DataFrame) -> pd.DataFrame:
    """The law along tokens, for each format of a size, as far as that size was trained."""
    assert study.fit is not None
    rows = study.done.drop_duplicates(["format", "params"])
    rows = rows[rows["params"].isin(means["params"])]
    ends = means.groupby("params")["tokens"].agg(["min", "max"])
    grid = [np.geomspace(low, high, CURVE) for low, high in ends.to_numpy(dtype=float)]
    steps = pd.DataFrame({"params": np.repeat(ends.index, CURVE), "tokens": np.concatenate(grid)})
    rows = rows.drop(columns="tokens").merge(steps, on="params")
    rows["predicted"] = predict(study.fit, rows)
    return rows.sort_values(["format", "params", "tokens"], ignore_index=True)


def _split_curves(study: Study, cells: pd.DataFrame) -> pd.DataFrame | None:
    """The law's difference from `none` along either width, one curve per value of the other.

    Args:
        study: Without a fit of a law of exponent and mantissa there are no curves.
        cells: `layout_figures.of_one_kind`.
    """
    if study.fit is None or not {"exponent", "mantissa"} <= set(study.fit.model.columns):
        return None
    keys = ["params", "tokens", "model"]
    none = study.done[are_none(study.done["format"])].drop_duplicates(keys)
    none = none.assign(none=predict(study.fit, none))[[*keys, "none"]]
    parts = []
    for along, each in (("exponent", "mantissa"), ("mantissa", "exponent")):
        rows = cells.drop_duplicates([*keys, each]).merge(none, on=keys).drop(columns=along)
        steps = np.linspace(cells[along].min(), cells[along].max(), CURVE)
        rows = rows.merge(pd.DataFrame({along: steps}), how="cross")
        rows["difference"] = predict(study.fit, rows) - rows["none"]
        parts.append(rows.assign(along=along))
    return pd.concat(parts, ignore_index=True)


# --- words -------------------------------------------------------------------------------------


def headline_words(study: Study) -> tuple[str, list[str]]:
    """The lead paragraph and the findings below it."""
    if study.table.empty:
        return "This study has no finished run yet: there is nothing to report.", []
    if study.done.empty:
        bad = study.table["status"].value_counts()
        counted = series(f"{count} {status}" for status, count in sorted(bad.items()))
        return f"No run of this study ended with a loss ({counted}): there is nothing to fit.", []
    points = []
    best = sentences.best_layouts(study.fit) if study.fit else None
    measured = sentences.measured_layouts(study.layouts)
    splits = [sentence for sentence in (measured, best) if sentence]
    if study.tuning is not None and (answers := tuning.answer(study.tuning)):
        lead, *points = answers  # formats beside adapters are too many to be told apart
        splits = []
    elif study.cells is None:
        lead = study.no_cells
        if study.fit is not None:
            runs = plural(study.fit.rows.used, "run")
            lead = f"The law {study.fit.law} was fitted to {runs}. {study.no_cells}"
    else:
        cells = _judged(study)
        assert cells is not None
        means, details = sentences.lowest_bits(cells)
        if not study.layouts.empty and (study.layouts["verdict"] == BETTER).any():
            # What such a study is made to find comes first.
            lead, splits = " ".join(splits), []
            points += means
        else:
            lead = " ".join(means)
        points += details
        points.append(sentences.not_told_apart(cells, study.order))
        by_bits = sentences.order_by_bits(cells)
        points += [by_bits] if by_bits else []
    points += splits
    if by_factor := sentences.splits_by_factor(study.by_factor):
        lead, points = by_factor, [lead, *points]
    if len(study.done) == 1:
        points.append("One run only: no spread, no comparison and no fit can come from it.")
    if study.fit is None:
        points.append("There is no fit of this study yet (no fit.json): run lowbit-fit first.")
    else:
        points += sentences.parameters_pinned(study.fit)
        optional = (
            sentences.compute_optimal(study.fit),
            sentences.cost_of_fewest_bits(study.fit),
        )
        points += [sentence for sentence in optional if sentence]
        if leads := sentences.leads(study.fit):
            lead, points = leads, [lead, *points]
    lead, *points = sentences.with_none_defined([lead, *points])
    return lead, points


def _noise_words(study: Study) -> str:
    noise, cells = study.noise, study.cells
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
    if each := study.spread.by_size:
        listed = series(f"{number(std, 2)} at {count_label(n)}" for n, (std, _) in each.items())
        words += f" It depends on the size, so each is judged by its own: {listed} parameters."
    if cells is not None and (cells["pairs"] > 0).any():
        known = sorted({int(dof) for dof in cells.loc[cells["pairs"] > 0, "dof"]}, reverse=True)
        words += (
            " Differences from none are paired by seed, which cancels what both runs share; their "
            f"standard errors rest on {series(map(str, known))} degrees of freedom"
            f"{', by size.' if len(known) > 1 else '.'}"
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


def _commands(study: Study) -> list[str]:
    """The commands that make this page again."""
    name = study.about.get("name")
    fit_where = f"study={name}" if name else f"results={study.results.name} out=."
    report_where = f"study={name}" if name else f"results={study.results.name} fit=."
    if study.fit is None:
        return [f"lowbit-report {report_where}"]
    fit = study.fit
    known = {fit.law: fit.model.typed} if fit.model.typed else {}
    speedups, measured = fit.concluded.of(SPEEDUPS), fit.concluded.of(MEASURED)
    options = {
        "law": fit.model.typed or fit.law,
        "objective": fit.objective.name,
        "objective.delta": fit.objective.delta,
        "objective.overestimate": fit.objective.overestimate,
        "compare": ",".join(known.get(rival.law, rival.law) for rival in fit.comparison) or None,
        "where": fit.where,
        "best_per": ",".join(fit.best_per) or None,
        "predict": fit.predict,
        "weights": fit.weights,
        "bootstrap": None if fit.bootstrap is None else fit.bootstrap.draws,
        "cluster": fit.cluster,
        "starts": fit.starts.tried,
        "seed": fit.seed,
        "cost.k": fit.concluded.of(COST_K),
        "speedup.backward": None if speedups is None else speedups.backward,
        "speedup.forward": None if speedups is None else speedups.forward,
        "speedup.measured": None if speedups is None else measured.typed if measured else "none",
        **{f"freeze.{name}": fit.parameters[name] for name in fit.frozen},
        **{f"bounds.{name}": _ends(*ends) for name, ends in fit.bounds.items()},
    }
    typed = [shlex.quote(f"{key}={value}") for key, value in options.items() if value is not None]
    own = [shlex.quote(f"law={law}") for law in known.values()]
    return [
        " ".join(["lowbit-fit", fit_where, *typed]),
        " ".join(["lowbit-report", report_where, *own]),
    ]


def _ends(low: float | None, high: float | None) -> str:
    """Bounds as typed; JSON has no infinity."""
    return f"{'-inf' if low is None else low}..{'inf' if high is None else high}"


# --- writing -----------------------------------------------------------------------------------


def write_report(
    results: Path,
    fit_dir: Path,
    out: Path,
    figure_files: Sequence[str] = FIGURE_FILES,
    law: Law | None = None,
) -> Path:
    """Write the page, its figures, tables and MANIFEST.

    Args:
        results: A folder of runs, which is published into `out` first (`fitting.page.publish`), a
            CSV or a parquet file, with `study.json` and `diagnostics.csv` beside it if it has them.
        fit_dir: Where `fit.json` lies; without one the page says that there is no fit.
        out: Folder for `index.html`, `headline.png` (the picture that the page begins with, or the
            difference from `none` by format, where there is one), `figures/*`, `tables/*.csv` and
            `*.tex`, and `MANIFEST.json`; made if absent.  Files that an earlier report left there,
            unchanged since, are removed.
        figure_files: File types in which each figure is written beside the page: svg, pdf.
        law: A law of the user's own, in case the fit is of that law.

    Returns:
        The path of `index.html`.

    Raises:
        ResultsError: `results` or a JSON file cannot be used.
    """
    if results.is_dir():
        results = publish(results, fit_dir, out, law)
    study = load_study(results, fit_dir, law)
    measured, inputs = diagnostics.read(results)
    measured = diagnostics.of_study(measured, study.table)
    drawn = _figures(study, measured)
    views = _views(study, measured)
    inputs = {**study.inputs, **inputs}
    cells = _judged(study)
    headline = None
    if "lead" in drawn:
        headline = png(drawn["lead"][0].figure)
    elif cells is not None and not cells.empty:
        headline = loss_figures.headline(cells, study.order, study.colours, _noise(study, cells))
    text = _render(study, drawn, views, inputs)
    return files.write(out, text, drawn, views, inputs, figure_files, headline)


def _views(study: Study, measured: pd.DataFrame) -> dict[str, View]:
    """All tables by name; those without a row are left out."""
    made: list[View | None] = [tables.runs(study.table), outcomes.outcomes(study.table)]
    if study.cells is not None:
        made.append(tables.losses(study.cells, study.done))
    if not study.by_factor.empty:
        made.append(tables.splits_by_factor(study.by_factor))
        made.append(tables.shrinkage(shrinkage_by(study.table)))
    if study.fit is not None:
        made += [tables.parameters(study.fit), tables.predicted(study.fit)]
        made += [tables.held_out(study.fit)]
        made += [tables.comparison(study.fit), *conclusions.views(study.fit)]
    if study.tuning is not None:
        made.append(tuning.view(study.tuning))
    made.append(diagnostics.summary(measured, study.order))
    return {view.name: view for view in made if view is not None and view.rows}


def _render(
    study: Study,
    drawn: Mapping[str, list[Panel]],
    views: Mapping[str, View],
    inputs: Mapping[str, str],
) -> str:
    lead, points = headline_words(study)
    concluded = [view.name for view in conclusions.views(study.fit)] if study.fit else []
    follows = [views[name] for name in concluded]
    cells = _judged(study)
    split = layout_figures.of_one_kind(cells) if "layout" in drawn and cells is not None else None
    return files.render(
        "report.html",
        title=name_of(study),
        description=study.about.get("description", ""),
        notes=study.about.get("notes", []),
        lead=lead,
        lead_note=_lead_note(study),
        points=points,
        counts=outcomes.counts(study),
        planned=len(study.about.get("planned") or []),
        facts=outcomes.facts(study),
        small=sentences.small_model(study.done) if len(study.done) else None,
        noise=_noise_words(study) if len(study.done) else "",
        no_cells=study.no_cells,
        verdict=sentences.verdict_words(study.cells) if study.cells is not None else "",
        measured_layouts=sentences.measured_layouts(study.layouts),
        scale_words=_scale_words(study.order),
        kind=layout_figures.kind_words(split) if split is not None else "",
        sizes_left_out=max(0, study.done["params"].nunique() - PANELS_ON_PAGE),
        figures=drawn,
        views=views,
        not_concluded=sentences.not_concluded(study.fit),
        conclusions=follows,
        beyond=_beyond(follows),
        fit=study.fit,
        fitted_runs=len(used_runs(study)),
        fit_status=study.fit.status if study.fit else "",
        commands=_commands(study),
        inputs=files.sum_of(inputs),
        input_count=len(inputs),
    )


LEAD_NOTE = (
    "One mark per format: effective parameters as the law computes them from the format's error, "
    "against those that the losses of its runs amount to, with one standard error. On the line: "
    "the format costs what its error says."
)


def _lead_note(study: Study) -> str:
    """What the picture under the lead shows."""
    if study.tuning is not None:
        return tuning.NOTE
    return LEAD_NOTE if study.by_factor.empty else tables.BY_FACTOR


def _beyond(follows: Iterable[View]) -> list[str]:
    """The conclusions that go beyond the data, each with how many of its rows do."""
    found = []
    for view in follows:
        if view.header[-1] == conclusions.BEYOND_COLUMN:
            rows = [cells[-1] for kind, cells in view.rows if kind != "group"]
            beyond = rows.count(BEYOND)
            if beyond:
                found.append(f"{view.title}: {beyond} of {plural(len(rows), 'row')}")
    return found


def name_of(study: Study) -> str:
    """A study's title, else the name of its table, or of its fit if lowbit-fit wrote the table."""
    told = study.about.get("title") or study.about.get("name")
    if told:
        return str(told)
    results = study.results
    return results.resolve().parent.name if results.name == RESULTS else results.stem
