"""Designs: what could not be learned from them is said before any loss is looked at."""

from __future__ import annotations

from itertools import product

import pandas as pd
import pytest

from fitting.fit.designs import doubts_of_design
from fitting.laws.catalogue import LAWS

CHINCHILLA, FLOATING_POINT = LAWS["chinchilla"], LAWS["floating_point"]
SIZES, TOKENS = (1e7, 3e7, 1e8), (1e9, 3e9, 1e10)


def runs(
    params: tuple[float, ...] = SIZES,
    tokens: tuple[float, ...] = TOKENS,
    formats: tuple[tuple[int, int, int], ...] = ((8, 7, 1), (2, 1, 32), (3, 2, 32), (1, 3, 128)),
) -> pd.DataFrame:
    """Every combination."""
    rows = [(n, d, *f) for n, d, f in product(params, tokens, formats)]
    return pd.DataFrame(rows, columns=["params", "tokens", "exponent", "mantissa", "block_size"])


def test_a_design_in_which_everything_varies_raises_no_doubt() -> None:
    assert doubts_of_design(FLOATING_POINT, runs(), {}) == []
    assert doubts_of_design(CHINCHILLA, runs().drop_duplicates(["params", "tokens"]), {}) == []


@pytest.mark.parametrize(
    ("design", "start"),
    [
        (runs(params=(1e8,)), "params has one value in the rows that matter: alpha cannot be told"),
        (runs(tokens=(1e9, 1e10)), "tokens has two values: beta and the irreducible loss need"),
        (runs(formats=((2, 1, 32), (2, 3, 32))), "exponent has one value in the rows that matter:"),
        (runs(formats=((8, 7, 1),)), "no row has block_size above 1: nothing quantized"),
        (runs().query("tokens == 100 * params"), "params and tokens move together (correlation of"),
        (runs().assign(operands=["P1", "P2"] * 18), "quantized rows differ in operands (P1, P2)"),
        (runs().assign(recipe=["a", "b"] * 18), "quantized rows differ in recipe (a, b)"),
        (pd.concat([runs(), runs().head(2)]), "2 rows repeat another row: each counts as a run"),
        (runs().assign(run_id=["r1", "r2", "r3"] * 12), "33 rows repeat another row"),
    ],
    ids=lambda v: v[:20] if isinstance(v, str) else "",
)
def test_each_shortcoming_of_a_design_is_said_once(design: pd.DataFrame, start: str) -> None:
    doubts = doubts_of_design(FLOATING_POINT, design, {})
    assert len([d for d in doubts if d.startswith(start)]) == 1


def test_a_frozen_exponent_is_not_missed() -> None:
    design = runs(params=(1e8,))
    assert doubts_of_design(FLOATING_POINT, design, {"alpha": 0.3, "n": 60.0}) == []
    together = runs().query("tokens == 100 * params").drop_duplicates("params")
    assert doubts_of_design(CHINCHILLA, together, {"beta": 0.4}) == []
