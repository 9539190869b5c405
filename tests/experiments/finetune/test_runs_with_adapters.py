"""Runs with adapters: what they train, record, resume and export, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import lowbit
from experiments.config.check import check
from experiments.config.precision import ConfigError
from experiments.config.schema import TrainConfig
from experiments.configure import configure
from experiments.export.folder import export
from experiments.finetune.config import ADAPTERS as THERE_ARE
from experiments.run.layers import layers_of
from experiments.train import RunResult, train
from fitting.results.table import load
from tests.support.commands import lowbit_train
from tests.support.small_runs import SMALL, Stop, rows, small
from tests.support.tiny_models import LLAMA

Compose = Callable[..., TrainConfig]
__all__ = ["small"]  # a fixture
LORA = ["adapter=lora", "adapter.r=3", "optim.lr=2e-2", "keep=last"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    """A trained run that kept its weights."""
    place = tmp_path_factory.mktemp("base")
    (place / "text.txt").write_text("the run of a model in few bits\n" * 3000)
    where = [f"data.path={place / 'text.txt'}", f"runs={place / 'runs'}"]
    return train(configure(*SMALL, *where, "recipe=none", "keep=last"))


@pytest.fixture
def tuned(small: Compose, base: RunResult) -> Compose:
    return lambda *more: small(f"init_from={base.folder}", *more)


def test_a_run_trains_its_adapter_alone_and_records_both_losses(
    tuned: Compose, base: RunResult
) -> None:
    config = tuned(*LORA, "recipe=none")
    result = train(config)
    assert result.module is not None
    state = result.module.state_dict()
    assert base.module is not None
    for name, value in base.module.state_dict().items():
        held = {name, name.replace(".weight", ".base_layer.weight")} & set(state)
        assert torch.equal(state[held.pop()], value), name
    record = result.record
    assert record.loss is not None
    assert record.merged_loss == pytest.approx(record.loss, rel=1e-5)
    assert "peft" in record.provenance["versions"]
    assert train(tuned("recipe=none", "seed=3")).record.merged_loss is None
    loaded = lowbit.load(result.folder)
    assert {n: v.tolist() for n, v in loaded.state_dict().items()} == {
        n.removeprefix("model."): v.tolist() for n, v in state.items()
    }


ADAPTERS = {
    kind: [f"adapter={kind}", "adapter.r=3", "optim.lr=1e-2", "keep=last"] for kind in THERE_ARE[1:]
}
ADAPTERS["sign"] = [*LORA, "adapter.precision=sign"]


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_stopped_and_resumed_it_gives_the_same_bits(
    tuned: Compose, tmp_path: Path, adapter: str
) -> None:
    more = [*ADAPTERS[adapter], "recipe=stochastic", "precision=nvfp4"]
    whole = train(tuned(*more, f"runs={tmp_path / 'whole'}"))
    config = tuned(*more)
    for step in (8, 16):
        with pytest.raises(KeyboardInterrupt):
            train(config, Stop(step))
    result = train(config)
    assert result.record.attempts == 3
    assert result.record.weights_sha256 == whole.record.weights_sha256
    assert result.record.merged_loss == whole.record.merged_loss
    assert rows(result.folder) == rows(whole.folder)


@pytest.mark.ray
@pytest.mark.slow
def test_two_processes_tune_as_one_does(
    base: RunResult, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for the order in which gradients are added up."""
    monkeypatch.chdir(tmp_path)
    words = [*SMALL, f"data.path={text}", f"init_from={base.folder}", *LORA, "recipe=none", "-m"]
    assert lowbit_train(monkeypatch, *words, "study.name=alone") == 0
    assert lowbit_train(monkeypatch, *words, "study.name=both", "trainer.num_workers=2") == 0
    alone, both = (load(tmp_path / "runs" / name) for name in ("alone", "both"))
    assert both["run_id"].tolist() == alone["run_id"].tolist()
    for column in ("loss", "merged_loss"):
        assert both[column].tolist() == pytest.approx(alone[column].tolist(), rel=1e-4)


def test_an_adapter_on_a_base_in_nvfp4_learns(tuned: Compose) -> None:
    """Its base is quantized in every product, and cannot be what learned."""
    frozen = train(tuned(*LORA, "recipe=nearest", "precision=nvfp4", "optim.lr=1e-9"))
    learned = train(tuned(*LORA, "recipe=nearest", "precision=nvfp4"))
    assert frozen.record.loss is not None
    assert learned.record.loss is not None
    assert learned.record.loss < frozen.record.loss - 0.5
    assert learned.record.operands == "P1 P2 P3 P4 P5 P6"


