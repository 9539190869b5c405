"""Captured tensors are what the layers met, and the same every time."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from experiments.config.precision import ConfigError
from experiments.config.schema import TrainConfig
from experiments.data.batches import TokenData
from experiments.data.shards import DataError
from experiments.errors.capture import normal_layers, trained_layers
from experiments.models.build import shape_of
from experiments.quant.linear import QuantLinear
from experiments.train import train

Compose = Callable[..., TrainConfig]
SMALL = [
    *("model=ladder/a", "data=tokens", "data.seq_len=32", "batch_size=4", "tokens=1024"),
    *("tracking=none", "recipe=none"),
]


@pytest.fixture
def small(composed: Compose, text: Path) -> Compose:
    return lambda *overrides: composed(*SMALL, f"data.path={text}", *overrides)


def test_tasks_other_than_text_are_refused(composed: Compose) -> None:
    images = ("task=classification", "data=digits", "model=convnet", "recipe=none")
    for layers in (normal_layers, trained_layers):
        with pytest.raises(ConfigError, match="task.name=classification: lowbit-error knows"):
            layers(composed(*images))


def test_normal_tensors_have_the_models_shapes_and_run_through_an_octave(small: Compose) -> None:
    """Each standard deviation to five of its standard errors, sigma / sqrt(2 n)."""
    config = small()
    layers = normal_layers(config)
    shapes = shape_of(config.model).matrices
    assert [layer.name for layer in layers] == list(shapes)
    for number, layer in enumerate(layers):
        inputs, outputs = shapes[layer.name].in_features, shapes[layer.name].out_features
        assert layer.input.shape == (128, inputs)
        assert layer.weight.shape == (outputs, inputs)
        assert layer.grad_output.shape == (128, outputs)
        sigma = 2 ** ((number + 0.5) / 8)
        for x in (layer.input, layer.weight, layer.grad_output):
            assert abs(x.std().item() / sigma - 1) < 5 / (2 * x.numel()) ** 0.5
    again, other = normal_layers(config), normal_layers(small("seed=1"))
    assert torch.equal(layers[-1].weight, again[-1].weight)
    assert not torch.equal(layers[-1].weight, other[-1].weight)


def test_captured_tensors_are_those_of_the_next_step_of_the_trained_model(small: Compose) -> None:
    """Weights to the bit; dY^T X is the weight's gradient of the batch that comes next.  float32
    sums of 128 terms, twice: to 2^-18 of the largest.
    """
    config = small()
    layers = trained_layers(config)
    result = train(config)
    assert result.module is not None
    batch = TokenData(config.data).batch(8, 4, 0)
    torch.autograd.backward(result.module.model.loss(batch))
    named = dict(result.module.model.named_modules())
    assert [layer.name for layer in layers] == list(shape_of(config.model).matrices)
    for layer in layers:
        module = named[layer.name]
        assert isinstance(module, QuantLinear)
        assert torch.equal(layer.weight, module.weight)
        assert module.weight.grad is not None
        off = layer.grad_output.t() @ layer.input - module.weight.grad
        assert off.abs().max() <= 2**-18 * module.weight.grad.abs().max()
        assert module.weight.grad.abs().max() > 0
    # The residual stream's first norm, by itself.
    model = result.module.model
    first = model.blocks[0].attention_norm(model.embedding(batch[:, :-1]))  # type: ignore[operator]
    assert torch.equal(layers[0].input, first.flatten(0, 1))


def test_a_run_is_captured_anew_to_the_same_bits_and_leaves_no_folder(
    small: Compose, tmp_path: Path
) -> None:
    first, second = trained_layers(small()), trained_layers(small())
    for a, b in zip(first, second, strict=True):
        for name in ("input", "weight", "grad_output"):
            assert torch.equal(getattr(a, name), getattr(b, name))
    assert not (tmp_path / "runs").exists()
    assert train(small()).module is not None
    assert train(small()).module is None, "done already"


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        (["recipe=nearest"], ConfigError, "recipe=nearest: must be none"),
        (["optim.lr=1e30"], ConfigError, "the run to capture from diverged: "),
        (["data.path=/nowhere"], DataError, "data.path=/nowhere: no such file or folder"),
    ],
)
def test_a_run_that_gives_no_tensors_is_refused(
    small: Compose, overrides: list[str], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        trained_layers(small(*overrides))
