"""QSNR formulas and crossovers: the paper's numbers (2510.25602), and measured errors."""

import pytest
import torch

from experiments.measure.error import qsnr
from experiments.measure.theory import crossover, theoretical_qsnr
from experiments.quant.block import quantize
from experiments.quant.formats import Precision

COLUMNS = "mxint8 mxfp8_e4m3 mxint6 mxfp6_e2m3 mxint4 mxfp4 nvint4 nvfp4".split()
QSNR = {  # crest factor: dB in that order
    2: (43.398, 31.864, 31.358, 31.517, 19.318, 19.176, 23.120, 20.800),
    3: (39.876, 31.864, 27.836, 30.814, 15.796, 18.004, 19.598, 22.055),
    4: (37.377, 31.864, 25.337, 29.756, 13.297, 16.465, 17.099, None),
}


@pytest.mark.parametrize("crest", QSNR)
def test_worked_qsnr(crest: int) -> None:
    """To the 0.001 dB of the last digit given."""
    for name, decibels in zip(COLUMNS, QSNR[crest], strict=True):
        precision = Precision.parse(name)
        if decibels is None:
            with pytest.raises(ValueError, match="crest=4: too large for the formula with 16 val"):
                theoretical_qsnr(precision, crest)
        else:
            assert theoretical_qsnr(precision, crest) == pytest.approx(decibels, abs=6e-4)


@pytest.mark.parametrize(
    ("integer", "floating", "overhead", "crest", "decibels"),
    [
        ("mxint8", "mxfp8_e4m3", None, 7.55, 31.86),
        ("mxint6", "mxfp6_e2m3", None, 1.96, 31.54),
        ("mxint4", "mxfp4", None, 2.04, 19.14),
        # The paper states rho = 1 for scales with a mantissa; its numbers are those of rho = 1.05.
        ("nvint4", "nvfp4", 1.05, 2.39, 21.14),
        ("nvint4", "nvfp4", None, 2.464, 21.307),
    ],
)
def test_crossovers_are_the_papers(
    integer: str, floating: str, overhead: float | None, crest: float, decibels: float
) -> None:
    """To 0.005: the printed digits."""
    pair = Precision.parse(integer), Precision.parse(floating)
    assert crossover(*pair, overhead) == pytest.approx((crest, decibels), abs=0.005)
    # Integers are better below, floats above.
    for factor, better in ((0.95, 0), (1.05, 1)):
        at = [theoretical_qsnr(p, crest * factor, overhead) for p in pair]
        assert max(at) == at[better]


def test_crossovers_move_down_with_the_integers_true_largest_number() -> None:
    """7.484, 1.890, 1.735: the paper takes 2^(b-1) for 2^(b-1) - 1."""
    expected = {"mxint8 mxfp8_e4m3": 7.484, "mxint6 mxfp6_e2m3": 1.890, "mxint4 mxfp4": 1.735}
    for pair, crest in expected.items():
        found, _ = crossover(*map(Precision.parse, pair.split()), exact_max=True)
        assert found == pytest.approx(crest, abs=0.001)


def test_the_formula_for_integers_is_what_normal_data_do() -> None:
    """INT8 with an FP32 scale per block: rounding is uniform there, so the formula is exact but for
    the block's largest value, which errs by nothing; crest factors by block, 2,048 blocks of 64.
    """
    x = torch.randn(2048, 64, generator=torch.Generator().manual_seed(0))
    precision = Precision.parse("INT8-block64")
    # The mean error power of blocks is that at the mean squared crest factor.
    crest = (x.abs().amax(-1).square().mean() / x.square().mean()).sqrt().item()
    predicted = theoretical_qsnr(precision, crest, exact_max=True)
    assert qsnr(x, quantize(x, precision)) == pytest.approx(predicted, abs=0.05)


def test_subnormals_vanish_at_small_crest_factors() -> None:
    """Ample range: 13.80 + 6.02 M dB."""
    for name, mantissa in (("mxfp8_e4m3", 3), ("mxfp8_e5m2", 2)):
        found = theoretical_qsnr(Precision.parse(name), 1.5)
        assert found == pytest.approx(13.80 + 6.02 * mantissa, abs=0.01)


def test_what_the_formulas_do_not_cover_is_refused() -> None:
    with pytest.raises(ValueError, match="crest=0.5: must be 1 or more"):
        theoretical_qsnr(Precision.parse("mxfp4"), 0.5)
    with pytest.raises(ValueError, match="granularity=row: the formula counts a block's values"):
        theoretical_qsnr(Precision.parse("INT8-row"), 3)
    with pytest.raises(ValueError, match="a crossover is of integers and floats, not E2M1"):
        crossover(Precision.parse("mxfp4"), Precision.parse("mxint4"))
    with pytest.raises(ValueError, match="INT2-block32-e8m0 is below E2M3-block32-e8m0 from crest"):
        crossover(Precision.parse("int2_block32_e8m0"), Precision.parse("mxfp6_e2m3"))
