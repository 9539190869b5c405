"""What is typed: options, defaults, and what stands for what."""

from __future__ import annotations

import pytest

from fitting.laws import LAWS
from fitting.options import (
    FIT_HELP,
    LAW_NAMES,
    REPORT_HELP,
    UsageError,
    asks_for_help,
    fit_options,
    report_options,
)


def test_help_names_every_law_and_every_option() -> None:
    assert list(LAWS) == list(LAW_NAMES)
    options = fit_options(["results=a", "out=b", "law=quartet"])
    for name in vars(options):
        assert f"  {name.replace('_', '.')}" in FIT_HELP
    for name in vars(report_options(["fit=a"])):
        assert f"  {name}=" in REPORT_HELP
    assert max(map(len, (FIT_HELP + REPORT_HELP).splitlines())) <= 100


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"], ["law=quartet", "help"]])
def test_nothing_typed_is_a_question(words: list[str]) -> None:
    assert asks_for_help(words)
    assert not asks_for_help(["law=quartet"])


def test_speed_ups_are_inputs_with_the_papers_defaults() -> None:
    typed = ["results=a", "out=b", "law=quartet"]
    options = fit_options(typed)
    assert (options.speedup_forward, options.speedup_backward) == (2.0, 2.0)
    options = fit_options([*typed, "speedup.forward=1.8", "speedup.backward=1"])
    assert (options.speedup_forward, options.speedup_backward) == (1.8, 1.0)
    with pytest.raises(UsageError, match="speedup.forward=fast: must be a number"):
        fit_options([*typed, "speedup.forward=fast"])


def test_a_schemes_name_may_hold_anything() -> None:
    options = fit_options(["results=a", "out=b", "law=quartet", "freeze.eff_N[a=b v1.5]=0.5"])
    assert options.freeze == {"eff_N[a=b v1.5]": 0.5}


def test_a_page_finds_its_fits_table_and_its_place() -> None:
    options = report_options(["fit=fits/mine"])
    assert (options.results, options.out) == ("fits/mine/results.csv", "fits/mine")
    options = report_options(["study=demo"])
    assert (options.results, options.fit, options.out) == ("runs/demo", *["reports/demo"] * 2)
    options = report_options(["study=demo", "out=elsewhere"])
    assert (options.fit, options.out) == ("reports/demo", "elsewhere")
