"""A quantized layer in two recipes, with its input and gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from experiments.quant.formats import FloatFormat, Precision, ScaleFormat
from experiments.quant.linear import NoiseClock, QuantLinear
from experiments.quant.recipe import (
    GradInputConfig,
    GradWeightConfig,
    OperandConfig,
    OutputConfig,
    RecipeConfig,
)

FP4 = Precision(FloatFormat(2, 1), "block", 32, ScaleFormat.E8M0)


NEAREST, STOCHASTIC = OperandConfig(), OperandConfig("stochastic")


def six(rounding: OperandConfig, hadamard: int = 0, signs: str = "fixed") -> RecipeConfig:
    return RecipeConfig(
        "six",
        OutputConfig(rounding, rounding, hadamard, signs),
        GradInputConfig(rounding, rounding, hadamard, signs),
        GradWeightConfig(rounding, rounding, hadamard, signs),
    )


SUN = RecipeConfig(
    "sun",
    OutputConfig(weight=NEAREST),
    GradInputConfig(weight=NEAREST),
    GradWeightConfig(input=NEAREST),
)


def case(recipe: RecipeConfig, precision: Precision = FP4) -> tuple[QuantLinear, Tensor, Tensor]:
    torch.manual_seed(0)
    layer = QuantLinear(64, 96, recipe, precision, NoiseClock(seed=5), layer=3)
    return layer, torch.randn(2, 32, 64), torch.randn(2, 32, 96)
