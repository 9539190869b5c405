"""The laws of fine-tuning: written out in float64, exact zeros, and parameters found again."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pandas as pd
import pytest

from fitting.fit import fit
from fitting.law.terms import FitError, Law
from fitting.laws.catalogue import get
from fitting.laws.synthetic import make_table
from fitting.laws.tuning import DECAY, FINE_TUNING

TRUTH = {
    "A": 12.0, "alpha": 0.3, "E": 0.9, "F": 1.2, "B": 6000.0, "beta": 0.8, "R": 0.7, "kappa": 0.5,
    "C": 0.9, "mu": 0.7, "G": 0.25, "nu": 0.7, "eff_r[int4_row]": 0.9, "eff_r[sign]": 0.25,
}  # fmt: skip
RATE = {"h": 0.3, "a": 0.5}


def design() -> pd.DataFrame:
    """Two sizes, four token counts, ranks, formats, and bases rounded never, then or always."""
    errors = [(0.0, 0.0)] + [(e, t) for e in (0.009, 0.1, 0.2) for t in (0.0, e)]
    rows = itertools.product(
        (1e5, 3e5, 1e6), (1e4, 3e4, 1e5, 3e5), (1, 4, 16), ("none", "int4_row", "sign"), errors
    )
    return pd.DataFrame(
        [(n, d, r, how, *error) for n, d, r, how, error in rows],
        columns=["params", "tokens", "rank", "adapter_format", "err_weight", "err_trained"],
    )


def written_out(p: dict[str, float], row: pd.Series, decays: bool) -> float:
    """The law's sentence, number by number."""
    s = row["err_weight"] / (1 - row["err_weight"]) if row["err_trained"] == 0 else 0.0
    t = row["err_trained"] / (1 - row["err_trained"])
    worth = p.get(f"eff_r[{row['adapter_format']}]", 1.0)
    lacks = p["C"] * s ** p["mu"] if s else 0.0
    rank = (row["rank"] * worth) ** -p["kappa"]
    data = p["B"] / row["tokens"] ** p["beta"]
    whole = p["A"] / row["params"] ** p["alpha"] + p["E"] + (p["G"] * t ** p["nu"] if t else 0.0)
    if decays:
        repaired = math.exp(-p["h"] * row["rank"] ** p["a"])
        return float(whole + data + p["F"] * rank + lacks * repaired)
    scarce = data + p["R"] * rank
    return float(whole + (p["F"] + lacks) * scarce / (1 + scarce))


@pytest.mark.parametrize("law", [FINE_TUNING, DECAY], ids=lambda law: law.name)
def test_it_is_the_sentence_of_its_docstring(law: Law) -> None:
    decays = law is DECAY
    truth = {
        n: v for n, v in (TRUTH | RATE).items() if n.split("[")[0] in (*law.parameters, "eff_r")
    }
    table = design()
    expected = [written_out(truth, row, decays) for _, row in table.iterrows()]
    assert law.predict(truth, table) == pytest.approx(expected, rel=1e-13)


def test_a_base_that_was_not_rounded_lacks_exactly_nothing() -> None:
    table = design()
    terms = FINE_TUNING.term_values(TRUTH, table)
    now = (table["err_weight"] > 0) & (table["err_trained"] == 0)
    assert (terms[1] > 0).tolist() == now.tolist()
    assert (terms[4] > 0).tolist() == (table["err_trained"] > 0).tolist()


def test_its_parameters_are_found_again() -> None:
    """With a noise of half a percent, within four standard errors of a sandwich or 15 %."""
    table = make_table(FINE_TUNING, TRUTH, design(), noise=0.005, seed=3)
    fitted = fit(table, "fine_tuning")
    assert fitted.status == "converged"
    for name in ("beta", "kappa", "mu", "nu", "eff_r[int4_row]", "eff_r[sign]"):
        assert fitted.parameters[name] == pytest.approx(TRUTH[name], rel=0.15), name
    residual = np.log(table["loss"] / fitted.law.predict(fitted.parameters, table))
    assert residual.std() == pytest.approx(0.005, rel=0.1)


def test_a_run_without_an_adapter_is_refused() -> None:
    table = make_table(FINE_TUNING, TRUTH, design(), noise=0.0, seed=0)
    table.loc[3, "rank"] = math.nan
    with pytest.raises(FitError, match="column 'rank' must be finite and at least 1, but is not"):
        fit(table, "fine_tuning")
    assert get("fitting.laws.tuning:DECAY").name == "fine_tuning_decay"
