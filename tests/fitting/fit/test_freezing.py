"""Freezing a parameter at its true value gives the truth back, whatever the law and the others."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import pandas as pd
import pytest

from fitting.fit.centred import Centred
from fitting.fit.profile import profile_intervals
from fitting.fit.search import fit
from fitting.laws.catalogue import LAWS
from fitting.laws.published import (
    BESIROGLU_2024,
    KUMAR_2024,
    KUMAR_2024_PTQ,
    QAT_2025,
    QAT_SWITCH_2025,
    SUN_2025,
)
from fitting.laws.synthetic import make_table, sun_design
from tests.support.tuned_tables import TUNED, TUNED_COLUMNS, TUNED_RUNS

SIZES = pd.DataFrame(
    list(itertools.product((3e7, 6e7, 1.1e8, 2.2e8), (1.5e9, 3e9, 1e10, 2.6e10))),
    columns=["params", "tokens"],
)
SCHEMES = [("BF16", "FP8"), ("Q", "FP8"), ("BF16", "Q"), ("Q", "Q")]
BITS = [(p, 16, 16) for p in (4, 8, 16)] + [(16, p, 16) for p in (5, 8)]
BITS += [(16, 16, 4), (16, 16, 6), (6, 6, 6)]


def crossed(values: list[tuple[object, ...]] | list[float], *columns: str) -> pd.DataFrame:
    """Each size and data with each choice."""
    return SIZES.merge(pd.DataFrame(values, columns=list(columns)), how="cross")


ERRORS = ("err_input", "err_weight")
COMMON = {"A": 400.0, "alpha": 0.34, "B": 2000.0, "beta": 0.37, "E": 1.7}
TRUTHS = {
    "chinchilla": (BESIROGLU_2024, SIZES),
    "floating_point": (SUN_2025, sun_design().iloc[::5]),
    "quartet": (
        COMMON | {"gamma": 0.9, "eff_N[Q]": 0.65, "eff_D[Q]": 0.95},
        crossed(SCHEMES, "forward", "backward"),
    ),
    "precision": (KUMAR_2024, crossed(BITS, "bits_w", "bits_a", "bits_kv")),
    "ptq": (KUMAR_2024_PTQ, crossed([16.0, 3.0, 4.0, 6.0], "bits_post")),
    "qat": (QAT_2025["W4A4"], crossed([1.0, 32.0, 128.0, 256.0], "block_size")),
    "compressed": (
        COMMON | {"L": 0.95, "F": 0.4, "C": 0.7},
        crossed([0.0, 1e-4, 0.013, 0.08, 0.2], "gmse"),
    ),
    "qat_switch": (QAT_SWITCH_2025, crossed([2.0, 4.0, 6.0], "bits")),
    "fixed_ratio": (
        {"A": 400.0, "alpha": 0.34, "E": 1.7, "rho[Q]": 0.863},
        crossed(["BF16", "Q"], "scheme"),
    ),
    "fine_tuning": (TUNED, crossed(TUNED_RUNS, *TUNED_COLUMNS)),
    "unified": (
        COMMON | {"gamma": 0.9, "c": 20.0, "c_input": 60.0},
        crossed([(0, 0), (0, 0.01), (0.01, 0), (0.013, 0.013), (0.05, 0.05)], *ERRORS),
    ),
}


def tables() -> Iterator[tuple[str, dict[str, float], pd.DataFrame]]:
    for name, (truth, design) in TRUTHS.items():
        yield name, truth, make_table(name, truth, design, 0.0, 0)


def test_every_law_is_here() -> None:
    assert set(TRUTHS) == set(LAWS)


def test_no_coordinate_and_no_bound_depends_on_what_else_is_frozen() -> None:
    # Up to three parameters frozen at the truth: 5 to 11 parameters, 1,040 fits' coordinates.
    for name, truth, table in tables():
        law = LAWS[name].on(table)
        everything = Centred.of(law, table, {})
        place = dict(zip(everything.free, everything.encode(truth), strict=True))
        for count in (1, 2, 3):
            for names in itertools.combinations(truth, count):
                centred = Centred.of(law, table, {n: truth[n] for n in names})
                expected = [place[n] for n in centred.free]
                assert centred.encode(truth) == pytest.approx(expected, abs=1e-9), names
                which = [everything.free.index(n) for n in centred.free]
                for end in ("lower", "upper"):
                    ends = getattr(everything.problem, end)[which]
                    assert getattr(centred.problem, end) == pytest.approx(ends, abs=1e-12)
                assert centred.decode(centred.encode(truth)) == pytest.approx(truth, rel=1e-9)


@pytest.mark.parametrize("name", TRUTHS)
@pytest.mark.parametrize("count", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_freezing_at_the_truth_gives_the_truth_back(name: str, count: int) -> None:
    truth, design = TRUTHS[name]
    table = make_table(name, truth, design, 0.0, 0)
    for names in itertools.combinations(truth, count):
        frozen = {n: truth[n] for n in names}
        fitted = fit(table, name, freeze=frozen, starts=16)
        assert fitted.parameters == pytest.approx(truth, rel=1e-6), names
        assert fitted.objective.value < 1e-18
        assert not fitted.at_bound


@pytest.mark.parametrize("exponent", ["alpha", "beta"])
def test_nine_exact_rows_of_quartet_with_a_frozen_exponent(exponent: str) -> None:
    truth = COMMON | {"gamma": 1.0}
    design = pd.DataFrame(
        [(n, d, "BF16", "BF16") for n in (1e7, 1e8, 1e9) for d in (1e9, 1e10, 1e11)],
        columns=["params", "tokens", "forward", "backward"],
    )
    table = make_table("quartet", truth, design, 0.0, 0)
    fitted = fit(table, "quartet", freeze={"gamma": 1.0, exponent: truth[exponent]})
    assert fitted.parameters == pytest.approx(truth, rel=1e-6)
    assert fitted.objective.value < 1e-18


def test_profiles_of_quartet_hold_the_estimate_strictly_inside() -> None:
    truth, design = TRUTHS["quartet"]
    table = make_table("quartet", truth, design, 1e-4, 0)
    fitted = fit(table, "quartet", delta=1e-4, starts=16)
    for name, (low, high) in profile_intervals(table, fitted).items():
        assert low < fitted.parameters[name] * (1 - 1e-6), name
        assert high > fitted.parameters[name] * (1 + 1e-6), name


def test_an_absurd_frozen_exponent_is_no_crash() -> None:
    truth, design = TRUTHS["quartet"]
    table = make_table("quartet", truth, design, 0.0, 0)
    fitted = fit(table, "quartet", freeze={"alpha": 60.0}, starts=4)
    assert np.isfinite(fitted.objective.value)
