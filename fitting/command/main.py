"""The console scripts `lowbit-fit` and `lowbit-report`.

Nothing is imported before it is needed: help and mistakes are answered at once.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from fitting.command.options import (
    FIT_HELP,
    REPORT_HELP,
    fit_options,
    place,
    report_options,
)
from fitting.entry.errors import UsageError
from fitting.entry.options import command


def fit() -> None:
    """Entry point of `lowbit-fit`."""
    command("lowbit-fit", FIT_HELP, _fit)


def report() -> None:
    """Entry point of `lowbit-report`."""
    command("lowbit-report", REPORT_HELP, _report)


def _fit(arguments: Sequence[str]) -> None:
    options = fit_options(arguments)
    from fitting.command.show import show, show_expected

    if options.expect:
        from fitting.command.expected import run_expected

        show_expected(run_expected(options), Path(options.out))
        return
    from fitting.command.describe import run_fit

    show(run_fit(options), Path(options.out))


def _report(arguments: Sequence[str]) -> None:
    options = report_options(arguments)
    if options.fit and not options.study and not Path(options.fit).is_dir():
        raise UsageError(f"fit={options.fit}: no such folder; lowbit-fit ... out=FOLDER makes one")
    from fitting.laws.catalogue import get

    law = get(options.law) if options.law else None
    out, figures = Path(options.out), options.figures
    if options.compare:
        from fitting.page.compare import Place, write_comparison

        first, second = (Place(name, *place(name)) for name in options.compare)
        page = write_comparison(first, second, out, figures, law)
    else:
        from fitting.page.report import write_report

        page = write_report(Path(options.results), Path(options.fit), out, figures, law)
    sys.stdout.write(f"{page}\n")
