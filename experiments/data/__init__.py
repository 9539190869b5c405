"""Data: tokens on disk, checked, and batches addressed by step."""
