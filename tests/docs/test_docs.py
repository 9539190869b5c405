"""docs/recipes.md: its commands and files are run, its table and its messages are the program's."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from experiments.config.schema import TrainConfig
from experiments.paths import conf_dir
from experiments.quant.recipe import GemmConfig, OperandConfig, RecipeConfig
from tests.support.golden_recipes import RECIPES, configuration
from tests.support.places import ROOT

PAGE = (ROOT / "docs" / "recipes.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
SMALL = ("model=ladder/a", "data=tokens", "data.seq_len=64", "batch_size=4", "tokens=1024")
SMALLER = (*SMALL, "data.max_epochs=100", "tracking=none")
"""Words that make the page's commands small; a key that a command sets itself stays."""

ALL_COMMANDS = """
import json, sys
from experiments.command.main import train
for words in json.loads(sys.argv[1]):
    sys.argv[1:] = words
    code = 0
    try:
        train()
    except SystemExit as end:
        code = end.code
    print("\\x00", code, flush=True)
    print("\\x00", file=sys.stderr, flush=True)
"""


def commands() -> list[tuple[list[str], str]]:
    """Each command with the text that the page shows below it, if any."""
    found: list[tuple[list[str], str]] = []
    for kind, block in BLOCKS:
        if kind == "sh":
            found += [(shlex.split(line, comments=True), "") for line in block.splitlines()]
        elif kind == "text":
            found[-1] = (found[-1][0], block)
    return found


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[list[str], str, int, str]]:
    """Command, promised text, exit code and errors; one process runs all, as imports take longer
    than these runs.
    """
    folder = tmp_path_factory.mktemp("page")
    (folder / "text.txt").write_text("the run of a model in few bits costs some loss\n" * 400)
    for kind, block in BLOCKS:
        if kind == "yaml":
            path = folder / block.splitlines()[0].removeprefix("# ")
            path.parent.mkdir(exist_ok=True)
            path.write_text(block)
    asked = commands()
    words = []
    for command, _ in asked:
        assert command[0] == "lowbit-train"
        given = {word.split("=")[0] for word in command}
        small = [word for word in SMALLER if word.split("=")[0] not in given]
        words.append([*command[1:], *small, f"data.path={folder / 'text.txt'}"])
    # The first run of a text says that it is read, which the page does not show: one goes before.
    done = subprocess.run(
        [sys.executable, "-c", ALL_COMMANDS, json.dumps([words[0], *words])],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert done.returncode == 0, done.stderr
    codes = [int(code) for code in re.findall(r"\x00 (\d+)", done.stdout)][1:]
    errors = done.stderr.split("\x00\n")[1:-1]
    return [
        (command, promised, code, error)
        for (command, promised), code, error in zip(asked, codes, errors, strict=True)
    ]


def test_every_command_does_what_the_page_says(
    ran: list[tuple[list[str], str, int, str]],
) -> None:
    """It trains, or is refused with the text below it."""
    refused = 0
    for command, promised, code, error in ran:
        assert error == promised, command
        assert code == (2 if promised else 0), command
        refused += bool(promised)
    assert refused >= 5
    assert len(ran) - refused >= 4


def operand(config: OperandConfig | None, forward_of: str) -> str:
    """As the page's table names it."""
    if config is None:
        return "hp"
    if config.rounding == "none":
        return f"as {forward_of}"
    how = {"nearest_even": "", "stochastic": " SR", "stochastic_8": " SR8", "ms_eden": " MS-EDEN"}
    of = f" of {forward_of}" if config.forward else ""
    return (config.precision or "run") + how[config.rounding] + of


def cells(recipe: RecipeConfig) -> list[str]:
    """The last three columns of the page's table."""

    def cell(gemm: GemmConfig, left: Any, right: Any, forward_of: str = "") -> str:
        left, right = operand(left, forward_of), operand(right, forward_of)
        parts = [left if left == right else f"{left}, {right}"]
        if gemm.hadamard:
            parts.append(f"H{gemm.hadamard}{'' if gemm.signs == 'fixed' else f' {gemm.signs}'}")
        if getattr(gemm, "row_hadamard", 0):
            parts.append(f"rows H{gemm.row_hadamard}")  # type: ignore[union-attr]
        if gemm.product != "exact":
            parts.append(gemm.product)
        return "; ".join(parts)

    forward, into_input, into_weight = recipe.output, recipe.grad_input, recipe.grad_weight
    return [
        cell(forward, forward.input, forward.weight),
        cell(into_input, into_input.grad_output, into_input.weight, "P2"),
        cell(into_weight, into_weight.grad_output, into_weight.input, "P1"),
    ]


def test_the_table_has_every_recipe_as_its_file_has_it() -> None:
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in PAGE.splitlines()
        if re.match(r"\| `\w+` \|", line) and line.count("|") == 6
    ]
    assert sorted(row[0].strip("`") for row in rows) == RECIPES
    for name, source, *operands in rows:
        recipe = name.strip("`")
        assert operands == cells(configuration(recipe).recipe), recipe
        comment = (conf_dir() / "recipe" / f"{recipe}.yaml").read_text()
        for paper in re.findall(r"\d{4}\.\d{5}", source):
            assert paper in comment, f"{recipe} does not cite {paper}"


def test_options_in_the_text_exist(composed: Callable[..., TrainConfig]) -> None:
    named = [word for code in re.findall(r"`([^`\n]+)`", PAGE) for word in code.split()]
    options = [w for w in named if re.fullmatch(r"(recipe|optim)\.[a-z_.]+=[\w.,+\[\]-]+", w)]
    assert len(set(options)) >= 10
    for option in options:
        recipe = "lmul" if option.endswith("=lmul") else "quest"
        recipe = "fixed_adaptive" if "word_length" in option else recipe
        composed(f"recipe={recipe}", option)


def test_a_new_recipe_takes_about_ten_lines() -> None:
    [mine] = [block for kind, block in BLOCKS if kind == "yaml"]
    assert len(mine.splitlines()) <= 13
    assert len([line for line in mine.splitlines() if not line.startswith("#")]) <= 12
