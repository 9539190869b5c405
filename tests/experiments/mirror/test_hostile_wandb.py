"""W&B files of strangers: each is told in one line, and keeps no other run from the server."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from wandb.proto import wandb_internal_pb2

from experiments.config.schema import TrainConfig
from experiments.configure import configure
from experiments.mirror import sync, tracking
from experiments.mirror.files import _scan, is_synced, read_run, run_files
from tests.support.hostile_wandb import (
    BLOCK,
    HEADER,
    PUSHED,
    REFUSED,
    change,
    log_of,
    records_of,
    row,
)
from tests.support.wandb_server import WandbServer

ALL = REFUSED | PUSHED
STEPS = range(6)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs of a study, a and b, as W&B writes them; never changed."""
    root = tmp_path_factory.mktemp("written")
    config: TrainConfig = configure("tracking=offline", "study.name=s", "model=ladder/a")
    for name in "ab":
        folder = root / name
        folder.mkdir()
        mirror = tracking.start(config, name, folder, attempt=1)
        for step in STEPS:
            tracking.log(mirror, {"step": step, "tokens": 10 * step, "train/loss": 1 / (step + 1)})
        tracking.finish(0)
    tracking.shut_down()
    return root


@pytest.fixture
def study(written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of them; a is what a test makes hostile."""
    shutil.copytree(written, tmp_path / "runs" / "s")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs" / "s"


def lines(said: str) -> list[str]:
    assert "\x1b" not in said
    assert "Traceback" not in said
    found = said.split("\n")
    assert found.pop() == ""
    assert max(map(len, found)) < 700
    return found


def test_what_is_taken_apart_is_put_together_to_the_same_records(study: Path) -> None:
    [file] = run_files(study / "a")
    whole, before = file.read_bytes(), read_run(study / "a", "a")
    change(file, lambda records: records)
    assert read_run(study / "a") == before
    assert len(records_of(whole)) == len(records_of(file.read_bytes())) > len(STEPS)


@pytest.mark.parametrize("kind", ALL)
def test_a_dry_run_tells_of_each_in_a_line(
    study: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    [file] = run_files(study / "a")
    change(file, ALL[kind])
    before = {path: path.stat().st_mtime_ns for path in study.rglob("*")}
    assert sync.run(["study=s", "dry_run=true"]) == (kind in REFUSED)
    hostile, healthy = lines(capsys.readouterr().out)
    assert hostile.startswith(
        f"failed           a  {file}: not a W&B file of this run (byte "
        if kind in REFUSED
        else "would be pushed  a  "
    )
    assert healthy == "would be pushed  b  6 rows"
    assert {path: path.stat().st_mtime_ns for path in study.rglob("*")} == before


def push_beside_healthy(
    study: Path, server: WandbServer, capsys: pytest.CaptureFixture[str], kind: str
) -> str:
    """The word for the hostile run; the other one has arrived."""
    [file] = run_files(study / "a")
    change(file, ALL[kind])
    code = sync.run(["study=s"])
    said = capsys.readouterr()
    assert not said.err, kind
    *runs, total = lines(said.out)
    of = {line[17:].split()[0]: line[:15].strip() for line in runs}
    assert len(runs) == 2, kind
    assert of["b"] == "pushed"
    assert [r["step"] for r in server.runs["b"].rows()] == list(STEPS)
    assert set(server.runs) <= {"a", "b"}, "nothing went to another run's curve"
    assert code == (of["a"] == "failed")
    assert total.count("1 ") == (1 if of["a"] == "failed" else 0) * 2
    return of["a"]


FEW = ("another run's id", "an id with the words of W&B's refusal", "NaN and infinities")


@pytest.mark.parametrize("kind", FEW)
def test_the_healthy_run_arrives(
    study: Path, server: WandbServer, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    state = push_beside_healthy(study, server, capsys, kind)
    assert state == ("failed" if kind in REFUSED else "pushed")
    assert is_synced(run_files(study / "a")[0]) == (state == "pushed")


@pytest.mark.long
@pytest.mark.parametrize("kind", [kind for kind in ALL if kind not in FEW])
def test_the_healthy_run_arrives_beside_each(
    study: Path, server: WandbServer, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    state = push_beside_healthy(study, server, capsys, kind)
    assert state == "failed" if kind in REFUSED else state in ("pushed", "failed")


@pytest.mark.parametrize(
    "project", ["No API key/%", "returned error 401:", "API key", "x" * 300, "\x1b[2J" * 100]
)
def test_words_of_a_run_do_not_end_the_command_for_all(project: str) -> None:
    """W&B repeats the name of a project that it refuses."""
    for reason in (f"Invalid project name '{project}': cannot", f"tags: '{project}' is too long"):
        assert not sync._failed(f"W&B did not start ({reason})", "http://x").ends_all
    assert sync._failed("W&B did not start (No API key configured. Use", "").ends_all == sync.NO_KEY


@pytest.mark.parametrize("how", [Path.mkdir, lambda path: path.write_bytes(b"\xff\xfe")])
def test_a_mark_that_is_none_is_no_mark(study: Path, how: Callable[[Path], object]) -> None:
    [file] = run_files(study / "a")
    how(file.with_name(f"{file.name}.synced"))
    assert not is_synced(file)
    assert sync.run(["study=s", "dry_run=true"]) == 0


@pytest.mark.parametrize("short_of_the_end", range(12))
def test_records_at_the_end_of_a_block_are_read(short_of_the_end: int) -> None:
    """A first record ends up to 11 bytes before its block does: 7 are a piece's header, which then
    has no data in this block, and in fewer there is none.
    """
    random_bytes = random.Random(short_of_the_end).randbytes
    sizes = (BLOCK - len(HEADER) - 7 - short_of_the_end, 3, 0, 3 * BLOCK, 5)
    records = [random_bytes(size) for size in sizes]
    data = log_of(records)
    found = list(_scan(data))
    assert [record for record, _ in found] == records
    assert found[-1][1] == len(data)
    for cut in (1, 5, 12, BLOCK):
        assert [record for record, _ in _scan(data[:-cut])] == records[: 4 if cut < 13 else 3]


def test_rows_are_those_of_w_and_bs_own_message_at_every_length(tmp_path: Path) -> None:
    """A thousand rows of growing length: every place of a block is an end somewhere."""
    begun = wandb_internal_pb2.Record()  # type: ignore[attr-defined]
    begun.run.run_id = "a"
    texts = ["x" * length for length in range(0, 4000, 4)]
    made = [row(step=str(n), text=f'"{text}"') for n, text in enumerate(texts)]
    file = tmp_path / "a" / "wandb" / "offline-run-1-a" / "run-a.wandb"
    file.parent.mkdir(parents=True)
    file.write_bytes(log_of([record.SerializeToString() for record in (begun, *made)]))
    assert [r["text"] for r in read_run(tmp_path / "a").history] == texts
