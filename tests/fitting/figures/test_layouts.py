"""The map of exponent and mantissa and its small multiples: which cells, and what they say."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from fitting.analysis.layouts import Layout
from fitting.figures import layouts as layout_figures
from fitting.figures.style import INK
from tests.support.fits import a_layout

NOISE = {1e5: 0.004}


def a_cell(exponent: int, mantissa: int, difference: float, **more: Any) -> dict[str, Any]:
    cell = {
        "format": f"E{exponent}M{mantissa}", "exponent": exponent, "mantissa": mantissa,
        "params": 1e5, "tokens": 1e6, "block_size": 32.0, "granularity": "block", "scale": "e8m0",
        "recipe": "sun", "difference": difference, "standard_error": 0.01, "dof": 16,
        "loss": 3.0 + difference, "verdict": "worse",
    }  # fmt: skip
    return cell | more


CELLS = pd.DataFrame(
    [a_cell(1, 1, 0.25), a_cell(2, 1, 0.0625), a_cell(1, 2, 0.125), a_cell(3, 1, 0.02)]
)


def test_cells_of_one_kind_are_drawn_and_it_is_said_which() -> None:
    other = [a_cell(1, 1, 0.5, block_size=64.0), a_cell(1, 1, 0.7, recipe="quest")]
    early = [a_cell(1, 1, 0.9, tokens=5e5), a_cell(2, 2, 0.9, tokens=5e5)]
    cells = pd.concat([CELLS, pd.DataFrame(other + early)], ignore_index=True)
    drawn = layout_figures.of_one_kind(cells)
    pd.testing.assert_frame_equal(drawn, CELLS)
    assert layout_figures.kind_words(drawn) == "one scale per 32 values, recipe sun"
    rows = CELLS.assign(granularity="row", block_size=[131.2, 131.2, 131.2, 96.0])
    kept = layout_figures.of_one_kind(rows)
    assert len(kept) == 4, "the block size of a row is the model's, and no other kind"
    assert layout_figures.kind_words(kept) == "one scale per row, recipe sun"


def test_a_map_needs_two_of_both() -> None:
    assert layout_figures.has_map(CELLS)
    assert not layout_figures.has_map(CELLS[CELLS["mantissa"] == 1])
    assert not layout_figures.has_map(CELLS[CELLS["exponent"] == 1])


def test_the_map_prints_each_difference_once_and_names_the_cell() -> None:
    (panel,) = layout_figures.cost_map(CELLS, [])
    for text in ("+0.250", "+0.062", "+0.125", "+0.020"):
        assert panel.svg.count(f">{text}<") == 1
    assert panel.svg.count("data-tip=") == 4
    assert 'data-tip="E3M1&#10;100k parameters and 1M tokens&#10;+0.0200 ± 0.01' in panel.svg


def test_what_cannot_be_told_from_none_is_italic() -> None:
    cells = CELLS.assign(verdict=["worse", "cannot tell", "worse", "worse"])
    (panel,) = layout_figures.cost_map(cells, [])
    italic = [line for line in panel.svg.splitlines() if "font-style: italic" in line]
    assert [line.split(">")[1].split("<")[0] for line in italic] == ["+0.062"]


def a_split(bits: int, exponent: float, mantissa: float) -> Layout:
    return a_layout(bits, exponent_opt=exponent, mantissa_opt=mantissa)


def test_the_laws_best_split_is_drawn_as_far_as_the_map_reaches() -> None:
    layouts = [a_split(4, 1.6, 1.4), a_split(5, 2.1, 1.9), a_split(9, 4.0, 4.0)]
    (panel,) = layout_figures.cost_map(CELLS, layouts)
    assert "4 bits: the law&#x27;s best split&#10;exponent 1.6, mantissa 1.4" in panel.svg
    assert "5 bits: the law" in panel.svg
    assert "9 bits" not in panel.svg


def test_no_number_stands_on_the_laws_line() -> None:
    """The line of equal widths runs through the middle of every cell on the diagonal."""
    layouts = [a_split(1 + 2 * k, float(k), float(k)) for k in (1, 2, 3)]
    cells = pd.DataFrame([a_cell(k, k, 0.1 * k) for k in (1, 2, 3)])
    (panel,) = layout_figures.cost_map(cells, layouts)
    (axes,) = panel.figure.axes
    panel.figure.draw_without_rendering()
    for text in axes.texts:
        box = axes.transData.inverted().transform(text.get_window_extent().get_points())
        (left, low), (right, high) = box
        assert low > right or left > high, text.get_text()


def test_each_cell_is_in_both_small_multiples_under_its_other_width() -> None:
    along_exponent, along_mantissa = layout_figures.cost_by_split(CELLS, None, NOISE)
    for panel, entries in (
        (along_exponent, {"mantissa 1": 3, "mantissa 2": 1}),
        (along_mantissa, {"exponent 1": 2, "exponent 2": 1, "exponent 3": 1}),
    ):
        assert panel.svg.count("data-tip=") == 4
        for name in entries:
            assert f'data-series="{name}"' in panel.svg
            assert f'data-entry="{name}"' in panel.svg
        assert INK not in panel.svg


def test_the_laws_curve_runs_beside_the_marks() -> None:
    steps = np.linspace(1, 3, 9)
    curve = pd.DataFrame({"exponent": steps, "mantissa": 1, "params": 1e5, "along": "exponent"})
    curve["difference"] = 0.25 / steps**2
    with_law, _ = layout_figures.cost_by_split(CELLS, curve, NOISE)
    without, _ = layout_figures.cost_by_split(CELLS, None, NOISE)
    assert with_law.svg.count('data-series="mantissa 1"') == 3  # marks, bars and the curve
    assert without.svg.count('data-series="mantissa 1"') == 2
