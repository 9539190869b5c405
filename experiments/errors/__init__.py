"""The command lowbit-error: what precisions and recipes do to tensors, as tables."""
