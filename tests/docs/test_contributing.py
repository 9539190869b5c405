"""CONTRIBUTING.md: every path is there, every command is one, every room has its place."""

from __future__ import annotations

import re
import tomllib

import pytest

from tests.support.house import COLUMNS, modules, room
from tests.support.places import ROOT

PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```sh\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
SPOKEN = re.findall(
    r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", PAGE, flags=re.MULTILINE | re.DOTALL)
)
PATHS = sorted(
    {word for word in SPOKEN if re.fullmatch(r"[\w./-]*(/[\w.-]*|\.(md|toml|txt))", word)}
)
LINES = [line.split("#")[0].split() for block in BLOCKS for line in block.splitlines()]
COMMANDS = [line for line in (*LINES, *map(str.split, SPOKEN)) if line and line[0] not in PATHS]


@pytest.mark.parametrize("path", PATHS)
def test_a_path_is_there(path: str) -> None:
    assert (ROOT / path).exists()


def test_commands_are_targets_scripts_or_modules() -> None:
    targets = set(re.findall(r"^([\w-]+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE))
    with (ROOT / "pyproject.toml").open("rb") as file:
        scripts = set(tomllib.load(file)["project"]["scripts"])
    seen = set()
    for program, *rest in COMMANDS:
        if program == "make" and rest:
            assert rest[0] in targets, rest
        elif program == "python":
            assert rest[0] == "-m"
            assert (ROOT / rest[1].replace(".", "/")).with_suffix(".py").exists(), rest
        elif program.startswith("lowbit-"):
            assert program in scripts
        else:
            continue
        seen.add(program)
    assert {"make", "python", "lowbit-train"} <= seen


def test_every_room_has_its_floor() -> None:
    _, table = PAGE.split(", from the top |\n", 1)
    floors = [line.split("|")[1:3] for line in table.partition("\n\n")[0].splitlines()]
    for column, cells in zip(COLUMNS, zip(*floors, strict=True), strict=True):
        named = re.findall(r"`(\w+)`", " ".join(cells))
        assert len(named) == len(set(named))
        rooms = {room(name) for name in modules(ROOT) if name.startswith(f"{column}.")}
        assert set(named) == {name.partition(".")[2] for name in rooms}
