"""One damaged small file stops nothing but its own run, and is named with what to do about it."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from experiments.mirror.files import run_files
from experiments.mirror.panels import read_logged
from experiments.mirror.sync import find_runs, run
from experiments.store import status
from experiments.store.lease import Lease, at_work, holder
from fitting.command.main import fit
from fitting.files.own_json import DamagedError, read_object
from fitting.page.publish import publish
from fitting.results.record import FAILURE, RESULT, DamagedWarning, RunRecord, read_record
from fitting.results.study_file import STUDY, read_study
from fitting.results.table import load, select_rows
from tests.support.damage import DAMAGE
from tests.support.records import RECORD, save


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """Three finished runs; the second is what a test damages."""
    folder = tmp_path / "runs" / "demo"
    names = ["a", "b", "c"]
    for number, name in enumerate(names):
        save(folder, run_id=name, loss=3.0 + number)
    about = {"name": "demo", "title": "t", "description": "", "fit": {}, "planned": names}
    (folder / STUDY).write_text(json.dumps(about))
    return folder


def failed(folder: Path) -> Path:
    """Make the run in `folder` a failed one."""
    record = dataclasses.replace(RECORD, run_id=folder.name, status="failed", loss=None)
    (folder / RESULT).unlink()
    (folder / FAILURE).write_text(record.to_json())
    return folder / FAILURE


@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.parametrize("name", [RESULT, FAILURE])
def test_a_damaged_record_is_left_out_counted_and_named(study: Path, name: str, kind: str) -> None:
    path = study / "b" / RESULT if name == RESULT else failed(study / "b")
    DAMAGE[kind](path)
    with pytest.raises(DamagedError, match=r"delete it and run the command again") as caught:
        read_record(study / "b")
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
    with pytest.warns(DamagedWarning, match=f"left out: {path}"):
        table = load(study)
    assert list(table["run_id"]) == ["a", "c"]
    assert select_rows(table)[1] == {"damaged": 1}
    name, found = status.read_status(study)
    assert [state.kind for state in found.runs] == ["finished", "damaged", "finished"]
    assert str(path) in status.render(name, found)


def test_a_page_records_how_many_are_damaged(study: Path, tmp_path: Path) -> None:
    (study / "b" / RESULT).write_bytes(b"")
    with pytest.warns(DamagedWarning):
        publish(study, tmp_path / "nowhere", tmp_path / "out")
    assert json.loads((tmp_path / "out" / STUDY).read_text())["damaged"] == 1


def _mutations() -> Iterator[tuple[str, dict[str, Any]]]:
    """Each field with values of every other type, and those out of range."""
    whole = dataclasses.asdict(RECORD)
    wrong = {
        "str": [1, None, True, [], {}],
        "int": ["1", None, True, 1.5, [], {}, -1, 10**400],
        "float": ["1", None, True, [], {}, -1, 10**400],
        "float | None": ["1", True, [], {}, 10**400],
        "JsonObject": ["1", 1, None, True, []],
    }
    for field in dataclasses.fields(RunRecord):
        for value in wrong[str(field.type)]:
            if value != -1 or field.name not in ("loss", "train_loss", "bits_per_byte"):
                yield f"{field.name}={value!r}"[:40], whole | {field.name: value}
    extra: list[dict[str, Any]] = [
        {"schema_version": 99},
        {"schema_version": 0},
        {"block_size": 0},
        {"run_id": "another"},
        {"run_id": ""},
        {"loss": None},
        {"status": "failed"},
        {"status": "done"},
        {"surprise": 1},
        {"ptq": {"E2M1": 3}},
        {"ptq": {"E2M1": {"loss": True, "bits": 4, "operands": "weights"}}},
    ]
    for change in extra:
        yield str(change), whole | change
    for name in ("run_id", "loss", "seed", "tokens"):
        yield f"without {name}", {key: value for key, value in whole.items() if key != name}


MUTATIONS = list(_mutations())


def test_no_mutation_of_a_record_enters_a_fit(tmp_path: Path) -> None:
    assert len(MUTATIONS) >= 200
    folder = tmp_path / RECORD.run_id
    folder.mkdir()
    for name, content in MUTATIONS:
        (folder / RESULT).write_text(json.dumps(content))
        with pytest.raises(DamagedError, match="not a run record|damaged") as caught:
            pytest.fail(f"{name} was read as {read_record(folder)}")
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 500 + len(str(folder))
    (folder / RESULT).write_text(RECORD.to_json())
    assert read_record(folder) == RECORD


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_study_is_one_line(
    study: Path, kind: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    DAMAGE[kind](study / STUDY)
    with pytest.raises(DamagedError):
        read_study(study)
    with pytest.raises(DamagedError):
        read_logged(study) if (study / STUDY).is_file() else read_study(study)
    monkeypatch.setattr(sys, "argv", ["lowbit-status", f"study={study}", "runs=/"])
    with pytest.raises(SystemExit) as ended:
        status.main()
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert str(study / STUDY) in said
    if not (study / STUDY).is_file():
        return
    monkeypatch.setattr(sys, "argv", ["lowbit-fit", f"results={study}"])
    monkeypatch.chdir(study.parent)
    with pytest.raises(SystemExit) as ended:
        fit()
    assert ended.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    "change",
    [
        {"planned": 3},
        {"planned": ["../../etc"]},
        {"planned": [".."]},
        {"planned": [1]},
        {"work": [1]},
        {"work": {"a": "x"}},
        {"work": {"a": True}},
        {"work": {"a": -1}},
        {"name": 1},
        {"title": None},
    ],
)
def test_a_value_of_a_study_is_checked(study: Path, change: dict[str, Any]) -> None:
    about = json.loads((study / STUDY).read_text()) | change
    (study / STUDY).write_text(json.dumps(about))
    with pytest.raises(DamagedError, match=next(iter(change))):
        read_study(study)


@pytest.mark.parametrize("kind", DAMAGE)
def test_an_unreadable_lease_is_dead_after_its_time(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "lease.1.json"
    path.write_text(json.dumps({"number": 1, "token": "t"}))
    DAMAGE[kind](path)
    assert holder(tmp_path) is not None
    if path.is_symlink():
        return
    assert at_work(tmp_path) is not None, "it may be somebody's"
    os.utime(path, (0, 0))
    assert at_work(tmp_path) is None
    assert at_work(tmp_path, reads_only=True) is None


def test_a_lease_from_the_future_lives_no_longer_than_any_other(tmp_path: Path) -> None:
    path = tmp_path / "lease.1.json"
    who = {"number": 1, "token": "t", "host": "h", "machine": "", "pid": 1, "born": "", "ttl": 60}
    path.write_text(json.dumps(who))
    future = path.stat().st_mtime + 1e6
    os.utime(path, (future, future))
    assert at_work(tmp_path, reads_only=True) is None
    assert path.stat().st_mtime == future, "who only reads leaves it as it is"
    assert at_work(tmp_path) is not None
    assert path.stat().st_mtime < future - 9e5, "its time runs from now on"


@pytest.mark.parametrize("content", [b"", b"[]", b'{"attempts": true}', b'{"attempts": -1}'])
def test_a_damaged_count_of_attempts_stops_its_own_run(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "attempts.json").write_bytes(content)
    with pytest.raises(DamagedError, match="delete it if nobody works on this run"):
        Lease(tmp_path, ttl=60)


def test_who_only_looks_writes_nothing(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each attempt to create a file in the study is seen, as root is stopped by no permission."""
    lease = {"number": 1, "token": "t", "host": "h", "machine": "", "pid": 1, "born": "", "ttl": 60}
    for name in "abc":
        (study / name / "lease.1.json").write_text(json.dumps(lease))
    (study / "b" / RESULT).unlink()
    files = study / "b" / "wandb" / "offline-run-1-b"
    files.mkdir(parents=True)
    (files / "run-b.wandb").write_bytes(b"")
    before = {path: path.stat().st_mtime_ns for path in study.rglob("*")}
    assert len(status.read_status(study)[1].of(["running"])) == 1
    assert run([str(study), "dry_run=true"]) == 0
    assert {path: path.stat().st_mtime_ns for path in study.rglob("*")} == before


