"""What the figures draw, and that their SVG can live in a page of either theme."""

import re

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy import stats

from fitting.figures import losses as figures
from fitting.figures.style import INK, format_colours, span


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
NOISE = {1e5: 0.03, 4e5: 0.03}
NEEDED = float(stats.t.isf(stats.norm.sf(3), 16))
"""Standard errors at which 16 degrees of freedom give a false alarm of 0.27 %."""


def test_bars_reach_one_standard_error_and_what_a_verdict_needs() -> None:
    axes = Figure().add_subplot()
    figures.draw_cost(axes, CELLS, ORDER[:3], COLOURS, noise=0.03)
    bars = [c for c in axes.collections if hasattr(c, "get_segments")]
    ends = [tuple(segment[:, 0]) for c in bars for segment in c.get_segments()]
    assert len(ends) == 6
    for found, times in ((sorted(ends[::2]), NEEDED), (sorted(ends[1::2]), 1)):
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
    (panel,) = figures.cost_by_format(CELLS, ORDER, COLOURS, NOISE)
    assert INK not in panel.svg
    assert "currentColor" in panel.svg
    assert COLOURS["E1M1"].lower() in panel.svg.lower()


def test_two_panels_on_one_page_share_no_id_that_is_referred_to() -> None:
    cells = pd.concat([CELLS, CELLS.assign(params=4e5)])
    one, two = figures.cost_by_format(cells, ORDER, COLOURS, NOISE)
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
    alone = figures.cost_by_format(CELLS[CELLS["format"] == "E2M1"], ORDER, COLOURS, NOISE)
    assert COLOURS["E2M1"].lower() in alone[0].svg.lower()
    assert COLOURS["E1M1"].lower() not in alone[0].svg.lower()


def test_a_pointer_finds_the_numbers_of_each_cell() -> None:
    (cost,) = figures.cost_by_format(CELLS, ORDER, COLOURS, NOISE)
    (bits,) = figures.loss_by_bits(CELLS, CELLS.iloc[:0], COLOURS)
    words = "E2M1&#10;100k parameters and 1M tokens&#10;+0.0625 ± 0.02 nats above none&#10;"
    for panel in (cost, bits):
        assert panel.svg.count(f'data-tip="{words}mean loss 3.0625"') == 1
        assert panel.svg.count("data-tip=") == 3


def test_a_click_on_a_formats_name_hides_what_belongs_to_it() -> None:
    (cost,) = figures.cost_by_format(CELLS, ORDER, COLOURS, NOISE)
    for name in ORDER[:3]:
        assert cost.svg.count(f'data-entry="{name}"') == 1
        assert cost.svg.count(f'data-series="{name}"') == 3  # two bars and a mark
    assert 'data-entry="none"' not in cost.svg


def test_means_over_seeds_say_of_how_many() -> None:
    means = pd.DataFrame(
        [("E1M1", 1e5, 1e6, 2.5, 3), ("E1M1", 1e5, 2e6, 2.25, 1)],
        columns=["format", "params", "tokens", "loss", "seeds"],
    )
    (panel,) = figures.loss_by_tokens(means, ORDER, COLOURS, None)
    assert "1M tokens&#10;loss 2.5000, mean of 3 seeds" in panel.svg
    assert "2M tokens&#10;loss 2.2500, 1 seed" in panel.svg


def test_small_differences_keep_room_beside_a_huge_one() -> None:
    """Else a difference of half the noise would be a 2,000th of the axis away from zero."""
    huge = pd.concat([CELLS, pd.DataFrame([a_cell("E1M0", 5.0, 0.01, bits=2)])])
    for noise, share in ((0.005, 0.05), (float("nan"), 0.0)):
        axes = Figure().add_subplot()
        figures.draw_cost(axes, huge, ["E1M0", *ORDER[:3]], COLOURS | {"E1M0": "#000000"}, noise)
        span(axes.xaxis, 0.0, 5.0, noise)
        low, high = axes.transAxes.inverted().transform(
            axes.transData.transform([(0.0, 0.0), (0.0025, 0.0)])
        )[:, 0]
        assert high - low > share
        assert (axes.get_xscale() == "symlog") == (share > 0)
