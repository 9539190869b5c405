"""Which layer of a model really is in which precision."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from experiments.engine.attention import products_of, taken_away
from experiments.engine.convert import WHY
from experiments.engine.experts import are_experts, matrices
from experiments.quant.linear import QuantizedGemms
from experiments.quant.recipe import SLOTS
from experiments.quant.slots import ATTENTION


@dataclass(frozen=True)
class Layer:
    """A layer, or a parameter that is no layer's, and what is quantized of it."""

    name: str
    kind: str
    params: int
    operands: tuple[str, ...]
    """The formats of its `labels`, "" where one stays in high precision; empty if all do."""
    why: str
    """Why nothing of it is quantized; "" if something is."""
    labels: tuple[str, ...] = tuple(SLOTS)
    """What its operands are called: P1 to P6, or those of attention."""

    @property
    def formats(self) -> tuple[str, ...]:
        """The formats of all its labels, "" in high precision."""
        return self.operands or ("",) * len(self.labels)

    @property
    def said(self) -> str:
        """The formats of its quantized operands in words, or why there are none."""
        formats = zip(self.labels, self.formats, strict=True)
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
        matrices = [layer for layer in self.layers if layer.labels != ATTENTION]
        products = [layer for layer in self.layers if layer.labels == ATTENTION]
        lines = _table(matrices, tuple(SLOTS))
        quantized = sum(not layer.why for layer in matrices)
        lines.append(f"{quantized} of {len(matrices)} quantized: {self.share:.1%} of parameters")
        if products:
            lines += ["", *_table(products, ATTENTION)]
        return "\n".join(lines)


def _table(layers: Sequence[Layer], labels: tuple[str, ...]) -> list[str]:
    """Lines for layers whose operands have the same labels, under a head."""
    head = ("layer", "kind", "parameters", *labels, "in high precision because of")
    rows = [
        (e.name, e.kind, f"{e.params:,}", *(f or "-" for f in e.formats), e.why) for e in layers
    ]
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (head, *rows)
    ]


def report(model: nn.Module) -> Reported:
    """What became of each matrix of a model: its six operands, or why it is in high precision.

    Args:
        model: Any module, quantized or not.

    Returns:
        Linear layers, convolutions, embeddings and the parameters that hold a matrix per expert,
        and every other parameter with two axes or more (such as the router of a mixture), which
        no layer that can be quantized multiplies by; and attention whose products were asked for.
    """
    found, seen = [], set()
    for name, module in model.named_modules():
        if isinstance(module, QuantizedGemms) and not module.kept:
            used = ("P2",) if isinstance(module, nn.Embedding) else tuple(SLOTS)
            operands = tuple(str(module.precisions.get(s, "")) if s in used else "" for s in SLOTS)
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
    return Reported([*found, *_attention(model)])


def _attention(model: nn.Module) -> Iterator[Layer]:
    """The attention that somebody asked to quantize, or that was quantized before."""
    for name, module in model.named_modules():
        products = products_of(module)
        if products is None or not (products.precisions or WHY in products.__dict__):
            continue
        formats = tuple(str(products.precisions.get(label, "")) for label in ATTENTION)
        why = products.__dict__.get(WHY, "not asked for") if products.kept else ""
        if not why and taken_away(module):
            why = "transformers was told to use another function (set_attn_implementation)"
        yield Layer(name, type(module).__name__, 0, () if why else formats, why, ATTENTION)


def _matrices(name: str, module: nn.Module) -> dict[str, Tensor]:
    """The matrices that a module multiplies by, or could, by the name of their line."""
    if are_experts(module):
        return {f"{name}.{each}".lstrip("."): getattr(module, each) for each in matrices(module)}
    weight = getattr(module, "weight", None)
    known = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Embedding | QuantizedGemms
    if isinstance(module, known) or WHY in module.__dict__:
        return {name: weight} if isinstance(weight, Tensor) and weight.ndim >= 2 else {}
    return {}
