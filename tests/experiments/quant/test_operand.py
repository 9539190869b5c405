"""No compute dtype rounds an operand again: what reaches a GEMM is what the format holds."""

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from experiments.config.precision import PRESETS
from experiments.quant import product
from experiments.quant.block import quantize
from experiments.quant.eden import ms_eden
from experiments.quant.formats import PRECISIONS, FormatError, Precision, ScaleFormat
from experiments.quant.hadamard import Rotation, random_signs
from experiments.quant.linear import NoiseClock, QuantLinear
from experiments.quant.modes import Rounding
from experiments.quant.operand import Operand, factor_of, has_factor, multiply
from experiments.quant.recipe import GEMMS, OperandConfig, RecipeConfig
from tests.support.golden_recipes import RECIPES
from tests.support.layers import six
from tests.support.transcriptions import Case

ELEMENTS = "E2M1 E2M0 E1M2 E3M2 E4M3-ocp E5M2-ocp E0M3 E0M7 INT4 INT8 INT8-asymmetric E2M5 E8M3"
GRANULARITIES = ("block16", "tile16", "row", "tensor")


class Gemms(TorchDispatchMode):
    """What really reaches the matrix products, in float64, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[Tensor, Tensor]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.mm.default:
            self.found.append((args[0].double(), args[1].t().double()))
        return func(*args, **(kwargs or {}))


def gemms(layer: QuantLinear, x: Tensor, dy: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
    """The six operands of one pass with gradients, by label."""
    leaf = x.clone().requires_grad_()
    with Gemms() as seen:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype is torch.bfloat16):
            y = layer(leaf)
        y.backward(dy.to(y.dtype))
    assert len(seen.found) == 3
    return {
        label: values
        for pair, found in zip(GEMMS.values(), seen.found, strict=True)
        for label, values in zip(pair, found, strict=True)
    }


def check_operands(layer: QuantLinear, x: Tensor, dy: Tensor) -> None:
    """In bfloat16 quantized operands are float32's, to the bit; others are cast, once."""
    told: dict[str, Tensor] = {}
    wanted = gemms(layer, x, dy, torch.float32)

    def watch(_: QuantLinear, label: str, given: Operand, ready: Operand) -> None:
        told[label] = ready.values.double()

    layer.clock.watch = watch
    found = gemms(layer, x, dy, torch.bfloat16)
    layer.clock.watch = None
    for label, operand in layer.recipe.slots().items():
        if operand is None:
            assert torch.equal(found[label], wanted[label].bfloat16().double()), label
        else:
            assert torch.equal(found[label], wanted[label]), label
            if operand.rounding != "none":
                assert torch.equal(found[label], told[label]), f"{label}: diagnostics are told so"


def data(rows: int = 64, into: int = 64, out: int = 96) -> tuple[Tensor, Tensor]:
    """Rows and columns of other sizes, so that scales differ, and gradients that bfloat16 holds."""
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(rows, into, generator=generator) * torch.randn(rows, 1, generator=generator)
    return x, torch.randn(rows, out, generator=generator).mul(1e-4).bfloat16().float()


@pytest.mark.parametrize("rounding", ["nearest_even", "stochastic", "stochastic_4"])
@pytest.mark.parametrize("name", [*PRESETS, *sorted(set(PRECISIONS) - set(PRESETS))])
def test_every_preset_reaches_the_gemms_as_it_was_quantized(name: str, rounding: str) -> None:
    precision = Precision.parse(name)
    torch.manual_seed(0)
    layer = QuantLinear(64, 96, six(OperandConfig(rounding)), precision, NoiseClock(5), 3)
    check_operands(layer, *data())


@pytest.mark.parametrize("recipe", [r for r in RECIPES if r not in ("none", "lmul")])
def test_every_recipe_multiplies_what_it_quantized(recipe: str) -> None:
    case = Case(recipe)
    check_operands(case.layer, case.x.flatten(0, 1), case.dy.flatten(0, 1).bfloat16().float())


