"""`lowbit-export`: folders that appear whole, cards that say what was trained, refusals."""

from __future__ import annotations

import os
import re
import resource
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from experiments.config.schema import TrainConfig
from experiments.configure import configure
from experiments.export import command
from experiments.export.folder import export
from experiments.store.weights import WEIGHTS
from experiments.train import RunResult, train
from tests.support.small_runs import SMALL

Compose = Callable[..., TrainConfig]


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    place = tmp_path_factory.mktemp("kept")
    (place / "text.txt").write_text("the run of a model in few bits\n" * 3000)
    words = [*SMALL, f"data.path={place / 'text.txt'}", f"runs={place / 'runs'}", "recipe=sun"]
    return train(configure(*words, "model.name='a|b <i>'"))


def call(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["lowbit-export", *words])
    try:
        command.main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_the_command_writes_the_folder_and_prints_its_name(
    kept: RunResult,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    for to in command.FORMS:
        words = [f"run={kept.folder}", f"to={to}", f"out=new/{to}"]
        assert call(monkeypatch, *words) == 0
        assert capsys.readouterr().out == f"new/{to}\n"
    bare = {path.name for path in Path("new/safetensors").iterdir()}
    assert bare == {WEIGHTS, "README.md"}
    kept_bytes = (kept.folder / WEIGHTS).read_bytes()
    assert Path("new/safetensors", WEIGHTS).read_bytes() == kept_bytes
    assert sorted(os.listdir("new")) == ["hf", "safetensors"]


@pytest.mark.parametrize("to", command.FORMS)
def test_the_card_says_what_was_trained_and_how(kept: RunResult, tmp_path: Path, to: str) -> None:
    export(kept.folder, to, tmp_path / "out")
    text, record = (tmp_path / "out" / "README.md").read_text(), kept.record
    rows = dict(re.findall(r"^\| ([^|]+) \| (.*) \|$", text, re.MULTILINE))
    assert rows["run"] == record.run_id
    assert rows["recipe and precision"] == "sun E2M1-block32-fp32"
    assert rows["quantized operands"] == "P2 P4 P6"
    assert rows["validation loss"] == f"{record.loss} nats per token"
    assert rows["training tokens"].startswith("6,144 (")
    assert rows["data"] == record.corpus
    assert rows["model"].startswith(r"a\|b &lt;i>: blocks 2, hidden 32, ffn 96, ")
    assert rows["SHA-256 of the weights"] == record.weights_sha256
    assert str(record.provenance["host"] or "?") not in text, "it may be published"
    assert ("AutoModelForCausalLM" in text) == (to == "hf")
    assert ("Nothing is quantized in this" in text) == (to == "hf")
    export(kept.folder, to, tmp_path / "again")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    for name in names:
        once, twice = ((tmp_path / f / name).read_bytes() for f in ("out", "again"))
        assert once == twice, name


def test_a_folder_with_something_in_it_is_refused_and_left_alone(
    kept: RunResult,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "mine").write_text("x")
    words = [f"run={kept.folder}", "to=hf", f"out={tmp_path}"]
    assert call(monkeypatch, *words) == 2
    assert capsys.readouterr().err == (
        f"lowbit-export: out={tmp_path}: is there already; name a new folder, or an empty one\n"
    )
    assert os.listdir(tmp_path) == ["mine"]


def test_a_run_without_weights_is_refused_in_one_line(
    kept: RunResult,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = Path(shutil.copytree(kept.folder, tmp_path / kept.folder.name))
    (folder / WEIGHTS).unlink()
    assert call(monkeypatch, f"run={folder}", "to=hf", f"out={tmp_path / 'new'}") == 2
    said = capsys.readouterr().err
    assert said.startswith(f"lowbit-export: run={folder}: its weights were not kept; train it")
    assert said.count("\n") == 1
    assert os.listdir(tmp_path) == [folder.name]


def test_a_folder_that_cannot_be_written_leaves_nothing_behind(
    kept: RunResult, tmp_path: Path
) -> None:
    """No file may grow beyond 50 kB: the card can be written, the weights cannot."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            export(kept.folder, "hf", tmp_path / "deep" / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert os.listdir(tmp_path / "deep") == []


@pytest.mark.parametrize("to", command.RECIPES)
def test_the_recipe_of_a_run_without_weights_is_judged_as_its_card_says(
    kept: RunResult,
    tmp_path: Path,
    to: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    export(kept.folder, "hf", tmp_path / "out")
    bare = tmp_path / "bare" / kept.folder.name
    shutil.copytree(kept.folder, bare, ignore=shutil.ignore_patterns(WEIGHTS))
    assert call(monkeypatch, f"run={bare}", f"to={to}", f"out={tmp_path / 'recipe.py'}") == 2
    said = capsys.readouterr().err
    verdict = said.split("recipe=sun: ")[1].split("; nothing written")[0]
    assert ": not expressible. " in verdict
    assert f"- {verdict}\n" in (tmp_path / "out" / "README.md").read_text()
    assert not (tmp_path / "recipe.py").exists()
