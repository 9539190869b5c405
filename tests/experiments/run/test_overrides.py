"""`recipe.overrides` and `recipe.attention` in runs: what is done, hashed, shown, refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import lowbit
from experiments.accounting import training_bytes
from experiments.config.precision import ConfigError
from experiments.config.read import from_dict
from experiments.config.schema import TrainConfig
from experiments.engine import QuantEmbedding
from experiments.export.load import load
from experiments.models.build import build, shape_of
from experiments.models.next_token import NextToken
from experiments.quant.block import quantize
from experiments.quant.formats import Precision
from experiments.quant.linear import QuantizedGemms
from experiments.quant.recipe import SLOTS
from experiments.run.identity import run_id
from experiments.run.layers import layers_of
from experiments.run.record import design
from experiments.train import train
from fitting.results.swept import science, swept
from fitting.results.table import table_of
from tests.support.small_runs import SMALL, Stop, rows

Compose = Callable[..., TrainConfig]
FOUR = [f"recipe.attention.{label}={{}}" for label in ("query", "key", "probabilities", "value")]
MIXED = [
    "recipe=nearest",
    "precision=mxfp4",
    r"recipe.overrides={re\:.*down.*: [sun,nvfp4], blocks.1.attention.out: null, head: nearest}",
]


def built(config: TrainConfig) -> NextToken:
    return build(config.model, config.recipe, config.precision.build(), config.seed)


def formats(model: nn.Module) -> dict[str, tuple[str, ...]]:
    return {e.name: e.operands for e in lowbit.report(model).layers if e.operands}


# --- which layers ------------------------------------------------------------------------------


def test_a_name_goes_before_a_pattern_before_the_default_before_the_run(composed: Compose) -> None:
    words = ["recipe=nearest", "precision=mxfp4", "model=ladder/a"]
    overrides = r"{re\:.*down: [nearest,nvfp4], re\:.*: [nearest,int8_row]}"
    words += [f"recipe.overrides={overrides}", "recipe.overrides.blocks.1.mlp.down=quartet_v4"]
    found = {name: each[0] for name, each in formats(built(composed(*words))).items()}
    assert found["blocks.0.mlp.down"] == "E2M1-block16-e4m3"
    assert found["blocks.1.mlp.down"] == "E2M1-block32-quest"
    assert found["blocks.0.mlp.gate_up"] == found["head"] == "INT8-row-fp32"
    default = composed(*words[:3], "recipe.overrides={_default: sun, blocks.0.mlp.down: null}")
    said = formats(built(default))
    assert set(said) == {n for n in shape_of(default.model).layers() if n != "blocks.0.mlp.down"}
    assert {each[:2] for each in said.values()} == {("", "E2M1-block32-e8m0")}


def test_an_override_goes_before_what_the_recipe_keeps_and_brings_what_its_own_keeps(
    composed: Compose,
) -> None:
    kept = ["recipe=nearest", "precision=mxfp4", "recipe.keep=[mlp]", "recipe.keep_first=1"]
    config = composed(*kept, "recipe.overrides.blocks.0.mlp.down=sun")
    assert set(formats(built(config))) == {
        "blocks.0.mlp.down", "blocks.1.attention.qkv", "blocks.1.attention.out",
    }  # fmt: skip
    last = composed(*kept[:2], r"recipe.overrides={re\:.*down: nvidia_nvfp4}")
    said = {e.name: e.said for e in layers_of(last).layers}
    assert said["blocks.1.mlp.down"] == "recipe.keep"
    assert said["blocks.0.mlp.down"].startswith("P1 E2M1-block16-e4m3 P2 E2M1-tile16-e4m3")


@pytest.mark.parametrize("words", [MIXED, [*MIXED, *FOUR], ["recipe=nearest", *FOUR]])
@pytest.mark.parametrize("model", ["ladder/a", "llama"])
def test_plans_say_what_the_model_does(composed: Compose, words: list[str], model: str) -> None:
    words = [f"model={model}", "model.tied=false", *words]
    if model == "llama":
        pytest.importorskip("transformers", reason="needs the extra hf")
        words = ["model=hf", *words[2:]]
        words = [
            w.replace("blocks.1.attention.out", "model.layers.1.self_attn.o_proj") for w in words
        ]
        words = [w.replace("head: nearest", "lm_head: nearest") for w in words]
        shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
        shape |= {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 256}
        words += ["model.config.model_type=llama"]
        words += [f"model.config.{key}={value}" for key, value in shape.items()]
    config = composed(*words)
    said = [e for e in layers_of(config).layers if not e.why]
    does = [e for e in lowbit.report(built(config)).layers if e.operands]
    assert sum(e.params for e in said) == sum(e.params for e in does)
    assert {e.operands for e in said} == {e.operands for e in does}
    heads = [e for e in does if e.labels != tuple(SLOTS)]
    assert len(heads) == (2 if FOUR[0] in words else 0)
    known = design(config, 10)
    assert known["params_quantized"] == sum(e.params for e in does if e.labels == tuple(SLOTS))


def test_a_foreign_models_head_router_and_embedding_are_quantized_by_name(
    composed: Compose,
) -> None:
    pytest.importorskip("transformers", reason="needs the extra hf")
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 256}
    shape |= {"num_attention_heads": 2, "num_key_value_heads": 2, "num_local_experts": 4}
    words = ["model=hf", "model.config.model_type=mixtral", "model.config.tie_word_embeddings=true"]
    words += [f"model.config.{key}={value}" for key, value in shape.items()]
    names = "{lm_head: nearest, model.embed_tokens: [nearest,int4_row]}"
    config = composed(*words, "recipe=nearest", "precision=mxfp4", f"recipe.overrides={names}")
    model = built(config)
    made = formats(model)
    assert made["module.model.embed_tokens"] == ("", "INT4-row-fp32", "", "", "", "")
    assert made["module.lm_head"] == ("E2M1-block32-e8m0",) * 6
    head, table = (model.get_submodule(f"module.{n}") for n in ("lm_head", "model.embed_tokens"))
    assert head.weight is table.weight
    said = {e.name: e.said for e in layers_of(config).layers}
    assert said["model.embed_tokens"] == "P2 INT4-row-fp32"


# --- identity ----------------------------------------------------------------------------------


def test_a_run_is_known_by_what_its_overrides_do(composed: Compose, tmp_path: Path) -> None:
    (tmp_path / "own" / "recipe").mkdir(parents=True)
    own = tmp_path / "own" / "recipe" / "mine.yaml"
    own.write_text("defaults: [sun, _self_]\n")
    at = "recipe.overrides.blocks.0.mlp.down"
    words = ["recipe=nearest", "precision=mxfp4"]

    def known(*more: str) -> str:
        return run_id(lowbit.configure(*words, *more, folder=tmp_path / "own"))

    plain, sun = known(), known(f"{at}=sun")
    assert known(f"{at}=mine") == sun  # another name for the same
    assert len({plain, sun, known(f"{at}=null"), known(f"{at}=[sun,nvfp4]")}) == 4
    own.write_text("defaults: [sun, _self_]\noutput: {weight: {rounding: stochastic}}\n")
    assert known(f"{at}=mine") not in (plain, sun)
    every = ["recipe.overrides={re\\:.*: [sun,nvfp4]}", "recipe=sun", "recipe.name=x"]
    # The run's precision has no effect where every override has its own... but the run's recipe
    # uses it; with one that does not, it has none.
    ones = [known(*every, "recipe.output.weight.precision=mxfp4",
            "recipe.grad_input.weight.precision=mxfp4", "recipe.grad_weight.input.precision=mxfp4",
            f"precision={p}") for p in ("mxfp4", "int8_row")]  # fmt: skip
    assert ones[0].rpartition("-")[2] == ones[1].rpartition("-")[2]


def test_a_configuration_travels_without_the_recipes_files(
    composed: Compose, tmp_path: Path
) -> None:
    (tmp_path / "own" / "recipe").mkdir(parents=True)
    (tmp_path / "own" / "recipe" / "mine.yaml").write_text("defaults: [sun, _self_]\nkeep: [mlp]\n")
    words = ["recipe.overrides.blocks.0.attention.out=[mine,nvfp4]", *MIXED]
    config = lowbit.configure(*words, folder=tmp_path / "own")
    again = from_dict(json.loads(json.dumps(asdict(config))))
    assert again == config
    assert run_id(again) == run_id(config)
    assert again.recipe.overrides["blocks.0.attention.out"].recipe.name == "mine"


def test_what_was_swept_is_a_column(composed: Compose) -> None:
    configs = [composed("recipe=nearest", *more) for more in ([], ["recipe.overrides.head=sun"])]
    values = [asdict(config) for config in configs]
    found = swept(values, {"recipe": ["nearest"] * 2, "operands": ["P1"] * 2})
    assert set(found) == {"recipe.overrides"}
    assert found["recipe.overrides"][0] is None
    older = dict(values[0], recipe={k: v for k, v in values[0]["recipe"].items()
                                    if k not in ("overrides", "attention")})  # fmt: skip
    assert science(older) == {k: v for k, v in science(values[0]).items() if "attention" not in k}


# --- runs --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [[*MIXED, *FOUR], ["recipe=none", "recipe.name=cache", *FOUR[1::2]]],
    ids=["mixed", "cache alone"],
)
def test_a_run_stopped_and_resumed_gives_the_same_bits(
    composed: Compose, text: Path, tmp_path: Path, words: list[str]
) -> None:
    words = [*SMALL, f"data.path={text}", *words, "recipe.attention.key.rounding=stochastic"]
    undisturbed = train(composed(*words, f"runs={tmp_path / 'undisturbed'}"))
    with pytest.raises(KeyboardInterrupt):
        train(composed(*words), Stop(9))
    resumed = train(composed(*words, "keep=last"))
    assert resumed.record.attempts == 2
    assert resumed.record.weights_sha256 == undisturbed.record.weights_sha256
    assert rows(resumed.folder) == rows(undisturbed.folder)
    record = resumed.record
    table_of([record])
    layers = record.provenance["layers"]
    if "recipe.name=cache" in words:
        assert (record.operands, record.bits, record.params_quantized) == ("key value", 32, 0)
        assert layers["blocks.[0-1].mlp.down"] == "recipe none"
        assert layers["blocks.[0-1].attention.products"].startswith("key E2M1")
    else:
        assert record.operands == "P1 P2 P3 P4 P5 P6 query key probabilities value"
        assert layers["blocks.1.attention.out"] == "override blocks.1.attention.out"
        assert (
            layers["blocks.[0-1].mlp.down"]
            == "P2 E2M1-block16-e4m3 P4 E2M1-block16-e4m3 P6 E2M1-block16-e4m3"
        )
    assert formats(load(resumed.folder)) == formats(built(composed(*words)))


def test_columns_of_mixed_layers_are_means_over_them(composed: Compose) -> None:
    """By hand: MXFP4 has 4.25 bits, NVFP4 4.5 and 32 of a tensor; errors weigh layers alike."""
    config = composed(
        "model=ladder/a", *MIXED[:2], "recipe.overrides.blocks.0.mlp.down=[sun,nvfp4]"
    )
    every, one = (
        design(config, 10),
        design(composed("model=ladder/a", "recipe=sun", "precision=nvfp4"), 10),
    )
    plain = design(composed("model=ladder/a", *MIXED[:2]), 10)
    assert every["err_weight"] == pytest.approx(
        (7 * plain["err_weight"] + one["err_weight"]) / 8, rel=1e-4
    )
    assert every["err_input"] == pytest.approx(7 / 8 * plain["err_input"])
    assert every["params_quantized"] == plain["params_quantized"]
    elements = bits = 0.0
    for name, matrix in shape_of(config.model).matrices.items():
        into, out, n = matrix.in_features, matrix.out_features, config.rows
        sizes = [n * into, out * into, n * out, into * out, out * n, into * n]
        if name == "blocks.0.mlp.down":
            sizes = sizes[1::2]
            bits += sum(size * 4.5 + 32 for size in sizes)
        else:
            bits += sum(size * 4.25 for size in sizes)
        elements += sum(sizes)
    assert every["bits_with_scales"] == pytest.approx(bits / elements)
    assert (every["exponent"], every["mantissa"], every["scale"]) == (2, 1, "e8m0")


def test_planned_memory_of_written_out_attention_is_an_upper_bound(composed: Compose) -> None:
    """All scores are there at once: long sequences, many heads, small layers."""
    from tests.support.memory import peak_bytes

    for more in ([], ["recipe.attention.query.gradient=masked"]):
        config = composed(
            *("recipe=none", "recipe.name=a", "precision=mxfp4", "tokens=4096", *FOUR, *more),
            *("data.seq_len=512", "batch_size=2", "model.heads=8", "model.layers=3"),
            *("model.hidden=128", "model.ffn=128"),
        )
        planned = training_bytes(config.model, config.rows, config.recipe, config.data.seq_len)
        measured = peak_bytes(config)
        assert measured <= planned < 4 * measured


# --- what is refused ---------------------------------------------------------------------------


AT = "recipe.overrides.blocks.0.mlp.down"


@pytest.mark.parametrize(
    ("word", "said"),
    [
        (f"{AT}=sunn", r"overrides\[blocks.0.mlp.down\]=sunn: no such recipe; there are: dge "),
        (f"{AT}=[sun,mxpf4]", "did you mean mxfp4"),
        (f"{AT}=3", r"must be a recipe's name, \[recipe, precision\] or null"),
        (f"{AT}=fixed_adaptive", "high_precision_share and word_length are those of the run's"),
        (f"{AT}=[quartet2,mxfp4]", ""),
        ("recipe.overrides.blocks.9.mlp.down=null", "meets no layer; there are blocks.0.att"),
        (r"recipe.overrides={re\:.*donw: null}", r"\[re:.*donw\]: meets no layer"),
        (r"recipe.overrides={re\:.*\(: null}", "is no pattern"),
        ("recipe.overrides={re:.*down: null}", "its colon must be escaped"),
        ("recipe.overrides.re:.*down=null", "a pattern cannot be typed as a key; write it"),
        ("recipe.overrides=null", "must be names of layers and recipes"),
        ("recipe.overrides={_default: null}", "and recipe.overrides: .* no layer is left"),
        (f"{AT}=[sun,E2M1-block48-fp32]", r"blocks.0.mlp.down\]: precision.block_size=48: must"),
        ("recipe.attention.key.rounding=ms_eden", "is for operands of linear layers"),
        ("recipe.attention.key.forward=true", "have no other forward product"),
        ("recipe.attention.key.rounding=none", "there is no product to take it over from"),
        ("recipe.attention.value_along=tokens", "must be one of head_dim, keys"),
        ("recipe.attention.kay={}", "no such key; did you mean recipe.attention.key"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_a_line(composed: Compose, word: str, said: str) -> None:
    if not said:  # its recipe has formats of its own
        composed("recipe=nearest", word)
        return
    with pytest.raises(ConfigError, match=said) as caught:
        composed("recipe=nearest", word)
    assert len(str(caught.value).splitlines()) == (3 if "48" in word else 1)


@pytest.mark.parametrize("word", ["recipe.attention.key={}", "recipe.overrides.head=nearest"])
def test_a_run_that_quantizes_is_not_called_none(composed: Compose, word: str) -> None:
    with pytest.raises(ConfigError, match="recipe.name=none: is that of runs without quantization"):
        composed("recipe=none", word)
    assert composed("recipe=none", word, "recipe.name=other").recipe.name == "other"


@pytest.mark.parametrize(
    "words", [["ptq.formats=[mxfp4]"], ["optim.weights=bf16"], ["optim.state=bf16"]]
)
def test_settings_for_the_usual_layers_refuse_others(composed: Compose, words: list[str]) -> None:
    with pytest.raises(ConfigError, match="leave head out of recipe.overrides"):
        composed("recipe=nearest", "recipe.overrides.head=nearest", *words)


def test_a_models_attention_that_cannot_be_reached_is_refused(composed: Compose) -> None:
    words = ["model=module", "recipe=nearest", "recipe.attention.key={}"]
    with pytest.raises(ConfigError, match="attention.key: the model has no attention that can be"):
        composed(*words, "model.factory=tests.support.tiny_models:one")
    with pytest.raises(ConfigError, match="attention.key: 1.attend cannot be quantized: Fused"):
        composed(*words, "model.factory=tests.support.tiny_models:fused")
    composed(*words, "model.factory=tests.support.tiny_models:fused", "recipe.keep=[1.attend]")
    reached = composed(*words, "model.factory=tests.support.tiny_models:reached")
    assert [e.said for e in layers_of(reached).layers if e.labels != tuple(SLOTS)] == [
        "key E2M1-block32-fp32"
    ]


# --- the embedding -----------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["mxfp4", "nvfp4", "int4_row", "fp8_e4m3", "nvfp4_tile"])
def test_an_embedding_gives_the_rows_of_its_rounded_table(precision: str) -> None:
    """With 40 columns, which no block divides; a padding row has no gradient."""
    torch.manual_seed(0)
    table = nn.Embedding(50, 40, padding_idx=3)
    before = table.weight.detach().clone()
    ids = torch.tensor([[3, 7, 7], [49, 0, 1]])
    lowbit.quantize_(table, "nearest", precision, filter_fn=lambda layer, name: True)
    assert isinstance(table, QuantEmbedding)
    to = Precision.parse(precision)
    filled = nn.functional.pad(before, (0, -40 % to.divisor, 0, -50 % (to.tile or 1)))
    expected = quantize(filled, to)[:50, :40][ids]
    assert torch.equal(table(ids), expected)
    table(ids).sum().backward()
    found: Tensor | None = table.weight.grad
    counts = torch.zeros(50)
    counts[[49, 0, 1]], counts[7] = 1.0, 2.0
    assert found is not None
    assert torch.equal(found, counts[:, None].expand(50, 40))


def test_an_embedding_that_is_quantized_is_no_head() -> None:
    """It is left alone by default, also after it was asked for; a tied head is a product."""
    model = nn.Sequential(nn.Embedding(64, 32), nn.Linear(32, 32), nn.Linear(32, 64, bias=False))
    head, table = model[2], model[0]
    head.weight = table.weight
    for _ in range(2):
        lowbit.quantize_(model, "nearest", "mxfp4")
        assert set(formats(model)) == {"1"}
        lowbit.quantize_(model, "nearest", "mxfp4", overrides={"0": "sun"})
        assert formats(model)["0"] == ("", "E2M1-block32-e8m0", "", "", "", "")
        assert set(formats(model)) == {"0", "1"}
    lowbit.quantize_(model, "nearest", "mxfp4", overrides={"2": "nearest"})
    assert set(formats(model)) == {"1", "2"}
    ids = torch.arange(64)[None]
    assert torch.equal(table(ids)[0], table.weight)
    clock, seen = lowbit.NoiseClock(0), []
    clock.watch = lambda layer, label, given, ready: seen.append((layer.layer, label))
    lowbit.quantize_(model, "nearest", "mxfp4", overrides={"2": "nearest"}, clock=clock)
    model(ids)
    assert seen == [(1, "P1"), (1, "P2"), (2, "P1"), (2, "P2")]
    assert isinstance(head, QuantizedGemms)


def test_an_embedding_draws_noise_that_is_new_in_every_pass() -> None:
    table = nn.Embedding(64, 32)
    recipe = lowbit.configure("recipe=nearest", "recipe.output.weight.rounding=stochastic").recipe
    lowbit.quantize_(table, recipe, "mxfp4", filter_fn=lambda layer, name: True)
    ids = torch.arange(64)
    torch.manual_seed(0)
    first, second = table(ids), table(ids)
    torch.manual_seed(0)
    assert torch.equal(table(ids), first)
    assert not torch.equal(first, second)


def test_the_default_means_no_embedding() -> None:
    model = nn.Sequential(nn.Embedding(64, 32), nn.Linear(32, 32))
    lowbit.quantize_(model, "none", overrides={"_default": ("nearest", "mxfp4")})
    assert set(formats(model)) == {"1"}


def test_a_recipes_own_overrides_come_after_those_of_the_call() -> None:
    model = nn.Sequential(*(nn.Linear(32, 32) for _ in range(3)))
    recipe = lowbit.configure("recipe=nearest", "precision=mxfp4").recipe
    sun = lowbit.configure("recipe=nearest", "recipe.overrides.head=[sun,nvfp4]").recipe
    recipe.overrides = {"0": sun.overrides["head"], "1": sun.overrides["head"], "2": None}
    lowbit.quantize_(model, recipe, "mxfp4", overrides={"1": None})
    assert formats(model) == {"0": ("", "E2M1-block16-e4m3") * 3}
