"""The configuration: errors before any work, and addresses that mean what they say."""

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from experiments.config.precision import PRESETS, ConfigError
from experiments.config.schema import SWEEP_KEYS, TrainConfig, known_keys, leaves
from experiments.configure import configure
from experiments.paths import conf_dir
from experiments.quant.formats import FloatFormat, Precision
from experiments.quant.recipe import OperandConfig
from experiments.run.identity import run_id, science
from fitting.results import swept
from tests.support.timm import needs_timm

Compose = Callable[..., TrainConfig]
GROUPS = ("model", "task", "recipe", "data", "tracking", "study", "debug", "optim")
CHOICES = sorted(
    f"{group}={path.relative_to(conf_dir() / group).with_suffix('')}"
    for group in GROUPS
    for path in (conf_dir() / group).rglob("*.yaml")
)
LLAMA = (
    *("model_type=llama", "hidden_size=32", "intermediate_size=64", "num_hidden_layers=1"),
    *("num_attention_heads=2", "vocab_size=256"),
)


@pytest.mark.parametrize("choice", CHOICES)
def test_every_yaml_composes_and_is_accepted(composed: Compose, choice: str, text: object) -> None:
    if choice == "model=hf":
        pytest.importorskip("transformers", reason="needs the extra hf")
    if choice in ("model=vit", "model=metaformer"):
        needs_timm()
    of_images = ["task=classification", "data=digits"]
    extra = {
        "data=digits": ["task=classification", "model=convnet"],
        "data=images": ["task=classification", "model=convnet", f"data.path={text}"],
        **{f"model={name}": of_images for name in ("convnet", "vit", "metaformer")},
        "task=classification": ["data=digits", "model=convnet"],
        "task=custom": [
            *("model=module", "model.factory=tests.support.own_task:net"),
            "task.factory=tests.support.own_task:Line",
        ],
        "data=tokens": [f"data.path={text}"],
        "model=hf": [f"model.config.{word}" for word in LLAMA],
        "model=module": ["model.factory=tests.support.tiny_models:one"],
    }
    words = ["recipe=none" if choice.startswith("model") else "seed=0", *extra.get(choice, [])]
    config = composed(choice, *words)
    assert config.steps >= 1


@pytest.mark.parametrize("rung", "abcdefgh")
def test_the_ladder_keeps_its_shape(composed: Compose, rung: str) -> None:
    """Heads of 32, and the multiple of 32 above 8/3 hidden between them."""
    model = composed(f"model=ladder/{rung}", "recipe=none").model
    assert model.name == f"ladder-{rung}"
    assert model.hidden == 32 * model.heads
    assert model.ffn == 32 * math.ceil(8 * model.hidden / 3 / 32)


SPELT_OUT = ("E3M2-block16-e8m0", "INT8-asymmetric-tile16", "bf16", "fp16_row", "E4M3-ocp-tensor")


@pytest.mark.parametrize("name", [*PRESETS, *SPELT_OUT])
def test_a_format_is_chosen_by_any_of_its_names(composed: Compose, name: str) -> None:
    config = composed(f"precision={name}")
    assert config.precision.build() == Precision.parse(name)
    assert Precision.parse(config.precision.label) == Precision.parse(name)


def test_a_name_says_what_its_keys_say_and_may_be_built_on(
    composed: Compose, tmp_path: Path
) -> None:
    parts = ["exponent=3", "mantissa=2", "block_size=16", "scale=e8m0"]
    spelt = composed(*(f"precision.{part}" for part in parts))
    named = composed("precision=E3M2-block16-e8m0")
    assert (run_id(named), named) == (run_id(spelt), spelt)
    (tmp_path / "precision").mkdir()
    own = tmp_path / "precision" / "mine.yaml"
    own.write_text("defaults: [E3M2-block16-e8m0, _self_]\nblock_size: 8\n")
    assert configure("precision=mine", folder=tmp_path).precision.label == "E3M2-block8-e8m0"
    (tmp_path / "study").mkdir()
    study = "# @package _global_\ndefaults: [{override /precision: INT4-row}]\n"
    (tmp_path / "study" / "mine.yaml").write_text(study)
    assert configure("study=mine", folder=tmp_path).precision.label == "INT4-row-fp32"


