"""Which layer of a model really is in which precision."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from experiments.engine.convert import WHY
from experiments.engine.experts import are_experts, matrices
from experiments.quant.linear import QuantizedGemms
from experiments.quant.recipe import SLOTS

_NONE = ("",) * len(SLOTS)


@dataclass(frozen=True)
class Layer:
    """A layer, or a parameter that is no layer's, and what is quantized of it."""

    name: str
    kind: str
    params: int
    operands: tuple[str, ...]
    """The formats of P1 to P6, "" where one stays in high precision; empty if all of them do."""
    why: str
    """Why nothing of it is quantized; "" if something is."""

    @property
    def said(self) -> str:
        """The formats of its quantized operands in words, or why there are none."""
        formats = zip(SLOTS, self.operands or _NONE, strict=True)
        return self.why or " ".join(f"{slot} {name}" for slot, name in formats if name)


@dataclass(frozen=True)
class Reported:
    """A table of all that could be quantized."""

    layers: Sequence[Layer]

    @property
    def share(self) -> float:
        """The share of the parameters of these layers that belongs to quantized ones."""
        total = sum(layer.params for layer in self.layers)
        return sum(layer.params for layer in self.layers if not layer.why) / max(total, 1)

    def __str__(self) -> str:
        """The table in words, one line per layer."""
        head = ("layer", "kind", "parameters", *SLOTS, "in high precision because of")
        rows = [
            (e.name, e.kind, f"{e.params:,}", *(o or "-" for o in e.operands or _NONE), e.why)
            for e in self.layers
        ]
        widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in (head, *rows)
        ]
        quantized = sum(not layer.why for layer in self.layers)
        lines.append(f"{quantized} of {len(self.layers)} quantized: {self.share:.1%} of parameters")
        return "\n".join(lines)


def report(model: nn.Module) -> Reported:
    """What became of each matrix of a model: its six operands, or why it is in high precision.

    Args:
        model: Any module, quantized or not.

    Returns:
        Linear layers, convolutions, embeddings and the parameters that hold a matrix per expert,
        and every other parameter with two axes or more (such as the router of a mixture), which
        no layer that can be quantized multiplies by.
    """
    found, seen = [], set()
    for name, module in model.named_modules():
        if isinstance(module, QuantizedGemms) and not module.kept:
            operands = tuple(str(module.precisions.get(label, "")) for label in SLOTS)
        else:
            operands = ()
        untold = "recipe none" if isinstance(module, QuantizedGemms) else "not asked for"
        why = "" if any(operands) else module.__dict__.get(WHY, untold)
        for full_name, matrix in _matrices(name, module).items():
            params = 0 if id(matrix) in seen else matrix.numel()
            seen.add(id(matrix))
            found.append(Layer(full_name, type(module).__name__, params, operands, why))
    for name, parameter in model.named_parameters():
        if parameter.ndim >= 2 and id(parameter) not in seen:
            why = "belongs to no linear layer"
            found.append(Layer(name, "parameter", parameter.numel(), (), why))
    return Reported(found)


def _matrices(name: str, module: nn.Module) -> dict[str, Tensor]:
    """The matrices that a module multiplies by, or could, by the name of their line."""
    if are_experts(module):
        return {f"{name}.{each}".lstrip("."): getattr(module, each) for each in matrices(module)}
    weight = getattr(module, "weight", None)
    known = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Embedding | QuantizedGemms
    if isinstance(module, known) or WHY in module.__dict__:
        return {name: weight} if isinstance(weight, Tensor) and weight.ndim >= 2 else {}
    return {}
