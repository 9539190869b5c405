"""Blocks that are recomputed in the backward pass: the same bits, less memory."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from experiments.config.precision import ConfigError
from experiments.config.schema import TrainConfig
from experiments.models.foreign import blocks_of
from experiments.run.identity import run_id
from experiments.run.module import LanguageModel
from experiments.tasks.choose import task_of
from experiments.train import train
from tests.support.memory import peak_bytes
from tests.support.small_runs import small

Compose = Callable[..., TrainConfig]
__all__ = ["small"]  # a fixture
ON = "trainer.checkpointing=true"
LLAMA = [
    *("model=hf", "model.config.model_type=llama", "model.config.hidden_size=64"),
    *("model.config.intermediate_size=192", "model.config.num_hidden_layers=4"),
    *("model.config.num_attention_heads=4", "model.config.num_key_value_heads=2"),
    *("model.config.vocab_size=256", "model.config.attention_dropout=0.1"),
]
ATTENTION = [f"recipe.attention.{name}={{rounding: stochastic}}" for name in ("key", "value")]
STOCHASTIC = {
    "stochastic": ["recipe=stochastic", "precision=mxfp4"],
    "quartet": ["recipe=quartet_v4", "precision=mxfp4"],
    "attention": ["recipe=stochastic", "precision=int4_row", *ATTENTION],
    "bfloat16": ["recipe=stochastic", "precision=mxfp4", "compute_dtype=bfloat16"],
}
BUILT_IN = ["model=ladder/a"]


@pytest.mark.parametrize("recipe", STOCHASTIC)
@pytest.mark.parametrize("model", [BUILT_IN, LLAMA], ids=["built_in", "llama"])
def test_a_run_has_the_same_bits(small: Compose, model: list[str], recipe: str) -> None:
    if model is LLAMA:
        pytest.importorskip("transformers", reason="needs the extra hf")
    words = [*model, *STOCHASTIC[recipe], "tokens=1536", "accumulate=2", "diagnostics.apart=1"]
    plain = train(small(*words, "study.name=plain"))
    recomputed = train(small(*words, ON, "study.name=recomputed"))
    assert recomputed.record.run_id == plain.record.run_id
    assert recomputed.record.loss == plain.record.loss
    assert recomputed.record.weights_sha256 == plain.record.weights_sha256
    assert recomputed.record.weights_sha256


def test_it_is_not_part_of_what_a_run_is_known_by(small: Compose) -> None:
    assert run_id(small(ON)) == run_id(small())


@pytest.mark.parametrize("model", [BUILT_IN, LLAMA], ids=["built_in", "llama"])
def test_each_block_runs_twice(small: Compose, model: list[str]) -> None:
    """Counted by the layers that a block holds: blocks themselves are called once."""
    if model is LLAMA:
        pytest.importorskip("transformers", reason="needs the extra hf")
    for more, times in (([], 1), ([ON], 2)):
        module = LanguageModel(small(*model, "recipe=none", *more))
        module.model.train()
        layer = next(iter(module.model.linears().values()))
        calls: list[int] = []
        layer.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        module.training_step(torch.randint(256, (2, 17)), 0).backward()
        assert len(calls) == times


RECIPES = ["none", "nearest", "quartet_v4"]


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("model", ["built_in", "llama"])
def test_memory_falls_as_planned(composed: Compose, model: str, recipe: str) -> None:
    sizes = ["model.layers=8", "model.hidden=64", "model.ffn=192", "model.heads=4"]
    if model == "llama":
        pytest.importorskip("transformers", reason="needs the extra hf")
        sizes = [*LLAMA, "model.config.num_hidden_layers=8"]
    found = []
    for more in ([], [ON]):
        words = ["tokens=8192", "data.seq_len=128", "batch_size=8", f"recipe={recipe}", *more]
        config = composed(*sizes, *words, "precision=mxfp4")
        how = config.rows, config.recipe, config.trainer.checkpointing
        planned, measured = task_of(config).training_bytes(*how), peak_bytes(config)
        print("RATIO", model, recipe, more, measured / planned)
        assert measured <= planned < 4 * measured
        found.append((planned, measured))
    assert found[1][0] < 0.7 * found[0][0]
    assert found[1][1] < 0.7 * found[0][1]


def test_a_model_without_such_blocks_is_refused(small: Compose) -> None:
    own = ["model=module", "model.factory=tests.support.tiny_models:one", "model.vocab_size=256"]
    with pytest.raises(ConfigError, match=r"^trainer.checkpointing=true: .* no blocks that can be"):
        small(*own, ON)


def test_batch_norms_would_count_twice() -> None:
    class GradientCheckpointingLayer(nn.Sequential):
        """Named as that of transformers."""

    for inner, count in ((nn.LayerNorm(4), 1), (nn.BatchNorm1d(4), 0)):
        model = nn.Sequential(GradientCheckpointingLayer(nn.Linear(4, 4), inner))
        assert not blocks_of(model)
        model.supports_gradient_checkpointing = True  # type: ignore[assignment]
        assert len(blocks_of(model)) == count