def test_a_run_is_not_told_what_belongs_to_its_sweep() -> None:
    for word in ("plan_only=true", "budget.hours=1", "on_failure=stop"):
        with pytest.raises(ConfigError, match=f"^{word}: belongs to a sweep as a whole"):
            configure(word)
    assert not {f.name for f in dataclasses.fields(TrainConfig)} & set(SWEEP_KEYS)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["precision.exponent=9"], "precision.exponent=9: must be 0..8 bits"),
        (["precision.scale=e5m3"], "precision.scale=e5m3: must be one of fp32, e8m0, e8m0_log2"),
        (["precision.kind=fixed"], "precision.kind=fixed: must be one of float, int, int_asymm"),
        (["precision.kind=int"], "precision.exponent=2: must be 0 for kind=int"),
        (
            ["precision=mxint8", "precision.mantissa=8"],
            "precision.mantissa=8: must be 1..7 .INT2..INT8. for kind=int",
        ),
        (
            ["precision=mxint8", "precision.specials=ocp"],
            "precision.specials=ocp: must be none for kind=int",
        ),
        (["precision.granularity=cell"], "precision.granularity='cell': must be one of block"),
        (["precision.block_size=24"], "precision.block_size=24: must divide model.hidden=64"),
        (["recipe.output.hadamard=48"], "recipe.output.hadamard=48: must be 0 .none. or a power"),
        (
            ["recipe.output.input.rounding=left"],
            "recipe.output.input.rounding=left: must be one of",
        ),
        (["tokens=100"], "tokens=100: must be at least one step, 2048 tokens"),
        (["batch_size=0"], "batch_size=0: must be 1 or more"),
        (["model.heads=3"], "model.heads=3: hidden=64 must split"),
        (["compute_dtype=float8"], "compute_dtype=float8: must be one of float32, bfloat16"),
        (["optim.lr=-1"], r"optim.lr=-1.0: must be positive"),
        (["optim.warmup=2"], r"optim.warmup=2.0: must be from 0 to 1"),
        (
            ["precision.mantissa=10", "precision.exponent=4", "compute_dtype=bfloat16"],
            "precision.mantissa=10: compute_dtype=bfloat16 holds 8 significant bits and E4M10 has",
        ),
        (
            ["recipe.output.weight.precision=fp16_row", "compute_dtype=bfloat16"],
            "recipe.output.weight.precision=fp16_row: compute_dtype=bfloat16 holds 8 significant",
        ),
        (
            ["ptq.formats=[E5M8-row]", "compute_dtype=bfloat16"],
            "ptq.formats=E5M8-row-fp32: compute_dtype=bfloat16 holds 8 significant bits",
        ),
        (["tracking.mode=loud"], "tracking.mode=loud: must be one of offline, online, none"),
        (["study.name=a/b"], "study.name=a/b: must be letters, digits"),
        (["tokens=many"], "tokens: Value 'many'"),
        (["seed=-1"], "seed=-1: must be 0 or more"),
    ],
)
def test_wrong_values_are_one_line_with_key_and_value(
    composed: Compose, overrides: list[str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        composed(*overrides)
    assert all(re.match(r"[\w.]+(=\S+)?: ", line) for line in str(error.value).splitlines())


def test_identity_ignores_what_does_not_change_the_science(composed: Compose) -> None:
    base = run_id(composed())
    for same in (
        "study.name=other",
        "tracking=none",
        "resources.cpus=2",
        "checkpoint_seconds=1",
        "data.max_epochs=3",
        "tokens=1000001",
    ):
        assert run_id(composed(same)) == base, same


def test_identity_changes_with_everything_else(composed: Compose) -> None:
    """Every leaf of what is hashed, moved by one override, gives another address."""
    changes = [
        "seed=1",
        "tokens=2000000",
        "batch_size=4",
        "compute_dtype=bfloat16",
        "data.seq_len=128",
        "data.validation_windows=64",
        "precision.mantissa=2",
        "precision.scale=e8m0",
        "precision.granularity=row",
        "recipe=sun",
        "recipe.output.hadamard=32",
        "recipe.output.input.rounding=stochastic",
        "model.layers=3",
        "optim.lr=0.001",
        "optim.warmup=0.2",
    ]
    addresses = [run_id(composed())] + [run_id(composed(change)) for change in changes]
    assert len(set(a[-12:] for a in addresses)) == len(addresses)


def test_a_run_that_quantizes_nothing_has_one_address(composed: Compose) -> None:
    baselines = {run_id(composed("recipe=none", f"precision={p}")) for p in ("e2m1", "fp8_e4m3")}
    assert len(baselines) == 1
    rows = {
        run_id(composed("precision.granularity=row", f"precision.block_size={b}")) for b in (16, 32)
    }
    assert len(rows) == 1, "the block size means nothing without blocks"


def test_addresses_are_golden(composed: Compose) -> None:
    """A change here re-addresses every run there is: raise NUMERICS_VERSION and say so."""
    assert run_id(composed("precision=mxfp4")) == GOLDEN_MXFP4
    assert run_id(composed("recipe=none", "seed=3")) == GOLDEN_NONE


def test_defaults_are_golden() -> None:
    """They are not hashed, so a changed one changes what every address means."""
    hashed = {key: value for key, value in leaves(TrainConfig()) if swept.is_key(key)}
    said = json.dumps([hashed, dataclasses.asdict(OperandConfig())], sort_keys=True)
    assert hashlib.sha256(said.encode()).hexdigest()[:12] == GOLDEN_DEFAULTS, (
        "raise NUMERICS_VERSION, and say so"
    )


def test_every_key_is_hashed_or_changes_no_result() -> None:
    """Tokens are hashed as steps, the seed as it is."""
    unhashed = {key.split(".")[0] for key, _ in leaves(TrainConfig()) if not swept.is_key(key)}
    around = {"study", "diagnostics", "tracking", "resources", "trainer", "runs", "keep"}
    around.add("init_from")  # base.sha256 is hashed
    times = {"checkpoint_seconds", "lease_seconds", "timeout_seconds"}
    assert unhashed == around | times | {"tokens", "seed"}


def test_a_key_at_its_default_or_without_effect_is_not_hashed(composed: Compose) -> None:
    always = {"corpus", "steps", "seed", "numerics_version"}
    assert set(science(composed("recipe=none", "optim.lr=4e-3"))) == always
    row = composed(
        "recipe=sun", "precision=INT4-row", "precision.block_size=8", "optim.lr=4e-3", "seed=3"
    )
    given = science(row)
    assert {key: given[key] for key in given if not key.startswith("recipe.")} == {
        "precision.kind": "int",
        "precision.exponent": 0,
        "precision.mantissa": 3,
        "precision.granularity": "row",
        **{key: given[key] for key in always},
    }
    operands = {key for key in given if key.startswith("recipe.")}
    assert operands == {f"{key}.rounding" for key in row.recipe.keys().values()} | {
        key for key in operands if key.endswith(".forward")
    }
    spellings = ("ptq.formats=[mxfp4,int4_row]", "ptq.formats=[INT4-row-fp32,MXFP4]")
    assert len({run_id(composed("recipe=none", formats)) for formats in spellings}) == 1


def test_an_operand_that_is_there_with_defaults_alone_counts(composed: Compose) -> None:
    """`{}` is nearest_even to the run's precision, `null` no rounding at all."""
    with_input, without = (
        composed("recipe=nearest", f"recipe.output.input={value}") for value in ("{}", "null")
    )
    assert science(with_input)["recipe.output.input.rounding"] == "nearest_even"
    assert run_id(with_input) != run_id(without)


@pytest.mark.parametrize("mantissa", range(1, 11))
@pytest.mark.parametrize("exponent", [0, 2, 5])
def test_bfloat16_takes_elements_of_eight_significant_bits(
    composed: Compose, exponent: int, mantissa: int
) -> None:
    """By enumeration of the grid: the same number in bfloat16, every one."""
    parts = [f"precision.exponent={exponent}", f"precision.mantissa={mantissa}"]
    grid = torch.tensor(FloatFormat(exponent, mantissa).grid())
    if torch.equal(grid, grid.bfloat16().float()):
        composed(*parts, "compute_dtype=bfloat16")
    else:
        with pytest.raises(ConfigError, match=f"precision.mantissa={mantissa}: compute_dtype="):
            composed(*parts, "compute_dtype=bfloat16")
    composed(*parts)


def test_what_kind_of_numbers_they_are_counts(composed: Compose) -> None:
    changes = ["precision=mxint8", "precision.kind=int_asymmetric", "precision.kind=float"]
    runs = [run_id(composed("precision=mxint8", change)) for change in changes]
    assert len({run[-12:] for run in runs}) == 3
    assert [run.split("-s0")[0] for run in runs] == [
        "nearest-INT8-block32-e8m0-ceil-ladder-b-999k",
        "nearest-INT8-asymmetric-block32-e8m0-ceil-ladder-b-999k",
        "nearest-E0M7-block32-e8m0-ceil-ladder-b-999k",
    ]


GOLDEN_MXFP4 = "nearest-E2M1-block32-e8m0-ladder-b-999k-s0-c9bead966ddc"
GOLDEN_DEFAULTS = "6ba20538bf8b"
GOLDEN_NONE = "none-ladder-b-999k-s3-4c76bd28ad73"


def test_known_keys_reach_every_leaf() -> None:
    keys = known_keys()
    assert {"precision.mantissa", "recipe.output.hadamard", "optim.lr", "data.path"} <= set(keys)
    assert len(keys) == len(set(keys))


def test_science_names_no_path_and_no_label(composed: Compose) -> None:
    config = composed()
    flat = str(science(config))
    for private in (config.runs, config.study.name, "ladder", "offline"):
        assert private not in flat
    assert dataclasses.asdict(config)  # what the record keeps in full
