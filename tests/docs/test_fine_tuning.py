"""docs/fine-tuning.md: its commands run as they stand, and its table has every adapter."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from experiments.finetune.config import ADAPTERS
from experiments.paths import conf_dir
from tests.support.commands import in_a_shell
from tests.support.places import ROOT

PAGE = (ROOT / "docs" / "fine-tuning.md").read_text(encoding="utf-8")


@pytest.mark.ray
def test_the_page_runs_from_top_to_bottom(tmp_path: Path) -> None:
    pytest.importorskip("peft", reason="needs the extra hf")
    for kind in ("prose", "poems"):
        (tmp_path / "library" / kind).mkdir(parents=True)
        for number in range(60):
            lines = (f"{kind} {k} of {k * k % 89} in few {number}\n" for k in range(60))
            (tmp_path / "library" / kind / f"{number:02d}.txt").write_text("".join(lines))
    [commands] = re.findall(r"^```sh\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)
    words = in_a_shell(commands)
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    [lora, full] = sorted(
        (json.loads(path.read_text()) for path in tmp_path.glob("runs/tuned/*/result.json")),
        key=lambda record: record["config"]["adapter"]["name"],
    )
    assert lora["config"]["adapter"]["name"] == "lora"
    assert lora["merged_loss"] != lora["loss"]
    assert full["merged_loss"] is None
    assert full["loss"] < lora["loss"], "the whole model learns more of a text that it has not seen"
    card = (tmp_path / "exported" / "README.md").read_text()
    assert f"{lora['merged_loss']} nats" in card


def test_the_table_has_every_adapter() -> None:
    assert set(re.findall(r"^\| `(\w+)`", PAGE, re.MULTILINE)) == set(ADAPTERS)
    assert {path.stem for path in (conf_dir() / "adapter").glob("*.yaml")} == set(ADAPTERS)
