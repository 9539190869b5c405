"""Two studies side by side: what they found, their laws, and the runs that they have in common.

A difference between studies is judged like one inside a study: by the spread between the seeds of
each.  Losses on different corpora cannot be compared, so there the losses above `none` (the
unquantized run) are.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from pandas.api.types import is_numeric_dtype

from fitting.analysis.layouts import LAYOUTS
from fitting.figures import FIGURE_FILES
from fitting.figures import compare as compare_figures
from fitting.figures.style import Panel, format_colours
from fitting.fit.fit_file import SavedFit
from fitting.law.terms import Law
from fitting.naming import TableRow, format_names, format_order, records
from fitting.page import files, outcomes
from fitting.page.report import headline_words, name_of
from fitting.page.sentences import with_none_defined
from fitting.page.study import FORMAT_COLUMNS, Study, load_study
from fitting.page.tables import View
from fitting.results.swept import is_key
from fitting.seeds.cells import with_conditions
from fitting.seeds.verdicts import BETTER, CANNOT_TELL, WORSE, judge
from fitting.words import count_label, interval, number, plural, signed, z_score

DESIGN = (
    *("params", "tokens", "exponent", "mantissa", "block_size"),
    *("granularity", "scale", "recipe", "operands"),
)
"""Runs of two studies that agree in these columns, as far as both have them, belong to one cell."""
PARTING = ("corpus", "params_head", "params_embedding", "numerics_version", "operand_values")
"""Runs that differ here, or in a swept key, do not: another text is another validation stream."""
VERSIONS = ("numerics_version", "operand_values")
"""Columns in which two studies, each of one version, may differ: versions are there to compare."""
SAME = "the same runs"
_NAMED = 4
"""Keys that a sentence names before it says that there are more."""


class UnseenWarning(UserWarning):
    """The compared studies may differ in something that one of them does not record."""


@dataclass(frozen=True)
class Place:
    """Where one of the two studies lies."""

    name: str
    """As typed: a study's name or the folder of its report."""
    results: Path
    fit_dir: Path


def write_comparison(
    first: Place,
    second: Place,
    out: Path,
    figure_files: Sequence[str] = FIGURE_FILES,
    law: Law | None = None,
) -> Path:
    """Write the page of two studies with its figures, tables and MANIFEST.

    Args:
        first: The study that the other is set against.
        second: The other.
        out: Folder to write into, as `fitting.page.report.write_report` does.
        figure_files: File types in which each figure is written beside the page: svg, pdf.
        law: A law of the user's own, in case the fits are of that law.

    Returns:
        The path of `index.html`.

    Raises:
        ResultsError: The results or a JSON file of either study cannot be used.
    """
    places = first, second
    a, b = (load_study(place.results, place.fit_dir, law) for place in places)
    names = _names(places, (a, b))
    cells, order, no_cells = common_cells(a, b)
    blind = "" if cells.empty else unseen((a, b), names)
    if blind:
        warnings.warn(blind, UnseenWarning, stacklevel=2)
    drawn = _figures(a, b, names, cells, order)
    made = [
        _facts(a, b, names), _cells(cells, names), _parameters(a.fit, b.fit, names),
        _layouts(a.fit, b.fit, names),
    ]  # fmt: skip
    views = {view.name: view for view in made if view is not None}
    inputs = {
        f"{name}: {file}": digest
        for name, study in zip(names, (a, b), strict=True)
        for file, digest in study.inputs.items()
    }
    heads = [headline_words(study) for study in (a, b)]
    text = files.render(
        "compare.html",
        title=f"{names[0]} and {names[1]}",
        names=names,
        titles=[name_of(study) for study in (a, b)],
        lead=" ".join(filter(None, (_lead(cells, names, no_cells), blind))),
        parameters_lead=_parameters_lead(views.get("parameters"), a.fit, b.fit, names),
        findings=[[lead, *points] for lead, points in heads],
        figures=drawn,
        views=views,
        command=f"lowbit-report --compare {' '.join(place.name for place in places)}",
        inputs=files.sum_of(inputs),
        input_count=len(inputs),
    )
    return files.write(out, text, drawn, views, inputs, figure_files)


