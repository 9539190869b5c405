"""Wrong commands, generated over the schema: exit code 2, a line that names the key, no work."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from experiments.config import demands
from experiments.config.command_line import arrange
from experiments.config.compose import checked_grids
from experiments.config.own_files import named, with_own_files
from experiments.config.precision import ConfigError
from experiments.config.read import from_hydra, sweep_from_hydra, typed
from experiments.config.schema import SWEEP_KEYS, Request, leaves
from experiments.configure import configure
from experiments.paths import conf_dir
from tests.support.command_shell import COMMANDS

LEAVES = dict(leaves(Request()))
NUMBERS = [
    key
    for key, value in LEAVES.items()
    if isinstance(value, int | float) and not isinstance(value, bool)
]
TEXTS = [key for key, value in LEAVES.items() if isinstance(value, str)]
BOOLS = [key for key, value in LEAVES.items() if isinstance(value, bool)]


def test_every_number_of_the_schema_has_a_demand() -> None:
    assert set(NUMBERS) == set(demands.NUMBERS)
    assert set(demands.LENGTHS) <= set(TEXTS)


def _wrong() -> Iterator[tuple[str, Any]]:
    for key in NUMBERS:
        yield from ((key, value) for value in ("many", "inf", "nan", "-1", "1e400", str(10**19)))
    yield from ((key, "many") for key in BOOLS)
    yield from ((key, value) for key in TEXTS for value in (True, 1.5, None, [1]))


@pytest.mark.parametrize("key", ["optim.beta1", "optim.beta2"])
def test_moments_that_would_never_move_are_refused(key: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{key}=1(\.0)?: must be from 0 to below 1$"):
        configure(f"{key}=1")
    assert configure(f"{key}=0.999999")


@pytest.mark.parametrize("key", demands.NUMBERS)
def test_the_ends_of_a_demand_are_numbers_it_holds_or_says(key: str) -> None:
    demand = demands.NUMBERS[key]
    for end, left_out in ((demand.low, demand.above), (demand.high, demand.below)):
        assert demand.holds(end) is not left_out


@pytest.fixture(scope="module")
def composed() -> DictConfig:
    """What the command line composes without a word, before its types are checked."""
    cfg = OmegaConf.structured(Request)
    assert isinstance(cfg, DictConfig)
    return cfg


WIDE = {  # 10**19 of these can be meant
    *("optim.lr", "optim.eps", "optim.weight_decay", "optim.clip_norm", "model.rope_base"),
    *("budget.hours", "budget.flops", "budget.price"),
}


@pytest.mark.parametrize(("key", "value"), list(_wrong()), ids=str)
def test_each_key_refuses_what_it_cannot_be(key: str, value: Any, composed: DictConfig) -> None:
    if value == str(10**19) and key in WIDE:
        pytest.skip("a number that can be meant")
    cfg = OmegaConf.create(OmegaConf.to_container(composed))
    OmegaConf.update(cfg, key, value)
    read = sweep_from_hydra if key.partition(".")[0] in SWEEP_KEYS else from_hydra
    with pytest.raises(ConfigError) as error:
        read(cfg)
    lines = str(error.value).splitlines()
    assert any(line.startswith((f"{key}=", f"{key}:")) for line in lines), lines


WORDS = {
    "runs=~/x": "runs=~/x: cannot be read as key=value; put the value in quotes: \"runs='~/x'\"",
    "study.title=a=b": "study.title=a=b: cannot be read as key=value; put the value in quotes",
    "data.path=a(b": "data.path=a(b: cannot be read as key=value; put the value in quotes",
    "seed=0,1": "seed=0,1: has several values; add -m",
    "study=./study/ok.yaml": "study=./study/ok.yaml: must be a choice, not a file; with ok.yaml",
    "precision=4": "precision=4: must be the name of a choice",
    "recipe=null": "recipe=null: must be the name of a choice",
    "tracking=false": "tracking=false: must be the name of a choice",
    "precision=[mxfp4,nvfp4]": "precision=[mxfp4,nvfp4]: a run has one; with -m, precision=mxfp4,",
    "hydra.sweep.dir=x": "hydra.sweep.dir=x: has no effect here; results go below runs=FOLDER",
    "hydra.sweeper.params={}": "hydra.sweeper.params={}: has no effect here; a sweep is typed",
    "hydra.sweeper.max_batch_size=2": "hydra.sweeper.max_batch_size=2: has no effect here",
    "--foo": "--foo: no such option",
    "seed": "seed: cannot be read as key=value",
}


@pytest.mark.parametrize("word", WORDS)
def test_a_word_that_cannot_be_meant_is_named_with_what_could_be(word: str) -> None:
    with pytest.raises(ConfigError) as error:
        arrange([word])
    assert str(error.value).startswith(WORDS[word])
    assert "\n" not in str(error.value)


def test_options_may_stand_anywhere() -> None:
    words = ["recipe=x", "--config-dir=.", "seed=1", "-m", "tokens=2", "--config-dir", "own"]
    assert arrange(words) == (["-m", "recipe=x", "seed=1", "tokens=2"], "own")


@pytest.mark.parametrize("group", ["precision", "recipe", "model", "optim"])
def test_a_file_of_the_users_wins_over_the_built_in_one(group: str, tmp_path: Path) -> None:
    choice = {"precision": "mxfp4", "recipe": "sun", "model": "sun_41m", "optim": "adamw"}[group]
    file = conf_dir() / group / f"{choice}.yaml"
    given = file.read_text() if file.exists() else ""
    changed = {
        "precision": "mantissa: 3\n",
        "recipe": "keep_first: 1\noutput: {input: {rounding: nearest_even}}\n",
        "model": given.replace("layers: 12", "layers: 3"),
        "optim": given.replace("weight_decay: 0.1", "weight_decay: 0.3"),
    }[group]
    (tmp_path / group).mkdir()
    (tmp_path / group / f"{choice}.yaml").write_text(changed)
    words = ["recipe=none"] if group == "model" else []
    ours, own = (configure(*words, f"{group}={choice}", folder=f) for f in ("", tmp_path))
    assert getattr(own, group) != getattr(ours, group)
    if group == "recipe":
        assert own.recipe.name == "sun"


def test_a_train_yaml_of_the_users_is_refused(tmp_path: Path) -> None:
    (tmp_path / "train.yaml").write_text("seed: 3\n")
    with pytest.raises(ConfigError, match="its train.yaml has the name"), with_own_files(tmp_path):
        pass


def test_a_file_without_a_name_has_its_own() -> None:
    cfg = OmegaConf.create({"recipe": {}, "study": {"name": "scratch"}, "model": {"name": "m"}})
    cfg = named(cfg, {"recipe": "mine", "study": "grid", "model": "ladder/b"})
    assert (cfg.recipe.name, cfg.study.name, cfg.model.name) == ("mine", "grid", "m")


@pytest.mark.parametrize("text", ["${oc.env:HOME}", "a ${hydra:runtime.cwd}", "${oc.decode:1}"])
def test_a_value_from_outside_is_refused(text: str, composed: DictConfig) -> None:
    cfg = OmegaConf.create(OmegaConf.to_container(composed))
    cfg.study.description = text
    with pytest.raises(ConfigError, match="study.description=.*may refer to other keys only"):
        typed(cfg)
    cfg.study.description = "${tokens} tokens"
    assert typed(cfg).study.description == "1000000 tokens"


@pytest.mark.parametrize(
    ("grids", "said"),
    [
        ([{"seed": "0,1,2"}], r"study.grids\[0\].seed=0,1,2: must be a list, \[0,1,2\]"),
        ([{"seed": []}], r"study.grids\[0\].seed=\[\]: must be a list of values"),
        ({"seed": [0]}, "study.grids=.*: must be a list of grids"),
        ([3], r"study.grids\[0\]=3: must be a grid"),
    ],
)
def test_grids_are_lists_of_products(grids: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        checked_grids(OmegaConf.create({"study": {"grids": grids}}))
    alone = OmegaConf.create({"study": {"grids": [{"seed": 0, "recipe": "nearest"}]}})
    assert checked_grids(alone) == [{"seed": [0], "recipe": ["nearest"]}]


BROKEN = {
    "tab": b"study:\n\tname: x\n",
    "double": b"seed: 1\nseed: 2\n",
    "open": b"seed: [1\n",
    "latin": "# Mü\nseed: 1\n".encode("latin-1"),
    "list": b"- 1\n- 2\n",
}
LISTED = [
    *(("lowbit-train", ["--config-dir=own", f"study={name}"], name) for name in BROKEN),
    ("lowbit-train", ["-m", "precision=glob(zzz*)"], "matches nothing"),
    ("lowbit-train", ["-m", "hydra.launcher.max_parallel=0", "tokens=4096"], "max_parallel=0"),
    ("lowbit-train", ["model.hidden=1048576", "model.layers=1000", "recipe=none"], "model.name="),
    ("lowbit-train", ["study.name=.."], "study.name=..: must be letters"),
    *((name, ["nonsense=1"], "nonsense=1") for name in COMMANDS if name != "lowbit-train"),
    *((name, ["nonsense"], "nonsense") for name in COMMANDS),
]


@pytest.mark.parametrize(("name", "words", "said"), LISTED, ids=str)
def test_a_wrong_command_is_one_line_and_writes_nothing(
    name: str,
    words: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import importlib

    (tmp_path / "own" / "study").mkdir(parents=True)
    for broken, content in BROKEN.items():
        (tmp_path / "own" / "study" / f"{broken}.yaml").write_bytes(content)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [name, *words])
    module, function = COMMANDS[name]
    with pytest.raises(SystemExit) as end:
        getattr(importlib.import_module(module), function)()
    shown = capsys.readouterr()
    assert end.value.code == 2, shown.err
    assert shown.err.count("\n") == 1, shown.err
    assert shown.err.startswith(f"{name}: ")
    assert said in shown.err
    assert "a bug of" not in shown.err
    assert os.listdir(tmp_path) == ["own"]
