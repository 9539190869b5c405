"""The precision that a design can hope for: fits to made-up losses of its runs, of a known law.

Before a study is paid for: take the constants of a pilot for the truth, give the planned runs the
losses of the law with the noise of seeds, fit, and see how far the fits scatter.  This assumes that
the law holds and that runs err independently: real intervals are rarely narrower.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fitting.command.options import FitOptions, refuse_unknown
from fitting.command.rows import keep
from fitting.entry.errors import UsageError
from fitting.files.atomic import write_atomic
from fitting.files.own_json import ResultsError
from fitting.fit.fit_file import numbers, read_pilot
from fitting.fit.search import fit
from fitting.law.terms import FitError, Law
from fitting.laws.catalogue import get
from fitting.laws.synthetic import make_table
from fitting.results.table import load

FILE = "expected.json"
SPLIT = "delta / (delta + nu)"
"""The exponent's share of E + M + 1 at the optimum (Sun et al. 2501.02423, section 4.4)."""


def expected_intervals(
    law: Law | str,
    parameters: Mapping[str, float],
    design: pd.DataFrame,
    noise: float,
    tables: int = 100,
    seed: int = 0,
    **how: Any,
) -> pd.DataFrame:
    """How far fits to the runs of a design scatter, where the truth is known.

    Args:
        law: One of `fitting.laws.catalogue.LAWS`, or its name.
        parameters: The truth.
        design: One row per run: the law's columns.
        noise: Standard deviation of log loss between seeds.
        tables: How many tables of losses are made up and fitted.
        seed: Seed of the noise.
        **how: As `fitting.fit.search.fit` takes it: objective, delta, freeze, bounds, starts.

    Returns:
        One row per parameter, and `SPLIT` where the law has it: `assumed`, `low`, `high` (2.5 % and
        97.5 % quantiles of the fitted values) and `fits`, how many fits there are.

    Raises:
        FitError: The law is not defined on the design, or no fit comes to an end.
        ResultsError: The design lacks one of the law's columns.
    """
    law = get(law) if isinstance(law, str) else law
    found = []
    for number in range(tables):
        table = make_table(law, parameters, design, noise, seed + number)
        try:
            found.append(fit(table, law, seed=seed, **how).parameters)
        except FitError:
            if not number:
                raise  # due to the design, not to the noise
    fitted = _with_split(pd.DataFrame(found))
    assumed = _with_split(pd.DataFrame([dict(parameters)]))[fitted.columns]
    ends = fitted.quantile([0.025, 0.975])
    return pd.DataFrame(
        {
            "assumed": assumed.iloc[0],
            "low": ends.iloc[0],
            "high": ends.iloc[1],
            "fits": len(fitted),
        }
    )


def run_expected(options: FitOptions) -> pd.DataFrame:
    """Load a plan and a pilot's fit; write `<out>/expected.json`.

    Args:
        options: `results`, `expect` and `out` must be set; `law` and `noise` come from the pilot's
            fit where they are not.

    Returns:
        As `expected_intervals`.

    Raises:
        UsageError: The pilot has no noise and none is given, the pilot names a law's file, `where`
            keeps no run, or `out` cannot be written.
        ResultsError: A file cannot be read, or lacks a column.
        FitError: See `expected_intervals`.
    """
    try:
        pilot = read_pilot(Path(options.expect))
    except FileNotFoundError as error:
        raise ResultsError(f"expect={options.expect}: no such file") from error
    if not options.law and ":" in pilot.law:  # it would be run
        raise UsageError(
            f"{options.expect}: law={pilot.law}: a fit cannot name a law's file; type it"
        )
    law = get(options.law or pilot.law)
    refuse_unknown(options.columns, [law])
    noise = options.noise or (pilot.noise_floor or {}).get("std_log")
    if not noise:
        raise UsageError("noise: the pilot repeated no seed; give noise=0.01 for 1 % of the loss")
    design = keep(load(options.results, options.columns), options.where)
    expected = expected_intervals(
        law,
        numbers(pilot.parameters),
        design,
        noise,
        options.tables,
        options.seed,
        objective=options.objective,
        delta=options.objective_delta,
        overestimate=options.objective_overestimate,
        freeze=options.freeze,
        bounds=options.bounds,
        starts=options.starts,
    )
    content = {
        "law": law.name,
        "expect": options.expect,
        "runs": len(design),
        "noise": noise,
        "where": options.where or None,
        "expected": expected.to_dict(orient="index"),
    }
    out = Path(options.out)
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_atomic(json.dumps(content, indent=1) + "\n", out / FILE)
    except OSError as error:
        raise UsageError(f"out={out}: cannot be written ({error.strerror})") from error
    return expected


def _with_split(parameters: pd.DataFrame) -> pd.DataFrame:
    if {"delta", "nu"} <= set(parameters):
        share = parameters["delta"] / (parameters["delta"] + parameters["nu"])
        return parameters.assign(**{SPLIT: share.replace([np.inf, -np.inf], np.nan)})
    return parameters
