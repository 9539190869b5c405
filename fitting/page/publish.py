"""The files beside a page that it is made from: results.csv, study.json, diagnostics.csv.

With fit.json they are all that a page needs.  A page of a folder of runs is made from them too, so
that it can be rebuilt to the same bytes without the runs, which are a thousand times larger.
"""

from __future__ import annotations

import json
from pathlib import Path

from fitting.files.atomic import write_atomic
from fitting.fit.fit_file import FIT, read_fit
from fitting.law.terms import Law
from fitting.page import diagnostics
from fitting.page.study import load_study, read_runs
from fitting.results.study_file import STUDY

RESULTS = "results.csv"


def publish(runs: Path, fit_dir: Path, out: Path, law: Law | None = None) -> Path:
    """Write the files that the page of a folder of runs is made from.

    Args:
        runs: `runs/<study>`.
        fit_dir: Where `fit.json` lies, if there is one.
        out: Folder for `results.csv`, `study.json` and, where runs were measured while they
            trained, `diagnostics.csv` with one run per format; made if absent.
        law: A law of the user's own, in case the fit is of that law.

    Returns:
        The path of `results.csv`.

    Raises:
        ResultsError: A file cannot be used.
    """
    fit = read_fit(fit_dir / FIT, law)
    table, about = read_runs(runs, ptq=fit is not None and fit.after_training)
    out.mkdir(parents=True, exist_ok=True)
    results = out / RESULTS
    write_atomic(table.to_csv(index=False, lineterminator="\n"), results)
    write_atomic(json.dumps(about, indent=1) + "\n", out / STUDY)
    measured = diagnostics.of_study(
        diagnostics.read(runs)[0], load_study(results, fit_dir, law).table
    )
    if measured.empty:
        (out / diagnostics.FILE).unlink(missing_ok=True)
    else:
        write_atomic(diagnostics.to_file(measured), out / diagnostics.FILE)
    return results
