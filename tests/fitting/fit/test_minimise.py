"""The solver: derivatives against central differences, optima against scipy's."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import minimize

from fitting.fit.minimise import at_bounds, minimise
from fitting.fit.problem import Problem
from fitting.law.curves import Array


def random_problem(seed: int, rows: int = 30, bound: float = 20.0) -> Problem:
    """Three terms, five parameters, one term zero in a third of the rows."""
    rng = np.random.default_rng(seed)
    regressors = np.zeros((3, rows, 5))
    regressors[0, :, 0], regressors[0, :, 1] = 1.0, rng.normal(size=rows)
    regressors[1, :, 2], regressors[1, :, 3] = 1.0, rng.normal(size=rows)
    regressors[1, :, 1] = rng.normal(size=rows)  # a parameter that two terms share
    regressors[2, :, 4] = 1.0
    offsets = np.zeros((3, rows))
    offsets[1, ::3] = -np.inf
    truth = np.array([-0.5, 0.6, -1.5, 0.9, 0.4])
    log_terms = offsets + regressors @ truth
    log_loss = np.log(np.exp(log_terms).sum(axis=0)) + 0.02 * rng.standard_normal(rows)
    return Problem(regressors, offsets, log_loss, np.full(5, -bound), np.full(5, bound))


def value_at(problem: Problem, theta: Array, weights: Array, delta: float) -> float:
    """The objective written out again, without the solver's shortcuts."""
    with np.errstate(divide="ignore"):
        predicted = np.log(np.exp(problem.offsets + problem.regressors @ theta).sum(axis=0))
    r = np.abs(problem.log_loss - predicted)
    huber = np.where(r <= delta, r**2 / 2, 0)
    if math.isfinite(delta):
        huber = np.where(r <= delta, r**2 / 2, delta * (r - delta / 2))
    too_high = predicted > problem.log_loss
    return float(weights @ np.where(too_high, problem.overestimate * huber, huber))


@pytest.mark.parametrize("overestimate", [1.0, 7.0])
@pytest.mark.parametrize("delta", [math.inf, 0.5, 1e-2])
@pytest.mark.parametrize("seed", range(3))
def test_derivatives_equal_central_differences(
    seed: int, delta: float, overestimate: float
) -> None:
    problem = replace(random_problem(seed), overestimate=overestimate)
    rng = np.random.default_rng(seed)
    weights = rng.integers(0, 4, size=30).astype(float)
    theta = rng.normal(scale=0.5, size=5)
    value, gradient, hessian = problem.evaluate(theta[None], weights[None], delta)
    majorant = problem.evaluate(theta[None], weights[None], delta, gauss_newton=True)[2]
    assert value[0] == pytest.approx(value_at(problem, theta, weights, delta), rel=1e-12)

    # Step eps^(1/3) balances truncation and rounding: relative error about eps^(2/3) = 4e-11,
    # times the curvature's growth; 1e-7 leaves room for both.
    h = np.finfo(float).eps ** (1 / 3)
    for j, unit in enumerate(np.eye(5)):
        ends = [theta + h * unit, theta - h * unit]
        up, down = (value_at(problem, t, weights, delta) for t in ends)
        assert gradient[0, j] == pytest.approx((up - down) / (2 * h), abs=1e-7 * value[0])
        g_up, g_down = (problem.evaluate(t[None], weights[None], delta)[1][0] for t in ends)
        expected = (g_up - g_down) / (2 * h)
        assert hessian[0, j] == pytest.approx(expected, abs=1e-7 * np.abs(hessian).max())
    assert np.linalg.eigvalsh(majorant[0]).min() >= -1e-12 * np.abs(majorant).max()


@pytest.mark.parametrize("overestimate", [1.0, 7.0])
@pytest.mark.parametrize("gauss_newton", [False, True])
def test_one_point_under_many_weights_is_evaluated_as_many_points(
    gauss_newton: bool, overestimate: float
) -> None:
    problem = replace(random_problem(0), overestimate=overestimate)
    rng = np.random.default_rng(0)
    weights = rng.multinomial(30, np.full(30, 1 / 30), size=50).astype(float)
    theta = np.tile(rng.normal(scale=0.5, size=5), (50, 1))
    together = problem.evaluate(theta, weights, 1e-2, gauss_newton)
    each = [problem.evaluate(theta[:1], w[None], 1e-2, gauss_newton) for w in weights]
    for found, alone in zip(together, zip(*each, strict=True), strict=True):
        assert found == pytest.approx(np.concatenate(alone), rel=1e-10, abs=1e-13)


