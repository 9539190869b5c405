"""Speeds of low precision: by pass, as measured, and as typed."""

from __future__ import annotations

import pytest

from fitting.entry.errors import Refusal
from fitting.law.speeds import CHOICES, PRESETS, Speeds, training_speedup


def test_training_is_one_third_forward() -> None:
    assert training_speedup(1, 1) == 1
    assert [training_speedup(*s) for s in ((2, 1), (1, 2), (2, 2))] == [1.2, 1.5, 2]


def test_every_choice_costs_what_the_unquantized_run_costs() -> None:
    """Serving costs N over the forward speed-up, training N D over that of both passes."""
    for forward, backward in ((2.0, 2.0), (2.0, 1.0), (1.7, 1.3)):
        for choice in CHOICES:
            larger, longer = Speeds.of_passes(forward, backward).gains(choice)
            passes = zip(choice.split(":"), (forward, backward), strict=True)
            speeds = [s if precision == "FP4" else 1.0 for precision, s in passes]
            assert larger / speeds[0] == pytest.approx(1)
            assert larger * longer / training_speedup(*speeds) == pytest.approx(1)


def test_measured_speeds_of_each_pass_are_those_that_were_given() -> None:
    speeds = Speeds.parse("FP4:FP4=1.16,FP4:FP8=1.05,FP8:FP4=1.1")
    assert speeds is not None
    assert speeds.training == {"FP8:FP8": 1, "FP4:FP8": 1.05, "FP8:FP4": 1.1, "FP4:FP4": 1.16}
    assert training_speedup(speeds.serving, 1.0) == pytest.approx(1.05)
    for choice in CHOICES:
        larger, longer = speeds.gains(choice)
        assert larger * longer == pytest.approx(speeds.training[choice])


@pytest.mark.parametrize("name", PRESETS)
def test_presets_name_their_source(name: str) -> None:
    speeds = Speeds.parse(name)
    assert speeds is not None
    assert speeds.typed == name
    assert speeds.serving == pytest.approx(speeds.training["FP4:FP4"])
    assert len(speeds.source) > 20


def test_published_speeds() -> None:
    by_name = {name: Speeds.parse(name) for name in PRESETS}
    found = {n: round(s.training["FP4:FP4"], 3) for n, s in by_name.items() if s is not None}
    assert found == {"nvfp4": 1.156, "nvfp4_deepseek": 0.945, "mxfp4_mi355x": 1.095}
    assert Speeds.parse("none") is None


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("fast", "speedup.measured=fast: write FP4:FP4=1.16, with .*, or nvfp4, nvfp4_deepseek"),
        ("FP4:FP8=1.2", "write FP4:FP4=1.16"),
        ("FP4:FP4=1.2,FP6:FP8=1", "write FP4:FP4=1.16"),
        ("FP4:FP4=0", "FP4:FP4 must be positive, is 0"),
        ("FP4:FP4=1.2,FP4:FP8=1.5", "FP4:FP8 must be between 0 and 1.5, is 1.5"),
        ("FP4:FP4=1.2,FP8:FP4=3", "FP8:FP4 must be between 0 and 3, is 3"),
    ],
)
def test_what_is_no_speed_is_refused(typed: str, said: str) -> None:
    with pytest.raises(Refusal, match=said):
        Speeds.parse(typed)
