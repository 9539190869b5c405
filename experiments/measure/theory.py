"""Quantization error on Gaussian data from formulas: INT v.s. FP (2510.25602).

The signal-to-noise ratio of a format depends on the data only through the crest factor
kappa = max |x| / sigma of the values that share a scale.  Integers err by a constant, floats by a
share of the value, so integers are better below a crossover kappa and floats above it.
"""

from __future__ import annotations

import math

from scipy.optimize import brentq

from experiments.quant.formats import FloatFormat, IntFormat, Precision

POWER_OF_TWO_OVERHEAD = 1.5
"""The paper's rho: the ratio of a scale rounded up to a power of two to amax / max."""


def theoretical_qsnr(
    precision: Precision, crest: float, overhead: float | None = None, exact_max: bool = False
) -> float:
    """QSNR = -10 log10(||x - Q(x)||^2 / ||x||^2) on normal data, in dB.

    With kappa the crest factor, rho the overhead, b the bits, t = rho kappa 2^emin / max the
    smallest normal number in units of sigma, step that of the subnormals:

        INT     4.78 + 6.02 b - 20 log10(rho kappa)
        float   -10 log10( (w - kept) / (24 * 4^M) + (rho kappa step / max)^2 / 12 * p )

    where w = E[x^2; |x| >= t] / sigma^2 and p = P(|x| < t): normal numbers err in proportion,
    subnormal ones by a constant.  A scale with a mantissa keeps the block's largest value exactly:
    of g values it takes kept = kappa^2 / g out of w, and adds 10 log10(g / (g - 1)) to INT.

    Args:
        precision: Element and scale; the block size is g where the scale has a mantissa.
        crest: kappa, more than 1.
        overhead: rho; None is 1.5 for a power-of-two scale and 1 otherwise.
        exact_max: Use INT's largest number 2^(b-1) - 1, where 6.02 b stands for 2^(b-1).

    Returns:
        Decibels.

    Raises:
        ValueError: A crest factor below 1, or one at which the largest value alone would carry
            all the energy of the normal numbers (the formula for floats ends there).

    Source:
        2510.25602.

    >>> f"{theoretical_qsnr(Precision.parse('mxint8'), 2.0):.3f}"
    '43.398'
    """
    if crest < 1:
        raise ValueError(f"crest={crest}: must be 1 or more")
    element, whole = precision.element, precision.scale.power_of_two
    rho = overhead if overhead is not None else POWER_OF_TWO_OVERHEAD if whole else 1.0
    if not precision.in_blocks and not whole:
        raise ValueError(
            f"granularity={precision.granularity}: the formula counts a block's values"
        )
    group = precision.sharing(1, 1)
    if isinstance(element, IntFormat):
        by_max = 10 * math.log10(12) + 20 * math.log10(element.max)
        kept_gain = 0.0 if whole else 10 * math.log10(group / (group - 1))
        by_bits = 4.78 + 6.02 * element.bits
        return (by_max if exact_max else by_bits) - 20 * math.log10(rho * crest) + kept_gain
    threshold = rho * crest * 2.0**element.emin / element.max
    normal = math.erfc(threshold / math.sqrt(2)) + threshold * math.sqrt(2 / math.pi) * math.exp(
        -(threshold**2) / 2
    )
    kept = 0.0 if whole else crest**2 / group
    if normal <= kept:
        raise ValueError(f"crest={crest}: too large for the formula with {group} values per block")
    subnormal = math.erf(threshold / math.sqrt(2))
    error = (normal - kept) / (24 * 4**element.mantissa)
    error += (rho * crest * element.step / element.max) ** 2 / 12 * subnormal
    return -10 * math.log10(error)


def crossover(
    integer: Precision, floating: Precision, overhead: float | None = None, exact_max: bool = False
) -> tuple[float, float]:
    """The crest factor below which integers err less, and the QSNR there, in dB.

    Args:
        integer: A precision with an `IntFormat`.
        floating: A precision with a `FloatFormat`.
        overhead: As for `theoretical_qsnr`.
        exact_max: As there.

    Raises:
        ValueError: The two have no crossover, or formats of another kind.

    >>> [round(x, 3) for x in crossover(Precision.parse("mxint8"), Precision.parse("mxfp8_e4m3"))]
    [7.546, 31.864]
    """
    kinds = isinstance(integer.element, IntFormat), isinstance(floating.element, FloatFormat)
    if kinds != (True, True):
        raise ValueError(f"a crossover is of integers and floats, not {integer} and {floating}")

    def advantage(crest: float) -> float:
        ours = theoretical_qsnr(integer, crest, overhead, exact_max)
        return ours - theoretical_qsnr(floating, crest, overhead)

    low = 1.0
    while advantage(low) > 0:
        high = 1.05 * low  # in small steps: further up the formula for floats may end
        if advantage(high) <= 0:
            crest = float(brentq(advantage, low, high))
            return crest, theoretical_qsnr(floating, crest, overhead)
        low = high
    raise ValueError(f"{integer} is below {floating} from crest factor 1 on")
