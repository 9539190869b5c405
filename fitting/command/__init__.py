"""The commands lowbit-fit and lowbit-report."""
