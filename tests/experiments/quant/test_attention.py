"""The products of attention: against a transcription in float64, finite differences, torch."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.checkpoint import checkpoint

from experiments.engine.noise import DrawnNoise
from experiments.quant.attention import AttentionProducts
from experiments.quant.block import quantize
from experiments.quant.formats import Precision
from experiments.quant.linear import NoiseClock
from experiments.quant.operand import Operand
from experiments.quant.recipe import RecipeConfig
from experiments.quant.slots import ATTENTION, AttentionConfig, OperandConfig
from tests.support.transcriptions import E2M1, amax, nearest

MXFP4 = Precision.parse("mxfp4")
ALONG = ("head_dim", "keys")


def products(
    labels: tuple[str, ...] = ATTENTION,
    operand: OperandConfig | None = None,
    along: str = "head_dim",
    precision: Precision = MXFP4,
    clock: NoiseClock | None = None,
) -> AttentionProducts:
    made = AttentionProducts()
    operands: Any = dict.fromkeys(labels, operand or OperandConfig())
    recipe = RecipeConfig(attention=AttentionConfig(**operands, value_along=along))
    made.quantized_as(recipe, precision, clock or NoiseClock(0), 3)
    return made


def tensors(dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    """4 heads of queries on 2 of keys; 33 positions and heads of 24, which no block divides."""
    generator = torch.Generator().manual_seed(0)
    shapes = (2, 4, 33, 24), (2, 2, 33, 24), (2, 2, 33, 24)
    # Float32's numbers, so that the rounding in float32 is that of the float64 tensors.
    drawn = (torch.randn(shape, generator=generator) for shape in shapes)
    return tuple(x.to(dtype).requires_grad_() for x in drawn)


def mx(x: Tensor) -> Tensor:
    """OCP MX v1.0, section 6.3, in float64 along the last axis, the last block shorter."""
    blocks = F.pad(x, (0, -x.shape[-1] % 32)).unflatten(-1, (-1, 32))  # type: ignore[no-untyped-call]
    scale = 2.0 ** (amax(blocks).log2().floor() - 2)
    rounded = scale * nearest(blocks / scale, E2M1)
    rounded = torch.where(amax(blocks) == 0, 0.0, rounded)
    return rounded.flatten(-2)[..., : x.shape[-1]]


Round = Callable[[str, Tensor], Tensor]


def transcribed(q: Tensor, k: Tensor, v: Tensor, rounded: Round, along: str) -> Tensor:
    """softmax(Q K^T / sqrt(K)) V, head by head, with a function that rounds each operand."""
    q, k = rounded("query", q), rounded("key", k)
    v = rounded("value", v) if along == "head_dim" else rounded("value", v.mT).mT
    heads = []
    for head in range(q.shape[1]):
        shared = head * k.shape[1] // q.shape[1]
        scores = torch.einsum("btk,bsk->bts", q[:, head], k[:, shared]) / q.shape[-1] ** 0.5
        later = torch.arange(k.shape[2])[None] > torch.arange(q.shape[2])[:, None]
        weights = scores.masked_fill(later, -torch.inf).exp()
        weights = rounded(f"probabilities {head}", weights / weights.sum(-1, keepdim=True))
        heads.append(torch.einsum("bts,bsk->btk", weights, v[:, shared]))
    return torch.stack(heads, 1)


@pytest.mark.parametrize("along", ALONG)
def test_the_output_is_that_of_the_rounded_operands(along: str) -> None:
    q, k, v = tensors()
    found = products(along=along)(q, k, v, is_causal=True)
    expected = transcribed(q, k, v, lambda _, x: mx(x.detach()), along)
    assert torch.allclose(found, expected, rtol=0, atol=1e-12)
    plain = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    assert (found - plain).abs().max() > 0.01


@pytest.mark.parametrize("along", ALONG)
def test_gradients_are_those_of_the_rounding_passed_straight_through(along: str) -> None:
    """Central differences of the transcription in which what rounding added is a constant."""
    inputs = tensors()
    added: dict[str, Tensor] = {}

    def note(name: str, x: Tensor) -> Tensor:
        added[name] = mx(x) - x
        return mx(x)

    def constant(name: str, x: Tensor) -> Tensor:
        return x + added[name]

    weights = torch.randn(2, 4, 33, 24, generator=torch.Generator().manual_seed(1)).double()
    found = products(along=along)(*inputs, is_causal=True)
    gradients = torch.autograd.grad((found * weights).sum(), inputs)
    plain = [x.detach() for x in inputs]
    transcribed(*plain, note, along)
    for number, gradient in enumerate(gradients):
        for seed in range(3):
            step = torch.randn(gradient.shape, generator=torch.Generator().manual_seed(seed))
            step, ends = step.double() * 1e-6, []
            for sign in (1, -1):
                moved = [x + sign * step if n == number else x for n, x in enumerate(plain)]
                ends.append((transcribed(*moved, constant, along) * weights).sum().item())
            slope = (gradient * step).sum().item()
            assert slope == pytest.approx((ends[0] - ends[1]) / 2, rel=1e-5, abs=1e-12)


def test_without_anything_to_round_it_is_torchs_own_bit_for_bit() -> None:
    q, k, v = tensors(torch.float32)
    mask = torch.rand(33, 33) > 0.3
    quantized = products()
    quantized.clock.quantizing = False
    for made in (AttentionProducts(), products(()), quantized):
        for more in ({"is_causal": True}, {"scale": 0.3}, {"attn_mask": mask}):
            expected = F.scaled_dot_product_attention(q, k, v, enable_gqa=True, **more)  # type: ignore[arg-type]
            ours: dict[str, Any] = {{"attn_mask": "mask"}.get(n, n): x for n, x in more.items()}
            assert torch.equal(made(q, k, v, **ours), expected)


@pytest.mark.parametrize("label", ATTENTION)
def test_one_operand_alone_is_rounded_and_no_other(label: str) -> None:
    q, k, v = tensors()
    found = products((label,))(q, k, v, is_causal=True)

    def only(name: str, x: Tensor) -> Tensor:
        return mx(x.detach()) if name.split()[0] == label else x

    assert torch.allclose(found, transcribed(q, k, v, only, "head_dim"), rtol=0, atol=1e-12)


@pytest.mark.parametrize("precision", ["mxfp4", "nvfp4", "int4_row", "fp8_e4m3", "nvfp4_tile"])
def test_what_is_multiplied_lies_on_the_grid(precision: str) -> None:
    """Watched; keys and values before heads of queries share them, as a cache has them."""
    clock, seen = NoiseClock(0), {}
    to = Precision.parse(precision)

    def watch(layer: object, label: str, given: Operand, ready: Operand) -> None:
        seen[label] = ready.values.shape
        rows = ready.values.shape[0]
        if not to.tile and not to.scale.two_level and to.granularity != "tensor":
            again = quantize(F.pad(ready.values, (0, -ready.values.shape[1] % to.divisor)), to)
            assert torch.allclose(again[:, : ready.values.shape[1]], ready.values, rtol=1e-6)
        numbers = [set(row.abs().tolist()) for row in ready.values]
        blocks = -(-ready.values.shape[1] // (to.block_size if to.in_blocks else 10**9))
        levels = 128 if "fp8" in precision else 8
        assert max(map(len, numbers)) <= levels * blocks < rows * 24
        assert not torch.equal(given.values, ready.values)

    clock.watch = watch
    products(precision=to, clock=clock)(*tensors(torch.float32), is_causal=True)
    assert seen == {
        "query": (2 * 4 * 33, 24),
        "key": (2 * 2 * 33, 24),
        "value": (2 * 2 * 33, 24),
        "probabilities": (2 * 4 * 33, 33),
    }


def test_values_of_single_tokens_know_of_no_later_one() -> None:
    """Along the keys a block's scale does, and so does what comes of the tokens before."""
    q, k, v = (x.detach() for x in tensors(torch.float32))
    later = [x.clone() for x in (q, k, v)]
    for x in later:
        x[:, :, 31] *= 37
    for along, same in (("head_dim", True), ("keys", False)):
        attend = products(along=along)
        first, second = (attend(*each, is_causal=True)[:, :, :31] for each in ((q, k, v), later))
        assert torch.equal(first, second) == same


