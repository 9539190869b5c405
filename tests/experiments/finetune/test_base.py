"""Bases: found, known by their weights and not by their place, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from experiments.config.precision import ConfigError
from experiments.config.schema import TrainConfig
from experiments.configure import configure
from experiments.data.batches import TokenData
from experiments.finetune.base import BaseError
from experiments.run.identity import run_id
from experiments.run.module import LanguageModel
from experiments.store.weights import WEIGHTS
from experiments.train import RunResult, train
from fitting.results.record import RESULT
from tests.support.small_runs import SMALL, small

Compose = Callable[..., TrainConfig]
__all__ = ["small"]  # a fixture


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunResult]:
    """Four runs that kept their weights: two seeds of one, another format, another rate."""
    place = tmp_path_factory.mktemp("bases")
    (place / "text.txt").write_text("the run of a model in few bits\n" * 3000)
    where = [f"data.path={place / 'text.txt'}", f"runs={place / 'runs'}", "study.name=bases"]

    def made(*more: str) -> RunResult:
        return train(configure(*SMALL, *where, "keep=last", *more))

    return {
        "zero": made("recipe=none"),
        "one": made("recipe=none", "seed=1"),
        "coarse": made("recipe=nearest", "precision=int2_row"),
        "slow": made("recipe=none", "optim.lr=1e-3"),
    }


def test_a_run_begins_with_the_loss_of_its_base(
    small: Compose, bases: dict[str, RunResult]
) -> None:
    config = small(f"init_from={bases['zero'].folder}", "recipe=none")
    module, base = LanguageModel(config), bases["zero"].module
    assert base is not None
    state = base.state_dict()
    assert {n: v.tolist() for n, v in module.state_dict().items()} == {
        n: v.tolist() for n, v in state.items()
    }
    batch = TokenData(config.data).batch(0, 4, config.seed)
    with torch.no_grad():
        assert torch.equal(module.model.loss(batch), base.model.loss(batch))
    drawn = LanguageModel(small("recipe=none"))
    assert not torch.equal(drawn.model.loss(batch), base.model.loss(batch))


def test_it_is_in_the_identity_by_its_weights_and_not_by_its_place(
    small: Compose, bases: dict[str, RunResult], tmp_path: Path
) -> None:
    moved = shutil.copytree(bases["zero"].folder, tmp_path / bases["zero"].folder.name)
    here, there = (small(f"init_from={place}") for place in (bases["zero"].folder, moved))
    assert run_id(here) == run_id(there)
    addresses = {run_id(small(f"init_from={base.folder}")) for base in bases.values()}
    assert len(addresses | {run_id(small())}) == 5


def test_seeds_of_one_base_have_one_label_and_all_else_has_another(
    small: Compose, bases: dict[str, RunResult]
) -> None:
    """By the label runs are averaged as seeds, or not."""
    found = {name: small(f"init_from={base.folder}").base for name, base in bases.items()}
    assert found["zero"].label == found["one"].label
    assert found["zero"].sha256 != found["one"].sha256
    assert len({base.label for base in found.values()}) == 3
    assert found["coarse"].label.startswith("nearest-INT2-row-fp32-ladder-a-6.14k-")
    assert 2 < found["coarse"].bits < 4 < found["zero"].bits == 32
    assert {base.tokens for base in found.values()} == {24 * 4 * 64}


def test_a_pattern_that_one_run_matches_is_that_run(
    small: Compose, bases: dict[str, RunResult]
) -> None:
    study = bases["zero"].folder.parent
    config = small(f"init_from={study}/nearest-*")
    assert config.init_from == str(bases["coarse"].folder)
    pattern = "init_from='${runs}/*/none-${model.name}-*-s${seed}-*'"
    config = small(pattern, f"runs={study.parent}", "seed=1")
    assert config.init_from == str(bases["one"].folder)
    with pytest.raises(ConfigError, match=r"^init_from=.*: must be one run, and 3 match: none-"):
        small(f"init_from={study}/none-*")
    with pytest.raises(ConfigError, match=r"^init_from=.*: no such run; give runs/"):
        small(f"init_from={study}/quartet-*")


def test_what_is_no_base_is_refused_in_one_line(
    small: Compose, bases: dict[str, RunResult], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(bases["zero"].folder, tmp_path / bases["zero"].folder.name))

    def refused(said: str, *more: str) -> None:
        with pytest.raises(ConfigError, match=said) as error:
            small(f"init_from={folder}", *more)
        assert "\n" not in str(error.value)

    refused(
        "^model.layers=.*|^model.hidden=64: init_from=.* has 32; it is ladder-a", "model=ladder/b"
    )
    (folder / WEIGHTS).unlink()
    refused("its weights were not kept; train it again with keep=last")
    record = json.loads((folder / RESULT).read_text())
    (folder / RESULT).write_text(json.dumps(record | {"status": "diverged", "reason": "rose"}))
    refused(r"^init_from=.*: diverged \(rose\); give another run")
    (folder / RESULT).write_text("{")
    refused("damaged|not JSON")
    (folder / RESULT).unlink()
    refused("no run has ended here; there is no result.json")
    with pytest.raises(ConfigError, match="^base.label=mine: is filled in from init_from"):
        small("base.label=mine")


def test_a_base_that_changed_after_the_plan_is_refused(
    small: Compose, bases: dict[str, RunResult], tmp_path: Path
) -> None:
    """Its weights are read when the run begins, and must be those that it is named after."""
    folder = Path(shutil.copytree(bases["zero"].folder, tmp_path / bases["zero"].folder.name))
    config = small(f"init_from={folder}", "recipe=none")
    record = json.loads((folder / RESULT).read_text())
    other = bases["one"].record.weights_sha256
    (folder / RESULT).write_text(json.dumps(record | {"weights_sha256": other}))
    shutil.copy(bases["one"].folder / WEIGHTS, folder / WEIGHTS)
    with pytest.raises(BaseError, match="^init_from=.* was none-.* when this run was planned, is"):
        train(config)


def test_damaged_weights_are_no_start(
    small: Compose, bases: dict[str, RunResult], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(bases["zero"].folder, tmp_path / bases["zero"].folder.name))
    content = bytearray((folder / WEIGHTS).read_bytes())
    content[-3] ^= 1
    (folder / WEIGHTS).write_bytes(content)
    with pytest.raises(Exception, match="its weights have sha256"):
        train(small(f"init_from={folder}", "recipe=none"))


def test_a_run_with_an_adapter_is_no_base(small: Compose, bases: dict[str, RunResult]) -> None:
    tuned = train(
        small(f"init_from={bases['zero'].folder}", "adapter=lora", "recipe=none", "keep=last")
    )
    with pytest.raises(ConfigError, match="^init_from=.*: its adapter is not merged; "):
        small(f"init_from={tuned.folder}")


def test_a_run_that_started_from_another_is_a_base(
    small: Compose, bases: dict[str, RunResult]
) -> None:
    second = train(small(f"init_from={bases['zero'].folder}", "recipe=none", "keep=last"))
    third = small(f"init_from={second.folder}", "recipe=none").base
    plain = small(f"init_from={bases['zero'].folder}", "recipe=none").base
    assert third.label != plain.label
