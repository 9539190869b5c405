"""Somebody else's model in a run: its sizes, its weights, its noise, and what is refused."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import lowbit
from experiments.accounting import count_parameters, flops_per_token
from experiments.config.precision import ConfigError
from experiments.config.schema import TrainConfig
from experiments.export.folder import export
from experiments.export.load import ExportError
from experiments.models import source
from experiments.models.build import build, shape_of
from experiments.models.config import ModelConfig
from experiments.models.foreign import ForeignModel
from experiments.quant.formats import FloatFormat, Precision
from experiments.quant.linear import QuantizedGemms
from experiments.quant.recipe import OperandConfig, RecipeConfig
from experiments.run.identity import run_id
from experiments.sweep.plan import make_plan
from experiments.train import train
from fitting.results.record import read_record
from fitting.results.table import table_of
from fitting.seeds.cells import cell_keys
from tests.support.configured_runs import record
from tests.support.small_runs import SMALL, Stop, rows
from tests.support.tiny_models import one

transformers = pytest.importorskip("transformers", reason="needs the extra hf")
Compose = Callable[..., TrainConfig]
LLAMA = {
    "model_type": "llama", "hidden_size": 32, "intermediate_size": 80, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 256,
}  # fmt: skip
MODELS = {
    "llama": LLAMA,
    "qwen3": {**LLAMA, "model_type": "qwen3", "head_dim": 8, "tie_word_embeddings": True},
    "gpt2": {
        "model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 2, "vocab_size": 256,
        "n_positions": 64,
    },
    "mixtral": {
        **LLAMA, "model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2,
    },
    "neox": {
        "model_type": "gpt_neox", "hidden_size": 32, "intermediate_size": 64, "vocab_size": 256,
        "num_hidden_layers": 2, "num_attention_heads": 2,
    },
}  # fmt: skip
ONE = "tests.support.tiny_models:one"
FP4 = Precision(FloatFormat(2, 1))


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    """A configuration of Hugging Face, as a file."""
    path = tmp_path / "tiny.json"
    path.write_text(json.dumps(LLAMA))
    return path


@pytest.fixture
def run(composed: Compose, text: Path) -> Compose:
    """A run of 24 steps of a model of Hugging Face."""
    small = [word for word in SMALL if not word.startswith("model=")]
    return lambda *more: composed("model=hf", *small, f"data.path={text}", *more)


def bare(kind: str, seed: int) -> nn.Module:
    """The model as transformers makes it from torch's generator, in training mode."""
    torch.manual_seed(seed)
    values = {k: v for k, v in MODELS[kind].items() if k != "model_type"}
    made = transformers.AutoConfig.for_model(MODELS[kind]["model_type"], **values)
    model: nn.Module = transformers.AutoModelForCausalLM.from_config(made)
    return model.train()


