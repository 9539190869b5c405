"""Measures of quantization: errors of tensors, of recipes, while training and after it."""
