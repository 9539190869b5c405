"""`--help` of every command: what it is for, options, and examples that can be meant as typed."""

import contextlib
import importlib
import itertools
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from experiments.config.schema import SWEEP_KEYS, TrainConfig
from experiments.export import command as export
from experiments.mirror import dashboard
from experiments.mirror.sync import parse
from experiments.store import status
from fitting.command.options import fit_options, report_options
from tests.support.places import ROOT

SCRIPTS: dict[str, str] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
READERS: dict[str, Callable[[list[str]], object]] = {
    "lowbit-fit": fit_options,
    "lowbit-report": report_options,
    "lowbit-status": status.parse,
    "lowbit-export": export.parse,
    "lowbit-sync": parse,
    "lowbit-dashboard": dashboard.parse,
}


def help_of(name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """What `name --help` prints."""
    module, _, function = SCRIPTS[name].partition(":")
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with contextlib.suppress(SystemExit):
        getattr(importlib.import_module(module), function)()
    return capsys.readouterr().out


@pytest.mark.parametrize("name", sorted(set(SCRIPTS) - {"lowbit-train"}))  # Hydra composes its help
def test_help_waits_for_no_large_library(name: str) -> None:
    module, _, function = SCRIPTS[name].partition(":")
    program = (
        f"import sys; sys.argv = [{name!r}, '--help']\n"
        f"from {module} import {function}\n{function}()\n"
        "print(*{'pandas', 'matplotlib', 'torch', 'wandb', 'hydra', 'pydantic'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.startswith(f"{name}: "), done.stderr
    assert done.stdout.endswith("\n\n"), done.stdout.splitlines()[-1]


def examples(name: str, text: str) -> list[list[str]]:
    """The words after the command in every example; remarks stand behind three blanks."""
    joined = re.sub(r"\\\n *", "", text)
    lines = re.findall(rf"^ +(?:[A-Z_]+=\S+ )*{name}\b(.*)", joined, re.MULTILINE)
    return [shlex.split(re.split(r"(?<=\S) {3,}(?=\S)", line)[0]) for line in lines]


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_says_what_for_and_shows_how(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = help_of(name, monkeypatch, capsys)
    assert re.match(rf"{name}: [a-z].{{20,}}", text), "the first line says what it is for"
    shown = examples(name, text)
    assert len(shown) >= 3
    assert all(shown), "an example has arguments"
    told = "\n".join(line for line in text.splitlines() if name not in line)
    typed = {word.split("=")[0].split(".")[0] for words in shown for word in words if "=" in word}
    for key in typed:
        assert key.startswith("-") or key[0].isupper() or "/" in key or key in told, key


@pytest.mark.parametrize("name", READERS)
def test_examples_can_be_meant_as_typed(
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = help_of(name, monkeypatch, capsys)
    monkeypatch.chdir(tmp_path)
    for folder in ("runs/demo/nearest-E2M1-...", "runs/precision_grid"):
        (tmp_path / folder).mkdir(parents=True)
    for words in examples(name, text):
        READERS[name](words)


def test_examples_of_training_compose(
    composed: Callable[..., TrainConfig],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With -m every combination of what commas separate."""
    for words in examples("lowbit-train", help_of("lowbit-train", monkeypatch, capsys)):
        choices = [w for w in words if w != "-m" and w.partition("=")[0] not in SWEEP_KEYS]
        lists = [
            [f"{key}={value}" for value in values.split(",")]
            for key, _, values in (word.partition("=") for word in choices)
        ]
        assert "-m" in words or all(len(values) == 1 for values in lists)
        for chosen in itertools.product(*lists):
            composed(*chosen)
