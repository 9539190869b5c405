"""The configuration of a run: its schema, its files, and its command line."""
