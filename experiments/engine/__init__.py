"""The quantized engine for any model: its linear layers, convolutions and experts, in place.

`experiments.quantize.quantize_` decides what becomes of each layer, this how: a layer changes its
class and nothing else, so that parameters, names, hooks, devices and tied weights stay what they
were.  `report` says what became of each.
"""

from experiments.engine.experts import QuantExperts
from experiments.engine.layers import QuantConv1D, QuantConv1d, QuantConv2d, QuantEmbedding
from experiments.engine.noise import DrawnNoise
from experiments.engine.report import Reported, report

__all__ = [
    "DrawnNoise",
    "QuantConv1D",
    "QuantConv1d",
    "QuantConv2d",
    "QuantEmbedding",
    "QuantExperts",
    "Reported",
    "report",
]
