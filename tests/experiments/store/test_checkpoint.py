"""A checkpoint that is damaged, another run's or of no use is passed over; no bit moves."""

import hashlib
import json
import os
import random
import shutil
import signal
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from experiments.config.schema import TrainConfig
from experiments.configure import configure
from experiments.run.recorder import Progress
from experiments.train import RunResult, train

STEPS = 12
STOP = 8
OVERRIDES = [
    "model=ladder/a",
    "model.layers=1",
    "recipe=stochastic",
    "data=tokens",
    "data.seq_len=64",
    "data.validation_windows=4",
    "batch_size=4",
    f"tokens={STEPS * 4 * 64}",
    "tracking=none",
    "tracking.log_every=1",
    "checkpoint_seconds=0",
]


class Trial:
    """A run that was stopped behind two checkpoints, and what an undisturbed one ends with."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        text = folder / "text.txt"
        text.write_text("".join(f"the run {k} of {k * k % 89} in few bits\n" for k in range(400)))
        self.overrides = [*OVERRIDES, f"data.path={text}"]
        self.undisturbed = train(self.config("undisturbed"))
        self.stop(self.config("stopped"))
        self.stop(self.config("other", "seed=1", "optim.lr=0.02"))

    def config(self, runs: str, *overrides: str) -> TrainConfig:
        return configure(*self.overrides, f"runs={self.folder / runs}", *overrides)

    def stop(self, config: TrainConfig) -> None:
        def at(progress: Progress) -> None:
            if progress.step == STOP:
                os.kill(os.getpid(), signal.SIGINT)

        with pytest.raises(KeyboardInterrupt):
            train(config, at)

    def checkpoints(self, runs: str) -> list[Path]:
        """The older and the newer."""
        found = sorted((self.folder / runs).glob("*/*/checkpoints/*.ckpt"))
        assert [path.stem for path in found] == [f"step-{n:09d}" for n in (STOP - 1, STOP)]
        return found

    def copy(self, runs: Path) -> list[Path]:
        shutil.rmtree(self.folder / runs, ignore_errors=True)
        shutil.copytree(self.folder / "stopped", self.folder / runs)
        return self.checkpoints(str(runs))

    def resume(self, runs: str) -> tuple[RunResult, int]:
        """The end of the run and the first step that it took."""
        steps: list[int] = []
        return train(self.config(runs), lambda p: steps.append(p.step)), steps[0]


@pytest.fixture(scope="module")
def trial(tmp_path_factory: pytest.TempPathFactory) -> Trial:
    folder = tmp_path_factory.mktemp("trial")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOWBIT_CACHE", str(folder / "cache"))
        return Trial(folder)


def seal(path: Path, run_id: str | None = None) -> None:
    """What an attempt would have written beside this file."""
    own = {"run_id": run_id or path.parent.parent.name, "step": int(path.stem[5:])}
    own["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    path.with_suffix(".json").write_text(json.dumps(own))


def first_weight(path: Path) -> int:
    """Where in the file the first tensor's bytes begin."""
    with zipfile.ZipFile(path) as archive:
        entry = next(i for i in archive.infolist() if i.filename.endswith("data/0"))
        with archive.open(entry):
            raw = path.read_bytes()
            name, extra = raw[entry.header_offset + 26 :][:2], raw[entry.header_offset + 28 :][:2]
            sizes = int.from_bytes(name, "little") + int.from_bytes(extra, "little")
            return entry.header_offset + 30 + sizes


def patched(path: Path, start: int, new: Callable[[bytes], bytes], size: int = 1) -> None:
    raw = bytearray(path.read_bytes())
    raw[start : start + size] = new(bytes(raw[start : start + size]))
    path.write_bytes(raw)


def flipped(path: Path, other: Path) -> None:
    patched(path, first_weight(path) + 3, lambda b: bytes([b[0] ^ 1]))


def zeroed(path: Path, other: Path) -> None:
    patched(path, first_weight(path), lambda b: bytes(len(b)), 4096)


def swapped(path: Path, other: Path) -> None:
    shutil.copy(other, path)


def swapped_with_its_seal(path: Path, other: Path) -> None:
    shutil.copy(other, path)
    seal(path, other.parent.parent.name)


