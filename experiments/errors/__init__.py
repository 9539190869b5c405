"""The command lowbit-error: errors of precisions and recipes on tensors, as tables."""
