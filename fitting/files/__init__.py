"""Files on disk: written whole or not at all, and never trusted when read."""
