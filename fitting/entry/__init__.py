"""The start and the end of every command: errors for people, exit codes, signals."""
