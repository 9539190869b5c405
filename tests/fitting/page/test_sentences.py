"""The sentences: right numbers, and never more than the numbers carry."""

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from fitting.analysis.costs import Cost
from fitting.fit.fit_file import SavedFit
from fitting.page import sentences as findings
from fitting.words import number
from tests.support.fits import a_cost, a_layout, a_limit, saved


def cells(*rows: tuple[str, int, float, float]) -> pd.DataFrame:
    """(format, bits, difference, standard error); a repeated format is at another token count."""
    table = pd.DataFrame(list(rows), columns=["format", "bits", "difference", "standard_error"])
    table["params"] = 24_576.0
    table["tokens"] = 1e6 * (1 + table.groupby("format").cumcount())
    table["z"] = table["difference"] / table["standard_error"]
    table["dof"] = np.where(np.isfinite(table["standard_error"]), 16, 0)
    # With 16 degrees of freedom a false alarm of 0.27 % needs 3.544 standard errors.
    conditions = [table["z"] >= 3.544, table["z"] <= -3.544]
    table["verdict"] = np.select(conditions, ["worse", "better"], "cannot tell")
    return table


def test_a_lowest_bit_cell_is_reported_with_its_error_and_z() -> None:
    means, details = findings.lowest_bits(cells(("E1M1", 3, 0.09, 0.01), ("E4M3", 8, 0.0, 0.01)))
    assert means == [
        "E1M1 (3 bits) is worse than none by 0.09 ± 0.01 nats per token (z = 9.0) "
        "at 24.6k parameters and 1M tokens."
    ]
    assert not details


def test_the_mean_of_independent_conditions_has_their_errors_in_quadrature() -> None:
    """(0.03 + 0.05) / 2 = 0.04; sqrt(0.006^2 + 0.008^2) / 2 = 0.005; z = 8."""
    means, details = findings.lowest_bits(cells(("E1M1", 3, 0.03, 0.006), ("E1M1", 3, 0.05, 0.008)))
    assert "by 0.04 ± 0.005 nats per token (z = 8.0)" in means[0]
    assert "worse in 2 of 2" in means[0]
    assert "+0.030 ± 0.006 (z = 5.0) at 24.6k parameters and 1M tokens" in details[0]


@pytest.mark.parametrize("z", [-3.54, -1.0, 0.0, 2.0, 3.2, 3.54])
def test_below_what_a_verdict_needs_nothing_is_called_worse_or_better(z: float) -> None:
    table = cells(("E1M1", 3, z * 0.01, 0.01))
    text = " ".join(findings.lowest_bits(table)[0]) + findings.not_told_apart(table, ["E1M1"])
    assert "cannot be told" in text.lower()
    assert "worse" not in text
    assert "better" not in text


def test_a_better_format_is_called_better() -> None:
    means, _ = findings.lowest_bits(cells(("E1M1", 3, -0.05, 0.01)))
    assert "is better than none by 0.05 ± 0.01 nats per token (z = −5.0)" in means[0]


def test_formats_that_cannot_be_told_from_none_are_named() -> None:
    table = cells(
        ("E1M1", 3, 0.09, 0.01), ("E2M1", 4, 0.04, 0.01), ("E2M1", 4, 0.01, 0.01),
        ("E4M3", 8, 0.001, 0.01),
    )  # fmt: skip
    text = findings.not_told_apart(table, ["E1M1", "E2M1", "E4M3"])
    assert "at any size or token count: E4M3." in text
    assert "at some sizes and token counts: E2M1 (1 of 2)." in text
    assert "E1M1" not in text


def test_without_repeated_seeds_no_difference_is_called_real() -> None:
    table = cells(("E1M1", 3, 0.5, float("nan")))
    assert "cannot say whether that is real" in findings.lowest_bits(table)[0][0]
    assert "no format at all" in findings.not_told_apart(table, ["E1M1"])


def test_many_lowest_formats_become_one_sentence_that_names_the_worse_ones() -> None:
    rows = [(f"E1M1/{2**i}", 3, 0.02 * i, 0.01) for i in range(5)]  # z = 0, 2, 4, 6, 8
    means, details = findings.lowest_bits(cells(*rows))
    assert len(means) == 1
    assert not details
    assert "differ from none by +0.000 to +0.080 nats" in means[0]
    assert means[0].endswith("worse by more than 3.5 standard errors: E1M1/16, E1M1/4 and E1M1/8.")


def test_the_order_by_bits_is_judged_on_conditions_that_hold_every_width() -> None:
    table = cells(("A", 3, 0.1, 0.01), ("B", 4, 0.02, 0.01), ("A", 3, 9.0, 0.01))
    assert "falls at every step: +0.100 at 3 bits and +0.020 at 4 bits" in str(
        findings.order_by_bits(table)
    )
    upside = cells(("A", 3, 0.01, 0.01), ("B", 4, 0.02, 0.01))
    assert "does not fall at every step" in str(findings.order_by_bits(upside))
    assert findings.order_by_bits(cells(("A", 3, 0.1, 0.01))) is None


CONTENT: dict[str, Any] = {
    "parameters": {"d": 900.0, "epsilon": 0.86, "nu": 2.95},
    "intervals": {
        "alpha": [0.21, 0.27], "d": [300.0, 2100.0], "epsilon": [2.7e-8, 1.5],
        "gamma": [None, None], "nu": [None, None],
    },
    "frozen": ["nu"],
    "derived": {
        "identified": {"alpha": True, "d": True, "epsilon": True, "gamma": False, "nu": True},
        "layouts": [
            a_layout(4, shares={"E2M1": 0.93}),
            a_layout(8, layout="E4M3", shares={"E4M3": 0.6}, extrapolated=True),
        ],
    },
}  # fmt: skip
FIT = saved(**CONTENT)


