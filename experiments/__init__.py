"""Low-precision training: quantized linear layers, runs, and sweeps of runs on Ray."""
