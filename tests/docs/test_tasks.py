"""docs/tasks.md: its task of one's own runs by the command beside it; its commands are right."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest

from experiments.command import main as commands
from experiments.configure import configure
from fitting.results.table import load
from tests.support.places import ROOT

PAGE = (ROOT / "docs" / "tasks.md").read_text(encoding="utf-8")
[PROGRAM] = re.findall(r"^```python\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)
IMAGES, OWN = re.findall(r"^```sh\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)


def test_the_task_of_the_page_is_trained(
    tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.py").write_text(PROGRAM)
    (tmp_path / "book.txt").write_text("".join(p.read_text() for p in sorted(text.iterdir())))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    [command] = OWN.replace("\\\n", " ").splitlines()
    words = shlex.split(command)
    monkeypatch.setattr(sys, "argv", [*words, "tracking=none"])
    commands.train()
    sys.modules.pop("mine")
    [row] = load(tmp_path / "runs" / "scratch").to_dict("records")
    assert row["status"] == "finished"
    assert row["corpus"].startswith("masked-")
    assert row["validation_found"] > 0.15, "the commonest byte alone is right in one of ten"
    assert f"found {row['validation_found']:.4g}, 6,400 examples" in capfd.readouterr().out


def test_the_commands_on_images_compose(tmp_path: Path) -> None:
    first, *_ = (c for c in IMAGES.replace("\\\n", " ").splitlines() if c.startswith("lowbit"))
    config = configure(*shlex.split(first)[1:], f"runs={tmp_path}")
    assert (config.task.name, config.steps) == ("classification", 192)
