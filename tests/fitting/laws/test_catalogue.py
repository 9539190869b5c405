"""Laws: published worked numbers, exact zeros, and what a law refuses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from fitting.analysis import quantized_share
from fitting.files.own_json import ResultsError
from fitting.fit import fit
from fitting.law.terms import COEFFICIENT, EXPONENT, POSITIVE, Columns, FitError, Law, Term
from fitting.laws.catalogue import LAWS, get
from fitting.laws.published import (
    BESIROGLU_2024,
    KUMAR_2024,
    KUMAR_2024_PTQ,
    OPTIMIZERS_2025,
    QAT_2025,
    QAT_SWITCH_2025,
    QUARTET_2025,
    SUN_2025,
)
from tests.support.tuned_tables import TUNED

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


def sizes(**columns: Any) -> pd.DataFrame:
    """A table of runs; single values are repeated."""
    return pd.DataFrame(columns, index=range(max(np.size(v) for v in columns.values())))


# 2505.14669, 30M model: tokens per parameter -> loss in high precision and with eff_N .65 and
# eff_D .95, computed from the law to 1e-4, and the losses that Table 3 prints for Quartet.
QUARTET_30M = {
    25: (3.40254, 3.47835, 3.49),
    50: (3.29546, 3.37906, 3.38),
    100: (3.21185, 3.30270, 3.29),
    200: (3.14817, 3.24536, 3.24),
    400: (3.10078, 3.20320, 3.20),
}


def test_quartet_law_gives_the_worked_losses() -> None:
    runs = sizes(params=30e6, tokens=[30e6 * ratio for ratio in QUARTET_30M], forward="BF16")
    law = LAWS["quartet"]
    full = law.predict(QUARTET_2025, runs.assign(backward="BF16"))
    low = law.predict(QUARTET_2025, runs.assign(forward="Quartet", backward="Quartet"))
    worked = np.array(list(QUARTET_30M.values()))
    assert full == pytest.approx(worked[:, 0], abs=1e-4)
    assert low == pytest.approx(worked[:, 1], abs=1e-4)
    assert np.abs(low - worked[:, 2]).max() <= 0.013  # how well the paper's law fits its table
    large = sizes(params=[1e8, 8e9], tokens=[1e10, 15e12], forward="FP8", backward="FP8")
    assert law.predict(QUARTET_2025, large) == pytest.approx([2.89187, 2.04062], abs=1e-5)


def test_precision_law_is_chinchilla_at_the_effective_size() -> None:
    bits = {"w": 4.0, "a": 6.0, "kv": 5.0}
    share = np.prod(
        [
            1 - np.exp(KUMAR_2024[f"n_{x}"] - bits[x] / KUMAR_2024[f"gamma_{x}"])
            for x in ("w", "a", "kv")
        ]
    )
    run = sizes(params=1e8, tokens=1e10, **{f"bits_{x}": b for x, b in bits.items()})
    expected = LAWS["chinchilla"].predict(
        {name: KUMAR_2024[name] for name in BESIROGLU_2024}, run.assign(params=1e8 * share)
    )
    # Each path is a dozen float64 operations.
    assert LAWS["precision"].predict(KUMAR_2024, run) == pytest.approx(expected, rel=1e-13)


def test_precision_law_says_where_no_parameters_would_be_left() -> None:
    # n_kv - 2/gamma_kv = 2.4185 - 2.0881 > 0: the effective size would be negative.
    runs = sizes(params=1e8, tokens=1e10, bits_w=16, bits_a=16, bits_kv=[16, 2])
    message = "not defined with these parameters in 1 of 2 rows: N_eff must be.*tokens=1e.10.*kv=2"
    with pytest.raises(FitError, match=message):
        LAWS["precision"].predict(KUMAR_2024, runs)


@pytest.mark.parametrize(
    ("bits", "plain", "offset"),
    [(3, 0.11239, 0.34713), (4, 0.020679, 0.063867), (5, 0.0038045, 0.011750)],
)
def test_post_training_quantization_costs_the_worked_loss(
    bits: int, plain: float, offset: float
) -> None:
    run = sizes(params=1e9, tokens=1e11, bits_post=bits)
    law = LAWS["ptq"]
    assert law.term_values(KUMAR_2024_PTQ, run)[3, 0] == pytest.approx(plain, abs=1e-5)
    shifted = KUMAR_2024_PTQ | {"C_T": KUMAR_2024_PTQ["C_T"] * np.exp(1.1277)}
    assert law.term_values(shifted, run)[3, 0] == pytest.approx(offset, abs=1e-5)


def test_quantization_aware_training_costs_the_worked_loss() -> None:
    runs = sizes(params=595e6, tokens=1e11, block_size=[1.0, 32, 128, 256])
    terms = LAWS["qat"].term_values(QAT_2025["W4A4"], runs)
    assert terms[:3].sum(axis=0) == pytest.approx([2.740661] * 4, abs=1e-5)
    assert terms[3] == pytest.approx([0, 0.04409, 0.05728, 0.06355], abs=1e-5)
    assert terms[3, 0] == 0  # one value per group: nothing is quantized


def test_errors_of_four_bit_weights_and_activations_nearly_add() -> None:
    # The paper: delta_W4A4 is about .906 of the two alone.  The three fits give that to 5 %.
    run = sizes(params=595e6, tokens=1e11, block_size=128)
    delta = {s: LAWS["qat"].term_values(QAT_2025[s], run)[3, 0] for s in QAT_2025}
    assert delta["W4A4"] / (delta["W4A16"] + delta["W16A4"]) == pytest.approx(0.906, rel=0.05)


COMPRESSED = {
    **{"A": 400.0, "alpha": 0.34, "B": 2000.0, "beta": 0.37, "E": 1.8},
    **{"L": 0.95, "F": 0.4, "C": 0.7},
}


def test_compressed_law_counts_capacity_by_the_error_on_gaussian_data() -> None:
    runs = sizes(params=1e8, tokens=1e10, gmse=[0.0, 1e-300, 1 / 4, 4.0**-4])
    capacity = np.array([1, 0.95, 0.95 * np.tanh(0.4) ** 0.7, 0.95 * np.tanh(1.6) ** 0.7])
    expected = 400 * (1e8 * capacity) ** -0.34 + 2000 * 1e10**-0.37 + 1.8
    assert LAWS["compressed"].predict(COMPRESSED, runs) == pytest.approx(expected, rel=1e-13)


@pytest.mark.parametrize(
    ("params", "tokens", "bits", "share"),
    [
        (1e9, 1e11, 4, 0.2808), (1e9, 1e11, 2, 0.3252), (1e9, 1e11, 6, 0.2527),
        (86e6, 2.3e9, 4, 0.1843), (8e9, 15e12, 4, 0.4414),
    ],
)  # fmt: skip
def test_the_best_share_of_quantized_tokens_is_the_worked_one(
    params: float, tokens: float, bits: float, share: float
) -> None:
    run = sizes(params=params, tokens=tokens, bits=bits)
    assert LAWS["qat_switch"].predict(QAT_SWITCH_2025, run) == pytest.approx(share, abs=1e-4)
    found = quantized_share(QAT_SWITCH_2025["a"], params, tokens, bits)
    assert found == pytest.approx(share, abs=1e-4)


def test_fewer_tokens_than_bytes_have_no_best_share() -> None:
    run = sizes(params=1e9, tokens=[1e9, 4e8], bits=4.0)
    some, none = LAWS["qat_switch"].predict(QAT_SWITCH_2025, run)
    assert some > 0 == none == quantized_share(6.7297, 1e9, 4e8, 4)
    with pytest.raises(FitError, match="zero for 1 of 2 rows, .* below one token for each byte"):
        fit(run.assign(loss=0.1), "qat_switch", starts=4)


def test_an_optimizers_efficiency_is_a_share_of_the_parameters() -> None:
    p = {"A": 400.0, "alpha": 0.34, "E": 1.8} | OPTIMIZERS_2025
    law = LAWS["fixed_ratio"].with_schemes(p)
    runs = pd.DataFrame({"params": [1e8, 0.863e8], "scheme": ["AdamW", "BF16"]})
    quantized, smaller = law.predict(p, runs)
    assert quantized == pytest.approx(smaller, rel=1e-14)


def test_an_error_as_large_as_the_data_is_refused() -> None:
    runs = sizes(params=1e8, tokens=1e10, gmse=[0.1, 1.0])
    with pytest.raises(FitError, match="'gmse' must be finite and at least 0 and below 1, but"):
        LAWS["compressed"].predict(COMPRESSED, runs)


CONSTANTS = [
    ("floating_point", SUN_2025),
    ("quartet", QUARTET_2025),
    ("precision", KUMAR_2024),
    ("ptq", KUMAR_2024_PTQ),
    ("qat", QAT_2025["W16A4"]),
    ("compressed", COMPRESSED),
    ("qat_switch", QAT_SWITCH_2025),
    ("fixed_ratio", {"A": 400.0, "alpha": 0.34, "E": 1.8} | OPTIMIZERS_2025),
    ("fine_tuning", TUNED),
]


@pytest.mark.parametrize(("name", "values"), CONSTANTS, ids=lambda v: v if type(v) is str else "")
def test_encoding_is_undone_by_decoding(name: str, values: dict[str, float]) -> None:
    law = get(name).with_schemes(values)
    assert law.decode(law.encode(values)) == pytest.approx(values, rel=1e-12)
    held = dict(list(values.items())[::2])
    assert law.decode(law.encode(values, held), held) == pytest.approx(values, rel=1e-12)
    other = {n: v * 1.1 for n, v in values.items()} | held
    both = law.decode_many(np.array([law.encode(v, held) for v in (values, other)]), held)
    assert {n: v[0] for n, v in both.items()} == pytest.approx(values, rel=1e-12)
    assert {n: v[1] for n, v in both.items()} == pytest.approx(other, rel=1e-12)


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