def test_a_model_of_hugging_face_gets_one(small: Compose, tmp_path: Path) -> None:
    """From a run of it, and from a folder with its weights; exported, it is merged."""
    from transformers import AutoModelForCausalLM

    start = train(small(*LLAMA, "recipe=none", "keep=last"))
    export(start.folder, "hf", tmp_path / "start")
    from_run = small(*LLAMA, f"init_from={start.folder}", *LORA, "recipe=none")
    there = [f"model.source={tmp_path / 'start'}", "model=hf"]
    from_folder = small(*there, *LORA, "recipe=none")
    losses = {train(config).record.loss for config in (from_run, from_folder)}
    assert len(losses) == 1
    tuned = train(from_run)
    export(tuned.folder, "hf", tmp_path / "tuned")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "tuned").eval()
    ours = lowbit.load(tuned.folder)
    tokens = torch.randint(256, (2, 33), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(theirs(tokens).logits, ours(tokens), rtol=1e-4, atol=1e-4)
    assert "merged" in (tmp_path / "tuned" / "README.md").read_text()


def test_layers_say_what_stands_beside_them(tuned: Compose) -> None:
    more = ["adapter.target_modules=[mlp.down,blocks.0.attention.qkv]", "adapter.precision=sign"]
    said = layers_of(tuned(*LORA, *more, "recipe=none")).layers
    assert [(layer.name, layer.params, layer.said) for layer in said if "lora" in layer.name] == [
        ("blocks.0.attention.qkv + lora", 3 * (32 + 96), "P2 sign"),
        ("blocks.[0-1].mlp.down + lora", 2 * 3 * (32 + 96), "P2 sign"),
    ]


REFUSED = {
    "adapter.name=lorra": "adapter.name=lorra: must be one of none, lora, paca, shira, qwha",
    "adapter.init=errors": "adapter.init=errors: must be one of zero, error",
    "adapter.r=0": "adapter.r=0: must be 1 or more",
    "adapter.lora_alpha=0": "adapter.lora_alpha=0.0: must be positive",
    "adapter.precision=int1_row": "adapter.precision=int1_row: .* or sign, of one bit",
    "adapter.precision=nvfp4_tile": "adapter.precision=nvfp4_tile: tiles do not suit",
    "adapter.target_modules=[mlp.dow]": "adapter.target_modules=mlp.dow: no layer's name ends so; "
    "there are qkv, out, gate_up, down",
    "optim.weights=bf16": "optim.weights=bf16: .*frozen with adapter.name=lora",
    "optim.state=bf16": "optim.state=bf16: .*frozen with adapter.name=lora",
}


@pytest.mark.parametrize("override", REFUSED)
def test_what_cannot_be_done_is_refused_in_one_line(tuned: Compose, override: str) -> None:
    with pytest.raises(Exception, match=f"^{REFUSED[override]}") as error:
        tuned(*LORA, "recipe=none", override)
    assert "\n" not in str(error.value)


def test_an_adapter_beside_weights_that_were_only_drawn_is_refused(small: Compose) -> None:
    with pytest.raises(Exception, match="^adapter.name=lora: needs trained weights beside it"):
        small(*LORA)
    with pytest.raises(Exception, match="^adapter.name=lora: needs trained weights beside it"):
        small(*LLAMA, *LORA)


OF_OTHERS = {
    ("paca", "adapter.r=33"): "adapter.r=33: must be at most 32, the columns that there are",
    ("paca", "adapter.init=error"): "adapter.init=error: paca is in the weight",
    ("shira", "adapter.precision=sign"): "adapter.precision=sign: has no effect on shira",
    ("qwha", "adapter.lora_alpha=2"): "adapter.lora_alpha=2.0: has no effect on qwha",
    ("shira", "ptq.formats=[mxfp4]"): "ptq.formats=mxfp4: would round the base without what",
    ("lora", "recipe=hadamard"): "adapter.init=error: recipe.output.hadamard=.* use zero",
}


@pytest.mark.parametrize(("kind", "override"), OF_OTHERS)
def test_what_an_adapter_does_not_have_is_refused(tuned: Compose, kind: str, override: str) -> None:
    more = ["adapter.init=error", "precision=mxfp4"] if "hadamard" in override else ["recipe=none"]
    with pytest.raises(ConfigError, match=f"^{OF_OTHERS[kind, override]}") as error:
        tuned(f"adapter={kind}", *more, override)
    assert "\n" not in str(error.value)


def test_experts_stored_as_one_tensor_cannot_have_one(tuned: Compose) -> None:
    config = tuned(*LORA, "recipe=none")
    kind = [word.replace("llama", "mixtral") for word in LLAMA]
    config.model = configure(*kind, "model.config.num_local_experts=2", "recipe=none").model
    check(config)
    config.adapter.target_modules = ["gate_up_proj"]
    with pytest.raises(ConfigError, match="^adapter.target_modules=gate_up_proj: .*no nn.Linear"):
        check(config)
