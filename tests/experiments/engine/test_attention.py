"""Attention of other people's models: what is reached, rounded, reported, refused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lowbit
from experiments.engine.attention import attentions
from experiments.quant.attention import AttentionProducts
from experiments.quant.block import quantize
from experiments.quant.operand import Operand
from experiments.quant.recipe import RecipeConfig
from experiments.quant.slots import ATTENTION, AttentionConfig, OperandConfig
from experiments.quantize import EngineError
from tests.support.hub_models import gpt2, llama, mixtral, qwen, vit

transformers = pytest.importorskip("transformers", reason="needs the extra hf")
IDS = torch.randint(0, 96, (2, 33), generator=torch.Generator().manual_seed(1))
MODELS = [llama, qwen, gpt2, mixtral, vit]
MXFP4 = lowbit.Precision.parse("mxfp4")


def recipe(*labels: str, along: str = "head_dim", rounding: str = "nearest_even") -> RecipeConfig:
    operands: Any = {label: OperandConfig(rounding) for label in labels or ATTENTION}
    return RecipeConfig("attention", attention=AttentionConfig(**operands, value_along=along))


def made(build: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return build()


def loss_of(model: nn.Module) -> Tensor:
    if "ViT" in type(model).__name__:
        images = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(2))
        return model(pixel_values=images, labels=torch.arange(4)).loss  # type: ignore[no-any-return]
    return model(input_ids=IDS, labels=IDS).loss  # type: ignore[no-any-return]


def gradients(model: nn.Module) -> dict[str, Tensor]:
    model.zero_grad()
    loss_of(model).backward()  # type: ignore[no-untyped-call]
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def small(name: str, **more: Any) -> nn.Module:
    """A model of transformers of two blocks, grouped queries and heads of 16."""
    config = getattr(transformers, f"{name}Config")(
        hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, vocab_size=96, pad_token_id=0, **more,
    )  # fmt: skip
    return getattr(transformers, f"{name}ForCausalLM")(config)  # type: ignore[no-any-return]


@pytest.mark.parametrize("build", MODELS)
def test_all_four_operands_of_every_attention_lie_on_the_grid(
    build: Callable[[], nn.Module],
) -> None:
    model, clock = made(build), lowbit.NoiseClock(0)
    lowbit.quantize_(model, recipe(), "mxfp4", clock=clock)
    seen: dict[tuple[int, str], int] = {}

    def watch(layer: AttentionProducts, label: str, given: Operand, ready: Operand) -> None:
        width = ready.values.shape[1]
        filled = F.pad(ready.values, (0, -width % 32))
        assert torch.equal(quantize(filled, MXFP4)[:, :width], ready.values)
        assert not torch.equal(given.values, ready.values)
        seen[layer.layer, label] = ready.values.shape[0]

    clock.watch = watch
    loss_of(model)
    count = len(attentions(model))
    assert set(seen) == {(n, label) for n in range(count) for label in ATTENTION}
    heads = model.config.num_attention_heads  # type: ignore[union-attr]
    groups = heads // getattr(model.config, "num_key_value_heads", heads)
    assert seen[0, "query"] == groups * seen[0, "key"] == groups * seen[0, "value"]


@pytest.mark.parametrize("build", MODELS)
def test_a_wide_format_gives_what_the_model_gave(build: Callable[[], nn.Module]) -> None:
    """E5M10: 11 significant bits.  And without it the model is what it was."""
    model, plain = made(build), made(build)
    lowbit.quantize_(model, recipe(), "E5M10")
    assert loss_of(model).item() == pytest.approx(loss_of(plain).item(), rel=1e-4)
    found = gradients(model)
    for name, gradient in gradients(plain).items():
        error = (found[name] - gradient).norm() / gradient.norm().clamp(min=1e-4)
        assert error < 0.01, name
    lowbit.quantize_(model, "none")
    assert model.config._attn_implementation == plain.config._attn_implementation == "sdpa"  # type: ignore[union-attr]
    assert torch.equal(loss_of(model), loss_of(plain))


@pytest.mark.parametrize("name", ["Gemma2", "Mistral"])
def test_bounds_of_scores_and_sliding_windows_are_the_models(name: str) -> None:
    """Against the function that the model wrote out itself; a window of 8 of 33 tokens."""
    more: dict[str, Any] = {"sliding_window": 8}
    if name == "Gemma2":
        more |= {"attn_logit_softcapping": 0.5, "query_pre_attn_scalar": 16}
    plain = made(lambda: small(name, attn_implementation="eager", **more))
    model = copy.deepcopy(plain)
    lowbit.quantize_(model, recipe(), "E5M10")
    ids = IDS[:, :33]
    expected, found = (m(input_ids=ids).logits for m in (plain, model))
    assert torch.allclose(found, expected, atol=2e-3)
    wide = made(lambda: small(name, **(more | {"sliding_window": 64})))(input_ids=ids).logits
    assert not torch.allclose(found, wide, atol=2e-3)


def test_a_mask_of_padding_is_the_models() -> None:
    model, plain = made(llama), made(llama)
    lowbit.quantize_(model, recipe(), "E5M10")
    mask = torch.ones_like(IDS)
    mask[0, :10] = 0
    expected, found = (m(input_ids=IDS, attention_mask=mask).logits for m in (plain, model))
    assert torch.allclose(found[mask.bool()], expected[mask.bool()], atol=2e-3)


# --- decoding ----------------------------------------------------------------------------------


def decoded(model: nn.Module) -> Tensor:
    """The logits of tokens that come one after the other on a cache."""
    cache, found = transformers.DynamicCache(config=model.config), []
    for place in range(IDS.shape[1]):
        token = IDS[:, place : place + 1]
        found.append(model(input_ids=token, past_key_values=cache, use_cache=True).logits)
    return torch.cat(found, 1)


@torch.no_grad()
@pytest.mark.parametrize("precision", ["mxfp4", "int4_row"])
def test_decoding_on_a_cache_gives_the_logits_of_the_whole_sequence(precision: str) -> None:
    """In float64, where the order of a sum does not move a value across a rounding threshold."""
    model, plain = (made(llama).double().eval() for _ in range(2))
    lowbit.quantize_(model, recipe(), precision)
    whole = model(input_ids=IDS).logits
    assert torch.allclose(decoded(model), whole, rtol=0, atol=1e-6)
    assert not torch.allclose(whole, plain(input_ids=IDS).logits, atol=1e-3)
    out = model.generate(input_ids=IDS[:, :5], max_new_tokens=8, do_sample=False)  # type: ignore[operator]
    greedy = IDS[:, :5]
    for _ in range(8):
        greedy = torch.cat((greedy, model(input_ids=greedy).logits[:, -1:].argmax(-1)), 1)
    assert torch.equal(out, greedy)


@torch.no_grad()
@pytest.mark.parametrize(
    ("along", "precision"), [("keys", "mxfp4"), ("head_dim", "nvfp4"), ("head_dim", "fp8_e4m3")]
)
def test_scales_that_know_of_later_tokens_decode_otherwise(along: str, precision: str) -> None:
    model = made(llama).double().eval()
    lowbit.quantize_(model, recipe(along=along), precision)
    assert not torch.allclose(decoded(model), model(input_ids=IDS).logits, rtol=0, atol=1e-6)


# --- which attention ---------------------------------------------------------------------------


def told(model: nn.Module) -> dict[str, str]:
    return {e.name: e.said for e in lowbit.report(model).layers if e.labels == ATTENTION}


def test_names_filters_and_what_is_kept_hold_for_attention_too() -> None:
    model = made(llama)
    asked = lowbit.configure("recipe=nearest", "recipe.attention.key={}").recipe
    asked.keep_first = 1
    overrides: dict[str, Any] = {
        "model.layers.1.self_attn": None,
        "re:.*layers.2.self_attn": (recipe("value"), "nvfp4"),
    }
    lowbit.quantize_(model, asked, "mxfp4", overrides=overrides)
    assert told(model) == {
        "model.layers.0.self_attn": "recipe.keep",
        "model.layers.1.self_attn": "override model.layers.1.self_attn",
        "model.layers.2.self_attn": "value E2M1-block16-e4m3",
    }
    lowbit.quantize_(model, asked, "mxfp4", filter_fn=lambda layer, name: "layers.1" in name)
    assert told(model)["model.layers.1.self_attn"] == "key E2M1-block32-e8m0"
    assert told(model)["model.layers.2.self_attn"] == "filter_fn"
    text = str(lowbit.report(model))
    assert "query  key                probabilities  value" in text
    assert "7 of 23 quantized" in text  # of the linear layers and the embedding, as without it
    lowbit.quantize_(model, "nearest", "mxfp4")
    assert set(told(model).values()) == {"not asked for"}


def test_what_is_kept_multiplies_as_the_model_wrote_it_out() -> None:
    model, plain = made(llama), made(lambda: llama())
    plain.set_attn_implementation("eager")  # type: ignore[operator]
    asked = recipe()
    asked.keep = ["self_attn"]
    lowbit.quantize_(model, asked, "mxfp4")
    assert torch.equal(loss_of(model), loss_of(plain))


def test_a_function_that_was_chosen_afterwards_shows() -> None:
    model = made(llama)
    lowbit.quantize_(model, recipe(), "mxfp4")
    model.set_attn_implementation("sdpa")  # type: ignore[operator]
    assert all("set_attn_implementation" in why for why in told(model).values())
    lowbit.quantize_(model, recipe(), "mxfp4")
    assert all(why.startswith("query E2M1") for why in told(model).values())


def test_twice_is_once_and_a_copy_is_quantized() -> None:
    model, clock = made(llama), lowbit.NoiseClock(1)
    lowbit.quantize_(model, recipe(rounding="stochastic"), "mxfp4", clock=clock)
    once = gradients(model)
    lowbit.quantize_(model, recipe(rounding="stochastic"), "mxfp4", clock=clock)
    other = copy.deepcopy(model)
    for again in (gradients(model), gradients(other)):
        assert all(torch.equal(again[n], g) for n, g in once.items())
    clock.counter = 4
    moved, same = gradients(model), gradients(other)
    assert any(not torch.equal(moved[n], g) for n, g in once.items())
    assert all(torch.equal(same[n], g) for n, g in once.items())


def test_noise_advances_and_a_pass_that_is_run_again_has_the_same() -> None:
    model = made(llama)
    lowbit.quantize_(model, recipe(rounding="stochastic"), "mxfp4")
    model.train()
    found = []
    for again in (False, True):
        if again:
            model.activation_checkpointing_enable()  # type: ignore[operator]
        torch.manual_seed(3)
        found += [gradients(model), gradients(model)]
    first, second, first_again, second_again = found
    assert any(not torch.equal(first[n], second[n]) for n in first)
    assert all(torch.equal(first[n], first_again[n]) for n in first)
    assert all(torch.equal(second[n], second_again[n]) for n in second)


class Own(nn.Module):
    """As vision models of timm have it: the fused function called directly."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(32, 96)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).view(*x.shape[:2], 3, 2, 16).permute(2, 0, 3, 1, 4)
        return nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


