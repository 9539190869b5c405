"""Sweeps: what is planned, and what Ray makes of it when things go wrong."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from experiments.config.schema import TrainConfig
from experiments.sweep.plan import Resources, make_plan
from experiments.sweep.work import LOG
from experiments.train import train
from fitting.results.record import FAILURE, RESULT
from fitting.results.study_file import STUDY
from fitting.results.table import load
from tests.support.commands import killing_the_worker, lowbit_train

SMALL = [
    "model=ladder/a",
    "data=tokens",
    "data.seq_len=64",
    "batch_size=4",
    "tokens=6144",
    "tracking=none",
    "tracking.log_every=4",
]


@pytest.fixture
def here(tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder; SMALL plus the text make a small run."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            ["precision.mantisa=2"],
            "precision.mantisa: no such key; did you mean precision.mantissa?",
        ),
        (["precision.exponent=9"], "precision.exponent=9: must be 0..8 bits"),
        (["precision=fp5"], "precision=fp5: no such choice; there are: e1m0"),
        (["data=tokens", "data.path=/nowhere"], "data.path=/nowhere: no such file or folder"),
        (["-m", "precision.exponent=2,9"], "precision.exponent=9: must be 0..8 bits"),
        (["-m", "precison=e2m1,e1m1"], "precison: no such key; did you mean precision?"),
        (["tokens=="], "tokens==: cannot be read as key=value"),
    ],
)
def test_a_wrong_request_is_one_line_and_exit_code_2(
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    arguments: list[str],
    line: str,
) -> None:
    assert lowbit_train(monkeypatch, *arguments) == 2
    captured = capfd.readouterr()
    assert captured.err.startswith(f"lowbit-train: {line}")
    assert len([x for x in captured.err.splitlines() if ": read " not in x]) == 1
    assert not captured.out
    assert os.listdir(here) == ["text"], "nothing was written"


def planned(out: str) -> list[str]:
    """The runs named in a plan's table."""
    return sorted(set(re.findall(r"\b(?:none|nearest|sun)-\S+-[0-9a-f]{12}\b", out)))


