"""Number formats, rounding, block scales, rotations, and the linear layer that uses them."""
