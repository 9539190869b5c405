"""torch.compile of quantized models: one graph, for every step, and the bits of eager execution."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.checkpoint import checkpoint

import lowbit
from experiments.engine import QuantConv2d
from experiments.quant.linear import QuantizedGemms
from experiments.quant.operand import Operand
from tests.support import hub_models

IDS = torch.randint(0, 96, (2, 33), generator=torch.Generator().manual_seed(1))
STOCHASTIC = ("recipe=nearest", "recipe.output.input.rounding=stochastic")


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """No graph of another test."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def compiled(model: nn.Module) -> tuple[Any, CompileCounterWithBackend]:
    """A model without a graph break, and how often it was compiled."""
    counter = CompileCounterWithBackend("aot_eager")  # type: ignore[no-untyped-call]
    return torch.compile(model, fullgraph=True, backend=counter), counter


def perceptron(recipe: Any, **more: Any) -> nn.Module:
    """Rows and columns that no block divides."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 96), nn.GELU(), nn.Linear(96, 40), nn.Linear(40, 10))
    return lowbit.quantize_(model, recipe, "mxfp4", **more)


def llama(recipe: Any) -> nn.Module:
    pytest.importorskip("transformers", reason="needs the extra hf")
    torch.manual_seed(0)
    return lowbit.quantize_(hub_models.llama(), recipe, "mxfp4")


def mixtral(recipe: str) -> nn.Module:
    pytest.importorskip("transformers", reason="needs the extra hf")
    torch.manual_seed(0)
    return lowbit.quantize_(hub_models.mixtral(experts=8), recipe, "mxfp4")


def mean_square(model: Any) -> Tensor:
    x = torch.randn(3, 11, 64, generator=torch.Generator().manual_seed(2))
    return model(x).square().mean()  # type: ignore[no-any-return]


def next_token(model: Any) -> Tensor:
    return model(input_ids=IDS, labels=IDS).loss  # type: ignore[no-any-return]


def results(model: Any, of: nn.Module, loss_of: Callable[[Any], Tensor], seed: int) -> list[Tensor]:
    """Loss and gradients of a pass with this seed."""
    torch.manual_seed(seed)
    of.zero_grad()
    loss = loss_of(model)
    loss.backward()  # type: ignore[no-untyped-call]
    return [loss.detach(), *(p.grad.clone() for p in of.parameters() if p.grad is not None)]


def same(left: list[Tensor], right: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize("recipe", ["nearest", "stochastic", "quartet_v4", "dge", "none"])
def test_one_graph_has_the_bits_and_the_draws_of_eager_execution(recipe: str) -> None:
    """Rounded to nearest, drawn, taken over from the forward product, estimated, not at all."""
    eager, model = perceptron(recipe), perceptron(recipe)
    graph, counter = compiled(model)
    for seed in range(3):
        expected = results(eager, eager, mean_square, seed)
        assert same(results(graph, model, mean_square, seed), expected)
    assert counter.frame_count == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_llama_is_one_graph(dtype: torch.dtype) -> None:
    eager, model = llama("quartet_v4"), llama("quartet_v4")
    graph, counter = compiled(model)
    found = []
    for seed in range(3):
        with torch.autocast("cpu", dtype, enabled=dtype is torch.bfloat16):
            expected = results(eager, eager, next_token, seed)
            found.append(results(graph, model, next_token, seed))
        assert same(found[-1], expected)
    assert counter.frame_count == 1
    assert not same(found[0], found[1])


@pytest.mark.parametrize("recipe", ["quartet_v4", "dge"])
def test_a_mixture_is_one_graph_whatever_its_experts_get(recipe: str) -> None:
    """The tokens differ from step to step, the last ones are too few for all experts."""
    eager, model = mixtral(recipe), mixtral(recipe)
    other = copy.deepcopy(model)
    graph, counter = compiled(model)
    for seed in range(4):
        ids = torch.randint(96, (1, 33), generator=torch.Generator().manual_seed(seed))
        ids = ids % 2 if seed == 3 else ids

        def loss_of(each: Any, ids: Tensor = ids) -> Tensor:
            return each(input_ids=ids, labels=ids).loss  # type: ignore[no-any-return]

        expected = results(eager, eager, loss_of, seed)
        assert same(results(graph, model, loss_of, seed), expected)
    assert counter.frame_count == 1
    assert same(results(compiled(other)[0], other, loss_of, seed), expected)


def test_noise_is_new_in_every_step_of_one_graph() -> None:
    for clock in (None, lowbit.NoiseClock(3)):
        model = perceptron(lowbit.configure(*STOCHASTIC).recipe, clock=clock)
        eager = copy.deepcopy(model)
        layer: Any = eager[0]
        graph, counter = compiled(model)
        torch.manual_seed(0)
        losses = []
        for step in range(4):
            if clock is not None:
                clock.counter = layer.clock.counter = step
            losses.append(mean_square(graph).item())
        assert len(set(losses)) == 4
        assert counter.frame_count == 1
        torch.manual_seed(0)
        for step, loss in enumerate(losses):
            if clock is not None:
                layer.clock.counter = step
            assert mean_square(eager).item() == loss


def test_a_copy_of_a_compiled_layer_has_a_clock_of_its_own() -> None:
    """The copy has the same guards; only its handle tells it from the first."""
    model = perceptron(lowbit.configure(*STOCHASTIC).recipe, clock=lowbit.NoiseClock(0))
    other: Any = copy.deepcopy(model)
    graph, _ = compiled(model)
    of_copy, _ = compiled(other)
    first = mean_square(graph).item()
    other[0].clock.counter = 1
    assert mean_square(of_copy).item() == mean_square(other).item() != first
    assert mean_square(graph).item() == first


def test_blocks_compiled_one_by_one_share_a_graph() -> None:
    """As long as they have the same shapes: a layer is no constant of the graph."""
    torch.manual_seed(0)
    blocks: Any = nn.ModuleList(nn.Sequential(nn.Linear(64, 64), nn.GELU()) for _ in range(12))
    lowbit.quantize_(blocks, lowbit.configure(*STOCHASTIC).recipe, "mxfp4")
    eager, counter = copy.deepcopy(blocks), CompileCounterWithBackend("aot_eager")  # type: ignore[no-untyped-call]
    for block in blocks:
        block.compile(fullgraph=True, backend=counter)
    x = torch.randn(32, 64, requires_grad=True)
    found = []
    for each in (blocks, eager):
        torch.manual_seed(1)
        y = x
        for block in each:
            y = block(y)
        found.append([y.detach(), *torch.autograd.grad(y.sum(), [x, *each.parameters()])])
    assert same(*found)
    assert counter.frame_count == 1


class Checkpointed(nn.Module):
    """Two blocks, run again in the backward pass."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 64)) for _ in range(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False)  # type: ignore[no-untyped-call]
        return x


