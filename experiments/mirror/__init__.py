"""Weights & Biases: a mirror of runs, its files, its dashboards."""