def _names(places: Sequence[Place], studies: Sequence[Study]) -> list[str]:
    """The names of the two studies on the page: short, and never the same."""
    names = [Path(place.name).name or place.name for place in places]
    if names[0] == names[1]:
        names = [place.name for place in places]
    return names if names[0] != names[1] else [f"{names[0]} (1)", f"{names[1]} (2)"]


def _figures(
    a: Study, b: Study, names: Sequence[str], cells: pd.DataFrame, order: Sequence[str]
) -> dict[str, list[Panel]]:
    drawn: dict[str, list[Panel]] = {}
    if not cells.empty:
        colours = format_colours(order)
        drawn["curves"] = compare_figures.curves(cells, names, order, colours)
        others = cells[(cells["verdict"] != SAME) & np.isfinite(cells["standard_error"])]
        if len(others):
            drawn["differences"] = compare_figures.differences(others, names, order, colours)
    if a.fit is not None and b.fit is not None and a.fit.law == b.fit.law:
        drawn["parameters"] = compare_figures.ratios(a.fit, b.fit, names)
    return {name: panels for name, panels in drawn.items() if panels}


# --- cells in common ---------------------------------------------------------------------------


def common_cells(a: Study, b: Study) -> tuple[pd.DataFrame, list[str], str]:
    """Cells of the design that both studies have a loss for.

    Returns:
        One row per cell: `format`, `params`, `tokens`; `loss_a`, `loss_b` (means over seeds),
        `above_none`, whether these are losses above none, since the corpora differ; `difference`
        (b minus a), `standard_error`, `dof`, `z` and `verdict` on b: "worse", "better", "cannot
        tell" or `SAME`.  Then their formats in order, and the reason if there is no cell.
    """
    corpora = [set(s.table.get("corpus", pd.Series(dtype=str)).dropna()) for s in (a, b)]
    above_none = all(len(corpus) == 1 for corpus in corpora) and corpora[0] != corpora[1]
    if above_none and (a.cells is None or b.cells is None):
        reason = "The studies' corpora differ, so only losses above none can be compared; "
        return _no_cell(), [], f"{reason}at least one of them has no such losses."
    sides = [_side(study, above_none) for study in (a, b)]
    formats = all("format" not in side for side in sides)
    keys = [key for key in DESIGN if all(key in side for side in sides)]
    keys += [] if formats else ["format"]
    keys += _conditions(sides, above_none)
    both = sides[0].merge(sides[1], on=keys, suffixes=("_a", "_b"))
    if both.empty:
        return _no_cell(), [], _why_none(sides, keys)
    order = sorted(set(both["format"])) if not formats else []
    if formats:
        everything = pd.concat([a.table, b.table], ignore_index=True)
        names = format_names(both, among=everything)
        plain = both.assign(format=names)
        both["format"] = with_conditions(names, both, among=plain)
        order = format_order(both)
    both["above_none"] = above_none
    both["difference"] = both["loss_b"] - both["loss_a"]
    both["standard_error"] = np.hypot(both["error_a"], both["error_b"])
    both["dof"] = both[["dof_a", "dof_b"]].min(axis=1)  # no more than the smaller of the two
    both["z"] = both["difference"] / both["standard_error"]
    same = (both["runs_a"] == both["runs_b"]) & (both["runs_a"] != "")
    both.loc[same, "standard_error"] = 0.0
    both["verdict"] = np.where(same, SAME, judge(both["z"], both["dof"]))
    rank = both["format"].map(order.index)
    both = both.assign(rank=rank).sort_values(["params", "tokens", "rank"], ignore_index=True)
    return both, order, ""


