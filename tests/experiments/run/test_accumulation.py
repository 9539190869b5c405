"""A step's batch in parts: the same gradient, noise of their own, and no bit lost by a stop."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import safetensors.torch
import torch
from torch import Tensor

from experiments.accounting import training_bytes
from experiments.config.precision import ConfigError
from experiments.config.schema import TrainConfig
from experiments.data.batches import StepLoader, TokenData
from experiments.optim import lr_factor
from experiments.run.identity import run_id
from experiments.run.module import LanguageModel
from experiments.store.weights import WEIGHTS
from experiments.train import train
from tests.support.memory import peak_bytes
from tests.support.small_runs import Stop, rows, small

Compose = Callable[..., TrainConfig]
__all__ = ["small"]  # a fixture
ROWS_ALONE = [
    *("recipe=nearest", "precision.granularity=row", "precision.scale=fp32"),
    *("recipe.grad_weight.grad_output=null", "recipe.grad_weight.input=null"),
]
"""Nothing that is rounded shares a scale with another row."""


def gradients(config: TrainConfig) -> dict[str, Tensor]:
    """Those of the first step, in float64."""
    module, data = LanguageModel(config).double(), TokenData(config.data)
    loader = StepLoader(data, 0, config.batch_size, 0, 1, accumulate=config.accumulate)
    assert len(list(StepLoader(data, 0, 4, 0, 3, accumulate=2))) == 6
    for index, batch in enumerate(loader):
        (module.training_step(batch, index) / config.accumulate).backward()
    return {n: p.grad for n, p in module.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("recipe", [["recipe=none"], ROWS_ALONE], ids=["none", "rows"])
@pytest.mark.parametrize("accumulate", [2, 4])
def test_the_gradient_is_that_of_the_whole_batch(
    small: Compose, recipe: list[str], accumulate: int
) -> None:
    """What is rounded passes through float32 on the way, so last bits of that may differ."""
    whole = gradients(small(*recipe))
    parts = gradients(small(*recipe, f"accumulate={accumulate}"))
    assert set(parts) == set(whole)
    for name, gradient in whole.items():
        assert gradient.norm() > 0
        assert (parts[name] - gradient).norm() <= 1e-6 * gradient.norm(), name


def test_each_part_has_noise_of_its_own_that_comes_again(small: Compose) -> None:
    config = small("recipe=stochastic", "accumulate=2")
    module = LanguageModel(config)
    batch = TokenData(config.data).batch(0, 4, 0)
    weight = module.model.get_parameter("blocks.0.mlp.down.weight")
    found = [
        torch.autograd.grad(module.training_step(batch, index), weight)[0] for index in range(4)
    ]
    assert not torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])  # of the same step
    assert torch.equal(found[1], found[3])


def test_a_run_is_the_bare_loop_in_parts_bit_for_bit(small: Compose) -> None:
    config = small("recipe=stochastic", "accumulate=4", "tokens=2048")
    found = train(config)
    torch.set_num_threads(config.resources.cpus)
    module, data, optim = LanguageModel(config), TokenData(config.data), config.optim
    decayed = [p for p in module.parameters() if p.ndim > 1]
    others = [p for p in module.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": optim.weight_decay}, {"params": others}],
        betas=(optim.beta1, optim.beta2),
        eps=optim.eps,
        weight_decay=0.0,
    )
    losses: list[float] = []
    for step in range(config.steps):
        for group in optimizer.param_groups:
            group["lr"] = optim.lr * lr_factor(step, config.steps, optim)
        optimizer.zero_grad()
        for part, batch in enumerate(data.batch(step, 4, config.seed).split(1)):
            module.model.clock.counter = 4 * step + part
            loss = module.model.loss(batch)
            losses.append(loss.item())
            (loss / 4).backward()
        torch.nn.utils.clip_grad_norm_(decayed + others, optim.clip_norm)
        optimizer.step()
    [first, *_] = (row["train/loss"] for row in rows(found.folder) if "train/loss" in row)
    assert first == pytest.approx(sum(losses[: 4 * 4]) / 16, rel=1e-6)
    weights = safetensors.torch.load_file(found.folder / WEIGHTS)
    assert all(torch.equal(weights[n], t) for n, t in module.state_dict().items() if n in weights)


@pytest.mark.parametrize("recipe", ["stochastic", "quartet_v4"])
def test_a_stop_changes_no_bit(small: Compose, recipe: str) -> None:
    words = [f"recipe={recipe}", "precision=mxfp4", "accumulate=2", "diagnostics.apart=1"]
    whole = train(small(*words, "study.name=whole"))
    with pytest.raises(KeyboardInterrupt):
        train(small(*words, "study.name=stopped"), report=Stop(8))
    resumed = train(small(*words, "study.name=stopped"))
    assert resumed.record.attempts == 2
    assert resumed.record.loss == whole.record.loss
    assert rows(resumed.folder) == rows(whole.folder)
    assert resumed.record.weights_sha256 == whole.record.weights_sha256


def test_it_is_part_of_what_a_run_is_known_by(small: Compose) -> None:
    assert run_id(small("accumulate=2")) != run_id(small()) == run_id(small("accumulate=1"))


def test_products_sum_over_the_rows_of_a_part(small: Compose) -> None:
    config = small("precision=mxfp4", "accumulate=2")
    assert config.rows == 2 * 64
    with pytest.raises(ConfigError, match=r"must divide batch_size x data.seq_len / accumulate=48"):
        small("precision=mxfp4", "data.seq_len=48", "accumulate=4")


@pytest.mark.parametrize("more", [["accumulate=3"], ["accumulate=4", "trainer.num_workers=2"]])
def test_parts_are_alike(small: Compose, more: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"^accumulate=\d: must divide batch_size=4"):
        small(*more)


def test_memory_falls_as_planned(composed: Compose) -> None:
    words = ["model.layers=2", "model.hidden=64", "model.ffn=192", "model.heads=4", "batch_size=8"]
    found = []
    for accumulate in (1, 4):
        config = composed(*words, "tokens=4096", "data.seq_len=128", f"accumulate={accumulate}")
        planned = training_bytes(config.model, config.rows, config.recipe, config.data.seq_len)
        measured = peak_bytes(config)
        assert measured <= planned < 4 * measured
        found.append((planned, measured))
    assert found[1][0] < 0.5 * found[0][0]
    assert found[1][1] < 0.5 * found[0][1]
