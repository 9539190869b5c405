"""Colours that can be told apart in both themes, legends that name, PDF of stable bytes."""

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.figure import Figure

from fitting.figures.style import format_colours, legend_below, new_figure, panel, ratio_axis


def relative_luminance(colour: str) -> float:
    """WCAG 2.2's definition."""
    channels = np.array(mpl.colors.to_rgb(colour))
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


@pytest.mark.parametrize("count", [1, 7, 8, 20])
def test_every_format_has_its_own_colour_visible_on_white_and_on_black(count: int) -> None:
    """Marks of 6 px and wide bars, so half of WCAG's 3:1 for thin graphics is enough."""
    names = [f"E{i}M1" for i in range(count)]
    colours = format_colours([*names, "none"])
    assert len(set(colours.values())) == count + 1
    for colour in colours.values():
        light = relative_luminance(colour)
        on_white = (1.0 + 0.05) / (light + 0.05)
        on_black = (light + 0.05) / (relative_luminance("#14171a") + 0.05)
        assert min(on_white, on_black) >= 1.5, colour


@pytest.mark.parametrize("labels", [["E2M1"], ["E2M1", "E4M3"]])
def test_a_legend_names_every_format_and_one_format_needs_none(labels: list[str]) -> None:
    figure = Figure()
    axes = figure.add_subplot()
    for label in labels:
        axes.plot([], [], label=label)
    legend_below(figure, axes)
    named = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    assert named == (labels if len(labels) > 1 else [])


def test_a_panel_as_pdf_has_stable_bytes_and_fonts_that_journals_take() -> None:
    def drawn() -> bytes:
        figure = new_figure(4.0, 3.0)
        figure.add_subplot().set_title("Δ loss − 0.5 nats")
        return panel(figure, "one", "One").pdf()

    pdf = drawn()
    assert pdf == drawn()
    assert b"/TrueType" in pdf or b"/CIDFontType2" in pdf
    assert b"/Type3" not in pdf
    assert b"CreationDate" not in pdf


@pytest.mark.parametrize(
    ("ends", "some"), [((0.8, 1.4), {"1 ×", "1.2 ×"}), ((0.001, 100.0), {"0.01 ×", "1 ×", "100 ×"})]
)
def test_an_axis_of_ratios_names_more_than_one(ends: tuple[float, float], some: set[str]) -> None:
    axes = Figure().add_subplot()
    axes.set_xscale("log")
    axes.set_xlim(*ends)
    ratio_axis(axes.xaxis)
    axes.figure.draw_without_rendering()  # type: ignore[union-attr]
    assert some <= {label.get_text() for label in axes.get_xticklabels()}
