"""The run record, and the table of runs that fits and reports read."""
