"""Mixtures whose experts are one tensor per matrix: each expert is quantized by itself."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lowbit
from experiments.engine import QuantExperts
from experiments.quant.block import quantize
from experiments.quant.linear import QuantizedGemms
from experiments.quant.operand import Operand
from experiments.quantize import EngineError

transformers = pytest.importorskip("transformers", reason="needs the extra hf")
IDS = torch.randint(0, 96, (2, 33), generator=torch.Generator().manual_seed(1))
MXFP4 = lowbit.Precision.parse("mxfp4")
SHAPE: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 96,
    "head_dim": 16,
    "num_experts_per_tok": 2,
}


def mixtral() -> nn.Module:
    config = transformers.MixtralConfig(**SHAPE, intermediate_size=96, num_local_experts=4)
    return transformers.MixtralForCausalLM(config)  # type: ignore[no-any-return]


def qwen() -> nn.Module:
    config = transformers.Qwen3MoeConfig(**SHAPE, moe_intermediate_size=48, num_experts=8)
    return transformers.Qwen3MoeForCausalLM(config)  # type: ignore[no-any-return]


def gpt_oss() -> nn.Module:
    """Matrices [in, out], gate and up interleaved, biases."""
    config = transformers.GptOssConfig(
        **SHAPE, intermediate_size=96, num_local_experts=4, pad_token_id=0
    )
    model = transformers.GptOssForCausalLM(config)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter, std=0.1)
    return model  # type: ignore[no-any-return]


def nemotron() -> nn.Module:
    """Experts without a gate."""
    from transformers.models.nemotron_h.modeling_nemotron_h import NemotronHExperts

    config = transformers.NemotronHConfig(
        hidden_size=64, moe_intermediate_size=48, n_routed_experts=4, moe_latent_size=None
    )
    config._experts_implementation = "eager"
    return Layer(NemotronHExperts(config))


class Layer(nn.Module):
    """Experts alone, each token with two of the first three."""

    def __init__(self, experts: nn.Module) -> None:
        super().__init__()
        self.experts = experts
        for parameter in experts.parameters():
            nn.init.normal_(parameter, std=0.1)

    def forward(self, input_ids: Tensor, labels: Tensor) -> Any:
        generator = torch.Generator().manual_seed(3)
        x = torch.randn(input_ids.numel(), 64, generator=generator)
        index = torch.rand(len(x), 3, generator=generator).argsort(-1)[:, :2]
        weights = torch.rand(len(x), 2, generator=generator)
        output = self.experts(x, index, weights)
        return transformers.utils.ModelOutput(loss=output.square().mean())


MODELS = [mixtral, qwen, gpt_oss, nemotron]


def made(build: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return build()


def loss_of(model: nn.Module) -> Tensor:
    return model(input_ids=IDS, labels=IDS).loss  # type: ignore[no-any-return]


def gradients(model: nn.Module) -> dict[str, Tensor]:
    model.zero_grad()
    loss_of(model).backward()  # type: ignore[no-untyped-call]
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def experts(model: nn.Module) -> list[QuantExperts]:
    return [m for m in model.modules() if isinstance(m, QuantExperts)]


@pytest.mark.parametrize("build", MODELS)
def test_an_empty_recipe_changes_no_bit(build: Callable[[], nn.Module]) -> None:
    model, plain = made(build), made(build)
    lowbit.quantize_(model, "nearest", "mxfp4")
    assert experts(model)
    assert not torch.equal(loss_of(model), loss_of(plain))
    lowbit.quantize_(model, "none")
    assert torch.equal(loss_of(model), loss_of(plain))
    found = gradients(model)
    assert all(torch.equal(found[name], g) for name, g in gradients(plain).items())


@pytest.mark.parametrize("build", MODELS)
def test_wide_formats_give_what_the_model_gave(build: Callable[[], nn.Module]) -> None:
    """E5M10 in blocks of 32: 11 significant bits."""
    model, plain = made(build), made(build)
    lowbit.quantize_(model, "nearest", "E5M10")
    assert loss_of(model).item() == pytest.approx(loss_of(plain).item(), rel=1e-3)
    found = gradients(model)
    for name, gradient in gradients(plain).items():
        error = (found[name] - gradient).norm() / gradient.norm().clamp(min=1e-6)
        assert error < 0.02, name


@pytest.mark.parametrize("build", MODELS)
def test_the_six_operands_of_each_expert_lie_on_the_grid(build: Callable[[], nn.Module]) -> None:
    model, clock = made(build), lowbit.NoiseClock(0)
    lowbit.quantize_(model, "nearest", "mxfp4", clock=clock)
    seen: dict[int, set[str]] = {}

    def watch(layer: QuantizedGemms, label: str, given: Operand, ready: Operand) -> None:
        assert torch.equal(quantize(ready.values, MXFP4), ready.values)
        assert not torch.equal(given.values, ready.values) or not given.values.any()
        assert label not in seen.setdefault(id(layer), set())
        seen[id(layer)].add(label)

    clock.watch = watch
    found = gradients(model)
    clock.watch = None
    layers = [(n, m) for n, m in model.named_modules() if isinstance(m, QuantExperts)]
    for prefix, layer in layers:
        for name, products in layer.products.items():
            for expert, gemms in enumerate(products):
                met = bool(found[f"{prefix}.{name}"][expert].any())
                expected = {f"P{k}" for k in range(1, 7)} if met else set()
                if isinstance(model, Layer) and name == "up_proj":
                    expected -= {"P3", "P4"}  # nobody asks for the gradient of its input
                assert seen.get(id(gemms), set()) == expected, (prefix, name, expert)
    if isinstance(model, Layer):
        assert not found["experts.up_proj"][3].any()  # no token came to it


def test_the_output_is_the_weighted_sum_of_rounded_products() -> None:
    """In float64, expert by expert; every row and every matrix rounded by itself."""
    model = made(nemotron)
    layer: Any = model.experts
    x = torch.randn(20, 64)
    index = torch.stack([torch.arange(20) % 3, torch.arange(20) % 2 + 2], dim=1)
    weights = torch.rand(20, 2)
    expected = torch.zeros(20, 64, dtype=torch.float64)
    for token in range(20):
        for expert, weight in zip(index[token], weights[token], strict=True):
            up, down = (m[expert].detach() for m in (layer.up_proj, layer.down_proj))
            inner = (
                quantize(x[token : token + 1], MXFP4).double() @ quantize(up, MXFP4).double().t()
            )
            inner = nn.functional.pad(layer.act_fn(inner.float()), (0, 16))  # 48 to 64 columns
            wide = quantize(nn.functional.pad(down, (0, 16)), MXFP4).double()
            expected[token] += weight * (quantize(inner, MXFP4).double() @ wide.t())[0]
    lowbit.quantize_(model, "nearest", "mxfp4")
    assert torch.allclose(layer(x, index, weights).double(), expected, rtol=1e-4, atol=1e-5)
    assert layer(x[:0], index[:0], weights[:0]).shape == (0, 64)


def test_every_matrix_of_every_expert_has_noise_of_its_own() -> None:
    model = made(mixtral)
    recipe = lowbit.configure("recipe=nearest", "recipe.output.input.rounding=stochastic").recipe
    lowbit.quantize_(model, recipe, "mxfp4", clock=lowbit.NoiseClock(0))
    gemms = [
        g for layer in experts(model) for products in layer.products.values() for g in products
    ]
    others = [m for m in model.modules() if isinstance(m, QuantizedGemms)]
    assert len({g.layer for g in (*gemms, *others)}) == len(gemms) + len(others)
    layer = experts(model)[0]
    with torch.no_grad():
        for name in layer.products:
            getattr(layer, name)[1] = getattr(layer, name)[0]
    x, index = torch.randn(8, 64), torch.tensor([[0], [1]])
    first, second = (layer(x, at.expand(8, 1), torch.ones(8, 1)) for at in index)
    assert not torch.equal(first, second)
    other = copy.deepcopy(layer)
    assert torch.equal(other(x, index[0].expand(8, 1), torch.ones(8, 1)), first)
    layer.clock.counter = 1
    assert torch.equal(other(x, index[0].expand(8, 1), torch.ones(8, 1)), first)
    assert not torch.equal(layer(x, index[0].expand(8, 1), torch.ones(8, 1)), first)


@pytest.mark.parametrize("build", [mixtral, qwen, gpt_oss])
def test_the_report_has_a_line_for_each_matrix(build: Callable[[], nn.Module]) -> None:
    model = made(build)
    lowbit.quantize_(model, "sun", "mxfp4")
    found = {e.name: e for e in lowbit.report(model).layers}
    for name in ("gate_up_proj", "down_proj"):
        line = found[f"model.layers.1.mlp.experts.{name}"]
        parameter = model.get_parameter(line.name)
        assert (line.kind, line.params, line.why) == ("QuantExperts", parameter.numel(), "")
        assert line.operands == ("", "E2M1-block32-e8m0") * 3
    quantized = sum(e.params for e in found.values() if not e.why)
    experts_only = sum(p.numel() for n, p in model.named_parameters() if n.endswith("_proj"))
    assert quantized >= experts_only > 0
    assert sum(e.params for e in found.values()) == sum(
        p.numel() for p in model.parameters() if p.ndim >= 2
    )
    assert {e.why for n, e in found.items() if "gate.w" in n or "router.w" in n} == {
        "belongs to no linear layer"
    }
    lowbit.quantize_(model, "sun", "mxfp4", overrides={"model.layers.1.mlp.experts": None})
    found = {e.name: e for e in lowbit.report(model).layers}
    assert found["model.layers.0.mlp.experts.down_proj"].why == ""
    line = found["model.layers.1.mlp.experts.down_proj"]
    assert line.why == "override model.layers.1.mlp.experts"


class Mixture(nn.Module):
    """A router that is a linear layer, beside experts that are modules."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(32, 4)
        self.shared = nn.Linear(32, 32)
        self.experts = nn.ModuleList(nn.Linear(32, 4) for _ in range(4))


def test_a_router_is_left_out_unless_it_is_asked_for() -> None:
    model = Mixture()
    lowbit.quantize_(model, "nearest", "mxfp4")
    assert {e.name: e.why for e in lowbit.report(model).layers if e.why} == {"gate": "router"}
    lowbit.quantize_(model, "nearest", "mxfp4", filter_fn=lambda layer, name: True)
    assert all(not e.why for e in lowbit.report(model).layers)


def test_experts_of_several_processes_are_left_out_or_refused() -> None:
    model = made(mixtral)
    name = "model.layers.0.mlp.experts"
    model.get_submodule(name)._is_expert_parallel = True
    lowbit.quantize_(model, "nearest", "mxfp4")
    assert len(experts(model)) == 1
    told = {e.name: e.why for e in lowbit.report(model).layers}
    assert told[f"{name}.down_proj"] == "its experts are spread over processes"
    with pytest.raises(EngineError, match=f"layer {name}: its experts are spread over proc"):
        lowbit.quantize_(model, "nearest", "mxfp4", overrides={name: "nearest"})
