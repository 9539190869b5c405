"""Any model in place: what stays as it was, what is quantized, what is refused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import lowbit
from experiments.quant.block import quantize
from experiments.quant.linear import QuantizedGemms
from experiments.quant.operand import Operand
from experiments.quantize import EngineError
from tests.support.hub_models import gpt2, llama, mixtral, qwen, vit

pytest.importorskip("transformers", reason="needs the extra hf")
IDS = torch.randint(0, 96, (2, 33), generator=torch.Generator().manual_seed(1))
SIX = range(1, 7)
IMAGES = torch.randn(4, 3, 17, 17, generator=torch.Generator().manual_seed(2))


def convolutions() -> nn.Module:
    """Strides, groups, dilation, borders of several kinds."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, stride=2, padding_mode="reflect"),
        nn.ReLU(),
        nn.Conv2d(16, 32, (3, 1), groups=2, dilation=2, padding="same", bias=False),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(1),
        nn.Linear(32, 10),
    )


def loss_of(model: nn.Module) -> Tensor:
    if isinstance(model, nn.Sequential):
        found: Tensor = model(IMAGES).square().mean()
        return found
    if "ViT" in type(model).__name__:
        labels = torch.arange(4)
        return model(pixel_values=IMAGES[:, :, :16, :16], labels=labels).loss  # type: ignore[no-any-return]
    return model(input_ids=IDS, labels=IDS).loss  # type: ignore[no-any-return]


MODELS = [llama, qwen, gpt2, mixtral, vit, convolutions]


def made(build: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return build()


def gradients(model: nn.Module) -> dict[str, Tensor]:
    model.zero_grad()
    loss_of(model).backward()  # type: ignore[no-untyped-call]
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def layers(model: nn.Module) -> dict[str, QuantizedGemms]:
    return {n: m for n, m in model.named_modules() if isinstance(m, QuantizedGemms) and not m.kept}


@pytest.mark.parametrize("build", MODELS)
def test_an_empty_recipe_changes_no_bit(build: Callable[[], nn.Module]) -> None:
    model, plain = made(build), made(build)
    lowbit.quantize_(model, "none")
    assert torch.equal(loss_of(model), loss_of(plain))
    for name, gradient in gradients(plain).items():
        assert torch.equal(gradients(model)[name], gradient), name


@pytest.mark.parametrize("build", MODELS)
def test_a_layer_stays_the_same_object_with_the_same_parameters(
    build: Callable[[], nn.Module],
) -> None:
    model = made(build)
    calls: list[str] = []
    first = next(m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d))
    first.register_forward_hook(lambda *_: calls.append("hook"))
    first.weight.requires_grad_(False)
    before = {n: (id(p), p.dtype, p.requires_grad) for n, p in model.named_parameters()}
    modules, state = [*model.modules()], {n: t.clone() for n, t in model.state_dict().items()}
    lowbit.quantize_(model, "nearest", "mxfp4")
    assert {n: (id(p), p.dtype, p.requires_grad) for n, p in model.named_parameters()} == before
    assert [*model.modules()] == modules
    after = model.state_dict()
    assert list(after) == list(state)
    assert all(torch.equal(after[n], t) for n, t in state.items())
    loss_of(model)
    assert calls == ["hook"]
    assert layers(model)


@pytest.mark.parametrize("build", MODELS)
def test_every_operand_of_every_product_lies_on_the_grid(build: Callable[[], nn.Module]) -> None:
    """To nearest with power-of-two scales: what was rounded is not moved by rounding it again."""
    model = made(build)
    clock = lowbit.NoiseClock(0)
    lowbit.quantize_(model, "nearest", "mxfp4", clock=clock)
    seen: dict[tuple[int, str], int] = {}

    def watch(layer: QuantizedGemms, label: str, given: Operand, ready: Operand) -> None:
        assert torch.equal(quantize(ready.values, lowbit.Precision.parse("mxfp4")), ready.values)
        assert not torch.equal(given.values, ready.values) or not given.values.any()
        seen[id(layer), label] = seen.get((id(layer), label), 0) + 1

    clock.watch = watch
    gradients(model)
    clock.watch = None
    expected = {(id(g), f"P{k}") for m in layers(model).values() for _, g in m.parts() for k in SIX}
    # The gradient of an image is not asked for.
    inputs = {id(m) for n, m in layers(model).items() if n == "0" or "patch" in n}
    expected -= {(i, label) for i in inputs for label in ("P3", "P4")}
    assert set(seen) == expected