def test_noise_is_a_function_of_the_count_and_runs_again_alike() -> None:
    inputs = tensors(torch.float32)
    clock = NoiseClock(5)
    attend = products(operand=OperandConfig("stochastic"), clock=clock)
    first, same = attend(*inputs, is_causal=True), attend(*inputs, is_causal=True)
    clock.counter = 1
    assert torch.equal(first, same)
    assert not torch.equal(first, attend(*inputs, is_causal=True))
    drawn = products(operand=OperandConfig("stochastic"), clock=DrawnNoise(0))
    found = []
    for again in (False, True):
        torch.manual_seed(7)
        outputs = []
        for _ in range(2):
            if again:
                outputs.append(checkpoint(drawn, *inputs, use_reentrant=False))  # type: ignore[no-untyped-call]
            else:
                outputs.append(drawn(*inputs))
        found.append(torch.autograd.grad(sum(o.square().sum() for o in outputs), inputs))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_stochastic_rounding_of_keys_is_unbiased() -> None:
    """1,000 draws, five standard errors of what rounds up with the right chance."""
    clock = NoiseClock(0)
    attend = products(("key",), OperandConfig("stochastic"), clock=clock)
    key, seen = torch.randn(1, 1, 1, 32, generator=torch.Generator().manual_seed(0)), []
    clock.watch = lambda _, __, ___, ready: seen.append(ready.values)
    for clock.counter in range(1_000):
        attend(key, key, key)
    draws = torch.stack(seen)
    scale = 2.0 ** (key.abs().max().log2().floor() - 2)
    inside = key.flatten().abs() < 6 * scale  # the rest saturates
    grid = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    grid = torch.cat([-grid.flip(0), grid[1:]]) * scale
    above = torch.searchsorted(grid, key.flatten()[inside])
    spread = (grid[above] - key.flatten()[inside]) * (key.flatten()[inside] - grid[above - 1])
    error = (draws.mean(0).flatten() - key.flatten()).abs()[inside]
    assert (error <= 5 * (spread / 1_000).sqrt() + 1e-6).all()


