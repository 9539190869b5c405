"""Information from repeated seeds alone: which runs repeat each other, noise, comparisons."""
