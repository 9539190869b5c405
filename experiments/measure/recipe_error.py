"""Errors of a recipe on linear layers: of its six operands and its three products.

Each of the nine is compared with the same tensor of the unquantized layer.  An operand (P1..P6) is
the tensor that the GEMM multiplies, with every rotation undone: the estimate of input, weight or
gradient that the product gets, however often it was rounded.  The products are the output and
both gradients of one layer by itself, from the same input, weight and output gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from experiments.measure.error import cosine, misalignment, norm_ratio, relative_mse
from experiments.quant.formats import Precision
from experiments.quant.linear import NoiseClock, QuantizedGemms, QuantLinear
from experiments.quant.operand import Operand
from experiments.quant.recipe import GEMMS, SLOTS, RecipeConfig

OPERANDS = tuple(SLOTS)
PRODUCTS = tuple(GEMMS)
TENSORS = (*OPERANDS, *PRODUCTS)


@dataclass(frozen=True)
class LayerTensors:
    """The tensors of one linear layer in one step."""

    name: str
    input: Tensor
    """[rows, in_features]; rows are batch x sequence."""
    weight: Tensor
    """[out_features, in_features]."""
    grad_output: Tensor
    """[rows, out_features]."""


@dataclass(frozen=True)
class Estimate:
    """A mean over layers and draws."""

    mean: float
    standard_error: float
    """Standard error over the draws; 0 if nothing is drawn."""


@dataclass(frozen=True)
class TensorError:
    """The distance of a tensor from the unquantized one."""

    relative_mse: Estimate
    misalignment: Estimate
    cosine: Estimate
    norm_ratio: Estimate
    cosine_of_mean: Estimate | None
    """Cosine of a product's expectation over draws; its distance from 1 is bias, which no number
    of steps averages out.  None for an operand."""


def is_random(recipe: RecipeConfig) -> bool:
    """Whether two passes over the same tensors differ."""
    drawn = any(rounding.draws for rounding in recipe.roundings().values())
    return drawn or any(g.hadamard and g.signs == "random" for g in recipe.gemms().values())


def recipe_error(
    layers: Sequence[LayerTensors],
    recipe: RecipeConfig,
    precision: Precision,
    draws: int = 16,
    seed: int = 0,
) -> dict[str, TensorError]:
    """Errors of a recipe by tensor (`TENSORS`), each a mean over layers that weigh the same.

    Args:
        layers: The layers; all are quantized, even those that the recipe would keep.
        recipe: The recipe.
        precision: The format, if the recipe has no formats of its own.
        draws: Passes with noise and random signs of their own, 3 or more; only one if nothing is
            random.
        seed: Seed of the noise.

    Raises:
        ValueError: Fewer draws than three, or sizes that a block or a rotation does not divide.

    >>> x, w, dy = torch.randn(3, 64, 64, generator=torch.Generator().manual_seed(0))
    >>> layer = LayerTensors("a", x, w, dy)
    >>> recipe_error([layer], RecipeConfig(), Precision.parse("mxfp4"))["output"].cosine.mean
    1.0
    """
    if draws < 3:
        raise ValueError(f"draws={draws}: must be 3 or more")
    count = draws if is_random(recipe) else 1
    measured = [
        _layer_error(_layer(tensors, recipe, precision, seed, number), tensors, count)
        for number, tensors in enumerate(layers)
    ]
    found = {}
    for name in TENSORS:
        # [4, draws]: the layers' mean in each draw.
        values = torch.stack([measures[name] for measures, _ in measured]).mean(0)
        mse, misaligned, cosines, ratios = (_estimate(row) for row in values)
        of_mean = None
        if name in PRODUCTS:
            of_mean = _jackknife(torch.stack([means[name] for _, means in measured]).mean(0))
        found[name] = TensorError(mse, misaligned, cosines, ratios, of_mean)
    return found


def _layer(
    tensors: LayerTensors, recipe: RecipeConfig, precision: Precision, seed: int, number: int
) -> QuantLinear:
    """The layer of these tensors, `number` in the address of its noise."""
    out_features, in_features = tensors.weight.shape
    layer = QuantLinear(in_features, out_features, recipe, precision, NoiseClock(seed), number)
    with torch.no_grad():
        layer.weight.copy_(tensors.weight)
    return layer


def _pass(layer: QuantLinear, given: LayerTensors, counter: int) -> dict[str, Tensor]:
    """Tensors of one pass, operands with their summed axis last, without those no GEMM prepares.

    Args:
        layer: The layer.
        given: Its input, weight and output gradient.
        counter: The pass's part of the address of its noise.
    """
    found: dict[str, Tensor] = {}

    def watch(_: QuantizedGemms, label: str, given: Operand, ready: Operand) -> None:
        found[label] = ready.restored().detach()

    layer.clock.counter, layer.clock.watch = counter, watch
    x = given.input.detach().clone().requires_grad_()
    output = layer(x)
    gradients = torch.autograd.grad(output, (x, layer.weight), given.grad_output)
    return found | dict(zip(PRODUCTS, (output.detach(), *gradients), strict=True))


def _layer_error(
    layer: QuantLinear, given: LayerTensors, count: int
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Measures of each draw, [4, count], and for the products `_cosines_of_mean`, by tensor."""
    layer.clock.quantizing = False
    exact = _pass(layer, given, 0)
    layer.clock.quantizing = True
    x, w, dy = given.input, given.weight, given.grad_output
    exact |= dict(zip(OPERANDS, (x, w, dy, w.t(), dy.t(), x.t()), strict=True))
    exact = {name: tensor.double() for name, tensor in exact.items()}
    measures: dict[str, list[list[float]]] = {name: [] for name in TENSORS}
    products: dict[str, list[Tensor]] = {name: [] for name in PRODUCTS}
    for draw in range(count):
        found = _pass(layer, given, draw)
        for name, reference in exact.items():
            tensor = found.get(name, reference).double()
            measures[name].append(
                [
                    relative_mse(reference, tensor),
                    misalignment(reference, tensor),
                    cosine(reference, tensor),
                    norm_ratio(reference, tensor),
                ]
            )
            if name in products:
                products[name].append(found[name])
    return (
        {name: torch.tensor(rows, dtype=torch.float64).t() for name, rows in measures.items()},
        {name: _cosines_of_mean(exact[name], found) for name, found in products.items()},
    )


