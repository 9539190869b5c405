"""The solver's coordinates: derivatives of every law, the way back, starts inside the domain."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import pytest

from fitting.fit.centred import Centred
from fitting.law.curves import Array
from fitting.law.terms import FitError
from fitting.laws.catalogue import LAWS
from fitting.laws.published import (
    BESIROGLU_2024,
    KUMAR_2024,
    KUMAR_2024_PTQ,
    QAT_2025,
    QAT_SWITCH_2025,
    QUARTET_2025,
    SUN_2025,
)
from fitting.laws.synthetic import make_table, sun_design
from tests.support.tuned_tables import TUNED, TUNED_COLUMNS, TUNED_RUNS


def grid(**columns: Sequence[object]) -> pd.DataFrame:
    """Every combination."""
    return pd.DataFrame(list(itertools.product(*columns.values())), columns=list(columns))


N, D = [3e7, 1e8, 2.2e8], [1.5e9, 1e10, 2.6e10]
BITS = [(16, 16, 16), (4, 16, 16), (8, 16, 16), (16, 5, 16), (16, 8, 16), (16, 16, 4), (6, 6, 6)]
ERRORS = [(0.0, 0.0), (0.0, 0.01), (0.01, 0.0), (0.002, 0.002), (0.013, 0.013), (0.05, 0.05)]
SIZES = grid(params=N, tokens=D)
CASES = {
    "chinchilla": (BESIROGLU_2024, SIZES),
    "floating_point": (SUN_2025, sun_design().iloc[::5]),
    "quartet": (
        QUARTET_2025,
        grid(params=N, tokens=D, forward=["BF16", "Quartet"], backward=["FP8", "Quartet"]),
    ),
    "precision": (
        KUMAR_2024,
        SIZES.merge(pd.DataFrame(BITS, columns=["bits_w", "bits_a", "bits_kv"]), how="cross"),
    ),
    "ptq": (KUMAR_2024_PTQ, grid(params=N, tokens=D, bits_post=[16, 3, 4, 6])),
    "qat": (QAT_2025["W4A4"], grid(params=N, tokens=D, block_size=[1, 32, 128, 256])),
    "compressed": (
        {
            **{"A": 400.0, "alpha": 0.34, "B": 2000.0, "beta": 0.37, "E": 1.8},
            **{"L": 0.95, "F": 0.4, "C": 0.7},
        },
        grid(params=N, tokens=D, gmse=[0.0, 1e-4, 0.013, 0.08, 0.2]),
    ),
    "qat_switch": (QAT_SWITCH_2025, grid(params=N, tokens=D, bits=[2, 4, 6])),
    "fixed_ratio": (
        {"A": 400.0, "alpha": 0.34, "E": 1.8, "rho[AdamW]": 0.863},
        grid(params=N, tokens=D, scheme=["BF16", "AdamW"]),
    ),
    "fine_tuning": (
        TUNED,
        SIZES.merge(pd.DataFrame(TUNED_RUNS, columns=TUNED_COLUMNS), how="cross"),
    ),
    "unified": (
        {
            **{"A": 400.0, "alpha": 0.34, "B": 2000.0, "beta": 0.37, "E": 1.8, "gamma": 0.8},
            **{"c": 20.0, "c_input": 60.0},
        },
        SIZES.merge(pd.DataFrame(ERRORS, columns=["err_input", "err_weight"]), how="cross"),
    ),
}


def slopes(function: Callable[[Array], Array], point: Array) -> Array:
    """Derivatives of a function [rows] by central differences of fourth order, [rows, len(point)].

    Step 1e-4: truncation is 3e-18 of the fifth derivative, which reaches log(N)^5 = 10^7 where a
    coefficient is frozen and its exponent is not; rounding is 1e-16/1e-4 of the function.
    """
    h = 1e-4
    columns = []
    for unit in np.eye(len(point)):
        far, near = ((function(point + s * unit) - function(point - s * unit)) for s in (2 * h, h))
        columns.append((8 * near - far) / (12 * h))
    return np.stack(columns, axis=-1)


def every(held: int, values: dict[str, float]) -> dict[str, float]:
    """Every so-manyth of the parameters; none of a law that has but one."""
    some = {n: v for i, (n, v) in enumerate(values.items()) if held and i % held == 0}
    return some if len(some) < len(values) else {}


def test_every_law_is_here() -> None:
    assert set(CASES) == set(LAWS)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("held", [0, 2, 3])
def test_jacobian_equals_central_differences_of_the_law(name: str, held: int) -> None:
    values, design = CASES[name]
    table = make_table(name, values, design, 1e-3, 0)
    law = LAWS[name].on(table)
    frozen = every(held, values)
    centred = Centred.of(law, table, frozen)
    point = centred.encode(values)
    log_predicted, jacobian = centred.problem.predict(point)
    assert log_predicted == pytest.approx(np.log(law.predict(values, table)), abs=1e-12)
    expected = slopes(lambda x: np.log(law.predict(centred.decode(x), table)), point)
    assert jacobian == pytest.approx(expected, rel=1e-8, abs=1e-8)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("held", [0, 3])
def test_gradient_and_hessian_of_the_objective_equal_central_differences(
    name: str, held: int
) -> None:
    values, design = CASES[name]
    table = make_table(name, values, design, 5e-3, 0)
    frozen = every(held, values)
    problem = Centred.of(LAWS[name].on(table), table, frozen).problem
    rng = np.random.default_rng(0)
    point = Centred.of(LAWS[name].on(table), table, frozen).encode(values)
    point = point + 0.01 * rng.normal(size=point.shape)

    def evaluate(x: Array, gauss_newton: bool = False) -> tuple[Array, Array, Array]:
        return problem.evaluate(x[None], np.ones((1, len(table))), np.inf, gauss_newton)

    _, gradient, hessian = evaluate(point)
    majorant = evaluate(point, gauss_newton=True)[2]
    slope = slopes(lambda x: evaluate(x)[0], point)
    bend = slopes(lambda x: evaluate(x)[1][0], point)
    assert gradient == pytest.approx(slope, abs=1e-8 * np.abs(gradient).max())
    assert hessian[0] == pytest.approx(bend, abs=1e-8 * np.abs(hessian).max())
    assert np.linalg.eigvalsh(majorant[0]).min() >= -1e-12 * np.abs(majorant).max()


@pytest.mark.parametrize("name", CASES)
def test_the_solvers_coordinates_lead_back_to_the_parameters(name: str) -> None:
    values, design = CASES[name]
    table = make_table(name, values, design, 1e-3, 0)
    centred = Centred.of(LAWS[name].on(table), table, {})
    # A coefficient is re-read at N = 1, e^20 away from the data, under a power e^80: 1e-11.
    assert centred.decode(centred.encode(values)) == pytest.approx(values, rel=1e-11)


@pytest.mark.parametrize("name", CASES)
def test_blind_starts_are_inside_the_law_and_its_bounds(name: str) -> None:
    values, design = CASES[name]
    table = make_table(name, values, design, 1e-3, 0)
    frozen = {"n_a": values["n_a"]} if name == "precision" else {}
    centred = Centred.of(LAWS[name].on(table), table, frozen)
    starts = centred.starts(64, seed=1)
    assert len(starts) == 64
    assert len(np.unique(starts, axis=0)) == 64
    assert centred.problem.defined(starts).all()
    assert ((starts >= centred.problem.lower) & (starts <= centred.problem.upper)).all()


def test_a_law_that_is_defined_nowhere_is_refused() -> None:
    values, design = CASES["precision"]
    table = make_table("precision", values, design, 1e-3, 0)
    centred = Centred.of(LAWS["precision"], table, {"n_kv": 30.0, "gamma_kv": 1.0})
    with pytest.raises(FitError, match="precision: defined in 0 of 512 points tried; N_eff must"):
        centred.starts(8, seed=0)
