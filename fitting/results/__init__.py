"""The run record, and the table of runs that fits and reports read."""

from fitting.files.own_json import DamagedError, ResultsError
from fitting.results.record import RunRecord, read_record
from fitting.results.table import load, select_rows

__all__ = ["DamagedError", "ResultsError", "RunRecord", "load", "read_record", "select_rows"]
