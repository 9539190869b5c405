"""Tensors to measure recipes on: those of a model's linear layers in one step.

Two sources, of the same shapes, so that they differ only in the contents of the tensors.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable

import torch
from torch import Tensor

from experiments.config.precision import ConfigError
from experiments.config.schema import TrainConfig
from experiments.data.batches import TokenData
from experiments.measure.recipe_error import LayerTensors
from experiments.models.build import shape_of


def normal_layers(config: TrainConfig) -> list[LayerTensors]:
    """Independent normal values in the shapes of `config.model` on one batch.

    The standard deviations of the layers run through an octave, evenly in their logarithm, since
    under a scale that is a power of two the error depends on where in an octave the data lie.

    Raises:
        ConfigError: The task is not that of a language model.
    """
    _refuse_other_tasks(config)
    generator = torch.Generator().manual_seed(config.seed)
    shapes = shape_of(config.model).matrices
    found = []
    for number, (name, matrix) in enumerate(shapes.items()):
        sigma = 2.0 ** ((number + 0.5) / len(shapes))

        def normal(rows: int, columns: int, sigma: float = sigma) -> Tensor:
            return torch.randn(rows, columns, generator=generator) * sigma

        rows = config.batch_tokens
        x, dy = normal(rows, matrix.in_features), normal(rows, matrix.out_features)
        weight = normal(matrix.out_features, matrix.in_features)
        found.append(LayerTensors(name, x, weight, dy))
    return found


def trained_layers(config: TrainConfig) -> list[LayerTensors]:
    """Inputs, weights and output gradients of a model after training, on the batch that comes next.

    The run is one of `experiments.train.train`, in a folder that is deleted.

    Args:
        config: The run; unquantized, so that a recipe would meet the captured tensors first.

    Raises:
        ConfigError: The recipe quantizes, the run diverged, or the task is another than that of a
            language model.
        DataError: The data cannot be obtained.
    """
    from experiments.train import train  # Lightning takes seconds to import

    _refuse_other_tasks(config)
    if config.recipe.quantizes:
        raise ConfigError(f"recipe={config.recipe.name}: must be none for the run to capture from")
    with tempfile.TemporaryDirectory() as folder:
        result = train(dataclasses.replace(config, runs=folder))
    if result.record.status != "finished":
        raise ConfigError(f"the run to capture from {result.record.status}: {result.record.reason}")
    module = result.module
    assert module is not None
    inputs: dict[str, Tensor] = {}
    gradients: dict[str, Tensor] = {}

    def watch(name: str) -> Callable[..., None]:
        def keep(_: torch.nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:
            inputs[name] = _rows(arguments[0])
            output.register_hook(  # type: ignore[no-untyped-call]
                lambda gradient: gradients.update({name: _rows(gradient)})
            )

        return keep

    layers = module.model.linears()
    hooks = [layer.register_forward_hook(watch(name)) for name, layer in layers.items()]
    batch = TokenData(config.data).batch(config.steps, config.batch_size, config.seed)
    loss = module.model.loss(batch.to(next(module.parameters()).device))
    torch.autograd.backward(loss)
    for hook in hooks:
        hook.remove()
    return [
        LayerTensors(name, inputs[name], _rows(layer.weight), gradients[name])
        for name, layer in layers.items()
    ]


def _refuse_other_tasks(config: TrainConfig) -> None:
    if config.task.name != "language_model":
        raise ConfigError(
            f"task.name={config.task.name}: lowbit-error knows the layers of language models alone"
        )


def _rows(x: Tensor) -> Tensor:
    """A copy as [rows, features], float32."""
    return x.detach().flatten(0, -2).float().cpu().clone()


SOURCES: dict[str, Callable[[TrainConfig], list[LayerTensors]]] = {
    "normal": normal_layers,
    "trained": trained_layers,
}
