"""Where commands begin and how they end: errors for people, exit codes, signals."""
