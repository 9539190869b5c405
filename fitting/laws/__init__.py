"""Scaling laws: what they are to the solver, those of the field, and their published constants."""