def unseen(studies: Sequence[Study], names: Sequence[str]) -> str:
    """What is not known of two studies, one sentence for each; "" where everything is recorded.

    A table without study.json, or with one from before `config` was in it, knows only the keys
    that its own runs swept.
    """
    sentences = []
    for name, study, other in zip(names, studies, studies[::-1], strict=True):
        if "config" in study.about:
            continue
        told = set(filter(is_key, study.done))
        keys = sorted({*filter(is_key, other.done), *other.about.get("config", {})} - told)
        which = f" ({', '.join(keys[:_NAMED])}{', ...' if len(keys) > _NAMED else ''})"
        sentences.append(
            f"The settings that all runs of {name} share are not recorded"
            f"{which if keys else ''}: a difference in them would go unnoticed. A page made again "
            "from its runs records them."
        )
    return " ".join(sentences)


def _no_cell() -> pd.DataFrame:
    return pd.DataFrame(columns=["format", "params", "tokens", "difference", "verdict"])


def _conditions(sides: Sequence[pd.DataFrame], above_none: bool) -> list[str]:
    """Columns besides `DESIGN` that both sides know and that separate their runs.

    Where only losses above none are compared the corpora differ anyway.
    """
    shared = [str(c) for c in sides[0] if c in sides[1] and (is_key(c) or c in PARTING)]
    if above_none:
        shared = [c for c in shared if c != "corpus"]
    return [c for c in shared if c not in VERSIONS or any(side[c].nunique() > 1 for side in sides)]


def _why_none(sides: Sequence[pd.DataFrame], keys: Sequence[str]) -> str:
    """The reason why two studies share no cell, with the keys in which no run agrees."""
    apart = []
    for key in keys:
        if key not in DESIGN:
            values = [sorted({str(value) for value in side[key]}) for side in sides]
            if all(values) and not set(values[0]) & set(values[1]):
                apart.append(f"{key} ({', '.join(values[0])} and {', '.join(values[1])})")
    reason = "No cell of the design (size, tokens, format) is in both studies"
    return f"{reason}; they differ in {', '.join(apart)}." if apart else f"{reason}."


def _side(study: Study, above_none: bool) -> pd.DataFrame:
    """One study's cells: the design, `loss`, its standard `error`, `dof` and the `runs` in it."""
    done = study.done.copy()
    alike = {k: v for k, v in study.about.get("config", {}).items() if is_key(k) and k not in done}
    done = done.assign(**alike)
    keys = [key for key in (*DESIGN, *PARTING, *filter(is_key, done)) if key in done] + ["format"]
    done["runs"] = done.get("run_id", "")
    grouped = done.groupby(keys, dropna=False)
    cells = grouped.agg(
        loss=("loss", "mean"), seeds=("loss", "size"), runs=("runs", lambda ids: " ".join(ids))
    ).reset_index()
    of_seeds, cells["dof"] = study.spread.of_rows(cells)
    cells["error"] = of_seeds / np.sqrt(cells["seeds"])
    if above_none:
        assert study.cells is not None
        found = [key for key in keys if key in study.cells]
        differences = study.cells[[*found, "difference", "standard_error", "dof"]]
        cells = cells.drop(columns="dof").merge(differences, on=found)
        cells = cells.drop(columns=["loss", "error"])
        cells = cells.rename(columns={"difference": "loss", "standard_error": "error"})
    numbers = [c for c in cells if cells.empty or is_numeric_dtype(cells[c])]
    has_formats = set(FORMAT_COLUMNS) <= set(numbers)
    return cells.drop(columns="format") if has_formats else cells


def _lead(cells: pd.DataFrame, names: Sequence[str], no_cells: str) -> str:
    if cells.empty:
        return no_cells
    b = names[1]
    counts = cells["verdict"].value_counts()
    what = "loss above none" if cells["above_none"].iloc[0] else "loss"
    judged = [
        f"{b} has the {word} {what} in {counts[verdict]}"
        for verdict, word in ((WORSE, "higher"), (BETTER, "lower"))
        if verdict in counts
    ]
    if CANNOT_TELL in counts:
        judged.append(f"the two cannot be told apart in {counts[CANNOT_TELL]}")
    if SAME in counts:
        judged.append(f"{counts[SAME]} hold the same runs")
    start = f"{plural(len(cells), 'cell')} of the design "
    start += "is" if len(cells) == 1 else "are"
    sentence = f"{start} in both studies: {'; '.join(judged)}."
    if cells["above_none"].iloc[0]:
        sentence += " Their corpora differ, so losses above none are compared."
    return with_none_defined([sentence])[0]


