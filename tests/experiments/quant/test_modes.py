"""Roundings and estimators: what their names mean, and which names there are."""

import pytest
import torch

from experiments.quant.block import quantize, quantize_as
from experiments.quant.eden import ms_eden
from experiments.quant.formats import Precision
from experiments.quant.hadamard import rotate
from experiments.quant.kernels.noise import uniform
from experiments.quant.modes import DIRECTIONS, Estimator, Rounding
from experiments.quant.rounding import few_bits
from fitting.entry.errors import Refusal
from tests.support.quantizers import MXFP4, NVFP4, SIGNS, normal

NAMES = [*DIRECTIONS, "stochastic", "stochastic_1", "stochastic_23", "ms_eden"]


@pytest.mark.parametrize("name", NAMES)
def test_a_rounding_is_written_as_it_is_read(name: str) -> None:
    assert str(Rounding.parse(name)) == name


def test_names_say_what_is_drawn_and_what_moves() -> None:
    found = {name: Rounding.parse(name) for name in NAMES}
    assert [name for name, r in found.items() if not r.draws] == [*DIRECTIONS]
    assert [name for name, r in found.items() if r.few_bits] == ["stochastic_1", "stochastic_23"]
    assert [name for name, r in found.items() if r.moves_scales] == ["ms_eden"]
    assert [found[name].direction for name in DIRECTIONS] == [*DIRECTIONS]


@pytest.mark.parametrize(
    "name",
    [
        *("", "none", "nearest", "Up", "stochastic_", "stochastic_0", "stochastic_24"),
        *("stochastic_8.0", "stochastic_-1", " ms_eden"),
    ],
)
def test_other_roundings_are_refused(name: str) -> None:
    with pytest.raises(Refusal, match="^must be one of nearest_even, .*, stochastic_<1 to 23 bits"):
        Rounding.parse(name)


def test_every_rounding_is_what_it_stands_for() -> None:
    x = normal(8, 64)
    for name in DIRECTIONS:
        found = quantize_as(x, MXFP4, Rounding.parse(name), None, 32, SIGNS)
        assert torch.equal(found, quantize(x, MXFP4, None, name, 32, SIGNS))
    found = quantize_as(x, MXFP4, Rounding.parse("stochastic"), 3)
    assert torch.equal(found, quantize(x, MXFP4, 3))
    draws = uniform(3, x.shape)
    for noise in (3, draws):
        found = quantize_as(x, MXFP4, Rounding.parse("stochastic_2"), noise)
        assert torch.equal(found, quantize(x, MXFP4, few_bits(draws, 2)))
        assert not torch.equal(found, quantize(x, MXFP4, draws))
    found = quantize_as(x, NVFP4, Rounding.parse("ms_eden"), 3, 32, SIGNS)
    assert torch.equal(found, ms_eden(rotate(x, 32, SIGNS), 3))
    with pytest.raises(ValueError, match="rounding=ms_eden: is defined for nvfp4, not E2M1-tile16"):
        quantize_as(x, Precision.parse("nvfp4_tile"), Rounding.parse("ms_eden"), 3)


def test_estimators_are_read() -> None:
    assert Estimator.parse("straight_through").straight_through
    assert Estimator.parse("masked") == Estimator(masked=True)
    assert Estimator.parse("dge_2.5") == Estimator(steepness=2.5)
    assert not Estimator.parse("dge_1").straight_through, "beyond the largest number it is 0"
    for name in ("", "ste", "dge_", "dge_0.5", "dge_-1", "Masked"):
        with pytest.raises(Refusal, match="^must be one of straight_through, masked, dge_<k>"):
            Estimator.parse(name)
