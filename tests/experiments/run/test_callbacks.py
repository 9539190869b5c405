"""Callbacks of the user's: in training, in the checkpoint, in what a run is known by."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
import safetensors.torch

from experiments.config.precision import ConfigError
from experiments.config.read import from_dict
from experiments.config.schema import TrainConfig
from experiments.run.identity import run_folder, run_id
from experiments.store.weights import WEIGHTS
from experiments.train import train
from fitting.entry.errors import Failure
from fitting.results.record import FAILURE, RESULT
from tests.support.places import ROOT
from tests.support.small_runs import Stop, rows, small

Compose = Callable[..., TrainConfig]
__all__ = ["small"]  # a fixture
OWN = "tests.support.own_callbacks"


def asked(*names: str) -> str:
    return f"trainer.callbacks=[{','.join(f'{OWN}:{name}' for name in names)}]"


@pytest.mark.parametrize("names", [["average"], ["clip"], ["average", "clip"]])
def test_a_stop_changes_no_bit(small: Compose, names: list[str]) -> None:
    words = ["recipe=stochastic", "precision=mxfp4", asked(*names)]
    whole = train(small(*words, "study.name=whole"))
    with pytest.raises(KeyboardInterrupt):
        train(small(*words, "study.name=stopped"), report=Stop(8))
    resumed = train(small(*words, "study.name=stopped"))
    assert resumed.record.attempts == 2
    assert resumed.record.weights_sha256 == whole.record.weights_sha256
    assert resumed.record.loss == whole.record.loss
    assert rows(resumed.folder) == rows(whole.folder)
    without = train(small(*words[:2], "study.name=without"))
    assert without.record.weights_sha256 != whole.record.weights_sha256


def test_what_is_scored_is_what_they_left(small: Compose) -> None:
    done = train(small("recipe=none", asked("clip")))
    weights = safetensors.torch.load_file(done.folder / WEIGHTS)
    assert all(float(weight.abs().max()) < 0.0501 for weight in weights.values())


def test_they_are_part_of_what_a_run_is_known_by(small: Compose) -> None:
    ids = {run_id(small(*more)) for more in ([], [asked("clip")], [asked("average")])}
    ids |= {run_id(small(asked("clip", "average"))), run_id(small(asked("average", "clip")))}
    assert len(ids) == 5
    assert run_id(small("trainer.callbacks=[]")) in ids


def test_a_changed_source_is_refused(
    small: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "planned_callback.py"
    file.write_text("import lightning\n\ndef make():\n    return lightning.Callback()\n")
    monkeypatch.syspath_prepend(tmp_path)
    config = small("trainer.callbacks=[planned_callback:make]")
    file.write_text(file.read_text() + "# changed\n")
    with pytest.raises(ConfigError, match="changed after the sweep was planned"):
        from_dict(asdict(config))


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("nowhere:make", "No module named 'nowhere'"),
        (f"{OWN}:missing", "has no attribute 'missing'"),
        ("made", "must be package.module:function"),
        (f"{OWN}:clip,{OWN}:clip", "is there twice"),
    ],
)
def test_what_cannot_be_imported_is_refused_in_a_line(
    small: Compose, path: str, reason: str
) -> None:
    with pytest.raises(ConfigError, match=reason) as caught:
        small(f"trainer.callbacks=[{path}]")
    [line] = str(caught.value).splitlines()
    assert line.startswith("trainer.callbacks=")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("raises", "raises RuntimeError: no such thing"),
        ("nothing", "returned NoneType; must be a lightning.Callback"),
        ("checkpoint", "returned ModelCheckpoint; a run writes its checkpoints itself"),
        ("holds", "state_dict cannot be part of a checkpoint"),
    ],
)
def test_what_cannot_take_part_is_refused_before_any_work(
    small: Compose, name: str, reason: str
) -> None:
    config = small(asked(name))
    with pytest.raises(ConfigError, match=reason) as caught:
        train(config)
    assert len(str(caught.value).splitlines()) == 1
    assert not run_folder(config).exists()


def test_one_that_ends_training_early_makes_no_result(small: Compose) -> None:
    config = small(asked("stops"))
    with pytest.raises(Failure, match="ended training after step 5 of 24"):
        train(config)
    assert not (run_folder(config) / RESULT).exists()
    assert "ended training" in (run_folder(config) / FAILURE).read_text()


MODEL = "from tests.support.tiny_models import one\n"
CALLBACK = "from tests.support.own_callbacks import clip\n"
ASKED = {
    "model": (MODEL, ["model=module", "model.factory=only_here:one", "model.vocab_size=256"]),
    "callback": (CALLBACK, ["trainer.callbacks=[only_here:clip]"]),
}


@pytest.mark.parametrize("what", ASKED)
def test_a_worker_that_cannot_import_it_says_so(
    small: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """As where PYTHONPATH is set for the driver alone."""
    source, words = ASKED[what]
    (tmp_path / "only_here.py").write_text(source)
    monkeypatch.delitem(sys.modules, "only_here", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    config = json.dumps(asdict(small(*words)))
    code = "import json, sys; from experiments.sweep.work import {0}; print({0}(*sys.argv[1:]))"
    for how in ("execute", "execute_together"):
        call = code.format(how).replace("*sys.argv[1:]", "json.loads(sys.argv[1]), 'token'")
        done = subprocess.run(
            [sys.executable, "-c", call, config],
            capture_output=True,
            text=True,
            check=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        [line] = done.stdout.splitlines()
        assert "failed" in line
        assert "on the worker" in line
        assert "No module named 'only_here'" in line
