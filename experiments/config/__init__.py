"""The configuration of a run: its schema, its files, and how it is typed."""
