"""Diagnostics: errors that rounding makes in the tensors and the gradient of a run as it trains.

A measurement is two separate passes over a step's batch, before that step and with its weights and
its noise: one quantized, as the step will be, whose rounded operands are watched, and one in high
precision.  They leave nothing behind, so training goes on to the same bits as without.

One row of the loss curve holds a measurement, under names that a page of panels sorts by the part
before the slash: `qsnr/P1` is the mean over the layers, `qsnr_P1/blocks.0.mlp.down` that of one
layer.  Operands are P1..P6 (`experiments.quant.recipe`), their measures those of `OperandError`;
then `gradient_cosine` and `gradient_norm_ratio`, quantized over high precision, of each layer's
weight and of `model`, all parameters together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from experiments.engine.kinds import BASE_LAYER
from experiments.measure.error import OperandError, operand_error
from experiments.quant.linear import NoiseClock, QuantizedGemms
from experiments.quant.operand import Operand
from experiments.quant.recipe import SLOTS

MEASURES = tuple(f.name for f in fields(OperandError))
COSINE, NORM_RATIO = "gradient_cosine", "gradient_norm_ratio"
_MODEL = "model"
_LOWEST_IS_WORST = ("qsnr", "shrinkage")
_DIGITS = 4
"""Significant digits of the numbers in a summary."""


@dataclass
class DiagnosticsConfig:
    """How often to measure; never part of a run's identity."""

    points: int = 8
    """Measurements of a run, spread evenly over its quantized steps from the first to the last, so
    that runs of any length compare; 0: none."""
    apart: int = 200
    """Least steps between them, at the cost of points: one takes as long as three steps."""

    def problems(self) -> list[str]:
        """Errors, each as "key=value: what would be right"."""
        found = []
        if self.points < 0:
            found.append(f"diagnostics.points={self.points}: must be 0 (none) or more")
        if self.apart < 1:
            found.append(f"diagnostics.apart={self.apart}: must be 1 or more steps")
        return found

    def steps(self, count: int) -> tuple[int, ...]:
        """Those of `count` steps before which to measure; if only once, before the last.

        >>> DiagnosticsConfig(points=4, apart=10).steps(100)
        (0, 33, 66, 99)
        >>> DiagnosticsConfig(points=4, apart=10).steps(20)
        (0, 19)
        """
        points = min(self.points, count // self.apart)
        if points < 2:
            return (count - 1,) * points
        return tuple(round(n * (count - 1) / (points - 1)) for n in range(points))


def measure(model: nn.Module, clock: NoiseClock, loss: Callable[[], Tensor]) -> dict[str, float]:
    """One row of measures; changes nothing.

    Args:
        model: Its layers of `QuantizedGemms` are watched.
        clock: Theirs, set to the step.
        loss: Gives the loss of the step's batch, a scalar; called twice.

    Returns:
        Finite numbers by name, as the module says.  What is not finite or not defined is left out.
    """
    names: dict[QuantizedGemms, str] = {}
    weight_of: dict[str, str] = {}
    for layer_name, module in model.named_modules():
        for weight, part in module.parts() if isinstance(module, QuantizedGemms) else ():
            own = layer_name.replace(BASE_LAYER, "")  # as it is called without an adapter
            name = own if part is module else f"{own}.{weight}"
            names[part], weight_of[name] = name, f"{layer_name}.{weight}"
    measured: dict[str, dict[str, list[float]]] = {}

    def watch(layer: QuantizedGemms, label: str, given: Operand, ready: Operand) -> None:
        rounding = layer.roundings.get(label)
        if rounding is None or layer not in names:  # attention has no weights
            return
        x = given.values.float()
        x = (x if ready.along is None else ready.along.along(x)).contiguous()
        scales = not rounding.moves_scales
        errors = operand_error(x, ready.values, layer.precisions[label], scales)
        for name, value in asdict(errors).items():
            if math.isfinite(value):
                by_layer = measured.setdefault(f"{name}_{label}", {})
                by_layer.setdefault(names[layer], []).append(value)

    parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
    quantized = _gradients(parameters, clock, loss, watch)
    exact = _gradients(parameters, clock, loss, None)
    found = {
        key: {name: sum(values) / len(values) for name, values in by_layer.items()}
        for key, by_layer in measured.items()
    }  # a layer that runs several times, or for each of its experts, counts once
    products = {name: _products(quantized[name], exact[name]) for name in parameters}
    whole = torch.stack(list(products.values())).sum(0)
    weights = {name: products[w] for name, w in weight_of.items() if w in products}
    for name, (dot, ours, theirs) in (weights | {_MODEL: whole}).items():
        ratios = {COSINE: dot / (ours * theirs).sqrt(), NORM_RATIO: (ours / theirs).sqrt()}
        for key, value in ratios.items():
            if value.isfinite():
                found.setdefault(key, {})[name] = value.item()

    row = {
        f"{name}/{label}": sum(layers.values()) / len(layers)
        for name in MEASURES
        for label in SLOTS
        if (layers := found.get(f"{name}_{label}"))
    }
    return row | {f"{key}/{name}": v for key, by in sorted(found.items()) for name, v in by.items()}


def _gradients(
    parameters: Mapping[str, Tensor],
    clock: NoiseClock,
    loss: Callable[[], Tensor],
    watch: Any,
) -> dict[str, Tensor]:
    """Gradient of the loss by parameter: quantized and watched, or, without a watcher, neither.

    By torch.autograd.grad: nothing accumulates in `.grad`, and if several processes share a run,
    none waits for the others.
    """
    clock.watch, clock.quantizing = watch, watch is not None
    # A weight's cast is kept for a whole step; that of another pass belongs to its graph.
    torch.clear_autocast_cache()
    try:
        found = torch.autograd.grad(
            loss(), list(parameters.values()), allow_unused=True, materialize_grads=True
        )
    finally:
        clock.watch, clock.quantizing = None, True
        torch.clear_autocast_cache()
    return dict(zip(parameters, found, strict=True))


def _products(ours: Tensor, theirs: Tensor) -> Tensor:
    """<a, b>, <a, a> and <b, b>, [3], float64."""
    a, b = ours.flatten().double(), theirs.flatten().double()
    return torch.stack((a @ b, a @ a, b @ b))


def summary(rows: Iterable[Mapping[str, float]]) -> dict[str, Any]:
    """Summary of a run's measurements, for its record.

    Args:
        rows: Rows of the loss curve; those without measures do not count.

    Returns:
        Empty without measurements.  By operand and measure `mean` over layers and time, and
        `worst` (the lowest QSNR and shrinkage, the highest of all else) with its `layer`.
        `gradient`: of the whole model by `start`, `middle`, `end` its `step`, `cosine` and
        `norm_ratio`; as many of these as there were measurements, the end first.
    """
    key = f"{COSINE}/{_MODEL}"
    measured = [row for row in rows if key in row]
    values: dict[str, dict[str, list[tuple[float, str]]]] = {}
    for row in measured:
        for name, value in row.items():
            section, _, layer = name.partition("/")
            error, _, label = section.rpartition("_")
            if label in SLOTS:
                values.setdefault(label, {}).setdefault(error, []).append((value, layer))
    found: dict[str, Any] = {}
    for label in sorted(values):
        found[label] = {}
        for error, pairs in values[label].items():
            worst, layer = (min if error in _LOWEST_IS_WORST else max)(pairs)
            mean = sum(value for value, _ in pairs) / len(pairs)
            found[label][error] = {"mean": _short(mean), "worst": _short(worst), "layer": layer}
    when = {"end": -1} if len(measured) == 1 else {"start": 0, "end": -1}
    if len(measured) > 2:
        when = {"start": 0, "middle": len(measured) // 2, "end": -1}
    if measured:
        found["gradient"] = {
            name: {
                "step": int(measured[place]["step"]),
                "cosine": _short(measured[place][key]),
                "norm_ratio": _short(measured[place][f"{NORM_RATIO}/{_MODEL}"]),
            }
            for name, place in when.items()
        }
    return found


def _short(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")
