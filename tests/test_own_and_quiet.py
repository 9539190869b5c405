"""Through the command itself: the user's own files win, W&B's own switch is honoured."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.paths import conf_dir

GROUPS = sorted(path.name for path in conf_dir().iterdir() if path.is_dir())
BUILT_IN = {
    "data": ("tokens", "data:\n  path: text\n  max_epochs: 37\n", "max_epochs: 37"),
    "debug": ("tiny", "# @package _global_\nseed: 37\n", "seed: 37"),
    "hydra": ("", "", ""),
    "model": ("ladder/a", "layers: 37\n", "layers: 37"),
    "optim": ("adamw", "weight_decay: 0.37\n", "weight_decay: 0.37"),
    "precision": ("mxfp4", "mantissa: 6\n", "mantissa: 6"),
    "recipe": ("sun", "keep_first: 37\n", "keep_first: 37"),
    "study": ("demo", "# @package _global_\nseed: 37\n", "seed: 37"),
    "tracking": ("none", "log_every: 37\n", "log_every: 37"),
}
"""A choice of each group, a file of the user's in its place, and what shows that it was read."""


def lowbit_train(folder: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    root = str(Path(__file__).parents[1])
    program = f"import sys; sys.path.insert(0, {root!r}); from experiments.commands import train"
    return subprocess.run(
        [sys.executable, "-c", f"{program}; train()", *words],
        cwd=folder,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )


def test_every_group_is_tried() -> None:
    assert sorted(BUILT_IN) == GROUPS


@pytest.mark.parametrize("group", [group for group in GROUPS if group != "hydra"])
def test_an_own_file_wins_over_the_built_in_one_of_its_name(group: str, tmp_path: Path) -> None:
    choice, text, shown = BUILT_IN[group]
    own = tmp_path / "own" / group / f"{choice}.yaml"
    own.parent.mkdir(parents=True)
    own.write_text(text.replace("data:\n  ", "").replace("\n  ", "\n"))
    done = lowbit_train(tmp_path, "--config-dir=own", f"{group}={choice}", "--cfg=job")
    assert done.returncode == 0, done.stderr
    assert shown in done.stdout


@pytest.mark.parametrize("mode", ["offline", "online"])
@pytest.mark.parametrize("switch", ["disabled", "offline"])
def test_wandb_mode_is_not_overruled(mode: str, switch: str, tmp_path: Path, text: Path) -> None:
    """Disabled leaves nothing; offline lets nothing ask a server, whatever tracking.mode says."""
    words = ["debug=tiny", "data=tokens", f"data.path={text}", "tokens=1024", "recipe=none"]
    words += ["data.validation_windows=8"]
    server = {"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": "k" * 40}
    done = lowbit_train(tmp_path, *words, f"tracking.mode={mode}", WANDB_MODE=switch, **server)
    assert done.returncode == 0, done.stderr
    assert bool(list(tmp_path.rglob("*.wandb"))) == (switch == "offline")
    if switch == "offline":
        assert "goes on offline" not in done.stderr, "a server was asked"