def test_a_pass_that_is_run_again_in_a_graph_has_the_same_noise() -> None:
    recipe = lowbit.configure(*STOCHASTIC, "recipe.grad_weight.input.rounding=stochastic").recipe
    eager, model = (lowbit.quantize_(Checkpointed(), recipe, "mxfp4") for _ in range(2))
    graph, _ = compiled(model)
    for seed in range(2):
        expected = results(eager, eager, mean_square, seed)
        assert same(results(graph, model, mean_square, seed), expected)


def test_another_recipe_and_high_precision_take_effect_in_a_graph() -> None:
    model, plain = perceptron("nearest"), perceptron("none")
    graph, _ = compiled(model)
    first = mean_square(graph)
    lowbit.quantize_(model, "nearest", "int8_row")
    eager = copy.deepcopy(model)
    assert mean_square(graph) == mean_square(eager) != first
    layer: Any = model[0]
    layer.clock.quantizing = False
    assert mean_square(graph) == mean_square(plain)
    lowbit.quantize_(model, "none")
    layer.clock.quantizing = True
    assert mean_square(graph) == mean_square(plain)


def test_a_graph_can_be_watched() -> None:
    model, clock = perceptron("nearest"), lowbit.NoiseClock(0)
    lowbit.quantize_(model, "nearest", "mxfp4", clock=clock)
    graph, counter = compiled(model)
    seen: set[tuple[int, str]] = set()

    def watch(layer: QuantizedGemms, label: str, given: Operand, ready: Operand) -> None:
        seen.add((layer.layer, label))

    mean_square(graph).backward()  # type: ignore[no-untyped-call]
    clock.watch = watch
    mean_square(graph).backward()  # type: ignore[no-untyped-call]
    expected = {(n, f"P{k}") for n in range(3) for k in range(1, 7)}
    assert seen == expected - {(0, "P3"), (0, "P4")}
    assert counter.frame_count == 1


def test_frozen_weights_and_convolutions_are_compiled_too() -> None:
    torch.manual_seed(0)
    model: Any = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, stride=2), nn.Flatten(), nn.Linear(16 * 16, 8)
    )
    model[2].weight.requires_grad_(False)
    lowbit.quantize_(model, "quartet_v4", "mxfp4")
    assert isinstance(model[0], QuantConv2d)
    eager = copy.deepcopy(model)
    graph, _ = compiled(model)
    images = torch.randn(4, 3, 8, 8)

    def loss_of(each: Any) -> Tensor:
        return each(images).square().mean()  # type: ignore[no-any-return]

    assert same(results(graph, model, loss_of, 0), results(eager, eager, loss_of, 0))
    assert model[2].weight.grad is None
