"""What follows from a fitted law, as numbers with intervals."""
