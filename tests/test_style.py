"""Colours that can be told apart in both themes, and SVG that says what the figure said."""

import re

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.figure import Figure

from fitting.style import format_colours, legend_below, to_svg


def test_shortening_coordinates_leaves_the_text_alone() -> None:
    figure = Figure()
    figure.text(0.123456, 0.5, "2.37546")
    svg = to_svg(figure, "numbers")
    assert ">2.37546<" in svg
    tags = "".join(re.findall(r"<[^>]+>", svg))
    assert not re.search(r"\.\d{3}", tags.replace("2.37546", ""))


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
