"""Fits: the search for an optimum, its uncertainty, and whether the law is right."""

from fitting.fit.bootstrap import bootstrap, intervals, standard_errors
from fitting.fit.result import Fit, Objective, Rows, Starts
from fitting.fit.search import fit
from fitting.law.terms import FitError
from fitting.results.table import select_rows

__all__ = [
    "Fit",
    "FitError",
    "Objective",
    "Rows",
    "Starts",
    "bootstrap",
    "fit",
    "intervals",
    "select_rows",
    "standard_errors",
]
