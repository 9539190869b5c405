"""Loss scaling: no bit changes where nothing overflows, and torch's scaler is followed where."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from experiments.config.schema import TrainConfig
from experiments.data.batches import TokenData
from experiments.loss_scale import LossScale
from experiments.models.transformer import Transformer
from experiments.optim import lr_factor, make_optimizer
from experiments.run.module import LanguageModel
from experiments.train import train

Compose = Callable[..., TrainConfig]


@pytest.fixture
def small(composed: Compose, text: Path) -> Compose:
    return lambda *overrides: composed(
        *("model=ladder/a", "data=tokens", "data.seq_len=32", "batch_size=2", "tokens=512"),
        *("tracking=none", "data.max_epochs=100", f"data.path={text}"),
        *overrides,
    )


@pytest.mark.parametrize("recipe", ["none", "stochastic", "quartet_v4", "nvidia_nvfp4"])
def test_a_power_of_two_changes_no_bit_of_a_run(small: Compose, recipe: str) -> None:
    base = [f"recipe={recipe}", "precision=nvfp4", "recipe.keep_last=0"]
    weights = {
        scale: train(small(*base, f"optim.loss_scale={scale}")).record.weights_sha256
        for scale in ("1", "1024", "1073741824", "dynamic")
    }
    assert len(set(weights.values())) == 1, weights


def with_torchs_scaler(config: TrainConfig) -> tuple[list[nn.Parameter], int]:
    """A bare loop around torch.amp.GradScaler: the weights, and how many steps it left out."""
    torch.set_num_threads(1)
    module, data, optim = LanguageModel(config), TokenData(config.data), config.optim
    optimizer = make_optimizer(module.model, optim, config.seed)
    scaler = torch.amp.GradScaler("cpu", growth_interval=optim.loss_scale_interval)
    skipped = 0
    for step in range(config.steps):
        for group in optimizer.param_groups:
            group["lr"] = optim.lr * lr_factor(step, config.steps, optim)
        module.model.clock.counter = step
        optimizer.zero_grad()
        batch = data.batch(step, config.batch_size, config.seed)
        scaler.scale(module.model.loss(batch)).backward()  # type: ignore[no-untyped-call]
        scaler.unscale_(optimizer)
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        torch.nn.utils.clip_grad_norm_(parameters, optim.clip_norm)
        scaler.step(optimizer)
        before = scaler.get_scale()
        scaler.update()
        skipped += scaler.get_scale() < before
    return list(module.parameters()), skipped


def test_a_dynamic_scale_leaves_out_the_steps_that_torchs_scaler_does(
    small: Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Doubled at every step from 2^16 it nears 2^127 after a hundred, where a loss of hundreds has
    gradients beyond float32.
    """
    config = small(
        "recipe=nearest", "optim.loss_scale=dynamic", "optim.loss_scale_interval=1", "tokens=8320"
    )
    trained: list[LanguageModel] = []
    loss = Transformer.loss
    monkeypatch.setattr(
        Transformer, "loss", lambda *arguments, **how: 256 * loss(*arguments, **how)
    )

    def remember(config: TrainConfig) -> LanguageModel:
        trained.append(LanguageModel(config))
        return trained[-1]

    monkeypatch.setattr("experiments.train.LanguageModel", remember)
    assert train(config).record.tokens == 130 * 64, "to the end, if only to a loss of hundreds"
    expected, skipped = with_torchs_scaler(config)
    assert 5 <= skipped <= 20
    for ours, theirs in zip(trained[0].parameters(), expected, strict=True):
        assert torch.equal(ours, theirs)


def test_an_overflow_of_a_constant_scale_stays_visible() -> None:
    parameter = nn.Parameter(torch.ones(2))
    parameter.grad = torch.tensor([1024.0, float("inf")])
    scale = LossScale("1024", 1)
    scale.unscale([parameter])
    assert parameter.grad.tolist() == [1.0, float("inf")]
    assert scale.value == 1024


def test_a_left_out_step_moves_nothing_and_keeps_the_moments() -> None:
    parameter = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([parameter], lr=0.1)
    scale = LossScale("dynamic", 2)
    for gradient in (1.0, float("inf"), float("nan"), 1.0, 1.0, 1.0):
        parameter.grad = torch.full((3,), gradient) * scale.value
        before = parameter.detach().clone()
        scale.unscale([parameter])
        optimizer.step()
        assert torch.equal(parameter, before) == (not torch.tensor(gradient).isfinite().item())
    assert optimizer.state[parameter]["step"] == 4
    assert (scale.value, scale.since_change) == (2.0**15, 1), "halved twice, doubled once"
