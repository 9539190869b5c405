"""L-Mul GEMMs against the definition of a single product, in float64."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from experiments.config.precision import ConfigError
from experiments.config.schema import TrainConfig
from experiments.quant.block import round_elements
from experiments.quant.formats import FloatFormat
from experiments.quant.lmul import lmul, offset
from experiments.run.identity import run_id, science
from tests.support.transcriptions import lmul_product

Compose = Callable[..., TrainConfig]


def numbers(element: FloatFormat) -> Tensor:
    """All of the format, both signs, zeros and subnormals included."""
    grid = torch.tensor(element.grid())
    return torch.cat((-grid, grid))


@pytest.mark.parametrize("name", ["E2M1", "E4M3", "E4M3-ocp", "E5M2", "E3M4", "E2M5"])
def test_every_pair_of_numbers_is_multiplied_as_defined(name: str) -> None:
    """A GEMM over k = 1, exactly: the sums fit float32 easily."""
    element = FloatFormat.parse(name)
    x = numbers(element)[:, None]
    found = lmul(x, x, element.mantissa)
    assert torch.equal(found.double(), lmul_product(x.double(), x.double(), element.mantissa))


@pytest.mark.parametrize("mantissa", [1, 3, 7])
def test_a_gemm_is_the_sum_of_its_products(mantissa: int) -> None:
    """1,000 products of each of which float32 holds all bits; their sum errs by less than
    1,000 x 2^-24 of the sum of magnitudes.
    """
    generator = torch.Generator().manual_seed(1)
    element = FloatFormat(8, mantissa)
    left, right = (
        round_elements(torch.randn(rows, 1000, generator=generator), element) for rows in (5, 7)
    )
    a, b = left.double(), right.double()
    expected = lmul_product(a, b, mantissa)
    size = lmul_product(a.abs(), b.abs(), mantissa)
    assert ((lmul(left, right, mantissa).double() - expected).abs() < 1000 * 2**-24 * size).all()


def test_the_error_of_a_product_is_what_the_paper_derives() -> None:
    """Without the exponent it is xm ym - 2^-l(m).  Over all pairs of 3-bit mantissas the mean of
    xm ym is (7/16)^2, so products come out too small by 0.19 - 0.125 on average.
    """
    x = 1 + torch.arange(8.0)[:, None] / 8
    error = x @ x.t() - lmul(x, x, 3)
    mantissa = x.flatten() - 1
    assert torch.equal(error, torch.outer(mantissa, mantissa) - 0.125)
    assert error.mean().item() == (7 / 16) ** 2 - 0.125


def test_mantissas_that_add_up_to_one_are_not_carried() -> None:
    """1.75 x 1.75 = 3.0625: by Eq. 1 2.625; an adder of bit patterns would give 3.25."""
    x = torch.tensor([[1.75]])
    assert lmul(x, x, 3).item() == 1 + 0.75 + 0.75 + 0.125


def test_infinities_and_nan_stay_visible() -> None:
    one = torch.ones(1, 1)
    for bad in (torch.inf, torch.nan):
        assert not lmul(torch.full((1, 1), bad), one, 3).isfinite().any()


def test_bfloat16_products_of_few_bits_are_exact() -> None:
    """Up to 6 bits: x + (c - 1) p is a multiple of the last one and below 2^(xe + 1)."""
    for mantissa in range(1, 7):
        x = numbers(FloatFormat(3, mantissa))[:, None]
        exact = lmul(x, x, mantissa)
        assert torch.equal(lmul(x, x, mantissa, torch.bfloat16), exact.bfloat16())


def test_l_of_m_is_the_papers() -> None:
    assert [offset(m) for m in range(1, 11)] == [2**-1, 2**-2, 2**-3, 2**-3] + 6 * [2**-4]


LMUL = ["recipe=lmul"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["recipe.output.product=add"], "recipe.output.product=add: must be one of exact, lmul"),
        (
            ["recipe=sun", "recipe.output.product=lmul"],
            "recipe.output.product=lmul: needs output.input to be quantized",
        ),
        (
            ["recipe.output.product=lmul"],
            "recipe.output.product=lmul: needs scales that are powers of two, not E2M1-block32-fp",
        ),
        (
            ["recipe.output.product=lmul", "precision=mxfp4_4_3"],
            "recipe.output.product=lmul: needs scales that are powers of two, not E2M1-block32-e8m",
        ),
        (
            ["recipe.output.product=lmul", "precision=mxint8"],
            "recipe.output.product=lmul: needs elements with exponent and mantissa bits, not INT8-",
        ),
        (
            ["recipe=lmul", "recipe.grad_input.weight.precision=mxfp8_e5m2"],
            "recipe.grad_input.product=lmul: needs as many mantissa bits left and right, not E4M3-",
        ),
    ],
)
def test_what_cannot_be_multiplied_so_is_refused(
    composed: Compose, overrides: list[str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        composed(*overrides)
    assert all(re.match(r"[\w.]+=\S*: ", line) for line in str(error.value).splitlines())


def test_the_product_counts_in_the_address_only_off_its_default(composed: Compose) -> None:
    base = composed("precision=mxfp8_e4m3")
    assert "product" not in str(science(base))
    gemms = ("output", "grad_input", "grad_weight")
    ids = [
        run_id(composed("precision=mxfp8_e4m3", *(f"recipe.{g}.product=lmul" for g in chosen)))
        for n in range(4)
        for chosen in itertools.combinations(gemms, n)
    ]
    assert len(set(ids)) == 8
