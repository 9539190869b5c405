"""QuantLinear is a layer: it does what nn.Linear does, wherever that works, and keeps no more."""

import copy
import itertools
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.quant.block import quantize
from experiments.quant.formats import Precision
from experiments.quant.linear import NoiseClock, QuantLinear
from experiments.quant.recipe import OperandConfig
from tests.support.golden_recipes import RECIPES, configuration
from tests.support.layers import FP4, SUN, six

WIDE = Precision.parse("E8M10-block32")
"""Errs by 2^-11 a factor: of products of 64 or 96 terms about 2^-9 of the largest."""
IN, OUT = 64, 96


def pair(
    precision: Precision = WIDE,
    recipe: Any = None,
    into: int = IN,
    out: int = OUT,
    bias: bool = True,
    dtype: torch.dtype = torch.float32,
) -> tuple[QuantLinear, nn.Linear]:
    """A quantized layer and nn.Linear of the same weights."""
    torch.manual_seed(0)
    plain = nn.Linear(into, out, bias=bias)
    recipe = recipe or six(OperandConfig())
    ours = QuantLinear(into, out, recipe, precision, NoiseClock(5), 3, bias=bias)
    ours.load_state_dict(plain.state_dict())
    return ours.to(dtype), plain.to(dtype)


def both(ours: nn.Module, plain: nn.Module, x: Tensor, autocast: torch.dtype | None = None) -> None:
    """The same shapes and dtypes of output and gradients, and nearly the same values."""
    results = []
    for layer in (ours, plain):
        layer.zero_grad()
        leaf = x.detach().clone().requires_grad_()
        with torch.autocast("cpu", dtype=autocast, enabled=autocast is not None):
            y = layer(leaf)
        generator = torch.Generator().manual_seed(1)
        y.backward(torch.randn(y.shape, generator=generator).to(y))
        results.append([y, leaf.grad, *(p.grad for p in layer.parameters())])
    for found, wanted in zip(*results, strict=True):
        assert (found is None) == (wanted is None)
        if wanted is not None:
            assert (found.shape, found.dtype) == (wanted.shape, wanted.dtype)
            narrow = 2 in (wanted.dtype.itemsize, (autocast or x.dtype).itemsize)
            largest = wanted.detach().abs().max() if wanted.numel() else 0.0
            assert ((found - wanted).abs() <= (2**-6 if narrow else 2**-8) * largest).all()


