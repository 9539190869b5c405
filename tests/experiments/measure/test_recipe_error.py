"""Errors of recipes: exactly none, as the papers have them, and as their dense transcriptions."""

import pytest
import torch
from torch import Tensor

from experiments.measure.recipe_error import (
    OPERANDS,
    PRODUCTS,
    TENSORS,
    Estimate,
    LayerTensors,
    TensorError,
    is_random,
    recipe_error,
)
from experiments.quant.formats import Precision
from experiments.quant.recipe import RecipeConfig
from tests.support.golden_recipes import RECIPES, configuration
from tests.support.transcriptions import TRANSCRIPTIONS, Case, hadamard, whole

MXFP4 = Precision.parse("mxfp4")
RANDOM = {
    *("stochastic", "hadamard", "luq", "quartet_v1", "quartet_v4", "quartet2", "nvidia_nvfp4"),
    *("fp4_all_the_way", "graphcore", "ue5m3", "tetrajet"),
}


def normal_layers(count: int, rows: int, columns: int, outputs: int) -> list[LayerTensors]:
    """Sigma evenly over an octave, as the published averages have it."""
    generator = torch.Generator().manual_seed(0)
    return [
        LayerTensors(
            str(number),
            *(
                torch.randn(shape, generator=generator) * 2.0 ** ((number + 0.5) / count)
                for shape in ((rows, columns), (outputs, columns), (rows, outputs))
            ),
        )
        for number in range(count)
    ]


def errors(recipe: str, layers: list[LayerTensors], draws: int = 3) -> dict[str, TensorError]:
    return recipe_error(layers, configuration(recipe).recipe, MXFP4, draws)


def test_a_recipe_that_quantizes_nothing_errs_by_exactly_nothing() -> None:
    for name, error in errors("none", normal_layers(2, 64, 32, 48)).items():
        measures = (error.relative_mse, error.misalignment, error.cosine, error.norm_ratio)
        assert [e.mean for e in measures] == [0.0, 0.0, 1.0, 1.0], name
        assert all(e.standard_error == 0.0 for e in measures)
        assert error.cosine_of_mean == (Estimate(1.0, 0.0) if name in PRODUCTS else None)


def test_what_a_recipe_leaves_out_stays_exact() -> None:
    """Sun et al. quantize P2, P4 and P6 alone."""
    found = errors("sun", normal_layers(1, 64, 32, 64))
    for label in OPERANDS:
        quantized = label in ("P2", "P4", "P6")
        assert (found[label].relative_mse.mean > 0.01) == quantized
        assert (found[label].cosine.mean == 1.0) == (not quantized)


def test_a_second_pass_differs_where_anything_is_drawn() -> None:
    assert {name for name in RECIPES if is_random(configuration(name).recipe)} == RANDOM


# recipe and operand: relative MSE and misalignment (None: not stated), on normal data.  Quartet,
# 2505.14669 Table 2 and Quartet II, 2601.22813, recomputed where the papers leave out how.
PUBLISHED = {
    ("quest", "P1"): (1.3375e-2, None),
    ("mx_baseline", "P1"): (1.3345e-2, 2.17e-2),
    ("mx_baseline", "P5"): (1.3345e-2, 2.17e-2),
    ("quartet_v1", "P3"): (2.777e-2, 0.0),
    ("quartet_v1", "P5"): (2.777e-2, 0.0),
    ("quartet_v4", "P3"): (1.367e-2, 9.67e-3),
    ("quartet_v4", "P5"): (1.367e-2, 9.67e-3),
    ("tetrajet", "P2"): (1.365e-2, None),
    ("nvidia_nvfp4", "P1"): (9.05e-3, None),
    ("nvidia_nvfp4", "P2"): (12.38e-3, None),
    ("nvidia_nvfp4", "P6"): (9.05e-3, None),
    ("quartet2", "P1"): (7.57e-3, None),
    ("quartet2", "P3"): (9.32e-3, 0.0),
    ("quartet2", "P5"): (9.32e-3, 0.0),
}


