"""`lowbit-status`: what the folder of a study says, whoever reads it."""

import dataclasses
import json
import os
import sys
from pathlib import Path

import pytest

from experiments.store import status
from experiments.store.curve import METRICS
from experiments.store.lease import Lease
from fitting.files.atomic import write_atomic
from fitting.results.record import FAILURE, write_exclusive
from fitting.results.study_file import STUDY
from tests.support.records import RECORD

DONE = dataclasses.replace(
    RECORD, run_id="done", study="s", tokens=1000, unique_tokens=1000, flops=1e6, seed=0, loss=2.5
)


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """One run of each kind; all of 1e6 FLOPs but the diverged one, of 5e6."""
    folder = tmp_path / "runs" / "s"
    names = ["done", "bad", "raised", "at-work", "stopped", "new"]
    for name in names[:-1]:
        (folder / name).mkdir(parents=True)
    work = {name: 5e6 if name == "bad" else 1e6 for name in names}
    about = {"name": "s", "planned": names, "work": work}
    (folder / STUDY).write_text(json.dumps(about))
    write_exclusive(DONE, folder / "done")
    bad = dataclasses.replace(DONE, run_id="bad", status="diverged", loss=None, reason="NaN")
    write_exclusive(bad, folder / "bad")
    raised = dataclasses.replace(
        DONE, run_id="raised", status="failed", loss=None, reason="ValueError: [no] markup"
    )
    write_atomic(raised.to_json(), folder / "raised" / FAILURE)
    for name, tokens in (("at-work", 250), ("stopped", 500)):
        (folder / name / "config.json").write_text(json.dumps({"tokens": 1000}))
        row = {"tokens": tokens, "train/loss": 3.25, "train/tokens_per_second": 10.0}
        (folder / name / METRICS).write_text(json.dumps(row) + '\n{"torn')
    return tmp_path


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """The command in this process; its exit code."""
    monkeypatch.setattr(sys, "argv", ["lowbit-status", *arguments])
    try:
        status.main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_every_kind_of_run_is_told(
    study: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Done: 1e6 + 5e6, failed 1e6, half of 1e6 and a quarter of 1e6, of 10e6 in all."""
    monkeypatch.chdir(study)
    with Lease(study / "runs" / "s" / "at-work", ttl=60):
        assert run(monkeypatch, "study=s") == 1
        out = capsys.readouterr().out
    assert out.startswith(
        "study s: 2 of 6 runs done, 1 diverged, 1 running, 1 interrupted, 1 failed, 1 waiting; "
        "78% of the work, about "
    )
    assert f"running     at-work   25%  loss 3.2500  10 tokens/s, process {os.getpid()} on" in out
    assert "interrupted stopped  at 50%" in out
    assert "failed      raised  ValueError: [no] markup" in out
    assert "diverged    bad  NaN" in out


def test_the_time_left_is_that_of_the_work_left_at_the_speed_of_those_at_work(
    study: Path,
) -> None:
    """Left: 3/4 and 1/2 and all of 1e6 FLOPs; speed: 10 of 1,000 tokens a second, 1e4 FLOPs."""
    with Lease(study / "runs" / "s" / "at-work", ttl=60):
        _, found = status.read_status(study / "runs" / "s")
    assert found.eta == pytest.approx((0.75 + 0.5 + 1.0) * 1e6 / 1e4)
    assert status.read_status(study / "runs" / "s")[1].eta is None, "nobody is at work any more"


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["study=t"], "study=t: there is no runs/t/study.json"),
        (["watch=1"], "study: missing; give study=<name>"),
        (["demo"], "demo: must be key=value; see --help"),
        (["study=s", "watch=soon"], "watch=soon: must be a number of seconds"),
    ],
)
def test_a_wrong_request_is_one_line_and_exit_code_2(
    study: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    line: str,
) -> None:
    monkeypatch.chdir(study)
    assert run(monkeypatch, *arguments) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"lowbit-status: {line}")
    assert len(err.splitlines()) == 1


def test_a_finished_study_is_exit_code_0_also_when_watched(
    study: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(study)
    about = {"name": "s", "planned": ["done"], "work": {"done": 1.0}}
    (study / "runs" / "s" / STUDY).write_text(json.dumps(about))
    assert run(monkeypatch, "study=s", "watch=60") == 0
    assert "1 of 1 runs done; 100% of the work" in capsys.readouterr().out