@pytest.mark.parametrize("kind", [k for k in DAMAGE if k not in ("twice", "cut")])
def test_a_hostile_wandb_file_stops_no_other(
    study: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in "abc":
        files = study / name / "wandb" / f"offline-run-1-{name}"
        files.mkdir(parents=True)
        (files / f"run-{name}.wandb").write_bytes(b"")
    DAMAGE[kind](study / "b" / "wandb" / "offline-run-1-b" / "run-b.wandb")
    assert run([str(study), "dry_run=true"]) in (0, 1)
    said = capsys.readouterr().out
    assert "  a  " in said
    assert "  c  " in said


def test_no_link_leads_out_of_the_study(study: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside" / "wandb" / "offline-run-1-x"
    outside.mkdir(parents=True)
    (outside / "run-x.wandb").write_bytes(b"")
    shutil.copytree(tmp_path / "outside", study / "a", dirs_exist_ok=True)
    (study / "b" / "wandb").symlink_to(outside.parent)
    (study / "c" / "wandb" / "offline-run-1-c").mkdir(parents=True)
    (study / "c" / "wandb" / "offline-run-1-c" / "run-c.wandb").symlink_to(outside / "run-x.wandb")
    assert find_runs([study]) == [study / "a"]
    assert not run_files(study / "b")
    assert not run_files(study / "c")


def test_a_link_to_a_whole_file_is_followed(tmp_path: Path) -> None:
    (tmp_path / "there").write_text('{"a": 1}')
    (tmp_path / "here").symlink_to("there")
    assert read_object(tmp_path / "here", "") == {"a": 1}


def test_a_file_where_a_run_could_be_is_none(tmp_path: Path) -> None:
    (tmp_path / "study.json").write_text("{}")
    assert read_record(tmp_path / "study.json") is None
