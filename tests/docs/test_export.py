"""docs/export.md: its commands and its program run as they stand, and say what the page says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.config.schema import KEEP
from tests.support.commands import in_a_shell
from tests.support.places import ROOT

PAGE = (ROOT / "docs" / "export.md").read_text(encoding="utf-8")


def block(kind: str) -> str:
    [found] = re.findall(rf"^```{kind}\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)
    return str(found)


def test_the_page_runs_from_top_to_bottom(tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="needs the extra hf")
    lines = (f"the run {number} of {number**2 % 89} in few bits\n" for number in range(9000))
    (tmp_path / "book.txt").write_text("".join(lines))
    program = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{block('python')}"
    for words in (
        in_a_shell(block("sh")),
        [sys.executable, "-c", program],
    ):
        done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr
    said = dict(line.split(": ") for line in done.stdout.splitlines())
    assert float(said["unquantized"]) < 1e-5 < 1e-2 < float(said["quantized as in training"])
    assert (tmp_path / "weights" / "README.md").is_file()


def test_the_table_has_every_way_to_keep() -> None:
    assert tuple(re.findall(r"^\| `(\w+)`", PAGE, re.MULTILINE)) == KEEP
