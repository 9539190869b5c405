"""Fits: the search for an optimum, how sure it is, and whether the law is right."""