SHAPES = [(0, IN), (2, 0, IN), (IN,), (1, IN), (32, IN), (2, 16, IN), (2, 3, 5, IN), (33, IN)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_any_shape(shape: tuple[int, ...]) -> None:
    """Empty batches, single vectors, and rows that no block divides among them."""
    both(*pair(), torch.randn(shape))


@pytest.mark.parametrize("autocast", [None, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bias", [False, True])
def test_any_dtype(autocast: torch.dtype | None, bias: bool) -> None:
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        if autocast is not None and dtype is torch.float64:
            continue  # nn.Linear itself does not cast that
        both(*pair(bias=bias, dtype=dtype), torch.randn(32, IN, dtype=dtype), autocast)


def test_float64_is_rounded_to_float32_only_where_it_is_quantized() -> None:
    """Products are of float64: unquantized operands keep their digits."""
    ours, _ = pair(FP4, SUN, bias=False, dtype=torch.float64)
    x, dy = torch.randn(32, IN).double() / 3, torch.randn(32, OUT).double() / 3
    leaf = x.clone().requires_grad_()
    y = ours(leaf)
    y.backward(dy)
    w = ours.weight.detach().float()
    assert torch.allclose(y, x @ quantize(w, FP4).double().t(), rtol=1e-14, atol=1e-14)
    turned = quantize(w.t().contiguous(), FP4).double()
    assert leaf.grad is not None
    assert torch.allclose(leaf.grad, dy @ turned.t(), rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("layout", ["transposed", "strided", "expanded", "3d"])
def test_any_layout(layout: str) -> None:
    base = torch.randn(64, 64, 2)
    x = {
        "transposed": base[..., 0].t(),
        "strided": base[:, :, 0],
        "expanded": base[:1, :, 0].expand(32, IN),
        "3d": torch.randn(IN, 4, 8).permute(1, 2, 0),
    }[layout]
    ours, plain = pair()
    both(ours, plain, x)
    assert torch.equal(ours(x), ours(x.contiguous()))


def test_on_the_meta_device_shapes_are_known() -> None:
    ours, plain = pair()
    for layer in (ours.to("meta"), plain.to("meta")):
        x = torch.randn(2, 5, IN, device="meta", requires_grad=True)
        y = layer(x)
        assert (y.shape, y.dtype, y.device.type) == ((2, 5, OUT), torch.float32, "meta")
        y.sum().backward()
        assert x.grad is not None
        assert x.grad.shape == x.shape


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients_the_output_is_the_same(recipe: str, mode: Callable[[], Any]) -> None:
    ours = layer_of(recipe)
    x = torch.randn(64, 128)
    wanted = ours(x)
    with mode():
        assert torch.equal(ours(x), wanted)


def layer_of(recipe: str, into: int = 128, out: int = 128) -> QuantLinear:
    torch.manual_seed(0)
    return QuantLinear(into, out, configuration(recipe).recipe, FP4, NoiseClock(5), 3)


def test_copies_and_states_are_those_of_a_layer() -> None:
    ours, plain = pair(FP4)
    assert list(ours.state_dict()) == list(plain.state_dict())
    x = torch.randn(32, IN)
    again = copy.deepcopy(ours)
    assert torch.equal(again(x), ours(x))
    with torch.no_grad():
        again.weight.zero_()
    assert bool(ours.weight.any())


@pytest.mark.slow
def test_a_compiled_layer_is_the_layer() -> None:
    """Whatever the compiler traces and what it leaves alone."""
    ours, _ = pair(FP4)
    x = torch.randn(32, IN)
    torch._dynamo.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compiled = torch.compile(ours, backend="eager")
        assert torch.equal(compiled(x), ours(x))
        grads = []
        for layer in (compiled, ours):
            ours.zero_grad()
            layer(x).square().sum().backward()
            assert ours.weight.grad is not None
            grads.append(ours.weight.grad.clone())
    assert torch.equal(*grads)


# --- sizes that blocks do not divide ------------------------------------------------------------


@pytest.mark.parametrize("recipe", [r for r in RECIPES if r != "none"])
def test_zeros_are_filled_in_and_change_nothing(recipe: str) -> None:
    """A layer of 50 x 70 and 33 rows is one of the next multiples with zeros around, to float32's
    additions; with one scale for a tensor, row or block zeros leave every largest value alone.
    """
    small, rows = layer_of(recipe, 50, 70), 33
    by_rows, by_in, by_out = small.steps
    into, out = -(-50 // by_in) * by_in, -(-70 // by_out) * by_out
    count = -(-rows // by_rows) * by_rows
    whole = QuantLinear(into, out, small.recipe, FP4, NoiseClock(5), 3)
    with torch.no_grad():
        whole.weight.copy_(F.pad(small.weight, (0, into - 50, 0, out - 70)))
    x, dy = torch.randn(rows, 50), torch.randn(rows, 70)
    leaf = x.clone().requires_grad_()
    y = small(leaf)
    y.backward(dy)
    filled = F.pad(x, (0, into - 50, 0, count - rows)).requires_grad_()
    whole(filled).backward(F.pad(dy, (0, out - 70, 0, count - rows)))
    assert leaf.grad is not None
    assert filled.grad is not None
    assert small.weight.grad is not None
    assert whole.weight.grad is not None
    assert torch.equal(y, whole(filled)[:rows, :70])
    assert torch.equal(leaf.grad, filled.grad[:rows, :50])
    assert torch.equal(small.weight.grad, whole.weight.grad[:70, :50])


@pytest.mark.parametrize("name", ["mxfp4", "nvfp4", "nvfp4_tile", "int4_row", "INT4-tensor"])
def test_a_filled_layer_is_near_the_exact_one(name: str) -> None:
    """Four bits give an error of a fifth of the signal, and not that of another tensor."""
    ours, plain = pair(Precision.parse(name), into=50, out=70)
    x = torch.randn(3, 11, 50)
    y, wanted = ours(x), plain(x)
    assert y.shape == wanted.shape
    assert (y - wanted).norm() < 0.25 * wanted.norm()


# --- what is kept for the backward pass ---------------------------------------------------------


@pytest.mark.parametrize(("of_input", "of_weight"), [(True, False), (False, True), (True, True)])
@pytest.mark.parametrize("recipe", [r for r in RECIPES if r != "none"])
def test_no_more_is_saved_than_the_gradients_need(
    recipe: str, of_input: bool, of_weight: bool
) -> None:
    """A frozen weight needs neither x nor rounded x, unless x's own rounding has a slope."""
    layer = layer_of(recipe, 128, 96)
    layer.weight.requires_grad_(of_weight)
    x = torch.randn(64, 128, requires_grad=of_input)
    saved: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = layer(x)
    kept = [tuple(tensor.shape) for tensor in saved]
    slopes = {
        label: slot is not None and slot.gradient != "straight_through"
        for label, slot in layer.recipe.slots().items()
    }
    assert kept.count((64, 128)) <= of_weight + (of_input and slopes["P1"])
    assert kept.count((96, 128)) <= of_input + (of_weight and slopes["P2"])
    y.sum().backward()
    assert (x.grad is not None, layer.weight.grad is not None) == (of_input, of_weight)


# --- second derivatives -------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", [r for r in RECIPES if r != "none"])
def test_second_derivatives_are_refused_by_name(recipe: str) -> None:
    layer = layer_of(recipe)
    x = torch.randn(64, 128, requires_grad=True)
    with pytest.raises(RuntimeError, match="a quantized layer has no second derivatives"):
        torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)


def test_second_derivatives_of_a_layer_in_high_precision_are_right() -> None:
    ours, plain = pair()
    ours.clock.quantizing = False
    found = []
    for layer in (ours, plain):
        x = torch.randn(32, IN, generator=torch.Generator().manual_seed(3)).requires_grad_()
        [g] = torch.autograd.grad(layer(x).pow(3).sum(), x, create_graph=True)
        found.append(torch.autograd.grad(g.square().sum(), [x, layer.weight]))
    for ours_, theirs in itertools.zip_longest(*found):
        assert torch.equal(ours_, theirs)
