"""QuantLinear: the three GEMMs against direct transcriptions."""

import pytest
import torch
from torch import Tensor, nn

from experiments.quant.block import quantize
from experiments.quant.formats import FloatFormat, Precision, ScaleFormat
from experiments.quant.linear import NoiseClock, QuantLinear
from experiments.quant.recipe import (
    GradInputConfig,
    GradWeightConfig,
    OperandConfig,
    OutputConfig,
    RecipeConfig,
)
from tests.support.layers import FP4, NEAREST, STOCHASTIC, SUN, case, six

WIDE = Precision(FloatFormat(8, 10), "block", 32)


def run(layer: nn.Module, x: Tensor, grad_output: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Output, gradient of the input, gradient of the weight."""
    x = x.clone().requires_grad_()
    layer.zero_grad()
    y = layer(x)
    y.backward(grad_output)
    assert x.grad is not None
    return y.detach(), x.grad, layer.weight.grad.clone()  # type: ignore[union-attr]


@pytest.mark.parametrize("bias", [False, True])
def test_an_empty_recipe_is_nn_linear_bit_for_bit(bias: bool) -> None:
    torch.manual_seed(0)
    plain = nn.Linear(64, 96, bias=bias)
    ours = QuantLinear(64, 96, RecipeConfig(), FP4, NoiseClock(0), bias=bias)
    ours.load_state_dict(plain.state_dict())
    x, grad = torch.randn(2, 32, 64), torch.randn(2, 32, 96)
    for a, b in zip(run(ours, x, grad), run(plain, x, grad), strict=True):
        assert torch.equal(a, b)


def test_all_six_operands_are_quantized_along_the_summed_axis() -> None:
    layer, x, grad = case(six(NEAREST))
    rows, dy, w = x.flatten(0, 1), grad.flatten(0, 1), layer.weight.detach()
    y, dx, dw = run(layer, x, grad)
    assert torch.equal(y.flatten(0, 1), quantize(rows, FP4) @ quantize(w, FP4).t())
    w_t = quantize(w.t().contiguous(), FP4)
    assert torch.equal(dx.flatten(0, 1), quantize(dy, FP4) @ w_t.t())
    dy_t, x_t = quantize(dy.t().contiguous(), FP4), quantize(rows.t().contiguous(), FP4)
    assert torch.allclose(dw, dy_t @ x_t.t(), rtol=1e-6, atol=1e-6)


def test_sun_quantizes_p2_p4_p6_and_leaves_the_rest_exact() -> None:
    """Sun et al. 2501.02423, section 3."""
    assert SUN.quantized == ("P2", "P4", "P6")
    layer, x, grad = case(SUN)
    rows, dy, w = x.flatten(0, 1), grad.flatten(0, 1), layer.weight.detach()
    y, dx, dw = run(layer, x, grad)
    assert torch.equal(y.flatten(0, 1), rows @ quantize(w, FP4).t())
    assert torch.equal(dx.flatten(0, 1), dy @ quantize(w.t().contiguous(), FP4).t())
    x_t = quantize(rows.t().contiguous(), FP4)
    assert torch.allclose(dw, dy.t() @ x_t.t(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("hadamard", [0, 16, 32])
@pytest.mark.parametrize("signs", ["fixed", "random"])
def test_with_a_wide_format_every_recipe_is_nn_linear(hadamard: int, signs: str) -> None:
    """E8M10 errs by 2^-11 a factor: products of 64 or 96 terms to about 2^-9 of their size."""
    layer, x, grad = case(six(NEAREST, hadamard, signs), WIDE)
    plain = nn.Linear(64, 96, bias=False)
    plain.load_state_dict(layer.state_dict())
    for ours, exact in zip(run(layer, x, grad), run(plain, x, grad), strict=True):
        assert (ours - exact).abs().max() < 2**-9 * exact.abs().max()


def test_gradient_is_that_of_the_function_where_rounding_is_negligible() -> None:
    """Central differences of sum(y * g) in float64 terms, step 0.1, format E8M10: to 1 %."""
    layer, x, grad = case(six(NEAREST), WIDE)
    _, dx, dw = run(layer, x, grad)
    with torch.no_grad():
        for index in ((0, 0, 0), (1, 7, 63)):
            shift = torch.zeros_like(x)
            shift[index] = 0.5
            slope = ((layer(x + shift) - layer(x - shift)) * grad).sum()
            assert slope.item() == pytest.approx(dx[index].item(), abs=0.02 * dx.abs().max().item())
        for place in ((0, 0), (95, 63)):
            kept = layer.weight[place].item()
            values = []
            for moved in (kept + 0.5, kept - 0.5):
                layer.weight[place] = moved
                values.append((layer(x) * grad).sum())
            layer.weight[place] = kept
            slope = values[0] - values[1]
            assert slope.item() == pytest.approx(dw[place].item(), abs=0.02 * dw.abs().max().item())


def test_noise_is_a_function_of_seed_counter_layer_and_operand() -> None:
    layer, x, grad = case(six(STOCHASTIC, 32, "random"))
    layer.clock.counter = 11
    first = run(layer, x, grad)
    torch.rand(1000)  # the global generator plays no part
    for again, before in zip(run(layer, x, grad), first, strict=True):
        assert torch.equal(again, before)
    for change in ("counter", "seed", "layer"):
        owner = layer if change == "layer" else layer.clock
        setattr(owner, change, getattr(owner, change) + 1)
        for other, before in zip(run(layer, x, grad), first, strict=True):
            assert not torch.equal(other, before), change
        setattr(owner, change, getattr(owner, change) - 1)


def test_the_counter_of_the_forward_pass_is_used_in_backward() -> None:
    layer, x, grad = case(six(STOCHASTIC))
    layer.clock.counter = 4
    expected = run(layer, x, grad)[2]
    y = layer(x)
    layer.clock.counter = 5  # another forward pass began before this one's backward
    layer.zero_grad()
    y.backward(grad)
    assert torch.equal(layer.weight.grad, expected)


def test_stochastic_gradients_are_unbiased() -> None:
    """600 draws of 96 x 64 + 64 x 64 elements: |z| < 5.5 for all fails by chance once in 2,500."""
    recipe = RecipeConfig(
        "backward",
        OutputConfig(),
        GradInputConfig(STOCHASTIC, STOCHASTIC),
        GradWeightConfig(STOCHASTIC, STOCHASTIC),
    )
    layer, x, grad = case(recipe, Precision(FloatFormat(2, 1), "block", 32, ScaleFormat.FP32))
    plain = nn.Linear(64, 96, bias=False)
    plain.load_state_dict(layer.state_dict())
    _, exact_dx, exact_dw = run(plain, x, grad)
    draws = []
    for counter in range(600):
        layer.clock.counter = counter
        _, dx, dw = run(layer, x, grad)
        draws.append(torch.cat([dx.flatten(), dw.flatten()]).double())
    stacked = torch.stack(draws)
    exact = torch.cat([exact_dx.flatten(), exact_dw.flatten()]).double()
    z = (stacked.mean(0) - exact) / (stacked.std(0) / 600**0.5)
    assert z.abs().max() < 5.5


def test_bfloat16_compute_multiplies_bfloat16_operands() -> None:
    layer, x, grad = case(six(NEAREST))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, dx, dw = run(layer, x, grad.bfloat16())
    assert (y.dtype, dx.dtype, dw.dtype) == (torch.bfloat16, torch.float32, torch.float32)
    expected = (
        quantize(x.flatten(0, 1), FP4).bfloat16() @ quantize(layer.weight, FP4).bfloat16().t()
    )
    assert torch.equal(y.flatten(0, 1), expected)


def test_recipe_problems_name_key_value_and_choices() -> None:
    recipe = RecipeConfig(
        "odd", OutputConfig(OperandConfig("sideways"), hadamard=24), GradInputConfig(signs="maybe")
    )
    assert recipe.problems() == [
        "recipe.output.hadamard=24: must be 0 (none) or a power of two",
        "recipe.output.input.rounding=sideways: must be one of nearest_even, nearest_away, "
        "toward_zero, up, down, stochastic, stochastic_<1 to 23 bits>, ms_eden, none",
        "recipe.grad_input.signs=maybe: must be one of fixed, random, shared",
    ]
