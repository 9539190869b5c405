"""Trained weights for others: loaded as a module, or written as a folder of another library."""
