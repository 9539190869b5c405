"""Low-precision training for any model: one import.

    import lowbit

    lowbit.quantize_(model, "quartet_v4", "mxfp4")
    print(lowbit.report(model))
    trained = lowbit.load("runs/scratch/nearest-E2M1-...")

The implementation is in `experiments` (training) and `fitting` (laws).
"""

from experiments.configure import configure
from experiments.engine import DrawnNoise, Reported, report
from experiments.export.load import load
from experiments.quant.attention import AttentionProducts
from experiments.quant.formats import Precision
from experiments.quant.linear import NoiseClock, QuantLinear
from experiments.quant.recipe import RecipeConfig
from experiments.quantize import quantize_

__all__ = [
    "AttentionProducts",
    "DrawnNoise",
    "NoiseClock",
    "Precision",
    "QuantLinear",
    "RecipeConfig",
    "Reported",
    "configure",
    "load",
    "quantize_",
    "report",
]
