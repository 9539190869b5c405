"""docs/training.md: its callback is trained with, its commands are right."""

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

PAGE = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
[PROGRAM] = re.findall(r"^```python\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)
PARTS, AGAIN, OWN = re.findall(r"^```sh\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)


def test_the_callback_of_the_page_is_trained_with(
    tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text(PROGRAM)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    here = ["tracking=none", "data=tokens", f"data.path={text}", "data.max_epochs=200"]
    found = []
    for more in ([], ["trainer.callbacks=[]", "study.name=without"]):
        monkeypatch.setattr(sys, "argv", [*shlex.split(OWN), *here, *more])
        commands.train()
        study = "without" if more else "scratch"
        [row] = load(tmp_path / "runs" / study).to_dict("records")
        assert row["status"] == "finished"
        found.append(row["run_id"])
    sys.modules.pop("mine")
    assert found[0] != found[1]


def test_the_other_commands_compose(tmp_path: Path) -> None:
    parts, again = (
        configure(*shlex.split(command)[1:], f"runs={tmp_path}") for command in (PARTS, AGAIN)
    )
    assert (parts.batch_size, parts.accumulate) == (32, 4)
    assert parts.rows == 8 * parts.data.seq_len
    assert again.trainer.checkpointing