def test_a_masked_gradient_is_zero_where_a_value_was_clipped() -> None:
    q, k, v = tensors()
    masked = OperandConfig(gradient="masked")
    through, cut = (products(("query",), o)(q, k, v) for o in (OperandConfig(), masked))
    assert torch.equal(through, cut)
    [a], [b] = (torch.autograd.grad(out.square().sum(), q) for out in (through, cut))
    scale = 2.0 ** (amax(F.pad(q.detach(), (0, 8))).log2().floor() - 2)
    clipped = q.detach().abs() > 6 * scale
    assert clipped.any()
    assert torch.equal(b, a.masked_fill(clipped, 0.0))


def test_in_bfloat16_only_the_output_is_rounded_again() -> None:
    """INT8 rows have FP32 scales, which bfloat16 does not hold."""
    q, k, v = (x.detach().bfloat16() for x in tensors(torch.float32))
    row = Precision.parse("int8_row")
    exact = products(precision=row)(q.float(), k.float(), v.float())
    for found in (products(precision=row)(q, k, v), _autocast(products(precision=row), q, k, v)):
        assert found.dtype is torch.bfloat16
        assert torch.equal(found, exact.bfloat16())


def _autocast(attend: AttentionProducts, *inputs: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return attend(*(x.float() for x in inputs))  # type: ignore[no-any-return]


def test_masks_are_torchs() -> None:
    """In a wide format; a query that sees nothing has zeros, and a gradient of zeros."""
    q, k, v = tensors()
    attend = products(precision=Precision.parse("E5M10"))
    seen = torch.rand(33, 33, generator=torch.Generator().manual_seed(2)) > 0.4
    seen[5] = False
    added = torch.zeros(33, 33, dtype=torch.float64).masked_fill(~seen, -1e30)
    for mask, causal in ((seen, False), (added, False), (seen, True), (added, True)):
        rows = [n for n in range(33) if (seen[n, : n + 1] if causal else seen[n]).any()]
        both = mask
        if causal:
            lower = torch.ones(33, 33, dtype=torch.bool).tril()
            both = mask & lower if mask is seen else mask.masked_fill(~lower, -torch.inf)
        expected = F.scaled_dot_product_attention(q, k, v, both, enable_gqa=True)
        found = attend(q, k, v, mask, is_causal=causal)
        assert torch.allclose(found[:, :, rows], expected[:, :, rows], atol=5e-3)
    out = attend(q, k, v, seen)
    assert not out[:, :, 5].any()
    gradients = torch.autograd.grad(out.sum(), (q, k, v))
    assert all(g.isfinite().all() for g in gradients)
    assert not gradients[0][:, :, 5].any()


def test_what_dropout_leaves_is_what_is_rounded() -> None:
    q, k, v = tensors(torch.float32)
    clock, seen = NoiseClock(0), []
    attend = products(("probabilities",), clock=clock)
    clock.watch = lambda _, __, given, ___: seen.append(given.values)
    torch.manual_seed(1)
    attend(q, k, v, None, 0.5)
    torch.manual_seed(1)
    scores = q @ k.repeat_interleave(2, 1).mT / 24**0.5
    expected = F.dropout(scores.softmax(-1), 0.5)
    assert (seen[0] == 0).float().mean() == pytest.approx(0.5, abs=0.02)
    assert torch.allclose(seen[0], expected.flatten(0, -2), atol=1e-6)


def test_a_copy_is_quantized_and_has_a_clock_of_its_own() -> None:
    inputs = tensors(torch.float32)
    clock = NoiseClock(5)
    attend = products(operand=OperandConfig("stochastic"), clock=clock)
    other = copy.deepcopy(attend)
    first = attend(*inputs)
    clock.counter = 1
    assert torch.equal(other(*inputs), first)
    assert not torch.equal(attend(*inputs), first)


class Model(nn.Module):
    """Queries, keys and values of one matrix, as a user's model has them."""

    def __init__(self, operand: OperandConfig) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.qkv = nn.Linear(64, 192)
        self.attend = products(operand=operand)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).view(*x.shape[:2], 3, 4, 16).permute(2, 0, 3, 1, 4)
        output: Tensor = self.attend(q, k, v, is_causal=True)
        return output


@pytest.mark.parametrize("gradient", ["straight_through", "masked"])
@pytest.mark.parametrize("rounding", ["nearest_even", "stochastic"])
def test_one_graph_has_the_bits_of_eager_execution(rounding: str, gradient: str) -> None:
    torch.compiler.reset()
    model = Model(OperandConfig(rounding, gradient=gradient))
    counter = CompileCounterWithBackend("aot_eager")  # type: ignore[no-untyped-call]
    graph: Any = torch.compile(model, fullgraph=True, backend=counter)
    x, losses = torch.randn(2, 33, 64), []
    for step in range(3):
        model.attend.clock.counter = step
        found = []
        for each in (model, graph):
            model.zero_grad()
            loss = each(x).square().mean()
            loss.backward()
            found.append(
                [loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]
            )
        assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
        losses.append(found[0][0].item())
    assert counter.frame_count == 1
    assert len(set(losses)) == (3 if rounding == "stochastic" else 1)
    torch.compiler.reset()