def test_word_lengths_beyond_bfloat16_that_a_run_grows_into_are_exact_too() -> None:
    precision = Precision.parse("E0M10-tensor-e8m0_ceil")
    torch.manual_seed(0)
    layer = QuantLinear(64, 96, six(OperandConfig()), precision, NoiseClock(5), 3)
    check_operands(layer, *data())


def test_lmul_rounds_its_sums_once() -> None:
    case = Case("lmul")
    x, dy = case.x, case.dy.bfloat16().float()
    case.dy = dy
    exact = case.run()["y"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = case.layer(x)
    assert torch.equal(found.flatten(0, 1), exact.bfloat16())


def test_an_operand_knows_how_to_undo_its_rotations() -> None:
    """To float32's roundings; the transpose exchanges them, and has no factor of a row."""
    x = data(32)[0]
    columns, rows = Rotation(16, random_signs(1, 64)), Rotation(32, random_signs(2, 32))
    rotated = Operand(rows.across(x), across=rows).rotated(columns)
    assert not torch.allclose(rotated.values, x, atol=0.1)
    assert torch.allclose(rotated.restored(), x, atol=1e-5)
    assert torch.allclose(rotated.t().restored(), x.t(), atol=1e-5)
    assert rotated.rotated(None) is rotated
    for factor, kept in ((torch.ones(32, 1), False), (torch.ones(()), True), (4 / 3, True)):
        assert (Operand(x, True, factor).t().factor is not None) == kept


# --- the way of a GEMM that takes 16 bits and stores 32 -----------------------------------------


def formats() -> Iterator[Precision]:
    for parts in itertools.product(ELEMENTS.split(), GRANULARITIES, ScaleFormat):
        try:
            yield Precision.parse("-".join(parts))
        except FormatError:  # E2M1's own scales with another element
            continue


def test_values_over_their_factor_are_numbers_of_bfloat16() -> None:
    """Walks elements x granularities x scales x roundings x magnitudes.  To the bit where the
    factor is one scale; two roundings of float32 apart, 2^-23, where it was multiplied by another.
    """
    x, counts = data(32)[0], {True: 0, False: 0}
    for precision in formats():
        counts[has_factor(precision)] += 1
        for noise, size in itertools.product((None, 3), (1.0, 1e-20, 1e20)):
            values = x * size
            rounded = quantize(values, precision, noise)
            if precision.element.exponent == 8 and not bool(rounded.isfinite().all()):
                continue
            factor = factor_of(values, precision, Rounding())
            narrow = Operand(rounded, True, factor).narrow()
            assert (narrow is not None) == (factor is not None) == has_factor(precision)
            if narrow is None:
                continue
            assert narrow.dtype is torch.bfloat16
            off = (narrow.float() * factor - rounded).abs()
            allowed = rounded.abs() * 2**-23 if precision.scale.two_level else 0 * off
            assert (off <= allowed).all(), f"{precision}, noise {noise}, times {size}"
            elements = narrow.double() * 2.0**40
            assert torch.equal(elements, elements.round()) or size != 1.0
    assert counts[True] > 150
    assert counts[False] > 50


def test_ms_eden_has_the_factor_of_its_own_tensor_scale() -> None:
    x, nvfp4 = data(32)[0], PRECISIONS["nvfp4"]
    rounded = ms_eden(x, 5)
    factor = factor_of(x, nvfp4, Rounding.parse("ms_eden"))
    narrow = Operand(rounded, True, factor).narrow()
    assert narrow is not None
    assert ((narrow.float() * factor - rounded).abs() <= rounded.abs() * 2**-23).all()


@pytest.mark.parametrize("wide", [False, True], ids=["float32", "wide"])
@pytest.mark.parametrize("name", ["nvfp4", "int8_row", "INT4-tensor", "mxfp4_4_3", "mxint8"])
def test_products_are_rounded_once(name: str, wide: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against float64: nearly all are the nearest bfloat16.  Where float32's additions decide a tie
    it is the other, half a step away: 2^-8 of it, and 2^-18 of the largest.
    """
    if wide:
        monkeypatch.setattr(product, "WIDE_DEVICES", ("cpu",))
    precision = Precision.parse(name)
    x, w = data()[0], data(48)[0]
    operands = [
        Operand(quantize(t, precision), True, factor_of(t, precision, Rounding())) for t in (x, w)
    ]
    exact = operands[0].values.double() @ operands[1].values.double().t()
    found = multiply(operands[0], operands[1], torch.bfloat16).double()
    assert (found == exact.bfloat16().double()).double().mean() > 0.9
    assert ((found - exact).abs() <= exact.abs() * 2**-8 + exact.abs().max() * 2**-18).all()


@pytest.mark.parametrize("recipe", [r for r in RECIPES if r != "none"])
def test_a_device_with_wide_products_has_the_same_results(
    recipe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for float32's order of additions, which may round to the other bfloat16: 2^-8; more
    where DGE's slope, of up to 3, follows.
    """
    results = []
    for devices in ((), ("cpu",)):
        monkeypatch.setattr(product, "WIDE_DEVICES", devices)
        case = Case(recipe)
        case.dy = case.dy.bfloat16()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            results.append(case.run())
    for name in ("y", "dx", "dw"):
        one, other = (result[name].double() for result in results)
        off = (one - other).abs()
        assert (off <= one.abs() * 2**-7 + one.abs().max() * 2**-12).all(), name
        assert (off > one.abs().max() * 2**-18).double().mean() < 0.02, f"{name}: few do"


def test_a_factor_per_row_does_not_survive_the_transposition() -> None:
    """Reused by the backward pass, whose product sums over the rows; one of the tensor does."""
    by_row = Operand(torch.ones(4, 8), True, torch.ones(4, 1))
    assert by_row.shared_factor is None
    assert Operand(torch.ones(4, 8), True, torch.ones(())).shared_factor is not None
    assert Operand(torch.ones(4, 8), True, 1.0).shared_factor == 1.0


def test_recipes_that_reuse_row_scaled_operands_run_where_products_are_wide(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(product, "WIDE_DEVICES", ("cpu",))
    recipe = RecipeConfig("reuse")
    recipe.output.input = recipe.output.weight = OperandConfig()
    recipe.grad_input.weight = recipe.grad_weight.input = OperandConfig("none", forward=True)
    int8 = Precision.parse("int8_row")
    layer = QuantLinear(64, 96, recipe, int8, NoiseClock(0))
    x, dy = data()
    leaf = x.clone().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(leaf)
    y.backward(dy.to(y.dtype))
    exact = dy.double() @ quantize(layer.weight.detach(), int8).double()
    assert leaf.grad is not None
    off = (leaf.grad.double() - exact).abs()
    assert (off <= exact.abs() * 2**-8 + exact.abs().max() * 2**-18).all()


# --- what `quantize` returns for a 16-bit tensor ------------------------------------------------


@pytest.mark.parametrize(("dtype", "digits"), [(torch.bfloat16, 8), (torch.float16, 11)])
@pytest.mark.parametrize("name", [*PRESETS, "E4M10-block32-e8m0"])
def test_a_16_bit_result_is_the_formats_values_rounded_once_more(
    name: str, dtype: torch.dtype, digits: int
) -> None:
    """As the docstring says: that changes none where the dtype has the digits, else it may."""
    from experiments.configure import configure

    named = PRECISIONS.get(name) or Precision.parse(name) if "-" in name else None
    precision = named or configure(f"precision={name}").precision.build()
    x = data()[0].to(dtype)
    values = quantize(x.float(), precision)
    found = quantize(x, precision)
    assert found.dtype is dtype
    assert torch.equal(found, values.to(dtype))
    power = precision.scale.power_of_two and precision.scale is not ScaleFormat.E8M0_4_3
    if power and precision.element.significant_bits <= digits:
        assert torch.equal(found.float(), values)
    elif name in ("nvfp4", "int8_row", "e2m1", "mxfp4_4_3"):
        assert (found.float() != values).double().mean() > 0.3
    assert "rounded once more, to its own dtype" in str(quantize.__doc__)
