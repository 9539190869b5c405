"""The Transformer and what it costs."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from experiments.accounting import count_parameters, flops_per_token
from experiments.models.config import ModelConfig
from experiments.models.shape import Matrix
from experiments.models.transformer import (
    Transformer,
    apply_rope,
    rope_tables,
    transformer_shape,
)
from experiments.quant.formats import FloatFormat, Precision
from experiments.quant.linear import QuantLinear
from experiments.quant.recipe import OperandConfig, OutputConfig, RecipeConfig
from tests.support.small_runs import ladder

FP4 = Precision(FloatFormat(2, 1))
# Layers, hidden, ffn, N: Sun et al. 2501.02423, Table 1; 7B with the ffn that gives its N.
SUN_TABLE = {
    "41M": (12, 512, 1536, 40_894_464),
    "85M": (12, 768, 2048, 84_934_656),
    "154M": (12, 1024, 2816, 154_140_672),
    "679M": (24, 1536, 4096, 679_477_248),
    "1.2B": (24, 2048, 5632, 1_233_125_376),
    "7B": (35, 4096, 11008, 7_083_130_880),
    "70B": (88, 8192, 22016, 71_236_059_136),
}


def model(config: ModelConfig, recipe: RecipeConfig | None = None, seed: int = 0) -> Transformer:
    made = Transformer(config, recipe or RecipeConfig(), FP4)
    made.initialize(seed)
    return made


@pytest.mark.parametrize("name", SUN_TABLE)
def test_parameter_counts_are_the_papers(name: str) -> None:
    layers, hidden, ffn, expected = SUN_TABLE[name]
    count = count_parameters(ModelConfig(name, layers, hidden, ffn, hidden // 64))
    assert count.block == expected


@pytest.mark.parametrize("tied", [True, False])
def test_parameter_counts_are_the_models(tied: bool) -> None:
    config = ladder("b")
    config.tied = tied
    made, count = model(config), count_parameters(config)
    assert count.total == sum(p.numel() for p in made.parameters())
    quantized = [m for m in made.modules() if isinstance(m, QuantLinear)]
    assert count.block == sum(m.weight.numel() for m in quantized)


@pytest.mark.parametrize("rung", ["a", "c"])
def test_flops_are_what_torch_counts(rung: str) -> None:
    """With attention as plain products, which is the form that torch's counter sees."""
    config, length = ladder(rung), 64
    tokens = torch.randint(256, (2, length))
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(config)(tokens).sum().backward()
    counted = counter.get_total_flops() / tokens.numel()
    assert counted == pytest.approx(flops_per_token(config, length), rel=1e-6)


def test_attention_is_causal() -> None:
    made = model(ladder("a"))
    tokens = torch.randint(256, (1, 32), generator=torch.Generator().manual_seed(0))
    changed = tokens.clone()
    changed[0, 20] = (changed[0, 20] + 1) % 256
    before, after = made(tokens), made(changed)
    assert torch.allclose(before[:, :20], after[:, :20], atol=1e-6)
    assert not torch.allclose(before[:, 20:], after[:, 20:], atol=1e-3)


def test_rope_makes_scores_depend_on_distance_alone() -> None:
    cos, sin = rope_tables(64, 32, 10_000.0)
    generator = torch.Generator().manual_seed(0)
    q, k = (
        torch.randn(1, 1, 1, 32, generator=generator),
        torch.randn(1, 1, 1, 32, generator=generator),
    )
    everywhere = torch.ones(1, 1, 64, 1)
    scores = apply_rope(q * everywhere, cos, sin) @ apply_rope(k * everywhere, cos, sin).mT
    for distance in (0, 1, 30):
        diagonal = scores[0, 0].diagonal(-distance)
        assert torch.allclose(diagonal, diagonal[0].expand_as(diagonal), atol=1e-4)


def test_weights_are_a_function_of_the_seed_whatever_the_recipe() -> None:
    quantized = RecipeConfig("w", OutputConfig(weight=OperandConfig()))
    plain, other = model(ladder("a"), seed=3), model(ladder("a"), quantized, seed=3)
    for (name, a), (_, b) in zip(plain.named_parameters(), other.named_parameters(), strict=True):
        assert torch.equal(a, b), name
    assert not torch.equal(plain.head.weight, model(ladder("a"), seed=4).head.weight)


def test_initial_loss_is_near_a_uniform_guess() -> None:
    """Log 256 = 5.55 nats; logits of unit variance add about a half."""
    made = model(ladder("b"))
    tokens = torch.randint(256, (8, 65), generator=torch.Generator().manual_seed(0))
    logits = made(tokens[:, :-1])
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
    assert 5.4 < loss.item() < 6.5


def test_high_precision_stays_where_it_belongs() -> None:
    """Embedding, head and norms are not quantized, whatever the recipe."""
    every = RecipeConfig("w", OutputConfig(OperandConfig(), OperandConfig()))
    made = model(ladder("a"), every)
    names = {name for name, m in made.named_modules() if isinstance(m, QuantLinear)}
    assert names == {
        f"blocks.{layer}.{part}"
        for layer in range(2)
        for part in ("attention.qkv", "attention.out", "mlp.gate_up", "mlp.down")
    }


def test_model_problems_name_key_and_value() -> None:
    assert ModelConfig(layers=0).problems() == ["model.layers=0: must be 1 or more"]
    assert "model.heads=3: hidden=64" in ModelConfig(heads=3).problems()[0]


def test_the_layers_of_a_recipe_are_the_models() -> None:
    config = ladder("c")
    made = {
        name: Matrix(m.in_features, m.out_features, int(name.split(".")[1]))
        for name, m in model(config).named_modules()
        if isinstance(m, QuantLinear)
    }
    assert made == transformer_shape(config).matrices


def test_kept_layers_are_unquantized_and_the_others_draw_the_same_noise() -> None:
    """Layers keep their number, so keeping one changes no other's noise."""
    six = RecipeConfig("w", OutputConfig(OperandConfig("stochastic"), OperandConfig()))
    every = model(ladder("c"), six)
    six.keep_first, six.keep = 1, ["blocks.2", "mlp.down"]
    some = model(ladder("c"), six)
    kept = {n for n, m in some.named_modules() if isinstance(m, QuantLinear) and m.kept}
    parts = ("attention.qkv", "attention.out", "mlp.gate_up", "mlp.down")
    assert kept == {f"blocks.{b}.{p}" for b in (0, 2) for p in parts} | {"blocks.1.mlp.down"}
    x = torch.randn(1, 8, 96, generator=torch.Generator().manual_seed(0))
    a, b = every.blocks[1].attention.qkv, some.blocks[1].attention.qkv
    assert torch.equal(a(x), b(x))
    first = some.blocks[0].attention.qkv
    assert torch.equal(first(x), torch.nn.functional.linear(x, first.weight))
