"""Figures: one function each, without global state, as SVG and PDF."""

FIGURE_FILES = ("svg", "pdf")
"""File types in which each figure is written beside a page."""