# --- tables ------------------------------------------------------------------------------------


def _facts(a: Study, b: Study, names: Sequence[str]) -> View:
    """What was run, term by term, and how it ended; a row is grey where both agree."""
    told = [dict(_all_facts(study)) for study in (a, b)]
    terms = list(dict.fromkeys([*told[0], *told[1]]))
    rows = []
    for term in terms:
        values = [side.get(term, "–") for side in told]
        rows.append(("muted" if values[0] == values[1] else "", [term, *values]))
    header = [("", ""), (names[0], "wide"), (names[1], "wide")]
    data = pd.DataFrame([cells for _, cells in rows], columns=["what", *names])
    return View("studies", header, rows, data, "What was run", "Grey: the same in both.")


def _all_facts(study: Study) -> list[tuple[str, str]]:
    counted = ", ".join(f"{count} {name}" for name, count in outcomes.counts(study))
    ended = outcomes.outcomes(study.table)
    total = [] if ended is None else ended.rows[-1][1][2:4]
    cost = [("Device time, FLOPs", ", ".join(total))] if total else []
    law = "no fit" if study.fit is None else study.fit.law
    fitted = [] if study.fit is None else [("Runs fitted", f"{study.fit.rows.used:,}")]
    noise = study.noise
    floor = f"{number(noise.std_loss, 2)} nats, {noise.dof} degrees of freedom"
    seeds = [("Noise floor", floor if noise.dof else "unknown")]
    return [("Runs", counted), *cost, *outcomes.facts(study), *seeds, ("Law", law), *fitted]


def _cells(cells: pd.DataFrame, names: Sequence[str]) -> View | None:
    if cells.empty:
        return None
    a, b = names
    rows: list[tuple[str, list[str]]] = []
    key: TableRow
    for key, group in cells.groupby(["params", "tokens"], sort=True):
        params, tokens = key
        rows.append(("group", [f"{count_label(params)} parameters, {count_label(tokens)} tokens"]))
        for cell in records(group):
            difference = signed(cell.difference)
            if np.isfinite(cell.standard_error) and cell.verdict != SAME:
                difference += f" ± {number(cell.standard_error, 2)}"
            losses = [f"{cell.loss_a:.4f}", f"{cell.loss_b:.4f}"]
            z = "–" if cell.verdict == SAME else z_score(cell.z)
            verdict = {WORSE: "higher", BETTER: "lower"}.get(cell.verdict, cell.verdict)
            seeds = f"{cell.seeds_a}, {cell.seeds_b}"
            rows.append((cell.verdict, [cell.format, *losses, difference, z, verdict, seeds]))
    header = [("format", ""), (a, "num"), (b, "num"), ("difference", "num"), ("z", "num"),
              (f"{b} is", "verdict"), ("seeds", "num")]  # fmt: skip
    what = "Losses above none" if cells["above_none"].iloc[0] else "Mean losses"
    note = (
        f"{what} in nats per token, and {b} minus {a} ± one standard error from the spread between "
        "the seeds of both studies. It is called higher or lower only where a false alarm is as "
        "rare (0.27 %) as at three standard errors if these were known exactly."
    )
    data = cells.drop(columns=["rank"])
    return View("cells", header, rows, data, "Cells in both studies", note)


