"""The weights that a run keeps: which, whose, and that half of them are never believed."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path

import pytest
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from experiments.config.precision import ConfigError
from experiments.config.schema import TrainConfig
from experiments.run.identity import run_folder, run_id
from experiments.store.weights import WEIGHTS, read_weights, write_weights
from experiments.train import RunResult, train
from fitting.files.own_json import DamagedError
from fitting.results.record import RESULT
from tests.support.damage import DAMAGE
from tests.support.small_runs import Stop, small

Compose = Callable[..., TrainConfig]
__all__ = ["small"]  # a fixture


def digest(state: Mapping[str, Tensor]) -> str:
    """SHA-256 over names in order and bytes, as the record's key says it."""
    found = hashlib.sha256()
    for name in sorted(state):
        found.update(name.encode() + state[name].numpy().tobytes())
    return found.hexdigest()


def stored(folder: Path) -> dict[str, Tensor]:
    """What the file holds, by the library alone: tensors, and other names for them."""
    with safetensors.safe_open(folder / WEIGHTS, framework="pt") as file:
        others = {name: of for name, of in file.metadata().items() if name != "format"}
    tensors = safetensors.torch.load_file(folder / WEIGHTS)
    return tensors | {name: tensors[of] for name, of in others.items()}


@pytest.mark.parametrize("tied", ["true", "false"])
def test_a_run_keeps_the_weights_of_its_record(small: Compose, tied: str) -> None:
    result = train(small(f"model.tied={tied}"))
    assert result.module is not None
    state = stored(result.folder)
    assert state.keys() == result.module.state_dict().keys()
    assert all(torch.equal(state[name], x) for name, x in result.module.state_dict().items())
    assert digest(state) == result.record.weights_sha256
    tensors = safetensors.torch.load_file(result.folder / WEIGHTS)
    assert len(state) - len(tensors) == (tied == "true"), "a tied matrix is stored once"
    assert read_weights(result.folder, result.record.weights_sha256).keys() == state.keys()


def test_keep_says_what_stays_and_changes_no_address(small: Compose, tmp_path: Path) -> None:
    left = {}
    for keep in ("", "last", "none", "all"):
        config = small(f"keep={keep}", f"runs={tmp_path / (keep or 'unsaid')}")
        assert run_id(config) == run_id(small())
        config.checkpoint_seconds = 0
        folder = train(config).folder
        left[keep] = (folder / WEIGHTS).exists(), len(list(folder.glob("checkpoints/*.ckpt")))
    assert left == {"": (True, 0), "last": (True, 0), "none": (False, 0), "all": (True, 2)}


def test_another_value_is_refused_with_those_there_are(small: Compose) -> None:
    with pytest.raises(ConfigError, match="^keep=best: must be one of last, none, all$"):
        small("keep=best")


def test_a_run_that_diverged_keeps_them_too(small: Compose) -> None:
    result = train(small("optim.lr=1e20", "optim.clip_norm=1e30"))
    assert result.record.status == "diverged"
    assert digest(stored(result.folder)) == result.record.weights_sha256


def test_weights_that_were_not_kept_are_refused_where_they_are_asked_for(small: Compose) -> None:
    folder = train(small("keep=none")).folder
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    for keep in ("last", "all"):
        with pytest.raises(ConfigError, match=f"^keep={keep}: .* its weights were not kept; runs="):
            train(small(f"keep={keep}"))
    assert train(small()).already_done
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_weights_without_a_result_do_not_outlive_the_next_attempt(small: Compose) -> None:
    """As a run leaves them that is killed between the two."""
    config = small("keep=none")
    with pytest.raises(KeyboardInterrupt):
        train(config, Stop(8))
    (run_folder(config) / WEIGHTS).write_bytes(b"whatever")
    result = train(config)
    assert not (result.folder / WEIGHTS).exists()


IN_THE_MIDDLE = """
import json, resource, signal, sys
from experiments.command.main import train as _  # plugins
from experiments.config.read import from_dict
from experiments.train import train
config = from_dict(json.loads(sys.argv[1]))
# From here on the system kills this process within the write that would make a file longer.
signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
train(config)
"""


def test_a_process_killed_while_it_writes_leaves_nothing_that_is_believed(
    small: Compose, tmp_path: Path
) -> None:
    undisturbed = train(small(f"runs={tmp_path / 'undisturbed'}"))
    size = (undisturbed.folder / WEIGHTS).stat().st_size
    config = small()
    killed = subprocess.run([sys.executable, "-c", IN_THE_MIDDLE, json.dumps(asdict(config))])
    assert killed.returncode == -signal.SIGXFSZ
    folder = run_folder(config)
    [half] = folder.glob(f".{WEIGHTS}.*")
    assert 0 < half.stat().st_size == 50_000 < size
    assert not (folder / WEIGHTS).exists()
    assert not (folder / RESULT).exists()
    again = train(config)
    assert again.record.attempts == 2
    assert again.record.weights_sha256 == undisturbed.record.weights_sha256
    assert digest(stored(folder)) == again.record.weights_sha256
    assert not list(folder.glob(".*"))


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    from experiments.configure import configure
    from tests.support.small_runs import SMALL

    place = tmp_path_factory.mktemp("kept")
    (place / "text.txt").write_text("the run of a model in few bits\n" * 3000)
    return train(configure(*SMALL, f"data.path={place / 'text.txt'}", f"runs={place}"))


@pytest.mark.parametrize("kind", sorted(set(DAMAGE) - {"twice"}))
def test_damaged_weights_are_named_with_the_remedy(
    kept: RunResult, tmp_path: Path, kind: str
) -> None:
    write_weights(stored(kept.folder), tmp_path)
    DAMAGE[kind](tmp_path / WEIGHTS)
    with pytest.raises(DamagedError, match=f"{WEIGHTS}: damaged .*; restore it") as error:
        read_weights(tmp_path, kept.record.weights_sha256)
    assert "\n" not in str(error.value)


def test_one_bit_one_name_or_another_runs_weights_are_damage(
    kept: RunResult, tmp_path: Path
) -> None:
    state, sha256 = stored(kept.folder), kept.record.weights_sha256
    one_bit = {name: value.clone() for name, value in state.items()}
    next(iter(one_bit.values())).view(torch.uint8)[0, 0] ^= 1
    first, second, *_ = sorted(state)
    swapped = state | {first: state[second], second: state[first]}
    fewer = {name: value for name, value in state.items() if name != first}
    for other in (one_bit, swapped, fewer):
        write_weights(other, tmp_path)
        with pytest.raises(DamagedError, match="its weights have sha256 .* where the record has"):
            read_weights(tmp_path, sha256)
    write_weights(state, tmp_path)
    assert read_weights(tmp_path, sha256).keys() == state.keys()


def test_none_are_no_damage(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_weights(tmp_path, "0" * 64)
    assert os.listdir(tmp_path) == []
