"""What a probe measures is the run that is planned: an adapter beside frozen weights."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from experiments.accounting import adapter_parameters, count_parameters
from experiments.config.schema import TrainConfig
from experiments.configure import configure
from experiments.finetune.config import ADAPTERS, AdapterConfig
from experiments.models.next_token import NextToken
from experiments.sweep import estimate
from experiments.tasks.choose import task_of
from tests.support.small_runs import small

Compose = Callable[..., TrainConfig]
__all__ = ["small"]  # a fixture


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_what_is_probed_trains_what_the_run_trains(
    adapter: str, small: Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    if adapter == "lora":
        pytest.importorskip("peft", reason="needs the extra hf")
    config = small("recipe=nearest", "precision=int4_row")
    config.adapter = AdapterConfig(adapter, r=2)
    trained: set[int] = set()

    def loss(self: NextToken, batch: object) -> object:
        trained.add(sum(p.numel() for p in self.parameters() if p.requires_grad))
        return whole(self, batch)

    whole = NextToken.loss
    monkeypatch.setattr(NextToken, "loss", loss)
    speeds = estimate.Speeds()
    estimate.probe([config], speeds)
    assert speeds.measured
    assert trained == {expected(config)}


def expected(config: TrainConfig) -> int:
    if config.adapter.there:
        return adapter_parameters(config.model, config.adapter)
    return count_parameters(config.model).total


def test_adapters_are_kinds_of_their_own() -> None:
    """So that a sweep which has tuned all weights does not take that speed for an adapter's."""
    plain, tuned = (configure("model=ladder/a") for _ in range(2))
    tuned.adapter = AdapterConfig("paca", r=2)
    speeds = estimate.Speeds()
    speeds.learn(plain, 1e9, "measured")
    speeds.learn(tuned, 3e9, "measured")
    assert (speeds(plain), speeds(tuned)) == (1e9, 3e9)
    assert task_of(plain).flops_per_token() > task_of(tuned).flops_per_token()
