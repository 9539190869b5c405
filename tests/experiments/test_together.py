"""A run on several processes, without Ray: what the first decides, the others learn."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest

from experiments.config.precision import ConfigError
from experiments.config.schema import TrainConfig
from experiments.paths import conf_dir
from experiments.run.identity import run_folder
from experiments.run.record import design
from experiments.store.lease import Lease
from experiments.train import train

Compose = Callable[..., TrainConfig]
PROCESS = """
import json, sys
import torch.distributed as dist
from experiments.config.read import from_dict
from experiments.store.lease import Held
from experiments.data.shards import DataError
from experiments.train import follow, train
rank, store, config = int(sys.argv[1]), sys.argv[2], from_dict(json.loads(sys.argv[3]))
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
if rank:
    follow(config)
    print("went")
else:
    try:
        print("done" if train(config).already_done else "trained")
    except (Held, DataError) as error:
        print(type(error).__name__)
"""
PATIENCE = 1200.0
"""Seconds after which a process counts as waiting for ever: starting one takes a few."""
SMALL = [
    *("model=ladder/a", "data=tokens", "data.seq_len=64", "batch_size=4", "tokens=1024"),
    "tracking=none",
]


def both(config: TrainConfig, tmp_path: Path) -> list[str]:
    """What each of the two processes of a run says at its end."""
    arguments = [str(tmp_path / "meeting"), json.dumps(asdict(config))]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, str(rank), *arguments],
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    try:
        return [process.communicate(timeout=PATIENCE)[0].strip() for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()


def test_a_run_that_another_driver_finished_meanwhile_is_left_by_all_processes(
    composed: Compose, text: Path, tmp_path: Path
) -> None:
    train(composed(*SMALL, f"data.path={text}"))
    two = composed(*SMALL, f"data.path={text}", "trainer.num_workers=2")
    assert both(two, tmp_path) == ["done", "went"]


@pytest.mark.slow
def test_a_run_that_somebody_else_holds_is_left_by_all_processes(
    composed: Compose, text: Path, tmp_path: Path
) -> None:
    two = composed(*SMALL, f"data.path={text}", "trainer.num_workers=2")
    folder = run_folder(two)
    folder.mkdir(parents=True)
    with Lease(folder, 600.0):
        assert both(two, tmp_path) == ["Held", "went"]


@pytest.mark.slow
def test_data_that_cannot_feed_the_run_is_said_by_the_first_process_alone(
    composed: Compose, text: Path, tmp_path: Path
) -> None:
    two = composed(*SMALL, f"data.path={text}", "trainer.num_workers=2", "tokens=100_000_000")
    assert both(two, tmp_path) == ["DataError", "went"]


def test_blocks_must_divide_the_rows_of_each_process(composed: Compose) -> None:
    """96 rows per step are three blocks of 32; the 48 of each of two processes are 1.5."""
    request = ["batch_size=2", "data.seq_len=48", "precision=mxfp4"]
    composed(*request)
    with pytest.raises(ConfigError) as caught:
        composed(*request, "trainer.num_workers=2")
    [line] = str(caught.value).splitlines()
    assert "precision.block_size=32: must divide batch_size x data.seq_len / " in line
    assert "trainer.num_workers=48" in line


RECIPES = sorted(path.stem for path in (conf_dir() / "recipe").glob("*.yaml"))


@pytest.mark.parametrize("recipe", RECIPES)
def test_several_processes_may_do_what_one_may_with_its_share(
    composed: Compose, recipe: str
) -> None:
    """Every recipe, with blocks and tiles, on rows that suit or not."""

    def refused(*overrides: str) -> int:
        try:
            composed(f"recipe={recipe}", "tokens=9999", *overrides)
        except ConfigError as error:
            return len(str(error).splitlines())
        return 0

    for precision in ("precision=mxfp4", "precision=nvfp4_tile"):
        for length in ("data.seq_len=24", "data.seq_len=128"):
            alone = refused(precision, length, "batch_size=1")
            share = refused(precision, length, "batch_size=8", "trainer.num_workers=8")
            assert share == alone, precision


@pytest.mark.parametrize("granularity", ["row", "tensor"])
def test_the_record_counts_the_sharers_of_a_scale_in_one_process(
    composed: Compose, granularity: str
) -> None:
    """Two processes on batches of 8 quantize what one does on a batch of 4."""
    overrides = ["recipe=sun", "model=ladder/a", f"precision.granularity={granularity}"]
    columns = ("block_size", "bits_with_scales")
    alone, together = (
        [design(composed(*overrides, *more), 10)[name] for name in columns]
        for more in (["batch_size=4"], ["batch_size=8", "trainer.num_workers=2"])
    )
    assert together == alone
    assert together != [design(composed(*overrides, "batch_size=8"), 10)[name] for name in columns]
