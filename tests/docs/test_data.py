"""docs/data.md: its programs and commands run in order, and say what the page says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.data.batches import DataConfig
from experiments.data.readers.documents import PIECE
from tests.support.commands import in_a_shell
from tests.support.places import ROOT

PAGE = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)


def test_the_page_runs_from_top_to_bottom(tmp_path: Path) -> None:
    for library in ("datasets", "pyarrow", "tokenizers"):
        pytest.importorskip(library, reason="needs the extra dev")
    environment = os.environ | {
        "HF_HOME": str(tmp_path / "home"),
        "LOWBIT_CACHE": str(tmp_path / "cache"),
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }
    said, refused = "", 0
    for kind, block in BLOCKS:
        if kind == "text":
            for line in block.splitlines():
                assert line in said
            continue
        words = in_a_shell(block) if kind == "sh" else [sys.executable, "-c", block]
        done = subprocess.run(
            words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600
        )
        said = done.stdout + done.stderr
        if "data.text_column=body" in block:
            refused += 1
            assert done.returncode == 2
            assert done.stderr.count("\n") == 1
        else:
            assert done.returncode == 0, said
    assert refused == 1


def test_numbers_and_keys_of_the_page_are_the_programs() -> None:
    assert f"{PIECE / 1e6:.0f} million characters" in PAGE
    for key in set(re.findall(r"\bdata\.(\w+)", PAGE)):
        assert hasattr(DataConfig(), key), key
    for path in re.findall(r"\b(?:benchmarks|docs)/[\w/]+\.\w+", PAGE):
        assert (ROOT / path).is_file(), path