def test_a_study_is_the_union_of_its_grids_and_the_command_line_wins(
    here: Path, text: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    common = [*SMALL, f"data.path={text}", "-m", "study=smoke", "plan_only=true"]
    common += ["data.validation_windows=0"]
    assert lowbit_train(monkeypatch, *common) == 0
    runs = planned(capsys.readouterr().out)
    assert len(runs) == 2 + 4 * 2
    assert sum(run.startswith("none-") for run in runs) == 2
    formats = "precision=fp8_e4m3,mxfp4,E2M1-block32-e8m0"
    assert lowbit_train(monkeypatch, *common, formats, "seed=0,1,2") == 0
    out = capsys.readouterr().out
    runs = planned(out)
    assert len(runs) == 3 + 2 * 3, "the baseline does not depend on the format"
    assert "9 duplicates dropped" in out, "two of the formats are one"
    assert {re.sub(r"^nearest-(\w+).*", r"\1", run) for run in runs if "nearest" in run} == {
        "E4M3",
        "E2M1",
    }
    assert not (here / "runs").exists(), "plan_only starts nothing and writes nothing"


def test_a_grid_may_take_an_operand_out_of_a_recipe(
    monkeypatch: pytest.MonkeyPatch, here: Path, text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`null` in a grid is the command line's null."""
    grids = "study.grids=[{recipe.output.input: [null], recipe.name: [no_input], seed: [0, 1]}]"
    common = [*SMALL, f"data.path={text}", "-m", "study.name=s", "plan_only=true", grids]
    assert lowbit_train(monkeypatch, *common) == 0
    assert len(re.findall(r"no-input-\S+-s[01]-", capsys.readouterr().out)) == 2


@pytest.mark.ray
def test_a_failed_run_does_not_stop_the_others_and_only_what_is_missing_is_run_again(
    here: Path, text: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [*SMALL, f"data.path={text}", "-m", "study.name=s", "recipe=none,nearest", "seed=0,1"]
    assert lowbit_train(monkeypatch, *command, "plan_only=true", "plan_file=plan.csv") == 0
    victim = here / "runs" / "s" / planned(capsys.readouterr().out)[0]
    (victim / "metrics.jsonl").mkdir(parents=True)  # its loss curve cannot be written

    assert lowbit_train(monkeypatch, *command) == 1
    out = capsys.readouterr().out
    assert re.search(
        rf"failed +{victim.name}: {victim}.*: Is a directory.*; log: {victim / LOG}", out
    )
    assert "IsADirectoryError" in (victim / LOG).read_text(), "the log holds the traceback"
    table = load(here / "runs" / "s")
    assert table["status"].value_counts().to_dict() == {"finished": 3, "failed": 1}
    assert len(json.loads((here / "runs" / "s" / STUDY).read_text())["planned"]) == 4

    plan, runs = load("plan.csv"), table[table["status"] == "finished"]
    columns = [c for c in plan.columns if c != "status"]
    kept = plan[plan["run_id"].isin(runs["run_id"])].reset_index(drop=True)
    pd.testing.assert_frame_equal(kept[columns], runs[columns].reset_index(drop=True))
    assert len(plan) == 4

    finished = {p: p.stat().st_mtime_ns for p in (here / "runs" / "s").glob(f"*/{RESULT}")}
    (victim / "metrics.jsonl").rmdir()
    assert lowbit_train(monkeypatch, *command) == 1
    assert "1 failed before (retry_failed=true runs them again)" in capsys.readouterr().out
    assert lowbit_train(monkeypatch, *command, "retry_failed=true") == 0
    assert (victim / RESULT).exists()
    assert not (victim / FAILURE).exists()
    assert {p: p.stat().st_mtime_ns for p in finished} == finished, "the others were left alone"
    assert lowbit_train(monkeypatch, *command) == 0
    assert "4 done, 0 to do" in capsys.readouterr().out


@pytest.mark.ray
@pytest.mark.slow
def test_a_killed_worker_is_replaced_and_the_result_is_the_same_bits(
    here: Path, text: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    common = [*SMALL, f"data.path={text}", "tokens=40960", "recipe=stochastic"]
    assert lowbit_train(monkeypatch, *common, "study.name=undisturbed") == 0
    folder = here / "runs" / "killed"

    with killing_the_worker(folder):
        killed = [*common, "-m", "study.name=killed", "checkpoint_seconds=0"]
        assert lowbit_train(monkeypatch, *killed) == 0
    assert re.search(r"retry +stochastic", capsys.readouterr().out)
    undisturbed, again = load(here / "runs" / "undisturbed"), load(folder)
    assert again["attempts"].tolist() == [2]
    assert again["loss"].tolist() == undisturbed["loss"].tolist()
    assert again["run_id"].tolist() == undisturbed["run_id"].tolist()


def test_a_run_that_asks_for_more_than_there_is_is_refused(
    here: Path, text: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    command = [*SMALL, f"data.path={text}", "-m", "resources.cpus=1000"]
    assert lowbit_train(monkeypatch, *command) == 2
    assert "wants 1000 CPUs" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["resources.gpus=64", "resources.device=cuda"], "wants 1 CPUs, 64 GPUs; there is no room"),
        (["resources.memory=1e6"], "wants 1 CPUs, 1e+06 GiB; there is no room for it"),
        (["trainer.num_workers=4", "resources.cpus=999"], "wants 3996 CPUs; there is no room"),
        (["trainer.num_workers=3"], "trainer.num_workers=3: must be 1 or more and divide"),
        (["model=sun_70b"], "GiB for its weights, gradients and moments alone"),
        (["budget.flops=1e6"], "budget.flops=1e+06: the runs to do need about "),
        (["budget.hours=1e-9"], "(speed: measured on a few steps); raise it, or plan less"),
        (["on_failure=explode"], "on_failure=explode: must be one of continue, stop"),
        (["timeout_seconds=-1"], "timeout_seconds=-1.0: must be 0 or more"),
    ],
)
def test_what_cannot_be_run_or_paid_is_refused_before_anything_starts(
    here: Path,
    text: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    arguments: list[str],
    line: str,
) -> None:
    command = [*SMALL, f"data.path={text}", "data.max_epochs=100", "-m", *arguments]
    assert lowbit_train(monkeypatch, *command) == 2
    err = capfd.readouterr().err
    assert line in err
    assert len([x for x in err.splitlines() if ": read " not in x]) == 1  # an import says once
    assert not (here / "runs").exists()


def test_a_plan_says_what_it_costs_and_measures_where_nothing_has_run(
    here: Path, text: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [*SMALL, f"data.path={text}", "-m", "seed=0,1", "budget.price=1e6", "plan_only=true"]
    assert lowbit_train(monkeypatch, *command) == 0
    out = capsys.readouterr().out
    match = re.search(r"([\d.e-]+) core hours, ([\d.]+) at 1e\+06 an hour, about", out)
    assert match
    assert float(match[2]) == pytest.approx(1e6 * float(match[1]), rel=0.1)
    assert "(measured on a few steps)" in out


def test_a_plan_learns_its_speed_from_runs_that_finished(
    composed: Callable[..., TrainConfig], text: Path
) -> None:
    configs = [
        composed(*SMALL, f"data.path={text}", f"recipe={recipe}", f"seed={seed}")
        for recipe in ("none", "nearest")
        for seed in (0, 1)
    ]
    for config in configs[::2]:
        train(config)
    plan = make_plan(configs)
    assert plan.speeds.basis == "measured on finished runs"
    for done, alike in (plan.runs[:2], plan.runs[2:]):
        assert done.record is not None
        seconds = done.record.wall_seconds * alike.work / alike.flops
        assert plan.seconds(alike) == pytest.approx(seconds)
    slots = [plan.makespan(Resources(cpus), None) for cpus in (1.0, 2.0)]
    times = [plan.seconds(run) for run in plan.to_do]
    assert slots == pytest.approx([sum(times), max(times)])
    assert plan.makespan(Resources(2.0), max_parallel=1) == pytest.approx(sum(times))


@pytest.mark.ray
def test_a_sweep_keeps_no_weights_unless_it_is_told_to(
    here: Path, text: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [*SMALL, f"data.path={text}", "-m", "study.name=s", "recipe=none", "tokens=1024"]
    grids = "study.grids=[{seed: [0], keep: [last]}, {seed: [1]}]"
    assert lowbit_train(monkeypatch, *command, grids) == 0
    kept = {path.parent.name for path in (here / "runs" / "s").glob("*/weights.safetensors")}
    assert [name.split("-")[-2] for name in kept] == ["s0"]
    capsys.readouterr()
    asked = [*command, "seed=0,1", "keep=last", "plan_only=true"]
    assert lowbit_train(monkeypatch, *asked) == 0
    assert "1 of the runs done did not keep their weights" in capsys.readouterr().out
