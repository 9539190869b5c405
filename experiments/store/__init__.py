"""The store of runs: leases, loss curves, checkpoints, and the status of a study."""
