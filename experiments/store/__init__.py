"""The store of runs: who works on one, its loss curve, its checkpoints, where a study stands."""
