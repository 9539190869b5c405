"""What repeated seeds tell without a fit: which runs repeat each other, noise, comparisons."""
