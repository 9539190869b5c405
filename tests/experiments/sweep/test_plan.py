"""What a plan says of runs that are there already."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from experiments.config.schema import TrainConfig
from experiments.run.identity import NUMERICS_VERSION, run_folder
from experiments.sweep.plan import Resources, make_plan
from experiments.sweep.show import show_plan
from experiments.train import train
from fitting.results.record import RunRecord, write_exclusive
from fitting.results.table import load
from tests.support.small_runs import SMALL

OLD = "0123456789ab"


@pytest.fixture
def old(composed: Callable[..., TrainConfig], text: Path) -> tuple[TrainConfig, RunRecord, Path]:
    """A run, and its record where an older version put it."""
    config = composed(*SMALL, f"data.path={text}", "recipe=sun")
    result = train(config)
    folder = result.folder.rename(result.folder.with_name(result.folder.name[:-12] + OLD))
    (folder / "result.json").unlink()
    record = dataclasses.replace(result.record, run_id=folder.name, numerics_version=2)
    return config, record, folder


def written(record: RunRecord, folder: Path, **changes: Any) -> None:
    (folder / "result.json").unlink(missing_ok=True)
    assert write_exclusive(dataclasses.replace(record, **changes), folder)


def test_a_run_of_an_older_version_is_trained_again_and_the_plan_says_why(
    old: tuple[TrainConfig, RunRecord, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    config, record, folder = old
    asked = dict(record.config)
    for younger in ("ptq", "trainer"):  # keys that records of that time lack
        asked.pop(younger)
    written(record, folder, config={**asked, "retry_failed": False, "budget": {"hours": 0.0}})
    plan = make_plan([config, dataclasses.replace(config, seed=1)])
    assert [run.older for run in plan.runs] == [2, 0]
    assert len(plan.to_do) == 2
    show_plan(plan, Resources(2.0), None, full=False)
    said = capsys.readouterr().out
    assert "1 of the runs to do were done under numerics version 2; version 4 gives" in said
    assert f"version {NUMERICS_VERSION} gives them new addresses" in said
    table = load(folder.parent)
    assert (table["run_id"].item(), table["numerics_version"].item()) == (folder.name, 2)


def test_other_runs_at_other_addresses_are_not_taken_for_it(
    old: tuple[TrainConfig, RunRecord, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    config, record, folder = old
    other = {**record.config, "optim": {**record.config["optim"], "lr": 0.5}}
    for changes in (
        {"config": other},
        {"corpus": "another-0123456789ab"},
        {"numerics_version": NUMERICS_VERSION},
        {"status": "failed", "loss": None},
        {"config": {**record.config, "tokens": 2 * config.tokens}},
    ):
        written(record, folder, **changes)
        plan = make_plan([config])
        assert plan.runs[0].older == 0, changes
    assert not run_folder(config).exists()
    show_plan(plan, Resources(2.0), None, full=False)
    assert "numerics" not in capsys.readouterr().out