@pytest.mark.parametrize("build", MODELS)
def test_twice_is_once_and_none_takes_it_back(build: Callable[[], nn.Module]) -> None:
    model, plain = made(build), made(build)
    clock = lowbit.NoiseClock(3)
    lowbit.quantize_(model, "stochastic", "mxfp4", clock=clock)
    once = gradients(model)
    lowbit.quantize_(model, "stochastic", "mxfp4", clock=clock)
    twice = gradients(model)
    assert all(torch.equal(twice[n], g) for n, g in once.items())
    assert any(not torch.equal(g, gradients(plain)[n]) for n, g in once.items())
    lowbit.quantize_(model, "none")
    assert torch.equal(loss_of(model), loss_of(plain))


def test_wide_formats_give_what_the_model_gave() -> None:
    """E5M10 in blocks of 32: 11 significant bits."""
    for build in MODELS:
        model, plain = made(build), made(build)
        lowbit.quantize_(model, "nearest", "E5M10")
        assert loss_of(model).item() == pytest.approx(loss_of(plain).item(), rel=1e-3)
        for name, gradient in gradients(plain).items():
            error = (gradients(model)[name] - gradient).norm() / gradient.norm().clamp(min=1e-6)
            assert error < 0.02, (build.__name__, name)


def test_a_convolution_is_the_product_of_its_windows_and_its_weights() -> None:
    """Against torch's own unfolding, in float64; columns are taps, then channels."""
    torch.manual_seed(0)
    layer = nn.Conv2d(64, 8, 3, padding=1, stride=2)
    x = torch.randn(2, 64, 9, 9)
    mxfp4 = lowbit.Precision.parse("mxfp4")
    windows = nn.functional.unfold(x, 3, padding=1, stride=2)  # [2, 64 x 9, places]
    rows = windows.unflatten(1, (64, 9)).permute(0, 3, 2, 1).reshape(-1, 9 * 64)
    matrix = layer.weight.detach().flatten(2).permute(0, 2, 1).reshape(8, -1)
    exact = quantize(rows, mxfp4).double() @ quantize(matrix, mxfp4).double().t()
    assert layer.bias is not None
    expected = (exact + layer.bias.detach().double()).reshape(2, 5, 5, 8).permute(0, 3, 1, 2)
    lowbit.quantize_(layer, "nearest", "mxfp4")
    found = layer(x).detach()
    assert torch.allclose(found.double(), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(layer(x[:1])[0], layer(x[0]))


# --- noise -------------------------------------------------------------------------------------


def test_noise_is_new_in_every_pass_and_follows_torchs_seed() -> None:
    model = made(llama)
    lowbit.quantize_(model, "stochastic", "mxfp4")
    torch.manual_seed(5)
    first, second = gradients(model), gradients(model)
    torch.manual_seed(5)
    again = gradients(model)
    assert all(torch.equal(again[n], g) for n, g in first.items())
    assert any(not torch.equal(second[n], g) for n, g in first.items())


class Checkpointed(nn.Module):
    """Two blocks, run again in the backward pass, after another forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 64)) for _ in range(2)
        )

    def forward(self, x: Tensor, again: bool) -> Tensor:
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if again else block(x)  # type: ignore[no-untyped-call]
        return x


def test_a_pass_that_is_run_again_has_the_same_noise() -> None:
    model = made(Checkpointed)
    lowbit.quantize_(model, "stochastic", "mxfp4")
    found = []
    for again in (False, True):
        torch.manual_seed(7)
        model.zero_grad()
        batches = [torch.randn(32, 64, generator=torch.Generator().manual_seed(n)) for n in (1, 2)]
        # Both forward passes before either backward one: the second must not move the first's.
        losses = [model(batch, again).square().mean() for batch in batches]
        for loss in losses:
            loss.backward()
        found.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_a_copy_is_quantized_and_has_noise_of_its_own() -> None:
    model = made(llama)
    clock = lowbit.NoiseClock(1)
    lowbit.quantize_(model, "stochastic", "mxfp4", clock=clock)
    other = copy.deepcopy(model)
    once, again = gradients(model), gradients(other)
    assert all(torch.equal(again[n], g) for n, g in once.items())
    clock.counter = 9
    moved, same = gradients(model), gradients(other)
    assert all(torch.equal(same[n], g) for n, g in once.items())
    assert any(not torch.equal(moved[n], g) for n, g in once.items())


# --- which layers ------------------------------------------------------------------------------


def test_heads_are_left_out_unless_they_are_asked_for() -> None:
    for build in (llama, qwen, gpt2):
        model = made(build)
        lowbit.quantize_(model, "nearest", "mxfp4")
        assert not [name for name in layers(model) if "head" in name]
        lowbit.quantize_(model, "nearest", "mxfp4", filter_fn=lambda layer, name: True)
        assert [name for name in layers(model) if "head" in name]
        loss_of(model).backward()  # type: ignore[no-untyped-call]


def test_a_name_goes_before_a_pattern_before_the_default_before_the_filter() -> None:
    model = made(llama)
    overrides: dict[str, Any] = {
        "re:.*down_proj": ("nearest", "nvfp4"),
        "re:.*proj": None,
        "model.layers.1.mlp.down_proj": "quartet_v4",
    }
    lowbit.quantize_(model, "nearest", "mxfp4", overrides=overrides)
    found = {n: str(m.precisions["P1"]) for n, m in layers(model).items()}
    assert found == {
        "model.layers.0.mlp.down_proj": "E2M1-block16-e4m3",
        "model.layers.1.mlp.down_proj": "E2M1-block32-quest",
        "model.layers.2.mlp.down_proj": "E2M1-block16-e4m3",
    }
    overrides["_default"] = ("nearest", "int4")
    lowbit.quantize_(model, "none", overrides=overrides, filter_fn=lambda layer, name: False)
    assert {n for n in layers(model) if "down" not in n} == {"lm_head"}


def test_a_recipe_that_keeps_last_blocks_finds_the_models_own() -> None:
    for build, prefix in ((llama, "model.layers.2."), (gpt2, "transformer.h.1.")):
        model = made(build)
        lowbit.quantize_(model, "nvidia_nvfp4")
        kept = {e.name for e in lowbit.report(model).layers if e.why == "recipe.keep"}
        assert kept
        assert all(name.startswith(prefix) for name in kept)
        assert not [name for name in layers(model) if name.startswith(prefix)]


def test_the_report_names_all_six_operands() -> None:
    model = made(llama)
    lowbit.quantize_(model, "sun", "mxfp4")
    text = str(lowbit.report(model))
    [line] = [line for line in text.splitlines() if "layers.1.mlp.up_proj" in line]
    assert line.split() == [
        "model.layers.1.mlp.up_proj", "QuantLinear", "10,240",
        "-", "E2M1-block32-e8m0", "-", "E2M1-block32-e8m0", "-", "E2M1-block32-e8m0",
    ]  # fmt: skip
    assert "lm_head" in text
    assert "output head" in text


def test_what_another_module_multiplies_by_itself_is_left_out_or_refused() -> None:
    block = nn.TransformerEncoderLayer(64, 2, 128, batch_first=True)
    lowbit.quantize_(block, "nearest", "mxfp4")
    assert set(layers(block)) == {"linear1", "linear2"}
    told = {e.name: e.why for e in lowbit.report(block).layers}
    assert told["self_attn.out_proj"] == "nn.MultiheadAttention multiplies by its weights itself"
    assert told["self_attn.in_proj_weight"] == "belongs to no linear layer"
    with pytest.raises(EngineError, match="layer self_attn.out_proj: nn.MultiheadAttention multi"):
        lowbit.quantize_(block, "nearest", "mxfp4", filter_fn=lambda layer, name: "out" in name)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"overrides": {"model.layer.0": None}}, "meets no layer; there are model.layers.0.self_a"),
        ({"overrides": {"re:.*q_porj": None}}, r"'re:\.\*q_porj'\]: meets no layer"),
        ({"overrides": {"re:(": None}}, "is no pattern"),
        ({"recipe": "quartett_v4"}, "recipe=quartett_v4: .*quartet_v4"),
        ({"precision": "mxpf4"}, "did you mean mxfp4"),
        ({"overrides": {"lm_head": ("nearest", "fp5")}}, "format 'fp5'"),
    ],
)
def test_what_cannot_be_meant_is_refused_and_nothing_is_changed(
    asked: dict[str, Any], said: str
) -> None:
    model = made(llama)
    with pytest.raises(Exception, match=said):
        lowbit.quantize_(model, **({"recipe": "nearest", "precision": "mxfp4"} | asked))
    assert not layers(model)


class Scaled(nn.Linear):
    """Somebody's own linear layer."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def test_a_linear_layer_of_a_class_of_its_own_is_left_out_or_refused() -> None:
    model = nn.Sequential(Scaled(32, 32), nn.Linear(32, 32))
    lowbit.quantize_(model, "nearest", "mxfp4")
    assert set(layers(model)) == {"1"}
    assert lowbit.report(model).layers[0].why == "Scaled is a class of its own"
    with pytest.raises(EngineError, match="layer 0: Scaled is a class of its own"):
        lowbit.quantize_(model, "nearest", "mxfp4", overrides={"0": "nearest"})


def test_layers_that_a_recipe_keeps_must_be_there() -> None:
    recipe = lowbit.configure("recipe=nearest").recipe
    recipe.keep = ["mlp.down"]
    with pytest.raises(EngineError, match="recipe.keep=mlp.down: the model has no such layer"):
        lowbit.quantize_(made(llama), recipe, "mxfp4")
    recipe.keep = ["mlp.down_proj"]
    model = made(llama)
    lowbit.quantize_(model, recipe, "mxfp4")
    kept = [e.name for e in lowbit.report(model).layers if e.why == "recipe.keep"]
    assert kept == [f"model.layers.{n}.mlp.down_proj" for n in range(3)]


def test_another_clock_takes_over() -> None:
    model = made(llama)
    lowbit.quantize_(model, "stochastic", "mxfp4")
    clock = lowbit.NoiseClock(0)
    lowbit.quantize_(model, "stochastic", "mxfp4", clock=clock)
    assert all(layer.clock is clock for layer in layers(model).values())
    lowbit.quantize_(model, "nearest", "mxfp4")
    assert all(layer.clock is clock for layer in layers(model).values())


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("recipe.high_precision_share=0.5", "needs a loop that knows how many steps there are"),
        ("recipe.word_length.lookback=3", "needs the training loop of lowbit-train"),
    ],
)
def test_what_only_our_loop_can_do_is_refused(override: str, said: str) -> None:
    recipe = "fixed_adaptive" if "word_length" in override else "stochastic"
    config = lowbit.configure(f"recipe={recipe}", *([] if "word" in override else [override]))
    if "word_length" in override:
        config.recipe.word_length.lookback = 3
    with pytest.raises(EngineError, match=said):
        lowbit.quantize_(made(llama), config.recipe, "E0M3-row")


