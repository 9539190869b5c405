"""Composing once and setting values gives what Hydra gives for each run, only sooner."""

import itertools
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.core.utils import setup_globals
from hydra.errors import MissingConfigException
from hydra.types import RunMode
from omegaconf import open_dict

from experiments.config.compose import Composer, compose_all
from experiments.config.precision import ConfigError
from experiments.config.read import explain, from_hydra, plain_keys
from experiments.config.schema import TrainConfig
from experiments.paths import conf_dir
from experiments.sweep.plan import make_plan

OVERRIDES = [
    [],
    ["precision=mxfp4"],
    ["precision=mxfp4", "recipe=sun", "model=ladder/c", "seed=3"],
    ["precision.exponent=3", "precision.mantissa=2", "precision=e4m3", "seed=1"],
    ["optim.lr=0.01", "model=ladder/a"],
    ["precision=E3M2-block16-e8m0", "precision.mantissa=1", "seed=2"],
    ["+study.fit.law=chinchilla", "study.name=other", "tokens=10_240"],
    ["study.grids=[{seed: [0, 1]}]"],
    ["debug=tiny", "recipe=none"],
    ["study=smoke", "data.validation_windows=7"],
    ["hydra.launcher.max_parallel=3", "seed=4"],
]


@pytest.fixture
def hydra(tmp_path: Path) -> Iterator[Hydra]:
    """Hydra as it is when a launcher is called."""
    setup_globals()
    GlobalHydra.instance().clear()
    Plugins.instance()
    search = create_config_search_path(str(conf_dir()))
    yield Hydra.create_main_hydra2("train", search)
    GlobalHydra.instance().clear()


def slowly(hydra: Hydra, master: object, overrides: list[str]) -> TrainConfig:
    """As Hydra's own launchers do it: composed anew."""
    composed = hydra.config_loader.load_sweep_config(master, overrides)  # type: ignore[arg-type]
    with open_dict(composed):
        del composed["hydra"]
    return from_hydra(composed)


@pytest.mark.parametrize("typed", [[], ["recipe=stochastic", "optim.lr=0.5", "batch_size=4"]])
def test_a_run_is_what_hydra_composes(hydra: Hydra, tmp_path: Path, typed: list[str]) -> None:
    typed = [*typed, f"runs={tmp_path}"]
    master = hydra.compose_config("train", typed, run_mode=RunMode.MULTIRUN)
    composer = Composer(hydra.config_loader, master)
    for overrides in OVERRIDES * 2:  # the second time from what was kept
        assert composer(overrides) == slowly(hydra, master, overrides)


def told(composer: Composer, override: str) -> TrainConfig | str:
    """The configuration, or what is said against it."""
    try:
        return composer([override])
    except ConfigError as error:
        return str(error)


def test_a_value_set_on_a_copy_is_what_hydra_sets(
    hydra: Hydra, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each key that holds a number, a word or a truth value, with words of every type."""
    master = hydra.compose_config("train", [f"runs={tmp_path}"], run_mode=RunMode.MULTIRUN)
    soon, hydras = (Composer(hydra.config_loader, master) for _ in range(2))
    monkeypatch.setattr(hydras, "_soon", lambda *_: None)
    words = itertools.cycle(["3", "0.5", "true", "none", "null", "1e-3", "''", "'${seed}'"])
    agreed = 0
    for key in sorted(plain_keys()):
        for _ in range(2):
            override = f"{key}={next(words)}"
            wanted = told(hydras, override)
            assert told(soon, override) == wanted, override
            agreed += isinstance(wanted, TrainConfig)
    assert agreed > 35
    assert len(plain_keys()) > 80
    assert soon._soon((), []) is not None, "there is a quick way"


def test_a_file_whose_values_refer_to_others_is_left_to_hydra(hydra: Hydra, tmp_path: Path) -> None:
    typed = [f"runs={tmp_path}", "study.title='seed ${seed}'"]
    master = hydra.compose_config("train", typed, run_mode=RunMode.MULTIRUN)
    composer = Composer(hydra.config_loader, master)
    jobs = [[*typed, f"seed={seed}"] for seed in (1, 2)]
    assert [composer(job).study.title for job in jobs] == ["seed 1", "seed 2"]


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("seed=-1", "seed=-1: must be 0 or more"),
        ("tokens=many", "tokens: Value 'many' of type 'str' could not be converted to Integer"),
        ("seeds=1", "seeds: no such key; did you mean seed?"),
        ("optim.lrr=1", "optim.lrr: no such key; did you mean optim.lr?"),
        ("precision=fp5", "precision=fp5: no such choice"),
    ],
)
def test_a_wrong_run_is_one_line_that_names_it(hydra: Hydra, override: str, line: str) -> None:
    master = hydra.compose_config("train", [], run_mode=RunMode.MULTIRUN)
    composer = Composer(hydra.config_loader, master)
    with pytest.raises((ConfigError, MissingConfigException)) as error:
        compose_all(composer, [["seed=0"], [override]])
    if isinstance(error.value, ConfigError):
        assert str(error.value).startswith(line)
        assert str(error.value).endswith(f"(run 1: {override})")
        assert len(str(error.value).splitlines()) == 1
    else:
        assert explain(error.value).startswith(line)


def test_planning_a_run_takes_less_than_hydra_takes_to_compose_it(
    hydra: Hydra, tmp_path: Path, text: Path
) -> None:
    """Both in CPU time, so that no machine is too slow; `make bench-sweep` has the number."""
    typed = ["data=tokens", f"data.path={text}", "data.seq_len=64", "data.max_epochs=1000"]
    master = hydra.compose_config(
        "train", [*typed, f"runs={tmp_path / 'runs'}"], run_mode=RunMode.MULTIRUN
    )
    jobs = [
        [f"precision={p}", f"recipe={r}", f"model=ladder/{m}", f"seed={s}", f"tokens={t}"]
        for p in ("e1m1", "e4m3")
        for r in ("stochastic", "none")
        for m in ("a", "b")
        for s in range(6)
        for t in (20_480, 40_960, 61_440, 81_920)
    ]
    began = time.process_time()
    plan = make_plan(compose_all(Composer(hydra.config_loader, master), jobs))
    planned = time.process_time()
    for job in jobs[:10]:
        hydra.compose_config("train", [*typed, *job], run_mode=RunMode.RUN)
    composed = time.process_time() - planned
    assert (planned - began) / len(jobs) < composed / 10
    assert len(jobs) == 192
    assert len(plan.runs) == 144, "none has no format: 1 run where stochastic has 2"
    assert plan.duplicates == 48