def _cosines_of_mean(exact: Tensor, found: list[Tensor]) -> Tensor:
    """Cosine with the expectation of a random tensor, from all n draws and without each, [n + 1].

    The mean of n draws is longer than the expectation by its own noise, so the expectation's
    square is estimated by products of different draws:

        <x, mean> / (||x|| sqrt(mean of <q_i, q_j> over i != j))
    """
    n = len(found)
    if n == 1:
        return torch.tensor([cosine(exact, found[0])], dtype=torch.float64)
    total = torch.stack(found).double().sum(0)
    along = torch.stack([(exact * q).sum() for q in found])  # <x, q_i>
    squares = torch.stack([q.double().square().sum() for q in found])  # <q_i, q_i>
    others = torch.stack([(total * q).sum() for q in found]) - squares  # sum over j of <q_i, q_j>
    length = exact.square().sum()
    whole = along.mean() / (length * others.sum() / (n * (n - 1))).sqrt()
    pairs = (others.sum() - 2 * others) / ((n - 1) * (n - 2))
    without = (along.sum() - along) / (n - 1) / (length * pairs).sqrt()
    return torch.cat((whole.reshape(1), without))


def _estimate(values: Tensor) -> Estimate:
    """Mean and error of one value per draw, [n]."""
    n = len(values)
    error = values.std().item() / n**0.5 if n > 1 else 0.0
    return Estimate(values.mean().item(), error)


def _jackknife(values: Tensor) -> Estimate:
    """Mean and error of a value from all draws and from all but each, [n + 1]; else [1]."""
    without = values[1:]
    n = len(without)
    error = without.std(correction=0).item() * (n - 1) ** 0.5 if n else 0.0
    return Estimate(values[0].item(), error)
