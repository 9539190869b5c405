"""Figures: one function each, without global state, as SVG and PDF."""

FIGURE_FILES = ("svg", "pdf")
"""As what each figure is written beside a page."""