def test_a_search_that_leads_to_a_known_optimum_ends_and_any_other_goes_on() -> None:
    problem = random_problem(0)
    starts = np.random.default_rng(7).normal(scale=0.7, size=(8, 5))
    every, path = np.ones((1, 30)), [math.inf, 0.1, 1e-2]
    optimum, values, _ = minimise(problem, starts, every, path)
    _, again, converged = minimise(problem, starts, every, path, known=optimum)
    assert converged.all()
    assert np.isinf(again).all()
    elsewhere = optimum + 1.0
    _, others, _ = minimise(problem, starts, every, path, known=elsewhere)
    assert others == pytest.approx(values, rel=1e-12)


def test_gradient_of_the_prediction_equals_central_differences() -> None:
    problem = random_problem(0)
    theta = np.array([-0.4, 0.5, -1.2, 0.7, 0.3])
    _, jacobian = problem.predict(theta)
    h = np.finfo(float).eps ** (1 / 3)
    for j, unit in enumerate(np.eye(5)):
        up, down = (problem.predict(theta + s * h * unit)[0] for s in (1, -1))
        assert jacobian[:, j] == pytest.approx((up - down) / (2 * h), abs=1e-8)


@pytest.mark.parametrize("delta", [math.inf, 1e-2, 1e-3])
def test_optimum_is_never_above_scipys_from_the_same_starts(delta: float) -> None:
    rng = np.random.default_rng(7)
    path = [math.inf, math.inf] if delta == math.inf else [math.inf, 0.1, delta]
    for seed in range(4):
        problem = random_problem(seed)
        starts = rng.normal(scale=0.7, size=(8, 5))
        every = np.ones((1, 30))
        _, values, converged = minimise(problem, starts, every, path)
        assert converged.all()

        def scalar(theta: Array, problem: Problem = problem) -> tuple[float, Array]:
            value, gradient, _ = problem.evaluate(theta[None], np.ones((1, 30)), delta)
            return float(value[0]), gradient[0]

        options = {"maxiter": 5000, "ftol": 1e-15, "gtol": 1e-12}
        reference = min(
            minimize(scalar, s, jac=True, method="L-BFGS-B", options=options).fun for s in starts
        )
        assert values.min() <= reference * (1 + 1e-9)


def test_a_batch_gives_what_its_members_give_alone() -> None:
    problem = random_problem(1)
    rng = np.random.default_rng(3)
    starts = rng.normal(scale=0.3, size=(40, 5))
    weights = rng.multinomial(30, np.full(30, 1 / 30), size=40).astype(float)
    path = [math.inf, 0.1, 1e-2]
    together, value, _ = minimise(problem, starts, weights, path)
    for i in range(0, 40, 8):
        alone, _, _ = minimise(problem, starts[i : i + 1], weights[i : i + 1], path)
        again = problem.evaluate(alone, weights[i : i + 1], 1e-2)[0]
        assert value[i] == pytest.approx(again[0], rel=1e-9)
        assert together[i] == pytest.approx(alone[0], abs=1e-4)


def test_bounds_hold_and_the_bounded_optimum_is_found() -> None:
    free = random_problem(2)
    bounded = Problem(free.regressors, free.offsets, free.log_loss, free.lower, np.full(5, 0.5))
    theta, value, converged = minimise(
        bounded, np.zeros((1, 5)), np.ones((1, 30)), [math.inf, math.inf]
    )
    assert converged.all()
    assert (theta <= 0.5).all()
    assert at_bounds(bounded, theta)[0].tolist() == [False, True, False, True, False]

    def scalar(point: Array) -> tuple[float, Array]:
        v, g, _ = bounded.evaluate(point[None], np.ones((1, 30)), math.inf)
        return float(v[0]), g[0]

    reference = minimize(scalar, np.zeros(5), jac=True, method="L-BFGS-B", bounds=[(-20, 0.5)] * 5)
    assert value[0] <= reference.fun * (1 + 1e-9)


def test_a_start_where_everything_overflows_is_left_alone_and_not_called_converged() -> None:
    problem = random_problem(0, bound=1e4)
    starts = np.array([[5e3, 0.0, -1.0, 0.5, 0.4], [-0.4, 0.5, -1.2, 0.7, 0.3]])
    theta, value, converged = minimise(problem, starts, np.ones((1, 30)), [math.inf, 1e-2])
    assert converged.tolist() == [False, True]
    assert theta[0] == pytest.approx(starts[0])
    assert not value[0] < value[1]
