"""Laws: published worked numbers, exact zeros, and what a law refuses."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from fitting.laws import (
    BESIROGLU_2024,
    COEFFICIENT,
    EXPONENT,
    LAWS,
    POSITIVE,
    SUN_2025,
    Columns,
    FitError,
    Law,
    Term,
    get,
)
from fitting.results import ResultsError

# N, D, exponent, mantissa, log2 B, unquantized loss, precision term, loss: computed from Eq. 1 of
# 2501.02423 with the constants of its Table 2, printed to 1e-5.
WORKED = [
    (1e9, 1e11, 4, 3, 7, 2.562628, 0.000441, 2.56307),
    (1e9, 1e11, 2, 1, 7, 2.562628, 0.0352375, 2.597866),
    (1e9, 1e11, 1, 1, 7, 2.562628, 0.1800029, 2.742631),
    (40894464, 10485760000, 1, 1, 13.1567, 3.460732, 0.2251749, 3.685907),
    (40894464, 104857600000, 1, 1, 13.1567, 3.13844, 0.739129, 3.87757),
    (40894464, 104857600000, 1, 1, 5, 3.13844, 0.280894, 3.41933),
    (40894464, 104857600000, 1, 1, 8, 3.13844, 0.449431, 3.58787),
    (40894464, 104857600000, 2, 1, 13.1567, 3.13844, 0.144692, 3.28313),
    (679477248, 104857600000, 1, 1, 13.1567, 2.60817, 0.379930, 2.98810),
    (1233125376, 104857600000, 1, 2, 9, 2.53435, 0.049900, 2.58425),
    (7083130880, 104857600000, 4, 3, 6, 2.36925, 0.000244, 2.36950),
]
TOLERANCE = 1e-5


def row(
    params: float, tokens: float, exponent: float, mantissa: float, log2_block: float
) -> pd.DataFrame:
    """A table of one run."""
    return pd.DataFrame(
        {
            "params": [params],
            "tokens": [tokens],
            "exponent": [exponent],
            "mantissa": [mantissa],
            "block_size": [2.0**log2_block],
        }
    )


@pytest.mark.parametrize("case", WORKED, ids=str)
def test_floating_point_law_gives_the_worked_losses(case: tuple[float, ...]) -> None:
    *point, unquantized, precision, loss = case
    law = LAWS["floating_point"]
    terms = law.term_values(SUN_2025, row(*point))[:, 0]
    assert terms[:3].sum() == pytest.approx(unquantized, abs=TOLERANCE)
    assert terms[3] == pytest.approx(precision, abs=TOLERANCE)
    assert law.predict(SUN_2025, row(*point))[0] == pytest.approx(loss, abs=TOLERANCE)


def test_block_size_one_is_exactly_unquantized_in_every_format() -> None:
    table = pd.concat([row(1e9, 1e11, e, m, 0) for e in range(9) for m in range(11)])
    terms = LAWS["floating_point"].term_values(SUN_2025, table)
    assert (terms[3] == 0).all()
    assert LAWS["floating_point"].predict(SUN_2025, table) == pytest.approx(
        np.full(99, 2.562628), abs=TOLERANCE
    )


def test_more_data_raises_the_loss_beyond_the_critical_size() -> None:
    law = LAWS["floating_point"]
    short = law.predict(SUN_2025, row(40894464, 10485760000, 1, 1, 13.1567))
    long = law.predict(SUN_2025, row(40894464, 104857600000, 1, 1, 13.1567))
    assert long > short


def test_chinchilla_is_its_formula() -> None:
    table = pd.DataFrame({"params": [1e8, 7e10], "tokens": [2e9, 1.4e12]})
    expected = (
        1.8172 + 482.01 / table["params"] ** 0.3478 + 2085.43 / table["tokens"] ** 0.3658
    ).to_numpy()
    # Both are float64 sums of three terms: a few units in the last place.
    assert LAWS["chinchilla"].predict(BESIROGLU_2024, table) == pytest.approx(expected, rel=1e-13)


@pytest.mark.parametrize(("name", "values"), [("floating_point", SUN_2025)])
def test_encoding_is_undone_by_decoding(name: str, values: dict[str, float]) -> None:
    law = get(name)
    assert law.decode(law.encode(values)) == pytest.approx(values, rel=1e-14)


def test_a_law_of_ones_own_is_one_function() -> None:
    def power_law(c: Columns) -> list[Term]:
        return [Term({"A": 1, "alpha": -np.log(c["params"])}), Term({"E": 1})]

    mine = Law(
        "mine",
        "here",
        power_law,
        columns={"params": POSITIVE},
        parameters={"A": COEFFICIENT, "alpha": EXPONENT, "E": COEFFICIENT},
    )
    predicted = mine.predict(
        {"A": 100.0, "alpha": 0.5, "E": 2.0}, pd.DataFrame({"params": [1e4, 1e6]})
    )
    assert predicted == pytest.approx([3.0, 2.1], rel=1e-14)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("tokens", 0, r"'tokens' must be finite and positive.* 1 of 1 rows .*has 0\)"),
        ("params", np.nan, r"'params' must be finite and positive.*has nan\)"),
        ("block_size", 0.5, r"'block_size' must be finite and at least 1.*has 0.5\)"),
        ("exponent", -1, r"'exponent' must be finite and at least 0.*has -1\)"),
    ],
)
def test_columns_outside_the_law_are_named(column: str, value: float, message: str) -> None:
    table = row(1e9, 1e11, 2, 1, 7)
    table[column] = value
    with pytest.raises(FitError, match=message):
        LAWS["floating_point"].predict(SUN_2025, table)


def test_a_missing_column_is_named() -> None:
    with pytest.raises(ResultsError, match=r"floating_point needs column mantissa; the table has"):
        LAWS["floating_point"].predict(SUN_2025, row(1, 1, 1, 1, 1).drop(columns="mantissa"))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({**SUN_2025, "A": 1.0}, "A=1.0: law=floating_point has no such parameter; it has n, alp"),
        ({**SUN_2025, "n": 0.0}, "n=0.0: must be a positive number"),
        ({**SUN_2025, "nu": np.inf}, "nu=inf: must be a finite number"),
        ({"n": 1.0}, "law=floating_point: no value for alpha, d, beta"),
    ],
)
def test_parameters_that_are_not_the_laws_are_named(values: dict[str, float], message: str) -> None:
    with pytest.raises(FitError, match=message):
        LAWS["floating_point"].predict(values, row(1e9, 1e11, 2, 1, 7))


def test_an_unknown_law_is_answered_with_the_known_ones() -> None:
    with pytest.raises(FitError, match="law=chinchila: no such law; there are chinchilla, float"):
        get("chinchila")