def _parameters(a: SavedFit | None, b: SavedFit | None, names: Sequence[str]) -> View | None:
    """The parameters of both fits with their intervals, and whether these overlap."""
    if a is None or b is None:
        return None
    rows, data = [], []
    for name in dict.fromkeys([*a.parameters, *b.parameters]):
        values, bounds = [], []
        for fit in (a, b):
            values.append(fit.parameters.get(name))
            bounds.append(fit.interval(name))
        overlap = overlapping(bounds) if a.law == b.law else "another law"
        words = [f"{number(v)} ({interval(i)})" for v, i in zip(values, bounds, strict=True)]
        rows.append(("worse" if overlap == "no" else "", [name, *words, overlap]))
        data.append((name, values[0], *bounds[0], values[1], *bounds[1], overlap))
    header = [("parameter", ""), *((name, "num") for name in names), ("overlap", "verdict")]
    columns = ["parameter", "a", "a_low", "a_high", "b", "b_low", "b_high", "overlap"]
    note = (
        "With 95 % intervals from the bootstrap. Where these do not overlap, the parameters "
        "differ; where they do, the parameters may still differ."
    )
    frame = pd.DataFrame(data, columns=columns)
    return View("parameters", header, rows, frame, "Parameters of the laws", note)


def overlapping(bounds: Sequence[Sequence[float | None]]) -> str:
    """Whether two intervals overlap.

    >>> overlapping([[1, 2], [1.9, 3]]), overlapping([[1, 2], [2.1, 3]])
    ('yes', 'no')
    >>> overlapping([[1, 2], [None, None]])
    'unknown'
    """
    (low_a, high_a), (low_b, high_b) = bounds
    if low_a is None or high_a is None or low_b is None or high_b is None:
        return "unknown"
    return "yes" if low_a <= high_b and low_b <= high_a else "no"


def _parameters_lead(
    view: View | None,
    a: SavedFit | None,
    b: SavedFit | None,
    names: Sequence[str],
) -> str:
    if a is None or b is None:
        missing = " and ".join(n for n, fit in zip(names, (a, b), strict=True) if fit is None)
        return f"There is no fit of {missing} (no fit.json), so no parameters can be compared."
    if a.law != b.law:
        return (
            f"{names[0]} is fitted with the law {a.law}, {names[1]} with {b.law}: "
            "their parameters mean different things."
        )
    assert view is not None
    words = [cells[-1] for _, cells in view.rows]
    apart = [cells[0] for _, cells in view.rows if cells[-1] == "no"]
    sentence = f"Intervals overlap for {words.count('yes')} of {plural(len(words), 'parameter')}"
    sentence += f"; they do not for {', '.join(apart)}." if apart else "."
    unknown = words.count("unknown")
    return sentence + (f" For {unknown} this is unknown." if unknown else "")


def _layouts(a: SavedFit | None, b: SavedFit | None, names: Sequence[str]) -> View | None:
    """The best split by bits according to each fit."""
    found = [
        {} if fit is None else {row.bits: row for row in fit.concluded.of(LAYOUTS) or []}
        for fit in (a, b)
    ]
    bits = sorted(set(found[0]) & set(found[1]))
    if not bits:
        return None
    rows, data = [], []
    for width in bits:
        pair = [side[width] for side in found]
        words = []
        for row in pair:
            share = row.shares.get(row.layout)
            words.append(row.layout + (f" ({100 * share:.0f} %)" if share else ""))
        best = [row.layout for row in pair]
        same = "yes" if best[0] == best[1] else "no"
        beyond = " and ".join(n for n, r in zip(names, pair, strict=True) if r.extrapolated)
        rows.append(("muted" if beyond else "", [str(width), *words, same, beyond]))
        data.append((width, *best, same, *(row.extrapolated for row in pair)))
    header = [("bits", "num"), *((name, "") for name in names), ("same", ""),
              ("extrapolated in", "")]  # fmt: skip
    columns = ["bits", "a", "b", "same", "a_extrapolated", "b_extrapolated"]
    note = "The best whole-bit split and the share of bootstrap draws in which it wins."
    frame = pd.DataFrame(data, columns=columns)
    return View("layouts", header, rows, frame, "Best exponent/mantissa split", note)
