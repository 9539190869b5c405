"""Tables that tell a law little or nothing: every law is fitted to each and reported, in one piece.

Warnings are errors; what a user reads holds no NaN, no infinity as a word and no two units in one
value, and concludes nothing where no parameter behind it is identified.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fitting.command import main
from fitting.entry.errors import Refusal
from fitting.laws.catalogue import LAWS
from fitting.laws.published import (
    BESIROGLU_2024,
    KUMAR_2024,
    KUMAR_2024_PTQ,
    QAT_2025,
    QAT_SWITCH_2025,
    QUARTET_2025,
)
from fitting.laws.published import SUN_2025 as SUN
from fitting.laws.synthetic import make_table
from tests.support.tuned_tables import TUNED, TUNED_COLUMNS, TUNED_RUNS

FORMATS = ("exponent", "mantissa", "block_size", "forward", "backward", "bits_w", "bits_a")
FORMATS += ("bits_kv", "bits_post", "gmse", "err_input", "err_weight", "bits", "scheme")
FORMATS += ("rank", "adapter_format", "err_trained")
TRUTHS = {
    "chinchilla": BESIROGLU_2024,
    "floating_point": SUN,
    "quartet": QUARTET_2025,
    "precision": KUMAR_2024,
    "ptq": KUMAR_2024_PTQ,
    "qat": QAT_2025["W4A4"],
    "compressed": BESIROGLU_2024 | {"L": 0.95, "F": 0.4, "C": 0.5},
    "unified": BESIROGLU_2024 | {"gamma": 0.9, "c": 20.0},
    "qat_switch": QAT_SWITCH_2025,
    "fixed_ratio": {"A": 400.0, "alpha": 0.34, "E": 1.8, "rho[AdamW]": 0.863},
    "fine_tuning": TUNED,
}
CELLS: dict[str, tuple[list[str], list[tuple[object, ...]]]] = {
    "chinchilla": (["seed"], [(0,), (1,)]),
    "floating_point": (
        ["exponent", "mantissa", "block_size"],
        [(0, 0, 1.0), (1, 1, 32.0), (2, 1, 32.0), (1, 2, 32.0), (2, 3, 128.0)],
    ),
    "quartet": (
        ["forward", "backward"],
        [("BF16", "BF16"), ("Quartet", "FP8"), ("FP8", "Quartet"), ("Quartet", "Quartet")],
    ),
    "precision": (
        ["bits_w", "bits_a", "bits_kv"],
        [(16.0, 16.0, 16.0), (4.0, 16.0, 16.0), (16.0, 4.0, 16.0), (16.0, 16.0, 4.0)],
    ),
    "ptq": (["bits_post"], [(2.0,), (3.0,), (4.0,), (16.0,)]),
    "qat": (["block_size"], [(1.0,), (32.0,), (128.0,), (256.0,)]),
    "compressed": (["gmse"], [(0.0,), (0.001,), (0.01,), (0.2,)]),
    "qat_switch": (["bits"], [(2.0,), (4.0,), (6.0,)]),
    "fixed_ratio": (["scheme"], [("BF16",), ("AdamW",)]),
    "fine_tuning": (TUNED_COLUMNS, TUNED_RUNS),
    "unified": (["err_input", "err_weight"], [(0.0, 0.0), (0.0, 0.01), (0.01, 0.01), (0.2, 0.2)]),
}
SIZES, DATA = (3e7, 6e7, 3e8), (1.5e9, 3e9, 4e10)


def runs(law: str) -> pd.DataFrame:
    """Three sizes, three amounts of data, each format; 0.2 % noise."""
    names, cells = CELLS[law]
    rows = [(n, d, *cell) for n, d, cell in itertools.product(SIZES, DATA, cells)]
    design = pd.DataFrame(rows, columns=["params", "tokens", *names])
    return make_table(law, TRUTHS[law], design, 2e-3, 0)


def one_format(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of the last format."""
    columns = [c for c in FORMATS if c in table]
    return table[(table[columns] == table[columns].iloc[-1]).all(axis=1)] if columns else table


def every_third(table: pd.DataFrame, value: float) -> pd.DataFrame:
    """Every third loss is another."""
    return table.assign(loss=table["loss"].where(np.arange(len(table)) % 3 > 0, value))


