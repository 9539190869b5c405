"""Which layer is in which precision, as plans and records say it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import lowbit
from experiments.config.schema import TrainConfig
from experiments.models.build import build
from experiments.quant.linear import QuantizedGemms
from experiments.run.layers import layers_of
from experiments.train import train
from tests.support.small_runs import SMALL

Compose = Callable[..., TrainConfig]
MIXTRAL = {
    "model_type": "mixtral", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3,
    "num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": 256, "num_local_experts": 4,
}  # fmt: skip


def test_like_blocks_are_one_line_and_kept_ones_say_why(composed: Compose) -> None:
    config = composed("model=ladder/c", "recipe=nvidia_nvfp4", "recipe.keep_first=1")
    lines = str(layers_of(config)).splitlines()
    assert len(lines) == 1 + 2 * 4 + 1
    assert lines[1].split()[0] == "blocks.[0,2].attention.qkv"
    assert lines[1].endswith("recipe.keep")
    assert lines[5].split()[0] == "blocks.1.attention.qkv"
    assert "E2M1-tile16-e4m3" in lines[5]
    assert lines[-1] == "4 of 8 quantized: 33.3% of parameters"


@pytest.mark.parametrize("recipe", ["none", "nvidia_nvfp4", "sun", "tetrajet"])
@pytest.mark.parametrize("model", ["ladder/c", "mixtral"])
def test_it_says_what_the_layers_do(composed: Compose, recipe: str, model: str) -> None:
    words = [f"model={model}", "recipe.keep=[down]"]
    if model == "mixtral":
        pytest.importorskip("transformers", reason="needs the extra hf")
        words = ["model=hf", *(f"model.config.{key}={value}" for key, value in MIXTRAL.items())]
        words += ["recipe.keep=[k_proj,layers.0.mlp]"]
    words = words if recipe != "none" else [w for w in words if "keep" not in w]
    config = composed(*words, f"recipe={recipe}")
    made = build(config.model, config.recipe, config.precision.build(), 0)
    quantized = [e for e in lowbit.report(made).layers if e.operands]
    said = layers_of(config)
    assert sum(e.params for e in said.layers if not e.why) == sum(e.params for e in quantized)
    assert {e.operands for e in said.layers if not e.why} == {e.operands for e in quantized}
    there = sum(isinstance(m, QuantizedGemms) for m in made.modules())
    assert there >= len(said.layers)


def test_a_record_holds_it(composed: Compose, text: Path) -> None:
    record = train(composed(*SMALL, f"data.path={text}", "recipe.keep=[mlp]")).record
    layers = record.provenance["layers"]
    assert layers["blocks.[0-1].mlp.down"] == "recipe.keep"
    assert layers["blocks.[0-1].attention.out"].startswith("P1 E2M1-block32-fp32 P2 E2M1")
