"""Curves: each is its formula, and its derivatives are those of central differences."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from fitting.law.curves import (
    Array,
    Capacity,
    Curve,
    Decay,
    Derivatives,
    Power,
    PowerOfCapacity,
    Signal,
    Unrepaired,
    log_saturation,
    log_tanh,
)

ROWS = 7
HELD = np.random.default_rng(1).normal(size=(3, ROWS))
NOISE = np.random.default_rng(2).lognormal(size=(2, ROWS))
SIGNAL = Signal((NOISE,), np.random.default_rng(3).lognormal(size=(2, ROWS)))
NOTHING = np.zeros((0, ROWS))


def apart(x: Array) -> list[Array]:
    """The forms of [batch, forms, rows] as a curve takes them."""
    return list(x.swapaxes(0, 1))


def forms(curve: Curve, seed: int, batch: int = 4) -> Array:
    """Random forms [batch, forms, rows] inside the domain of every curve here."""
    x = np.random.default_rng(seed).normal(size=(batch, curve.forms, ROWS))
    if isinstance(curve, Capacity):
        x[:, 2:] = -0.1 - np.abs(x[:, 2:])
    return x


def test_power_is_a_sum_raised_to_a_power() -> None:
    x = forms(Power(), 0)
    g = np.exp(x[:, 2])
    for held in (np.zeros((2, 1)), HELD[:2]):
        sums = np.exp(x[:, 0] / g + held[0]) + np.exp(x[:, 1] / g + held[1])
        value, _, _ = Power(held)(apart(x))
        # Both are a handful of float64 operations on numbers of order one.
        assert value == pytest.approx(np.log(sums**g), abs=1e-13)


def test_power_does_not_overflow() -> None:
    x = np.array([[[800.0], [-800.0], [np.log(0.1)]]])  # e^8000 to the power .1
    assert Power()(apart(x))[0] == pytest.approx(np.array([[800.0]]), rel=1e-15)


def test_capacity_is_the_size_term_at_the_effective_size() -> None:
    alpha, size = 0.37, np.log(4299.0) - 0.37 * np.log(1e9)
    t, f = np.array([-0.4, -2.0]), np.log(1.7)
    saturation, _, _ = Capacity(log_saturation, 2)(
        apart(np.array([size, alpha, *t])[None, :, None])
    )
    share = (1 - np.exp(t)).prod()
    assert np.exp(saturation[0, 0]) == pytest.approx(4299 * (1e9 * share) ** -alpha, rel=1e-13)
    tanh, _, _ = Capacity(log_tanh, 1)(apart(np.array([size, alpha, f])[None, :, None]))
    expected = 4299 * (1e9 * np.tanh(1.7)) ** -alpha
    assert np.exp(tanh[0, 0]) == pytest.approx(expected, rel=1e-13)


def test_power_of_capacity_is_the_law_with_an_effective_size() -> None:
    a, alpha, n, b, beta, d, gamma, c = 30.0, 0.3, 1e8, 50.0, 0.4, 1e9, 0.7, 25.0
    noise, added, each = np.array([0.012, 0.0]), np.array([0.3, 0.1]), np.array([2.0, 0.7])
    x = np.array([0, gamma * alpha, 0, np.log(gamma), np.log(c), *np.log(each)])
    x[0] = gamma * (np.log(a) - alpha * np.log(n))
    x[2] = gamma * (np.log(b) - beta * np.log(d))
    size = n / ((1 + c * noise).prod() + (each * added).sum())
    expected = (a / size**alpha + b / d**beta) ** gamma
    signal = Signal((noise[:, None],), added[:, None])
    value, _, _ = PowerOfCapacity(signal)(apart(x[None, :, None]))
    assert np.exp(value[0, 0]) == pytest.approx(expected, rel=1e-13)


def test_decay_is_an_exponential_of_an_exponential() -> None:
    x = forms(Decay(), 0)
    value, _, _ = Decay()(apart(x))
    assert value == pytest.approx(np.log(np.exp(x[:, 0]) * np.exp(-np.exp(x[:, 1]))), abs=1e-13)


def test_unrepaired_is_all_where_one_is_scarce_and_nothing_where_neither_is() -> None:
    x = forms(Unrepaired(), 0)
    q = np.exp(x[:, 1]) + np.exp(x[:, 2])
    value, _, _ = Unrepaired()(apart(x))
    assert value == pytest.approx(np.log(np.exp(x[:, 0]) * q / (1 + q)), abs=1e-13)
    ends = Unrepaired()([np.zeros((1, 2)), np.array([[700.0, -700.0]]), np.full((1, 2), -700.0)])
    assert np.exp(ends[0]) == pytest.approx(np.array([[1.0, 0.0]]), abs=1e-300)


@pytest.mark.parametrize(
    "curve",
    [
        *(Decay(), Unrepaired()),
        *(Power(), Power(HELD[:2]), Capacity(log_saturation, 3), Capacity(log_tanh, 1)),
        *(PowerOfCapacity(SIGNAL), PowerOfCapacity(SIGNAL, HELD)),
        PowerOfCapacity(Signal((NOISE[:1], NOISE[1:]), SIGNAL.added), HELD),
        *(PowerOfCapacity(Signal((NOISE,), NOTHING)), PowerOfCapacity(Signal((NOTHING,), NOTHING))),
    ],
    ids=(
        *("decay", "unrepaired", "power", "power held", "saturation", "tanh"),
        *("signal", "signal held", "apart", "forward", "nothing"),
    ),
)
def test_derivatives_equal_central_differences(curve: Curve) -> None:
    # Step eps^(1/3): relative error about eps^(2/3) = 4e-11 times third derivatives of up to 1000.
    h = np.finfo(float).eps ** (1 / 3)
    for seed in range(5):
        x = forms(curve, seed)
        _, gradient, hessian = curve(apart(x))
        for k in range(curve.forms):
            step = np.zeros_like(x)
            step[:, k] = h
            up, down = curve(apart(x + step)), curve(apart(x - step))
            assert gradient[k] == pytest.approx((up[0] - down[0]) / (2 * h), rel=1e-7, abs=1e-7)
            for j in range(k, curve.forms):
                slope = (up[1][j] - down[1][j]) / (2 * h)
                bend = np.broadcast_to(hessian.get((k, j), np.zeros(1)), slope.shape)
                assert bend == pytest.approx(slope, rel=1e-7, abs=1e-7), (k, j)


@pytest.mark.parametrize("curve", [Power(), PowerOfCapacity(SIGNAL, HELD)])
def test_a_form_that_is_the_same_in_all_rows_may_have_one_column(curve: Curve) -> None:
    x = forms(curve, 0)
    x[:, 2:] = x[:, 2:, :1]
    short = [*apart(x)[:2], *(form[:, :1] for form in apart(x)[2:])]
    for whole, brief in zip(curve(apart(x))[1], curve(short)[1], strict=True):
        assert np.broadcast_to(brief, whole.shape) == pytest.approx(whole, rel=1e-13)
    for pair, whole in curve(apart(x))[2].items():
        brief = np.broadcast_to(curve(short)[2][pair], whole.shape)
        assert brief == pytest.approx(whole, rel=1e-13)


@pytest.mark.parametrize("function", [log_saturation, log_tanh])
def test_extreme_bits_lose_nothing_and_stay_finite(
    function: Callable[[Array], Derivatives],
) -> None:
    many = np.array([1e4 if function is log_tanh else -1e4])
    assert [float(d[0]) for d in function(many)] == pytest.approx([0, 0, 0], abs=1e-200)


def test_saturation_is_undefined_without_capacity() -> None:
    value, _, _ = log_saturation(np.array([-1e-3, 0.0, 0.5]))
    assert np.isfinite(value).tolist() == [True, False, False]


def test_only_a_curve_with_a_power_can_hold_what_it_multiplies() -> None:
    with pytest.raises(TypeError, match="Capacity has no parameter that multiplies constants"):
        Capacity(log_tanh, 1).holding(np.ones((3, 2)))