class WrittenOutAttention(nn.Module):
    """Its name says what it is."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(32, 96)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        output: Tensor = (q @ k.mT).softmax(-1) @ v
        return output


class Reachable(Own):
    """The same with our module in the place of torch's function."""

    def __init__(self) -> None:
        super().__init__()
        self.attend = lowbit.AttentionProducts()

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).view(*x.shape[:2], 3, 2, 16).permute(2, 0, 3, 1, 4)
        output: Tensor = self.attend(q, k, v).transpose(1, 2).flatten(2)
        return output


def sinks() -> nn.Module:
    return small("GptOss", num_local_experts=4)


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (Own, "layer : Own multiplies by itself"),
        (lambda: nn.Sequential(Own(), Reachable()), "layer 0: Own multiplies by itself"),
        (lambda: nn.ModuleList([WrittenOutAttention()]), "layer 0: WrittenOutAttention"),
        (lambda: nn.MultiheadAttention(32, 2), "layer : nn.MultiheadAttention multiplies"),
        (lambda: nn.TransformerEncoderLayer(32, 2, 64), "layer self_attn: nn.MultiheadAtt"),
        (sinks, r"layer model.layers.0.self_attn: its attention is more than softmax"),
        (lambda: nn.Linear(32, 32), "recipe.attention: the model has no attention that can be"),
    ],
)
def test_attention_that_cannot_be_reached_is_refused(
    build: Callable[[], nn.Module], said: str
) -> None:
    model = build()
    before = {n: type(m) for n, m in model.named_modules()}
    with pytest.raises(EngineError, match=said):
        lowbit.quantize_(model, recipe("key"), "mxfp4")
    assert {n: type(m) for n, m in model.named_modules()} == before
    lowbit.quantize_(model, "nearest", "mxfp4")  # of which nobody asks it


def test_what_cannot_be_reached_may_be_left_out_by_name() -> None:
    model = nn.ModuleList([Own(), Reachable()])
    lowbit.quantize_(model, recipe("key"), "mxfp4", overrides={"0": None})
    assert told(model) == {"1.attend": "key E2M1-block32-e8m0"}
    x = torch.randn(2, 5, 32)
    plain = copy.deepcopy(model)
    lowbit.quantize_(plain, "none")
    assert torch.equal(model[0](x), plain[0](x))
    assert not torch.equal(model[1](x), plain[1](x))
