"""docs/reproduction.md: its blocks are run, and its tables are what they print."""

import re
import shlex
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

import pytest

from experiments.errors.command import error
from experiments.paths import conf_dir
from fitting.command.main import fit
from tests.support.places import QUARTET, ROOT

PAGE = (ROOT / "docs" / "reproduction.md").read_text()
ELSEWHERE = "# needs: "
BEYOND = 0.1
"""Relative difference from which a number does not agree."""


@dataclass
class Row:
    """A published number and ours."""

    name: str
    published: str
    ours: str
    agrees: str


@dataclass
class Block:
    """Code, and the table below it."""

    language: str
    code: str
    rows: list[Row]


def blocks() -> list[Block]:
    found = []
    parts = re.split(r"^```(sh|python)\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)[1:]
    for language, code, below in zip(*[iter(parts)] * 3, strict=True):
        lines = below.partition("\n## Not reproduced")[0].splitlines()
        rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
        found.append(Block(language, code, [Row(r[0], *r[2:]) for r in rows if len(r) == 5][2:]))
    return found


BLOCKS = blocks()
HERE = [block for block in BLOCKS if not block.code.startswith(ELSEWHERE)]
COMMANDS: dict[str, Callable[[], None]] = {"lowbit-error": error, "lowbit-fit": fit}


def run(block: Block, monkeypatch: pytest.MonkeyPatch) -> None:
    if block.language == "python":
        exec(compile(block.code, "docs/reproduction.md", "exec"), {})
        return
    for line in block.code.splitlines():
        words = shlex.split(line, comments=True)
        if words:
            monkeypatch.setattr(sys, "argv", words)
            COMMANDS[words[0]]()


def unit(number: str) -> float:
    """One in its last digit: 0.01 for 1.37, 1e-4 for 1.37e-2."""
    exponent = Decimal(number).as_tuple().exponent
    return float(Decimal((0, (1,), int(exponent))))


def check(rows: list[Row], printed: str) -> None:
    """The column `ours` was printed in its order, each number up to one in its last digit."""
    words = iter(re.findall(r"(?<![\w.])-?\d[\d.]*(?:e[-+]\d+)?(?!\w)", printed))
    for row in rows:
        if row.ours[0].isdigit():
            close = 1.01 * unit(row.ours)
            assert any(abs(float(word) - float(row.ours)) <= close for word in words), row
        else:
            assert row.ours in printed.splitlines(), row


@pytest.mark.parametrize("block", HERE, ids=lambda b: b.rows[0].name)
def test_what_the_page_calls_ours_is_what_its_code_prints(
    block: Block, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(block, monkeypatch)
    check(block.rows, capsys.readouterr().out)


@pytest.mark.skipif(not QUARTET.exists(), reason="published losses that the project does not carry")
def test_the_constants_of_quartet_come_from_its_losses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    [block] = [block for block in BLOCKS if block not in HERE]
    shutil.copy(QUARTET, tmp_path)
    monkeypatch.chdir(tmp_path)
    run(block, monkeypatch)
    printed = capsys.readouterr().out
    assert "64 of 64 agree" in printed
    lines = {words[0]: words for line in printed.splitlines() if (words := line.split())}
    for row in block.rows:
        check([row], " ".join(lines[row.name][:2]))
        low, high = re.findall(r"[\d.,]+", " ".join(lines[row.name][3:6]))
        assert float(low.replace(",", "")) < float(row.published) < float(high.replace(",", ""))


@pytest.mark.parametrize(
    "row", [row for block in BLOCKS for row in block.rows], ids=lambda r: r.name
)
def test_the_verdict_on_a_number_is_the_difference(row: Row) -> None:
    if not row.ours[0].isdigit():
        assert (row.agrees, row.published) == ("to the digit", row.ours)
        return
    published, ours = float(row.published), float(row.ours)
    rounds = abs(ours - published) <= 0.501 * unit(row.published)
    differs = abs(ours / published - 1)
    if row.agrees == "to the digit":
        assert rounds
    elif row.agrees == "no":
        assert differs > BEYOND
    else:
        percent = int(re.fullmatch(r"to (\d+) %", row.agrees)[1])  # type: ignore[index]
        assert percent - 1 < 100 * differs <= percent <= 100 * BEYOND


def test_the_page_names_things_that_exist() -> None:
    """Links, recipes, models and studies."""
    for link in re.findall(r"\]\(([^)#]+)\)", PAGE):
        assert (ROOT / "docs" / link).is_file() or link == "errors.md", link
    for group, name in re.findall(r"`(?:lowbit-train -m )?(model|study|recipe)=([\w./]+)`", PAGE):
        assert (conf_dir() / group / f"{name}.yaml").is_file(), name
    for name in re.findall(r"`(quartet_v\d)`", PAGE):
        assert (conf_dir() / "recipe" / f"{name}.yaml").is_file(), name
