"""Where the project lies, and the data beside it that tests read in place."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
REPORTS = ROOT / "reports"
QUARTET = ROOT.parent / "shared" / "data" / "quartet.csv"
"""The 176 published losses of FP4 training (2505.14669); a test skips where it is not."""
