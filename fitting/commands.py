"""The console scripts `lowbit-fit` and `lowbit-report`.

Nothing is imported before it is known to be needed: help and mistakes are answered at once.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

from fitting.options import (
    FIT_HELP,
    REPORT_HELP,
    UsageError,
    asks_for_help,
    fit_options,
    place,
    report_options,
)


def fit() -> None:
    """Entry point of `lowbit-fit`."""
    _main("lowbit-fit", _fit_command)


def report() -> None:
    """Entry point of `lowbit-report`."""
    _main("lowbit-report", _report_command)


def _main(name: str, command: Callable[[Sequence[str]], None]) -> None:
    """Run a command; a user's mistake is one line on stderr and exit code 2."""
    warnings.showwarning = lambda message, *_, **__: print(f"{name}: {message}", file=sys.stderr)
    try:
        command(sys.argv[1:])
    except ValueError as error:
        if not _is_the_users(error):
            raise
        sys.stderr.write(f"{name}: {' '.join(str(error).splitlines())}\n")
        sys.exit(2)


def _is_the_users(error: ValueError) -> bool:
    if isinstance(error, UsageError):
        return True
    from fitting.law import FitError
    from fitting.results import ResultsError

    return isinstance(error, FitError | ResultsError)


def _fit_command(arguments: Sequence[str]) -> None:
    if asks_for_help(arguments):
        sys.stdout.write(FIT_HELP)
        return
    options = fit_options(arguments)
    from fitting.show import show, show_expected

    if options.expect:
        from fitting.expected import run_expected

        show_expected(run_expected(options), Path(options.out))
        return
    from fitting.describe import run_fit

    show(run_fit(options), Path(options.out))


def _report_command(arguments: Sequence[str]) -> None:
    if asks_for_help(arguments):
        sys.stdout.write(REPORT_HELP)
        return
    options = report_options(arguments)
    out, figures = Path(options.out), options.figures
    if options.compare:
        from fitting.compare import Place, write_comparison

        first, second = (Place(name, *place(name)) for name in options.compare)
        page = write_comparison(first, second, out, figures)
    else:
        from fitting.report import write_report

        page = write_report(Path(options.results), Path(options.fit), out, figures)
    sys.stdout.write(f"{page}\n")