def test_a_recipe_for_numbered_blocks_needs_some() -> None:
    with pytest.raises(EngineError, match="keep_last=1: the model has no numbered blocks"):
        lowbit.quantize_(nn.Linear(64, 64), "nvidia_nvfp4")


# --- adapters ----------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
def test_frozen_weights_have_no_product_for_their_gradient() -> None:
    peft = pytest.importorskip("peft", reason="needs the extra hf")
    base = made(llama)
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    model = peft.get_peft_model(base, config)
    clock = lowbit.NoiseClock(0)
    lowbit.quantize_(
        model, "nearest", "mxfp4", clock=clock, filter_fn=lambda layer, name: "lora_" not in name
    )
    labels: dict[str, set[str]] = {}
    names = {m: n for n, m in layers(model).items()}

    def watch(layer: QuantizedGemms, label: str, given: Operand, ready: Operand) -> None:
        labels.setdefault(names[layer], set()).add(label)

    clock.watch = watch
    gradients(model)
    assert labels
    assert all(not found & {"P5", "P6"} for found in labels.values())
    assert any({"P3", "P4"} <= found for found in labels.values())
    trained = [n for n, p in model.named_parameters() if p.requires_grad]
    assert trained
    assert all("lora" in name for name in trained)


def test_torchs_encoder_layers_do_not_go_past_what_was_quantized() -> None:
    """In evaluation without gradients they multiply by the weights of their layers themselves."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(64, 2, 128, dropout=0.0, batch_first=True)
    x = torch.randn(2, 8, 64)
    clock, seen = lowbit.NoiseClock(0), []
    lowbit.quantize_(layer, "nearest", "mxfp4", clock=clock)
    clock.watch = lambda _, label, *__: seen.append(label)
    layer.eval()
    with torch.no_grad():
        layer(x)
    assert seen == ["P1", "P2"] * 2  # attention's own layers are none that can be quantized
