"""The error of rounding normal data: against the quantizers themselves, for all that has a name."""

from __future__ import annotations

import pytest
import torch
from scipy import integrate, stats

from experiments.configure import configure
from experiments.measure.error import gaussian_error
from experiments.measure.recipe_error import LayerTensors, recipe_error
from experiments.quant.formats import PRECISIONS, FormatError, Precision
from experiments.quant.modes import Rounding
from experiments.quant.normal_error import error_of, normal_error, recipe_errors
from experiments.quant.recipe import SLOTS
from tests.support.golden_recipes import RECIPES

SIZE = 512
UNNAMED = (
    *("E1M0-block8", "E1M1", "E2M0-block128", "E3M0-block16", "E0M2-block32-e8m0", "E5M10"),
    *("INT4-asymmetric-block32-e8m0", "INT2", "INT8-tile16", "E1M2-block16-e4m3", "E2M3-row"),
    *("E3M2-block16-ue5m3", "E5M2-block32-e8m0_nearest", "E2M3-block32-e8m0_log2", "INT4-row"),
)


@pytest.mark.parametrize("name", [*PRECISIONS, *UNNAMED])
@pytest.mark.parametrize("rounding", ["nearest_even", "stochastic"])
def test_the_formula_is_the_error_of_the_quantizer(name: str, rounding: str) -> None:
    precision, how = Precision.parse(name), Rounding.parse(rounding)
    sharing = None if precision.in_blocks else precision.sharing(SIZE, SIZE)
    expected = gaussian_error(precision, how, rows=SIZE, columns=SIZE).mse
    # The largest of a tensor, and with two levels all scales, hang on one draw.
    assert normal_error(precision, how, sharing) == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("rounding", ["toward_zero", "up", "down", "nearest_away", "stochastic_8"])
@pytest.mark.parametrize("name", ["mxfp4", "nvfp4", "E2M0", "INT4-asymmetric-block32-e8m0"])
def test_directions_that_nobody_trains_in(name: str, rounding: str) -> None:
    precision, how = Precision.parse(name), Rounding.parse(rounding)
    expected = gaussian_error(precision, how, rows=SIZE, columns=SIZE).mse
    assert normal_error(precision, how) == pytest.approx(expected, rel=0.03)


def test_two_values_that_share_a_scale_are_an_integral_one_can_write_down() -> None:
    # E1M0 has the numbers 0 and 1: the larger of two is exact, the other 0 or the larger.
    def error(x: float, t: float) -> float:
        return float(min(x, t - x) ** 2 * 4 * stats.norm.pdf(x) * 2 * stats.norm.pdf(t))

    expected, _ = integrate.dblquad(error, 0, 12, 0, lambda t: t, epsabs=1e-10)
    assert normal_error(Precision.parse("E1M0-block2")) == pytest.approx(expected / 2, rel=1e-4)


@pytest.mark.parametrize("recipe", RECIPES)
def test_six_operands_of_every_recipe(recipe: str) -> None:
    config = configure(f"recipe={recipe}", "precision=mxfp4")
    precision, size, phases = config.precision.build(), 256, 4
    tensors = torch.randn(3, size, size, generator=torch.Generator().manual_seed(0))
    layers = [
        LayerTensors("a", *(2.0 ** ((phase + 0.5) / phases) * tensors)) for phase in range(phases)
    ]
    measured = recipe_error(layers, config.recipe, precision, draws=3)
    precisions = config.recipe.precisions(precision)
    sharing = {label: precisions[label].sharing(size, size) for label in config.recipe.quantized}
    computed = recipe_errors(config.recipe, precision, sharing)
    assert list(computed) == list(SLOTS)
    for label, error in computed.items():
        # Rounding twice is taken for two errors; INT4 of a whole tensor hangs on one value.
        rough = 0.15 if label in precisions and not precisions[label].in_blocks else 0.05
        assert error == pytest.approx(measured[label].relative_mse.mean, rel=rough), label


@pytest.mark.parametrize(
    ("name", "same"),
    [
        ("mxfp4", "E2M1-block32-e8m0"),
        ("MXFP4 nearest_even", "mxfp4"),
        ("int4_tensor1024", "int4_row1024"),
        ("E1M0-row32-fp32", "E1M0-block32"),
        ("E1M0-row32.0-fp32 stochastic", "e1m0 stochastic"),
    ],
)
def test_names_of_one_error(name: str, same: str) -> None:
    assert error_of(name) == error_of(same) > 0


def test_names_without_an_error() -> None:
    assert [error_of(name) for name in ("none", "BF16", "fp32", "E8M23-none1.0-none")] == [0.0] * 4


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("E2M9000", "mantissa=9000: must be 0..10 bits"),
        ("int4_row", "how many values share a scale; write row1024 for 1024"),
        ("mxfp4 stochastc", "its rounding must be one of"),
        ("QuEST", "write it as E4M3"),
    ],
)
def test_what_is_no_name_is_refused(name: str, said: str) -> None:
    with pytest.raises(FormatError, match=said):
        error_of(name)


def test_the_best_four_bit_format_of_blocks_is_the_uniform_grid() -> None:
    """2603.28765, 2606.20381: normal values in small blocks prefer INT4's grid to E2M1's."""
    uniform, middle, powers = map(error_of, ("E1M2-block16", "E2M1-block16", "E3M0-block16"))
    assert uniform < middle < powers
    assert uniform == pytest.approx(error_of("INT4-block16"), rel=1e-12)
