"""Through the command itself: the user's own files win, W&B's own switch is honoured."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from experiments.config.own_files import groups
from experiments.configure import configure
from tests.support.command_shell import Shell

BUILT_IN = {
    "adapter": ("none", "r: 37\n", "r: 37"),
    "data": ("tokens", "data:\n  path: text\n  max_epochs: 37\n", "max_epochs: 37"),
    "debug": ("tiny", "# @package _global_\nseed: 37\n", "seed: 37"),
    "hydra": ("", "", ""),
    "model": ("ladder/a", "layers: 37\n", "layers: 37"),
    "optim": ("adamw", "weight_decay: 0.37\n", "weight_decay: 0.37"),
    "precision": ("mxfp4", "mantissa: 6\n", "mantissa: 6"),
    "recipe": ("sun", "keep_first: 37\n", "keep_first: 37"),
    "study": ("demo", "# @package _global_\nseed: 37\n", "seed: 37"),
    "task": ("language_model", "factory: thirty:seven\n", "thirty:seven"),
    "tracking": ("none", "log_every: 37\n", "log_every: 37"),
}
"""A choice of each group, a file of the user's in its place, and what shows that it was read."""


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    with Shell(tmp_path_factory.mktemp("here"), {}) as ready:
        yield ready


def test_every_group_is_tried() -> None:
    assert sorted(BUILT_IN) == list(groups())


@pytest.mark.parametrize("group", [group for group in groups() if group != "hydra"])
def test_an_own_file_wins_over_the_built_in_one_of_its_name(
    group: str, tmp_path: Path, shell: Shell
) -> None:
    choice, text, shown = BUILT_IN[group]
    own = tmp_path / "own" / group / f"{choice}.yaml"
    own.parent.mkdir(parents=True)
    own.write_text(text.replace("data:\n  ", "").replace("\n  ", "\n"))
    words = [f"--config-dir={tmp_path / 'own'}", f"{group}={choice}", "--cfg=job"]
    done = shell("lowbit-train", words)
    assert done.code == 0, done.err
    assert shown in done.out


BUILT_ON = {"recipe": "sun", "model": "ladder/a", "study": "smoke"}


@pytest.mark.parametrize("group", BUILT_ON)
def test_an_own_file_that_builds_on_another_is_called_by_its_own_name(
    group: str, tmp_path: Path, shell: Shell, text: Path
) -> None:
    own = tmp_path / "own" / group / "mine.yaml"
    own.parent.mkdir(parents=True)
    own.write_text(f"defaults: [/{group}/{BUILT_ON[group]}, _self_]\n")
    if group == "recipe":
        own.write_text(f"defaults: [{BUILT_ON[group]}, _self_]\n")
    words = [f"--config-dir={tmp_path / 'own'}", f"{group}=mine"]

    def name(*more: str) -> str:
        config = configure(f"{group}=mine", *more, folder=own.parents[1])
        return str(getattr(config, group).name)

    assert name() == "mine"
    assert name(f"{group}.name=typed") == "typed"
    if group == "recipe":
        own.write_text(own.read_text() + "name: said\n")
        assert name() == "said"
        own.write_text(f"defaults: [{BUILT_ON[group]}, _self_]\n")
        small = ["data=tokens", f"data.path={text}", "tokens=1024", "debug=tiny", "tracking=none"]
        small.append("data.validation_windows=8")
        done = shell("lowbit-train", [*words, *small, f"runs={tmp_path / 'runs'}"], seconds=300)
        assert done.code == 0, done.err
        assert list((tmp_path / "runs").glob("*/mine-*"))


@pytest.mark.parametrize(
    ("mode", "switch"), [("offline", "disabled"), ("online", "disabled"), ("online", "offline")]
)
def test_wandb_mode_is_not_overruled(mode: str, switch: str, tmp_path: Path, text: Path) -> None:
    """Disabled leaves nothing; offline lets nothing ask a server, whatever tracking.mode says."""
    words = ["debug=tiny", "data=tokens", f"data.path={text}", "tokens=1024", "recipe=none"]
    words += ["data.validation_windows=8"]
    server = {"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": "k" * 40}
    with Shell(tmp_path, {"WANDB_MODE": switch, **server}) as shell:
        done = shell("lowbit-train", [*words, f"tracking.mode={mode}"], seconds=300)
    assert done.code == 0, done.err
    assert bool(list(tmp_path.rglob("*.wandb"))) == (switch == "offline")
    if switch == "offline":
        assert "goes on offline" not in done.err, "a server was asked"
