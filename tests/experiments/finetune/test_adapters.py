"""Adapters: what they compute, what they leave alone, and what they become when merged."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from experiments.accounting import adapter_parameters, flops_per_token, training_bytes
from experiments.configure import configure
from experiments.finetune.adapters import adapted, attach, merged
from experiments.finetune.config import ADAPTERS, IN_THE_WEIGHT, AdapterConfig
from experiments.finetune.rounded import RoundedLinear
from experiments.models.build import build, shape_of
from experiments.models.next_token import NextToken
from experiments.quant.block import quantize
from experiments.quant.formats import Precision
from experiments.quant.hadamard import rotate
from experiments.quant.linear import QuantLinear
from tests.support.small_runs import ladder
from tests.support.tiny_models import LLAMA

KINDS = ADAPTERS[1:]


def bare(adapter: AdapterConfig, recipe: str = "none", seed: int = 0) -> NextToken:
    config = configure("model=ladder/a", f"recipe={recipe}", "precision=mxfp4")
    model = build(config.model, config.recipe, config.precision.build(), 5)
    attach(model, shape_of(config.model), adapter, seed)
    return model


TOKENS = torch.randint(256, (2, 33), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", KINDS)
def test_at_the_start_an_adapter_adds_nothing(kind: str) -> None:
    for recipe in ("none", "nearest"):
        plain, wrapped = (bare(AdapterConfig(name), recipe) for name in ("none", kind))
        assert torch.equal(plain(TOKENS), wrapped(TOKENS))
        assert not torch.equal(plain(TOKENS), shaken(wrapped)(TOKENS))


def test_only_adapters_are_trained_and_their_weights_follow_the_seed() -> None:
    one, again, other = (bare(AdapterConfig("none")) for _ in range(3))
    before = torch.random.get_rng_state()
    for model, seed in ((one, 1), (again, 1), (other, 2)):
        attach(model, shape_of(ladder("a")), AdapterConfig("lora", r=3), seed)
    assert torch.equal(torch.random.get_rng_state(), before)
    trained = {name for name, p in one.named_parameters() if p.requires_grad}
    assert trained == {name for name, _ in one.named_parameters() if ".lora_" in name}
    assert len(trained) == 2 * 2 * 4, "two for each of four matrices of two blocks"
    drawn = "blocks.0.attention.qkv.lora_A.default.weight"
    a, b, c = (model.state_dict()[drawn] for model in (one, again, other))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def shaken(model: NextToken) -> NextToken:
    """A model whose adapters add something."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                assert ".lora_" in name or name.endswith(".values")
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


@pytest.mark.parametrize("rslora", [False, True])
def test_gradients_are_those_of_the_sum_in_float64(rslora: bool) -> None:
    """Those of W + s B A, multiplied as one matrix."""
    adapter = AdapterConfig("lora", r=4, lora_alpha=6, use_rslora=rslora)
    model = shaken(bare(adapter)).double()
    layer = adapted(model)["blocks.1.mlp.down"]
    x = torch.randn(7, 96, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    x.requires_grad_(True)
    (layer(x) ** 2).sum().backward()
    found = [x.grad, a.grad, b.grad]
    leaf = [t.detach().clone().requires_grad_(True) for t in (x, a, b)]
    scale = 6 / 2 if rslora else 6 / 4
    whole = layer.base_layer.weight.detach() + scale * leaf[2] @ leaf[1]
    (F.linear(leaf[0], whole) ** 2).sum().backward()
    for mine, theirs in zip(found, leaf, strict=True):
        torch.testing.assert_close(mine, theirs.grad, rtol=1e-5, atol=1e-7)  # peft casts x
    assert layer.base_layer.weight.grad is None


def spied(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Tensor, Tensor]]:
    """What adapters multiply from now on: weights as stored, and as multiplied."""
    seen: list[tuple[Tensor, Tensor]] = []
    multiply = RoundedLinear.forward

    def forward(self: RoundedLinear, input: Tensor) -> Tensor:
        output = multiply(self, input)
        unit = torch.eye(self.in_features)
        seen.append((self.weight.detach().clone(), multiply(self, unit).detach().t()))
        return output

    monkeypatch.setattr(RoundedLinear, "forward", forward)
    return seen


def lines(weight: Tensor) -> Iterator[Tensor]:
    """The rows of A [r, in], or the columns of B [out, r]: what has scales of its own."""
    yield from weight if weight.shape[0] == 3 else weight.t()


