"""Scaling laws from tables of losses: laws, fits, uncertainty, conclusions, reports."""
