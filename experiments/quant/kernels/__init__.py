"""Faster ways to do exactly what `experiments.quant.block` and `hadamard` define."""
