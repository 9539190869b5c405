"""What the figures draw, and that their SVG can live in a page of either theme."""

import re

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy import stats

from fitting import figures
from fitting.style import INK, format_colours


def a_cell(name: str, difference: float, error: float, **more: float) -> dict[str, object]:
    return {
        "format": name, "params": 1e5, "tokens": 1e6, "difference": difference,
        "standard_error": error, "dof": 16, "loss": 3.0 + difference, "loss_error": error, **more,
    }  # fmt: skip


CELLS = pd.DataFrame(
    [
        a_cell("E1M1", 0.25, 0.01, bits=3, exponent=1, mantissa=1),
        a_cell("E2M1", 0.0625, 0.02, bits=4, exponent=2, mantissa=1),
        a_cell("E1M2", 0.125, 0.02, bits=4, exponent=1, mantissa=2),
    ]
)
ORDER = ["E1M1", "E1M2", "E2M1", "none"]
COLOURS = format_colours(ORDER)
NEEDED = float(stats.t.isf(stats.norm.sf(3), 16))
"""Standard errors at which 16 degrees of freedom give a false alarm of 0.27 %."""


def test_bars_reach_one_standard_error_and_what_a_verdict_needs() -> None:
    axes = Figure().add_subplot()
    figures.draw_cost(axes, CELLS, ORDER[:3], COLOURS, noise=0.03)
    bars = [c for c in axes.collections if hasattr(c, "get_segments")]
    ends = [sorted(tuple(segment[:, 0]) for segment in c.get_segments()) for c in bars]
    assert len(ends) == 2
    for found, times in zip(ends, (NEEDED, 1), strict=True):
        expected = sorted(
            (d - times * e, d + times * e)
            for d, e in zip(CELLS["difference"], CELLS["standard_error"], strict=True)
        )
        np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_an_unknown_noise_floor_shades_and_bars_nothing() -> None:
    cells = CELLS.assign(standard_error=np.nan)
    axes = Figure().add_subplot()
    figures.draw_cost(axes, cells, ORDER[:3], COLOURS, noise=float("nan"))
    assert not axes.patches
    for collection in axes.collections:
        for segment in getattr(collection, "get_segments", list)():
            assert not np.isfinite(segment).any()


def test_neutral_ink_becomes_the_colour_of_the_text_around() -> None:
    (panel,) = figures.cost_by_format(CELLS, ORDER, COLOURS, 0.03)
    assert INK not in panel.svg
    assert "currentColor" in panel.svg
    assert COLOURS["E1M1"].lower() in panel.svg.lower()


def test_two_panels_on_one_page_share_no_id_that_is_referred_to() -> None:
    cells = pd.concat([CELLS, CELLS.assign(params=4e5)])
    one, two = figures.cost_by_format(cells, ORDER, COLOURS, 0.03)
    ids = [set(re.findall(r'\bid="([^"]+)"', panel.svg)) for panel in (one, two)]
    assert ids[0]
    assert not ids[0] & ids[1]
    for panel, known in zip((one, two), ids, strict=True):
        used = set(re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', panel.svg))
        assert {a or b for a, b in used} <= known


def test_the_same_figure_has_the_same_bytes() -> None:
    first = figures.loss_by_bits(CELLS, CELLS.iloc[:0], COLOURS)
    assert first == figures.loss_by_bits(CELLS, CELLS.iloc[:0], COLOURS)


def test_a_format_keeps_its_colour_whatever_is_drawn() -> None:
    alone = figures.cost_by_format(CELLS[CELLS["format"] == "E2M1"], ORDER, COLOURS, 0.03)
    assert COLOURS["E2M1"].lower() in alone[0].svg.lower()
    assert COLOURS["E1M1"].lower() not in alone[0].svg.lower()


def test_the_heat_map_prints_each_difference() -> None:
    (panel,) = figures.cost_by_layout(CELLS)
    for text in ("+0.250", "+0.062", "+0.125"):
        assert f">{text}<" in panel.svg


def test_ten_thousand_runs_stay_a_small_picture() -> None:
    rng = np.random.default_rng(0)
    predicted = rng.uniform(2, 4, 10_000)
    rows = pd.DataFrame({"predicted": predicted, "loss": predicted * 1.01, "format": "E1M1"})
    for panel in figures.predicted_v_observed(rows, ORDER, COLOURS, 0.005):
        assert len(panel.svg) < 200_000