def gradient(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


def ours(kind: str, recipe: RecipeConfig | None = None, seed: int = 0) -> ForeignModel:
    made = build(ModelConfig(name=kind, config=MODELS[kind]), recipe or RecipeConfig(), FP4, seed)
    assert isinstance(made, ForeignModel)
    return made


@pytest.mark.parametrize("kind", MODELS)
def test_sizes_and_flops_are_those_of_the_model(kind: str) -> None:
    config, length = ModelConfig(name=kind, config=MODELS[kind]), 48
    module, count = bare(kind, 0), count_parameters(config)
    assert count.total == sum(p.numel() for p in module.parameters())
    assert count.head == count.embedding - (64 * 32 if kind == "gpt2" else 0) == 256 * 32
    kinds = ("Linear", "Conv1D", "MixtralExperts")
    names = [n for n, m in module.named_modules() if type(m).__name__ in kinds]
    shape = shape_of(config)
    assert shape.layers() == [n for n in names if "lm_head" not in n and "embed_out" not in n]
    held = [p for n, p in module.named_parameters() if n.startswith(tuple(shape.layers()))]
    assert count.block == sum(p.numel() for p in held if p.ndim > 1)
    assert (shape.blocks, shape.vocab_size) == (2, 256)
    if kind == "mixtral":  # grouped products are not counted by torch
        module.set_experts_implementation("eager")  # type: ignore[operator]
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        tokens = torch.zeros(1, length, dtype=torch.int64)
        torch.autograd.backward(module(tokens, use_cache=False).logits.sum())
    assert flops_per_token(config, length) * length == counter.get_total_flops()


@pytest.mark.parametrize("kind", ["llama", "qwen3", "neox", "mixtral"])
def test_without_a_recipe_it_is_the_model_bit_for_bit(kind: str) -> None:
    model, reference = ours(kind, seed=3), bare(kind, 3)
    tokens = torch.randint(0, 256, (2, 33))
    logits, right = model(tokens), reference(tokens, use_cache=False).logits
    assert torch.equal(logits, right)
    for output in (logits, right):
        torch.autograd.backward(output.square().mean())
    for (name, own), other in zip(
        model.module.named_parameters(), reference.parameters(), strict=True
    ):
        assert torch.equal(gradient(own), gradient(other)), name


def test_weights_follow_the_seed_and_leave_torchs_generator_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, same, other = (ours("llama", seed=seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not torch.equal(first["module.lm_head.weight"], other["module.lm_head.weight"])
    again = ours("llama", seed=1)
    again.initialize(2)
    assert all(torch.equal(value, other[name]) for name, value in again.state_dict().items())


def test_dropout_is_a_function_of_the_step() -> None:
    model, batch = ours("gpt2"), torch.randint(0, 256, (2, 33))
    losses = []
    for counter in (7, 7, 8):
        model.clock.counter = counter
        losses.append(model.loss(batch).item())
    assert losses[0] == losses[1] != losses[2]
    model.eval()
    model.clock.counter = 9
    assert model.loss(batch).item() == ours("gpt2").eval().loss(batch).item()


def test_a_recipe_keeps_blocks_and_layers_by_their_names() -> None:
    recipe = RecipeConfig(keep_last=1, keep=["q_proj"])
    recipe.output.weight = recipe.output.input = OperandConfig()
    assert list(shape_of(ModelConfig(config=LLAMA)).quantized(recipe)) == [
        f"model.layers.0.{part}_proj"
        for part in ("self_attn.k", "self_attn.v", "self_attn.o", "mlp.gate", "mlp.up", "mlp.down")
    ]


def test_a_sweep_says_what_it_trains(run: Compose, llama: Path) -> None:
    config = run(f"model.source={llama}", "model.config.hidden_size=48", "precision=nvfp4")
    assert config.model.name == "tiny-hidden_size48"
    result = train(config)
    record = result.record
    assert (record.status, record.model) == ("finished", "tiny-hidden_size48")
    shape = shape_of(config.model)
    assert record.params == record.params_quantized == shape.parameters.block
    assert record.config["model"]["config"] == {"hidden_size": 48}
    assert record.provenance["versions"]["transformers"] == transformers.__version__
    assert result.module is not None
    layers = result.module.model.quantizable()
    assert [name.removeprefix("module.") for name in layers] == list(shape.matrices)
    assert all(isinstance(m, QuantizedGemms) and not m.kept for m in layers.values())
    assert (record.loss or 9.0) < 5.0


def test_a_run_with_dropout_stopped_and_resumed_gives_the_same_bits(
    run: Compose, tmp_path: Path
) -> None:
    words = [f"model.config.{k}={v}" for k, v in MODELS["gpt2"].items()]
    words += ["recipe=quartet_v4", "precision=mxfp4"]
    undisturbed = train(run(*words, f"runs={tmp_path / 'undisturbed'}"))
    for step in (8, 16):
        with pytest.raises(KeyboardInterrupt):
            train(run(*words), Stop(step))
    resumed = train(run(*words))
    assert resumed.record.attempts == 3
    assert resumed.record.weights_sha256 == undisturbed.record.weights_sha256
    assert rows(resumed.folder) == rows(undisturbed.folder)
    assert read_record(resumed.folder) == resumed.record


def test_experts_are_counted_quantized_and_watched(run: Compose) -> None:
    words = [f"model.config.{k}={v}" for k, v in MODELS["mixtral"].items()]
    words += ["precision=mxfp4", "diagnostics.apart=8", "diagnostics.points=2"]
    record = train(run(*words)).record
    experts = 2 * 4 * 3 * 32 * 80
    assert record.params == record.params_quantized == experts + 2 * 3072
    watched = record.diagnostics["P2"]["qsnr"]
    assert watched["worst"] <= watched["mean"]
    assert record.diagnostics["gradient"]["end"]["cosine"] > 0.5


def test_the_address_is_that_of_the_content_not_of_the_place(run: Compose, llama: Path) -> None:
    moved = llama.parent / "elsewhere" / "other.json"
    moved.parent.mkdir()
    shutil.copy(llama, moved)
    place = "model.name=same"

    def address(path: Path, *more: str) -> str:
        return run_id(run(f"model.source={path}", place, *more))

    first = address(llama)
    assert address(moved) == first
    assert address(llama, "model.config.hidden_size=48") != first
    assert address(llama, "model.config.hidden_size=32") != first  # another request, as typed
    moved.write_text(json.dumps({**LLAMA, "rope_theta": 500.0}))
    assert address(moved) != first


def test_two_sources_of_one_name_are_two_cells(run: Compose, llama: Path) -> None:
    other = llama.parent / "elsewhere" / llama.name
    other.parent.mkdir()
    other.write_text(json.dumps({**LLAMA, "rope_theta": 500.0}))
    runs = [
        run(f"model.source={path}", f"seed={seed}") for path in (llama, other) for seed in (0, 1)
    ]
    table = table_of([record(each, 3.0 + each.seed / 10) for each in runs])
    assert table["model"].unique().tolist() == ["tiny"]
    assert table.groupby(cell_keys(table), dropna=False).size().tolist() == [2, 2]


def test_a_source_that_changed_after_the_plan_is_refused(llama: Path) -> None:
    planned = source.resolved(ModelConfig(name="", source=str(llama)))
    llama.write_text(json.dumps({**LLAMA, "hidden_size": 64}))
    with pytest.raises(source.ModelError, match="was changed after the sweep was planned"):
        source.resolved(planned)


def test_a_folder_gives_its_weights(run: Compose, tmp_path: Path) -> None:
    trained = bare("llama", 11)
    trained.save_pretrained(tmp_path / "mine")
    config = run(f"model.source={tmp_path / 'mine'}", "recipe=none", "seed=4")
    made = build(config.model, config.recipe, config.precision.build(), config.seed)
    assert config.model.name == "mine"
    for name, value in trained.state_dict().items():
        assert torch.equal(made.state_dict()[f"module.{name}"], value), name


def test_trained_weights_are_loaded_and_exported(run: Compose, llama: Path, tmp_path: Path) -> None:
    result = train(run(f"model.source={llama}", "recipe=quartet_v4", "precision=mxfp4"))
    model = lowbit.load(result.folder)
    assert result.module is not None
    tokens = torch.randint(0, 256, (2, 33))
    model.clock.quantizing = False
    export(result.folder, "hf", tmp_path / "out")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(again(tokens, use_cache=False).logits, model(tokens))
    text = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert text.encode("in few bits") == list(b"in few bits")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "tiny: tiny.json {} of transformers" in card
    assert "as the model that was trained, without" in card


def test_no_record_runs_a_factory(composed: Compose, text: Path) -> None:
    small = [word for word in SMALL if not word.startswith("model=")]
    words = ["model=module", "model.factory=tests.support.tiny_models:one", "recipe=none"]
    folder = train(composed(*words, *small, f"data.path={text}")).folder
    with pytest.raises(ExportError, match="call that yourself"):
        lowbit.load(folder)


def test_a_run_whose_source_is_gone_says_so(run: Compose, llama: Path) -> None:
    folder = train(run(f"model.source={llama}", "recipe=none")).folder
    llama.rename(llama.with_name("moved.json"))
    with pytest.raises(ExportError, match="tiny.json: no such file or folder.*; put it back there"):
        lowbit.load(folder)


class Sees(nn.Module):
    """Every position sees the mean of all."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(256, 32), nn.Linear(32, 256)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        return self.head(x + x.mean(1, keepdim=True))  # type: ignore[no-any-return]


def test_models_that_see_what_they_predict_are_refused() -> None:
    """An encoder of Hugging Face trains without complaint, and so does a module that averages."""
    bert = {"model_type": "bert", "hidden_size": 32, "num_hidden_layers": 1, "vocab_size": 256}
    bert |= {"num_attention_heads": 2, "intermediate_size": 64}
    with pytest.raises(source.ModelError, match="sees the tokens that it is to predict"):
        build(ModelConfig(name="bert", config=bert), RecipeConfig(), FP4, 0)
    build(ModelConfig(name="bert", config={**bert, "is_decoder": True}), RecipeConfig(), FP4, 0)
    with pytest.raises(source.ModelError, match="sees the tokens that it is to predict"):
        build(ModelConfig(name="m", factory=f"{__name__}:Sees"), RecipeConfig(), FP4, 0)


def test_a_vocabulary_too_small_for_the_tokens_is_refused() -> None:
    config = ModelConfig(name="m", factory=ONE, config={"vocab": 100})
    with pytest.raises(source.ModelError, match="on tokens from 0 to 255 it raises IndexError"):
        build(config, RecipeConfig(), FP4, 0)


def drawn() -> nn.Module:
    made = nn.Embedding(256, 32)
    with torch.no_grad():
        made.weight += random.random() + np.random.rand()
    return made


def test_other_generators_follow_the_seed_too() -> None:
    config = ModelConfig(name="m", factory=f"{__name__}:drawn")
    first, same, other = (source.make(config, seed).state_dict()["weight"] for seed in (1, 1, 2))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


class Last(Sees):
    def forward(self, tokens: Tensor) -> Tensor:
        return super().forward(tokens)[:, -1]


def test_costs_ask_for_logits_and_for_positions(run: Compose) -> None:
    gpt2 = [f"model.config.{k}={v}" for k, v in (MODELS["gpt2"] | {"n_positions": 32}).items()]
    with pytest.raises(source.ModelError, match="data.seq_len=64: .* has a table of 32 positions"):
        make_plan([run(*gpt2)])
    shapeless = ModelConfig(name="m", factory=f"{__name__}:Last")
    with pytest.raises(source.ModelError, match=r"returns \[1, 256\] .* must be logits"):
        flops_per_token(shapeless, 8)


def half() -> nn.Module:
    return one().half()


def no_module() -> Any:
    return "a model"


def without_matrices() -> nn.Module:
    return nn.Embedding(256, 256)


def test_a_module_of_ones_own_is_trained(composed: Compose, text: Path) -> None:
    small = [word for word in SMALL if not word.startswith("model=")]
    words = ["model=module", "model.factory=tests.support.tiny_models:one", "model.config.width=64"]
    result = train(composed(*words, *small, f"data.path={text}", "precision=mxfp4"))
    assert result.record.model == "one-width64"
    assert result.record.params == 64 * 64 + 64 * 256
    assert (result.record.loss or 9.0) < 5.545


WRONG = {
    "": "model.source=: give a folder or a config.json of Hugging Face",
    "model.source=/no/such": "model.source=/no/such: no such file or folder",
    "model.config.model_type=lllama": "model.config.model_type=lllama: transformers has no such "
    "model; did you mean llama?",
    "model.config.model_type=llama model.config.hiden_size=3": "model.config.hiden_size=3: llama "
    "has no such key; did you mean hidden_size?",
    "model.config.model_type=llama model.hidden=3": "model.hidden=3: has no effect on a model of "
    "Hugging Face",
    "model.config.model_type=llama model.config.hidden_size=wide": "model.config=",
    "model.config.model_type=t5": "model.config={'model_type': 't5'}: ValueError: ",
    "model.source={empty}": "has no config.json, so it is no model's folder",
    "model.source={bare}": "has no *.safetensors to start from; to draw the weights, give",
    "model.source={text}": "is not JSON",
    "model.factory=nowhere:build": "model.factory=nowhere:build: No module named 'nowhere'",
    "model.factory={here}:nothing": "has no attribute 'nothing'",
    "model.factory={one} model.config.depth=3": "with {'depth': 3} it raised TypeError: one() got "
    "an unexpected keyword argument 'depth'",
    "model.factory={here}": "must be package.module:function",
    "model.factory=torch:zeros": "has no file that says what it is",
    "model.factory={here}:half": "its 0.weight is torch.float16",
    "model.factory={here}:no_module": "returned str, no torch.nn.Module",
    "model.factory={here}:without_matrices": "has no linear layer and no convolution to quantize",
    "model.factory={one} recipe=nvidia_nvfp4": "the model has no numbered blocks",
    "model.factory={one} model.source=x": "model.source=x is another model",
    "model.source={llama} recipe.keep=[attn]": "recipe.keep=attn: no such layer; there are "
    "model.layers.0.self_attn.q_proj",
    "model.config.model_type=gpt2 ptq.formats=[mxfp4]": "ptq.formats=['mxfp4']: is there for "
    "nn.Linear alone, and the model's transformer.h.0.attn.c_attn is another layer",
}


@pytest.mark.parametrize("words", WRONG)
def test_what_cannot_be_done_is_refused_in_one_line(
    run: Compose, llama: Path, tmp_path: Path, words: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "bare").mkdir()
    shutil.copy(llama, tmp_path / "bare" / "config.json")
    (tmp_path / "text.json").write_text("hidden_size: 3")
    places = {name: tmp_path / name for name in ("empty", "bare")}
    filled = words.format(
        here=__name__, one=ONE, llama=llama, text=tmp_path / "text.json", **places
    )
    with pytest.raises(ConfigError) as error:
        run(*filled.split())
    assert WRONG[words] in str(error.value)
    assert "\n" not in str(error.value)


def test_weights_that_do_not_suit_their_configuration_are_refused(tmp_path: Path) -> None:
    bare("llama", 1).save_pretrained(tmp_path / "mine")
    for change, what in (
        ({"num_hidden_layers": 3}, "missing keys"),
        ({"num_hidden_layers": 1}, "un"),
    ):
        config = source.resolved(ModelConfig(name="", source=str(tmp_path / "mine"), config=change))
        with pytest.raises(source.ModelError, match=f"do not suit its configuration: {what}"):
            build(config, RecipeConfig(), FP4, 0)


def test_the_built_in_model_takes_no_keys_of_others(composed: Compose) -> None:
    with pytest.raises(ConfigError, match="belongs to model=hf or model=module"):
        composed("model=ladder/a", "model.config.hidden_size=3")