def test_int4_matrices_lie_on_the_grid_along_their_long_axis(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = shaken(bare(AdapterConfig("lora", r=3, precision="int4_row")))
    seen = spied(monkeypatch)
    model(TOKENS)
    assert len(seen) == 2 * 2 * 4
    for stored, multiplied in seen:
        for before, after in zip(lines(stored), lines(multiplied), strict=True):
            step = before.abs().max() / 7
            torch.testing.assert_close(after, (before / step).round() * step)
            assert len(after.unique()) > 4


def test_one_bit_is_the_sign_times_the_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    model = shaken(bare(AdapterConfig("lora", r=3, precision="sign")))
    seen = spied(monkeypatch)
    model(TOKENS)
    for stored, multiplied in seen:
        for before, after in zip(lines(stored), lines(multiplied), strict=True):
            signs = torch.where(before < 0, -1.0, 1.0)
            torch.testing.assert_close(after, signs * before.abs().mean())


def test_blocks_that_do_not_divide_are_filled_up_with_zeros() -> None:
    layer = nn.Linear(40, 3, bias=False)
    RoundedLinear.become(layer, "E2M1-block32-fp32", columns=False)
    rounded = layer(torch.eye(40)).detach().t()
    steps = Precision.parse("E2M1-block32-fp32").element
    grid = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    assert steps.bits == 4
    for start, end in ((0, 32), (32, 40)):
        for before, after in zip(layer.weight[:, start:end], rounded[:, start:end], strict=True):
            scale = before.abs().max() / 6
            nearest = grid[(before.abs()[:, None] / scale - grid).abs().argmin(1)]
            torch.testing.assert_close(after, nearest * scale * before.sign())


def test_the_gradient_passes_the_rounding_straight_through() -> None:
    x = torch.randn(5, 40, generator=torch.Generator().manual_seed(0))
    layer = nn.Linear(40, 3, bias=False)
    RoundedLinear.become(layer, "int2_row", columns=False)
    leaf = layer(torch.eye(40)).detach().t().clone().requires_grad_(True)
    (layer(x) ** 2).sum().backward()
    (F.linear(x, leaf) ** 2).sum().backward()
    assert layer.weight.grad is not None
    torch.testing.assert_close(layer.weight.grad, leaf.grad)


@pytest.mark.parametrize(
    ("kind", "precision", "source"),
    [(kind, "", "ladder") for kind in KINDS]
    + [("lora", precision, "gpt2") for precision in ("", "int2_row", "sign")],
)
def test_merged_without_a_recipe_it_is_the_same_function(
    kind: str, precision: str, source: str
) -> None:
    adapter = AdapterConfig(kind, r=3, precision=precision)
    if source == "ladder":
        model = shaken(bare(adapter))
    else:
        sizes = ["model.config.n_embd=32", "model.config.n_layer=2", "model.config.n_head=2"]
        gpt2 = ["model=hf", "model.config.model_type=gpt2", "model.config.vocab_size=256"]
        config = configure(*gpt2, *sizes, "recipe=none")
        model = build(config.model, config.recipe, config.precision.build(), 5)
        attach(model, shape_of(config.model), adapter, 0)
        assert len(adapted(model)) == 8, "GPT-2's matrices are stored transposed"
        shaken(model)
    model.eval()
    wrapped, state = model(TOKENS), {k: v.clone() for k, v in model.state_dict().items()}
    with merged(model):
        assert not adapted(model)
        torch.testing.assert_close(model(TOKENS), wrapped, rtol=1e-4, atol=1e-5)
    assert torch.equal(model(TOKENS), wrapped)
    assert {k: v.tolist() for k, v in model.state_dict().items()} == {
        k: v.tolist() for k, v in state.items()
    }


@pytest.mark.parametrize("kind", KINDS)
def test_merged_weights_are_quantized_with_what_was_added(kind: str) -> None:
    """Where it stood beside the layer the loss differs: the price of merging.

    Where it was in the weight it is the same, to the bit.
    """
    model = shaken(bare(AdapterConfig(kind, r=3), "nearest")).eval()
    wrapped = model(TOKENS)
    with merged(model):
        layers = {n: m for n, m in model.named_modules() if isinstance(m, QuantLinear)}
        assert len(layers) == 8
        assert torch.equal(model(TOKENS), wrapped) == (kind in IN_THE_WEIGHT)
        assert torch.allclose(model(TOKENS), wrapped, rtol=1e-2) == (kind in IN_THE_WEIGHT)


def trained_weight(model: NextToken, name: str) -> Tensor:
    """The gradient of a whole weight that is not frozen."""
    layer = model.get_submodule(name)
    assert isinstance(layer, QuantLinear)
    layer.weight.requires_grad_(True)
    (layer(features(layer.in_features)) ** 2).sum().backward()
    assert layer.weight.grad is not None
    return layer.weight.grad


def features(into: int) -> Tensor:
    return torch.randn(64, into, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("recipe", ["none", "nearest"])
@pytest.mark.parametrize("kind", IN_THE_WEIGHT)
def test_what_is_in_the_weight_has_the_gradient_of_its_entries(kind: str, recipe: str) -> None:
    """So training it is training those entries, and no others."""
    whole, name = bare(AdapterConfig("none"), recipe), "blocks.1.mlp.down"
    gradient = trained_weight(whole, name)
    layer = adapted(bare(AdapterConfig(kind, r=3), recipe))[name]
    (layer(features(96)) ** 2).sum().backward()
    rows, columns = layer.index // 96, layer.index % 96
    torch.testing.assert_close(layer.values.grad, gradient[rows, columns], rtol=1e-5, atol=1e-5)
    count = 3 * 32 if kind == "paca" else 3 * (32 + 96)
    assert len(layer.index.unique()) == count
    assert (len(columns.unique()) == 3) == (kind == "paca")


def test_walsh_hadamard_coefficients_have_their_gradient() -> None:
    """Against a transform written out, of blocks of 32 since 96 = 3 x 32."""
    layer = adapted(shaken(bare(AdapterConfig("qwha", r=3)).double()))["blocks.1.mlp.down"]
    h = torch.ones(1, 1, dtype=torch.float64)
    for _ in range(5):
        h = torch.cat([torch.cat([h, h], 1), torch.cat([h, -h], 1)]) / 2**0.5
    transform = torch.block_diag(h, h, h)
    x = features(96).double()
    values = layer.values.detach().clone().requires_grad_(True)
    matrix = torch.zeros(32 * 96, dtype=torch.float64).index_put((layer.index,), values)
    whole = layer.base_layer.weight + matrix.view(32, 96) @ transform
    torch.testing.assert_close(layer(x), F.linear(x, whole))
    (layer(x) ** 2).sum().backward()
    (F.linear(x, whole) ** 2).sum().backward()
    torch.testing.assert_close(layer.values.grad, values.grad)


def test_what_begins_with_the_error_is_nearer_to_the_unquantized_model() -> None:
    """LoRA: no product of its rank is nearer (Eckart and Young); at full rank nothing is left."""
    plain = bare(AdapterConfig("none"))
    coarse = bare(AdapterConfig("none"), "nearest")
    same = bare(AdapterConfig("lora", init="error"), "none")
    assert torch.equal(same(TOKENS), plain(TOKENS)), "no weight lacks anything"
    name = "blocks.1.mlp.down"
    weight = plain.get_submodule(name).weight
    layer = coarse.get_submodule(name)
    assert isinstance(layer, QuantLinear)
    assert isinstance(weight, Tensor)
    error = (weight - quantize(layer.weight, layer.precisions["P2"])).detach()
    left = []
    for r in (1, 4, 32):
        adapter = AdapterConfig("lora", r=r, lora_alpha=3.0, init="error")
        wrapped = adapted(bare(adapter, "nearest"))[name]
        b, a = (part["default"].weight.detach() for part in (wrapped.lora_B, wrapped.lora_A))
        left.append(float((error - adapter.scaling * b @ a).norm() ** 2))
        values = torch.linalg.svdvals(error.double())
        assert left[-1] == pytest.approx(float((values[r:] ** 2).sum()), rel=1e-3, abs=1e-9)
    assert left[0] > left[1] > 100 * left[2]


def test_hadamard_coefficients_that_begin_with_the_error_are_its_largest() -> None:
    wrapped = adapted(bare(AdapterConfig("qwha", r=3, init="error"), "nearest"))
    layer = wrapped["blocks.1.mlp.down"]
    weight = layer.base_layer.weight
    error = (weight - quantize(weight, layer.base_layer.precisions["P2"])).detach()
    wanted = rotate(error, 32).flatten()
    assert len(layer.index) == 3 * (32 + 96)
    torch.testing.assert_close(layer.values.detach(), wanted[layer.index])
    others = torch.ones_like(wanted, dtype=torch.bool)
    others[layer.index] = False
    assert float(wanted[layer.index].abs().min()) >= float(wanted[others].abs().max())
    left = float((error - layer.delta().detach()).norm() ** 2)
    assert left == pytest.approx(float((wanted[others] ** 2).sum()), rel=1e-3)


@pytest.mark.parametrize("source", ["model=ladder/b", "llama"])
def test_costs_are_those_of_torchs_counter(source: str) -> None:
    """But for the first block, whose input needs no gradient: that is counted as if it did."""
    overrides = LLAMA if source == "llama" else [source]
    config = configure(*overrides, "recipe=none", "data.seq_len=64")
    adapter = AdapterConfig("lora", r=4)
    model = build(config.model, config.recipe, config.precision.build(), 0)
    attach(model, shape_of(config.model), adapter, 0)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trained == adapter_parameters(config.model, adapter)
    tokens = torch.zeros(1, 65, dtype=torch.int64)
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model.loss(tokens).backward()  # type: ignore[no-untyped-call]
    ours = 64 * flops_per_token(config.model, 64, adapter)
    assert 0.9 < counter.get_total_flops() / ours <= 1.0
    full = training_bytes(config.model, 512, config.recipe, 64)
    weights = shape_of(config.model).parameters.total
    assert training_bytes(config.model, 512, config.recipe, 64, adapter) == (
        full - 12 * weights + 16 * trained
    )