def test_pinned_rough_unpinned_and_fixed_parameters_are_told_apart() -> None:
    """The interval of d spans a factor 7; epsilon is identified, but its interval says nothing."""
    assert findings.pinned(FIT) == {
        "n": "unknown", "alpha": "yes", "d": "roughly", "beta": "unknown", "epsilon": "no",
        "gamma": "no", "delta": "unknown", "nu": "held fixed",
    }  # fmt: skip
    yes, roughly, no, fixed, unknown = findings.parameters_pinned(FIT)
    assert yes.endswith("at most a factor of 2: alpha = 0.2368 (0.21 to 0.27).")
    assert roughly.endswith("d = 900 (300 to 2,100).")
    assert no.startswith("This study cannot pin epsilon and gamma:")
    assert fixed == "Held fixed and not fitted: nu = 2.95."
    assert unknown.endswith("nothing is known about the precision of n, beta and delta.")


def test_without_a_bootstrap_no_parameter_is_called_pinned() -> None:
    bare = saved(**CONTENT | {"intervals": {}, "frozen": []})
    assert set(findings.pinned(bare).values()) == {"unknown", "no"}


def test_a_fit_at_a_bound_is_said_to_be() -> None:
    text = findings.parameters_pinned(replace(FIT, status="at_bound: [nu]"))[-1]
    assert text == "The fit did not end cleanly: at_bound: [nu]."


def test_the_best_layout_comes_with_its_share_and_without_extrapolations() -> None:
    text = str(findings.best_layouts(FIT))
    assert "E2M1 at 4 bits (93 % of draws)" in text
    assert "E4M3" not in text
    assert "below 95 %, the split is open" in text


def test_a_layout_from_unpinned_exponents_is_no_finding() -> None:
    text = str(findings.best_layouts(replace(FIT, identified={"nu": False}, frozen=[])))
    assert "The study cannot pin nu, so this is not yet a finding" in text


def test_the_price_of_the_fewest_bits_that_were_trained_is_in_the_lead() -> None:
    def row(bits: int, tokens_factor: float | None, extrapolated: bool) -> Cost:
        more = {"params_factor_interval": (1.13, 2.38), "tokens_factor_interval": (None, None)}
        factors = {"tokens_factor": tokens_factor, "extrapolated": extrapolated}
        return a_cost(bits, 1.3, **more, **factors)

    rows = [row(2, None, True), row(3, 1.1, True), row(4, 1.04, False), row(5, 1.01, False)]
    text = findings.cost_of_fewest_bits(saved(derived={"cost_of_bits": rows}))
    assert text == (
        "By the fit, the loss from 4 bits (E2M1) at 100M parameters and 10B tokens is made up for "
        "by 1.3 times (1.13 to 2.38) the parameters or 1.04 times the tokens."
    )
    assert findings.cost_of_fewest_bits(saved(derived={"cost_of_bits": rows[:2]})) is None
    assert findings.cost_of_fewest_bits(saved()) is None


@pytest.mark.parametrize(
    ("fit", "said"),
    [
        (None, "No optimal layouts"),
        (saved(), "No critical data sizes, costs of precision or optimal bits"),
        (saved("quartet", derived={"efficiencies": []}), "No map of which precision wins"),
        (saved("ptq", derived={"identified": {}}), "the data do not determine"),
    ],
)
def test_what_cannot_be_concluded_is_said(fit: SavedFit | None, said: str) -> None:
    assert said in " ".join(findings.not_concluded(fit))


def test_where_something_is_concluded_nothing_is_said_to_be_missing() -> None:
    whole = {"layouts": [a_layout(4)], "critical_tokens": [a_limit(1e8, 1e10, False)]}
    assert findings.not_concluded(saved(derived=whole)) == []
    assert findings.not_concluded(saved("ptq", derived=whole)) == []


def test_only_small_models_are_warned_about() -> None:
    assert "98.3k" in str(findings.small_model(pd.DataFrame({"params": [98_304.0]})))
    assert findings.small_model(pd.DataFrame({"params": [98_304.0, 1e6]})) is None


@pytest.mark.parametrize("value", [0.2368, 1.9061, 68973.0621, 11334.5197, 3.1e-8, -2.5e12, 12.0])
def test_a_printed_number_is_the_number_to_four_digits(value: float) -> None:
    text = number(value).replace("−", "-").replace(",", "")
    digits = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")
    text = re.sub("×10(.+)", lambda match: "e" + match[1].translate(digits), text)
    assert float(text) == pytest.approx(value, rel=5e-4)


def test_measured_layouts_say_when_only_the_law_prefers_one() -> None:
    columns = ["bits", "better", "other", "difference", "standard_error", "verdict"]
    told, untold = (4, "E2M1", "E1M2", 0.1, 0.02, "better"), (3, "E2M0", "E1M1", 0.02, 0.02, "")
    both = findings.measured_layouts(pd.DataFrame([told, untold], columns=columns))
    assert both is not None
    assert "E2M1 beats E1M2 by 0.100 ± 0.020 nats per token." in both
    assert "cannot tell apart E2M0 and E1M1 (0.020 ± 0.020)" in both
    assert "because of the law's form" in both
    only = findings.measured_layouts(pd.DataFrame([told], columns=columns))
    assert "cannot" not in str(only)
    assert findings.measured_layouts(pd.DataFrame()) is None