TABLES: dict[str, Callable[[pd.DataFrame], pd.DataFrame]] = {
    "as it should be": lambda t: t,
    "one size": lambda t: t[t["params"] == SIZES[0]],
    "one amount of data": lambda t: t[t["tokens"] == DATA[0]],
    "one ratio": lambda t: t.assign(tokens=20 * t["params"]),
    "one format": one_format,
    "equal losses": lambda t: t.assign(loss=2.5),
    "noise": lambda t: t.assign(loss=np.random.default_rng(0).uniform(1, 9, len(t))),
    "losses that grow": lambda t: t.assign(loss=1 + t["params"] / 1e8 + t["tokens"] / 1e10),
    "tiny losses": lambda t: t.assign(loss=t["loss"] * 1e-200),
    "huge losses": lambda t: t.assign(loss=t["loss"] * 1e200),
    "huge counts": lambda t: t.assign(params=t["params"] * 1e200, tokens=t["tokens"] * 1e200),
    "counts in billions": lambda t: t.assign(params=t["params"] / 1e9, tokens=t["tokens"] / 1e9),
    "two rows": lambda t: t.iloc[[0, -1]],
    "hardly enough rows": lambda t: t.sample(13, random_state=0),
    "zero losses": lambda t: every_third(t, 0.0),
    "negative losses": lambda t: every_third(t, -1.0),
    "infinite losses": lambda t: every_third(t, np.inf),
    "no losses": lambda t: t.assign(loss=-1.0),
    "better in few bits": lambda t: t.assign(loss=t["loss"] * np.where(t["params"] > 1e8, 1, 0.9)),
    "nothing but what is needed": lambda t: t[["loss", "params", "tokens", *_formats(t)]],
}
OPTIONS = {
    "alpha is zero": ["freeze.alpha=0"],
    "neither exponent": ["freeze.alpha=0", "freeze.beta=0"],
    "steep": ["freeze.alpha=5", "freeze.beta=5"],
    "all absolute deviations": ["objective=lad"],
    "E at its bound": ["bounds.E=100..200"],
}
REFUSED = re.compile(
    r"usable rows, but|must be finite and|must be a positive number|but must be below|"
    r"defined in \d+ of|freeze it instead|not defined with these parameters|has no such parameter"
)


def _formats(table: pd.DataFrame) -> list[str]:
    return [c for c in FORMATS if c in table]


NO_NUMBER = re.compile(r"(?<![\w.#-])[-−+±]?\s?(nan|inf|infinity|None to|to None)(?![\w-])", re.I)
WITHIN = r"(?:(?!  )[^)\n])*"
"""What is left of one cell of a table, up to its brackets' end."""
NO_UNIT = re.compile(rf"× \([+−]\d|% \({WITHIN}\d ×|× \({WITHIN} %|\+[-−]")


def check(text: str, where: str) -> None:
    """Refuse what no reader should see."""
    body = re.sub(r"<script.*?</script>|<style.*?</style>", "", text, flags=re.S)
    # "none" is the unquantized format.
    for pattern in (NO_NUMBER, NO_UNIT):
        if found := pattern.search(re.sub(r"\bto none\b", "", body)):
            around = body[max(0, found.start() - 80) : found.end() + 40]
            raise AssertionError(f"{where}: {around!r}")


def fitted(
    table: pd.DataFrame,
    law: str,
    options: list[str],
    out: Path,
    capsys: pytest.CaptureFixture[str],
) -> bool:
    """Fit in the real command, and check what it prints; False where it refused in one line."""
    path = out / "table.csv"
    table.to_csv(path, index=False)
    cheap = ["bootstrap=4", "starts=4", "evidence=false"]
    typed = [f"results={path}", f"law={law}", f"out={out}", *cheap, *options]
    refused = ""
    try:
        main._fit(typed)
    except Refusal as refusal:
        refused = str(refusal)
    if refused:
        assert len(refused.splitlines()) == 1
        assert REFUSED.search(refused), refused
        return False
    check(capsys.readouterr().out, "terminal")
    fit = json.loads((out / "fit.json").read_text())
    free = [name for name in fit["parameters"] if name not in fit["frozen"]]
    if free and not any(fit["derived"]["identified"][name] for name in free):
        assert set(fit["derived"]) == {"identified"}
    return True


QUICK = ("noise", "losses that grow", "huge counts", "huge losses", "two rows", "no losses")
EVERY = (*TABLES, *OPTIONS)


@pytest.mark.parametrize(
    ("law", "name"),
    [(law, name) for i, law in enumerate(LAWS) for name in QUICK[i % 3 :: 3]],
)
def test_no_table_makes_a_fit_say_what_is_no_number(
    law: str, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fitted(TABLES[name](runs(law)), law, [], tmp_path, capsys)


@pytest.mark.long
@pytest.mark.parametrize(
    ("law", "name"),
    # Each law with a third of the tables, each table with two laws or three.
    [(law, name) for i, law in enumerate(LAWS) for name in EVERY[i % 3 :: 3]],
)
def test_nor_a_page(
    law: str, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = TABLES.get(name, TABLES["as it should be"])(runs(law))
    if not fitted(table, law, OPTIONS.get(name, []), tmp_path, capsys):
        return
    main._report([f"fit={tmp_path}", "figures=svg"])
    for path in (tmp_path / "index.html", *(tmp_path / "tables").iterdir()):
        if path.name not in ("runs.csv", "runs.tex"):  # losses as they came
            check(path.read_text(encoding="utf-8"), path.name)


def test_a_difference_without_repeats_has_no_standard_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = runs("floating_point")
    assert fitted(table, "floating_point", [], tmp_path, capsys)
    main._report([f"fit={tmp_path}", "figures=svg"])
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "cannot tell apart" in page
    check(page, "page")