def truncated(path: Path, other: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def emptied(path: Path, other: Path) -> None:
    path.write_bytes(b"")


def without_a_seal(path: Path, other: Path) -> None:
    path.with_suffix(".json").unlink(missing_ok=True)
    flipped(path, other)


def torn_seal(path: Path, other: Path) -> None:
    path.with_suffix(".json").write_text('{"sha256": "')
    flipped(path, other)


def seal_of_another_kind(path: Path, other: Path) -> None:
    path.with_suffix(".json").write_text("[1]")
    flipped(path, other)


def of_another_step(path: Path, other: Path) -> None:
    before = path.with_name(f"step-{STOP - 1:09d}.ckpt")
    if before == path:
        pytest.skip("there is none before it")
    shutil.copy(before, path)
    if before.with_suffix(".json").exists():
        shutil.copy(before.with_suffix(".json"), path.with_suffix(".json"))


DAMAGES = [
    *(flipped, zeroed, swapped, swapped_with_its_seal, truncated, emptied),
    *(without_a_seal, torn_seal, seal_of_another_kind, of_another_step),
]


def check_resumed(trial: Trial, runs: str, first: int, caplog: pytest.LogCaptureFixture) -> None:
    result, began = trial.resume(runs)
    assert result.record.loss == trial.undisturbed.record.loss
    assert result.record.weights_sha256 == trial.undisturbed.record.weights_sha256
    assert began == first
    lines = [r.getMessage() for r in caplog.records if "passed over" in r.getMessage()]
    assert len(lines) == (1 if first == STOP else 2), "one line for each that is passed over"
    assert all("\n" not in line and ".ckpt" in line for line in lines)
    assert not list((result.folder / "checkpoints").iterdir())


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda f: f.__name__)
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(
    trial: Trial, damage: Callable[[Path, Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    damage(trial.copy(Path("case"))[-1], trial.checkpoints("other")[-1])
    check_resumed(trial, "case", STOP, caplog)


@pytest.mark.parametrize("damage", [flipped, swapped_with_its_seal, without_a_seal])
def test_where_none_can_be_trusted_the_run_starts_anew(
    trial: Trial, damage: Callable[[Path, Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    for path, other in zip(trial.copy(Path("case")), trial.checkpoints("other"), strict=True):
        damage(path, other)
    check_resumed(trial, "case", 1, caplog)


def no_numbers(held: dict[str, Any]) -> None:
    next(iter(held["state_dict"].values())).view(-1)[7] = float("nan")


def no_moments(held: dict[str, Any]) -> None:
    held["optimizer_states"][0]["state"][0]["exp_avg_sq"][0, 0] = float("nan")


def other_names(held: dict[str, Any]) -> None:
    weights = held["state_dict"]
    weights["model.other"] = weights.pop(next(iter(weights)))


def other_shapes(held: dict[str, Any]) -> None:
    weights = held["state_dict"]
    name = next(iter(weights))
    weights[name] = weights[name].t().contiguous()[:-1]


def other_moments(held: dict[str, Any]) -> None:
    state = held["optimizer_states"][0]["state"][0]
    state["exp_avg"] = state["exp_avg"][:-1].clone()


def other_groups(held: dict[str, Any]) -> None:
    held["optimizer_states"][0]["param_groups"].pop()


def other_loops(held: dict[str, Any]) -> None:
    held["loops"]["fit_loop"] = {"a": "later version's"}


def no_curve(held: dict[str, Any]) -> None:
    held["callbacks"] = {}


def other_step(held: dict[str, Any]) -> None:
    held["global_step"] += 1


def without(part: str) -> Callable[[dict[str, Any]], None]:
    def drop(held: dict[str, Any]) -> None:
        del held[part]

    drop.__name__ = f"without_{part}"
    return drop


MISFITS = [
    *(no_numbers, no_moments, other_names, other_shapes, other_moments, other_groups),
    *(other_loops, no_curve, other_step),
    *map(without, ("state_dict", "optimizer_states", "lr_schedulers", "loops", "callbacks")),
]


@pytest.mark.parametrize("change", MISFITS, ids=lambda f: f.__name__)
def test_one_that_is_whole_and_does_not_suit_is_passed_over_too(
    trial: Trial, change: Callable[[dict[str, Any]], None], caplog: pytest.LogCaptureFixture
) -> None:
    """Written by other code under the same address, or by a run that was diverging."""
    path = trial.copy(Path("case"))[-1]
    held = torch.load(path, weights_only=True)
    change(held)
    torch.save(held, path)
    seal(path)
    check_resumed(trial, "case", STOP, caplog)


def test_every_byte_counts(trial: Trial, caplog: pytest.LogCaptureFixture) -> None:
    """Random bits, pages and lengths (seeded): none is accepted, whatever it hits."""
    from experiments.run.module import LanguageModel
    from experiments.store.checkpoint import CheckpointStore

    module = LanguageModel(trial.config("case"))
    groups = module.configure_optimizers()["optimizer"].param_groups
    arguments = module.state_dict(), [p for group in groups for p in group["params"]]
    older, newest = trial.copy(Path("case"))
    run = newest.parent.parent
    whole, chance = newest.read_bytes(), random.Random(3)
    assert CheckpointStore(run, run.name).newest(*arguments) == newest
    for _ in range(60):
        raw = bytearray(whole)
        place, kind = chance.randrange(len(raw)), chance.randrange(3)
        if kind == 0:
            raw[place] ^= 1 << chance.randrange(8)
        elif kind == 1:
            raw[place : place + 512] = bytes(b ^ 255 for b in raw[place : place + 512])
        else:
            del raw[place:]
        newest.write_bytes(raw)
        assert CheckpointStore(run, run.name).newest(*arguments) == older
    assert CheckpointStore(run, "another-run").newest(*arguments) is None


def test_one_that_cannot_be_used_does_not_crowd_out_new_ones(trial: Trial) -> None:
    """Two damaged ones of later steps: the run, stopped again, still goes on from where it was."""
    for path in trial.copy(Path("case")):
        truncated(path, path)

    def at(progress: Progress) -> None:
        if progress.step == 3:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(trial.config("case"), at)
    result, began = trial.resume("case")
    assert began == 4
    assert result.record.loss == trial.undisturbed.record.loss
