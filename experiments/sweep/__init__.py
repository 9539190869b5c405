"""Many runs: plan them, store their results, launch them on Ray."""
