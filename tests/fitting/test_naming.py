"""What a report calls formats and counts, and in which order."""

import numpy as np
import pandas as pd
import pytest

from fitting.naming import format_names, format_order
from fitting.words import count_label


def runs(*formats: tuple[int, int, float, str, str]) -> pd.DataFrame:
    names = ["exponent", "mantissa", "block_size", "granularity", "recipe"]
    table = pd.DataFrame(list(formats), columns=names)
    table["scale"] = np.where(table["granularity"] == "none", "none", "e8m0")
    return table


def test_format_names_say_only_what_differs() -> None:
    plain = runs((8, 7, 1, "none", "none"), (2, 1, 32, "block", "nearest"))
    assert list(format_names(plain, plain)) == ["none", "E2M1"]
    blocks = runs((2, 1, 32, "block", "a"), (2, 1, 64, "block", "a"), (2, 1, 700.5, "row", "a"))
    assert list(format_names(blocks, blocks)) == ["E2M1/32", "E2M1/64", "E2M1 row"]
    recipes = runs((2, 1, 32, "block", "nearest"), (4, 3, 32, "block", "hadamard"))
    assert list(format_names(recipes, recipes)) == ["nearest", "hadamard"], "a study of recipes"
    both = pd.concat([recipes, runs((4, 3, 32, "block", "nearest"))])
    assert list(format_names(both, both)) == ["E2M1 nearest", "E4M3 hadamard", "E4M3 nearest"]


def test_formats_are_listed_by_bits_and_none_comes_last() -> None:
    table = runs(
        (8, 7, 1, "none", "none"), (4, 3, 32, "block", "a"), (2, 1, 32, "block", "a"),
        (1, 2, 32, "block", "a"), (1, 1, 32, "block", "a"),
    )  # fmt: skip
    table["format"] = format_names(table, table)
    assert format_order(table) == ["E1M1", "E1M2", "E2M1", "E4M3", "none"]


def test_recipes_are_listed_by_what_they_lose() -> None:
    table = runs(
        (2, 1, 32, "block", "worse"), (8, 7, 1, "none", "none"), (4, 3, 32, "block", "better")
    )  # fmt: skip
    table["format"] = format_names(table, table)
    table["loss"] = [3.0, 1.0, 2.0]
    assert format_order(table) == ["better", "worse", "none"]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.5, "0.5"), (999.6, "1k"), (24_576, "24.6k"), (999_600, "1M"), (1.5e15, "1.5e+03T")],
)
def test_counts_are_three_digits_and_a_unit(value: float, text: str) -> None:
    assert count_label(value) == text
