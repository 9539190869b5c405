"""The command lowbit-train."""
