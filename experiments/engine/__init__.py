"""The quantized engine for any model: its linear layers and convolutions, in place.

`quantize_` changes the class of the layers that it quantizes and nothing else: parameters, names,
hooks, devices and tied weights stay what they were.  `report` says what became of each layer.
"""

from experiments.engine.convert import quantize_
from experiments.engine.layers import QuantConv1D, QuantConv1d, QuantConv2d
from experiments.engine.noise import DrawnNoise
from experiments.engine.report import Reported, report

__all__ = [
    "DrawnNoise",
    "QuantConv1D",
    "QuantConv1d",
    "QuantConv2d",
    "Reported",
    "quantize_",
    "report",
]