def test_operands_err_on_normal_data_as_published() -> None:
    """MSE to 2 %, misalignment to 10 %; where nothing is biased the mean projection of some 10^4
    rows is 1 to 1e-3.  On 8 x 16,384 values of a weight and twice as many of the others, whose mean
    squared error is known to 0.5 % and whose misalignment to 0.013 / 45 = 3e-4.
    """
    layers = normal_layers(8, 256, 128, 128)
    found = {recipe: errors(recipe, layers) for recipe in {name for name, _ in PUBLISHED}}
    for (recipe, label), (mse, misaligned) in PUBLISHED.items():
        error = found[recipe][label]
        assert error.relative_mse.mean == pytest.approx(mse, rel=0.02), (recipe, label)
        if misaligned is not None:
            near = pytest.approx(misaligned, rel=0.1, abs=1e-3)
            assert error.misalignment.mean == near, (recipe, label)


def test_errors_of_both_operands_multiply_in_the_cosine_of_their_product() -> None:
    """Independent normal operands whose errors are independent: E<Y, Y'> = (1 - m1)(1 - m2) E|Y|^2
    and E|Y'|^2 the product of both operands' E|Q|^2, so cos Y = cos P1 cos P2.
    """
    layers = normal_layers(4, 512, 128, 128)
    for recipe in ("mx_baseline", "nvidia_nvfp4", "luq", "dge"):
        found = errors(recipe, layers)
        p1, p2 = found["P1"].cosine.mean, found["P2"].cosine.mean
        assert found["output"].cosine.mean == pytest.approx(p1 * p2, abs=2e-4), recipe
        assert p1 * p2 < 0.994


# --- against the papers' algorithms in float64 --------------------------------------------------


def undone(case: Case, label: str, operand: Tensor) -> Tensor:
    """An operand of the GEMM in the tensor's own axes, by dense rotations: H is its own inverse."""
    recipe = case.config
    gemm_name = {"1": "output", "2": "output", "3": "grad_input", "4": "grad_input"}.get(
        label[1], "grad_weight"
    )
    gemm = recipe.gemms()[gemm_name]
    if gemm.hadamard:
        operand = hadamard(operand, gemm.hadamard)
        counter, device = case.layer.clock.counter, operand.device
        rotation = case.layer.rotation(gemm_name, operand.shape[-1], device, counter)
        assert rotation is not None
        signs = rotation.signs
        operand = operand if signs is None else operand * signs.double()
    if label == "P3" and recipe.grad_input.row_hadamard:
        operand = hadamard(operand.t(), recipe.grad_input.row_hadamard).t()
    slot = recipe.slots()[label]
    if slot is not None and slot.forward and recipe.output.hadamard:
        operand = hadamard(operand.t(), recipe.output.hadamard).t()
    return operand


@pytest.mark.parametrize("recipe", ["quartet_v4", "quartet_v1", "nvidia_nvfp4", "halo2", "quest"])
def test_errors_are_those_of_the_papers_algorithm_in_float64(recipe: str) -> None:
    """Double quantization, random and shared signs, rotated rows.  Operands agree to 2^-21 of
    their size (`test_recipes.py`), so the square of an error, a hundredth of the tensor's and
    at 8 bits a ten thousandth, agrees to 2 x 2^-21 x 100; and a cosine, quadratic in that, to more.
    """
    case = Case(recipe)
    case.layer.layer = 0
    x, w, dy = case.data()
    given = LayerTensors("a", x.float(), w.float(), dy.float())
    run = Precision.parse("E2M1-block32-fp32")
    found = recipe_error([given], case.config, run, draws=3, seed=case.layer.clock.seed)
    exact = dict(zip(OPERANDS, (x, w, dy, w.t(), dy.t(), x.t()), strict=True))
    exact |= dict(zip(PRODUCTS, (x @ w.t(), dy @ w, dy.t() @ x), strict=True))
    wanted: dict[str, list[tuple[float, ...]]] = {name: [] for name in TENSORS}
    for draw in range(3 if is_random(case.config) else 1):
        case.layer.clock.counter = draw
        dense = TRANSCRIPTIONS[recipe](case)
        dense |= dict(zip(PRODUCTS, (dense["y"], dense["dx"], dense["dw"]), strict=True))
        for name, a in exact.items():
            b = undone(case, name, dense[name]) if name in OPERANDS else dense[name]
            projections = (a * b).sum(1) / (a * a).sum(1)
            wanted[name].append(
                (
                    ((a - b).norm() / a.norm()).square().item(),
                    1 - projections.mean().item(),
                    ((a * b).sum() / (a.norm() * b.norm())).item(),
                    (b.norm() / a.norm()).item(),
                )
            )
    for name, error in found.items():
        mse, misaligned, cosine, ratio = torch.tensor(wanted[name]).mean(0).tolist()
        assert error.relative_mse.mean == pytest.approx(mse, rel=1e-4, abs=1e-12), name
        assert error.misalignment.mean == pytest.approx(misaligned, abs=1e-6), name
        assert error.cosine.mean == pytest.approx(cosine, abs=1e-6), name
        assert error.norm_ratio.mean == pytest.approx(ratio, abs=1e-6), name


# --- over draws ---------------------------------------------------------------------------------


def test_the_mean_gradient_is_that_of_the_forward_operands_where_rounding_is_unbiased() -> None:
    """LUQ's expectation is dY Wq and dY^T Xq, whose cosines are known; one draw is far from it.
    Of 48 draws: beyond five standard errors by chance once in a million, Student's t once in 10^5.
    """
    case = Case("luq")
    x, w, dy = case.data()
    given = LayerTensors("a", x.float(), w.float(), dy.float())
    found = recipe_error([given], case.config, MXFP4, draws=48)
    ints = [float(k) for k in range(8)]
    for name, exact, mean in (
        ("grad_input", dy @ w, dy @ whole(w, ints)),
        ("grad_weight", dy.t() @ x, dy.t() @ whole(x, ints)),
    ):
        known = ((exact * mean).sum() / (exact.norm() * mean.norm())).item()
        estimate = found[name].cosine_of_mean
        assert estimate is not None
        assert 0 < estimate.standard_error < 2e-3
        assert abs(estimate.mean - known) < 5 * estimate.standard_error, name
        assert found[name].cosine.mean < known - 0.02
    output = found["output"].cosine_of_mean
    assert output is not None
    assert output.mean == pytest.approx(found["output"].cosine.mean, abs=1e-12)
    assert output.standard_error == pytest.approx(0.0, abs=1e-12), "nothing forward is drawn"


def test_random_rotations_make_nearest_rounding_average_out_and_fixed_ones_do_not() -> None:
    """What the mean over draws is for.  On 2 x 32,768 values, in 16 draws."""
    layers = normal_layers(2, 128, 256, 128)
    bias = {}
    for recipe in ("nearest", "hadamard", "stochastic"):
        error = recipe_error(
            layers, configuration(recipe).recipe, Precision.parse("E2M1-block32-fp32"), 16
        )["grad_weight"]
        assert error.cosine_of_mean is not None
        bias[recipe] = 1 - error.cosine_of_mean.mean
        assert error.cosine.mean < 0.99
    assert bias["nearest"] > 0.01
    assert abs(bias["stochastic"]) < 1e-3
    assert abs(bias["hadamard"]) < 1e-3


def test_standard_errors_are_the_spread_of_repetitions() -> None:
    """24 repetitions with noise of their own: the standard deviation of their means is known to
    1 / sqrt(46) = 15 %; a factor 1.8 is four of these.
    """
    [layer] = normal_layers(1, 64, 32, 64)
    recipe = configuration("stochastic").recipe
    runs = [recipe_error([layer], recipe, MXFP4, 8, seed)["grad_weight"] for seed in range(24)]
    for measure in ("relative_mse", "cosine", "norm_ratio", "cosine_of_mean"):
        estimates = [getattr(run, measure) for run in runs]
        spread = torch.tensor([e.mean for e in estimates], dtype=torch.float64).std().item()
        told = sum(e.standard_error**2 for e in estimates) ** 0.5 / 24**0.5
        assert told / 1.8 < spread < told * 1.8, measure


def test_layers_that_the_recipe_keeps_are_measured_too() -> None:
    layers = normal_layers(1, 64, 32, 64)
    kept = configuration("nvidia_nvfp4").recipe
    assert kept.keep_last or kept.keep_first
    assert errors("nvidia_nvfp4", layers)["P1"].relative_mse.mean > 0.005


def test_too_few_draws_are_refused() -> None:
    with pytest.raises(ValueError, match="draws=2: must be 3 or more"):
        recipe_error([], RecipeConfig(), MXFP4, draws=2)
