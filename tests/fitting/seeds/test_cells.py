"""A cell is everything but the seed: whatever else was swept tells runs apart, by its name."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from experiments.config.schema import TrainConfig
from experiments.run.identity import science
from fitting.command import main as commands
from fitting.page.compare import common_cells
from fitting.page.report import write_report
from fitting.page.study import load_study
from fitting.results import swept
from fitting.results.record import COLUMNS, RunRecord
from fitting.results.table import load, select_rows
from fitting.seeds.cells import KNOWN_TO_PART, OUTCOMES, cell_keys
from fitting.seeds.compare import compare_cells
from fitting.seeds.noise import noise_floor
from tests.support.configured_runs import QUANTIZED, config, folder, record

# --- every key of the schema -------------------------------------------------------------------

SWEPT: dict[str, tuple[Any, Any]] = {
    "model.layers": (1, 2),
    "model.hidden": (64, 128),
    "model.ffn": (192, 128),
    "model.heads": (2, 4),
    "model.vocab_size": (256, 512),
    "model.tied": (True, False),
    "model.rope_base": (10_000.0, 500.0),
    "data.seq_len": (64, 128),
    "data.validation_windows": (0, 4),
    "data.windows": ("across_documents", "within_documents"),
    "optim.lr": (0.016, 0.001),
    "optim.beta1": (0.9, 0.8),
    "optim.beta2": (0.95, 0.99),
    "optim.eps": (1e-8, 1e-6),
    "optim.weight_decay": (0.1, 0.0),
    "optim.clip_norm": (1.0, 2.0),
    "optim.warmup": (0.1, 0.2),
    "optim.final_lr": (0.0, 0.1),
    "optim.weights": ("", "E8M7"),
    "optim.state": ("", "E8M7"),
    "optim.loss_scale": ("1", "dynamic"),
    "batch_size": (8, 16),
    "accumulate": (1, 4),
    "compute_dtype": ("float32", "bfloat16"),
    "precision.kind": ("float", "int"),
    "precision.exponent": (1, 2),
    "precision.mantissa": (1, 2),
    "precision.specials": ("none", "ocp"),
    "precision.granularity": ("row", "tensor"),
    "precision.block_size": (16, 32),
    "precision.scale": ("fp32", "e8m0"),
    "recipe.output.hadamard": (0, 16),
    "recipe.output.signs": ("fixed", "random"),
    "recipe.output.product": ("exact", "lmul"),
    "recipe.grad_input.hadamard": (0, 16),
    "recipe.grad_input.signs": ("fixed", "random"),
    "recipe.grad_input.row_hadamard": (0, 16),
    "recipe.grad_input.product": ("exact", "lmul"),
    "recipe.grad_weight.hadamard": (0, 16),
    "recipe.grad_weight.signs": ("fixed", "random"),
    "recipe.grad_weight.product": ("exact", "lmul"),
    "recipe.keep_first": (0, 1),
    "recipe.keep_last": (0, 1),
    "recipe.keep": ([], ["mlp.down"]),
    "recipe.high_precision_share": (0.0, 0.2),
    "recipe.word_length.lookback": (0, 50),
    "recipe.word_length.bins": (30, 20),
    "ptq.formats": ([], ["int4_row"]),
    "model.factory": ("tests.support.tiny_models:one", "tests.support.tiny_models:other"),
    "model.config.width": (32, 64),
    "data.only": ([], ["py/"]),
    "data.without": ([], ["py/"]),
    "adapter.name": ("none", "lora"),
    "base.label": ("", "none-ladder-b-1M-abcdef"),
    "base.bits": (0.0, 4.5),
    "base.tokens": (0, 65_536),
    "task.factory": ("tests.support.own_task:Line", "tests.support.own_task:Steep"),
    "trainer.callbacks": ([], ["tests.support.own_callbacks:clip"]),
    "task.config.points": (100, 50),
    "data.image.size": (8, 16),
    "data.image.mean": ([0.5], [0.4]),
    "data.image.std": ([0.5], [0.4]),
}
for _slot in (
    *("output.input", "output.weight", "grad_input.grad_output", "grad_input.weight"),
    *("grad_weight.grad_output", "grad_weight.input"),
):
    SWEPT[f"recipe.{_slot}.rounding"] = ("nearest_even", "stochastic")
    SWEPT[f"recipe.{_slot}.precision"] = ("", "E4M3-row-fp32")
    if _slot.startswith("output"):
        SWEPT[f"recipe.{_slot}.gradient"] = ("straight_through", "masked")
    if _slot in ("grad_input.weight", "grad_weight.input"):
        SWEPT[f"recipe.{_slot}.forward"] = (False, True)
_OWN = {
    "task.name": "custom", "data.name": "custom", "data.seq_len": 1, "model.name": "net",
    "model.factory": "tests.support.own_task:net",
}  # fmt: skip
_IMAGES = {
    "task.name": "classification", "data.name": "digits", "data.seq_len": 1, "model.name": "net",
    "model.factory": "experiments.models.convnet:build",
}  # fmt: skip
ROUNDED = {"rounding": "nearest_even"}
HEADS = tuple(f"recipe.attention.{slot}" for slot in ("query", "key", "probabilities", "value"))
SWEPT |= {head: (None, ROUNDED) for head in HEADS}
SWEPT["recipe.attention.value_along"] = ("head_dim", "keys")
SWEPT["recipe.overrides"] = ({}, {"blocks.0.mlp.down": None})
EFFECT: dict[str, dict[str, Any]] = {
    "recipe.attention.value_along": {"recipe.attention.value": ROUNDED},
    "optim.weights_rounding": {"optim.weights": "E8M7"},
    "optim.state_rounding": {"optim.state": "E8M7"},
    "optim.loss_scale_interval": {"optim.loss_scale": "dynamic"},
    "ptq.operands": {"ptq.formats": ["int4_row"]},
    "model.factory": {"model.name": "mine"},
    "model.config.width": {"model.name": "mine", "model.factory": "tests.support.tiny_models:one"},
    "task.factory": _OWN,
    "task.config.points": _OWN | {"task.factory": "tests.support.own_task:Line"},
    **dict.fromkeys(("data.image.size", "data.image.mean", "data.image.std"), _IMAGES),
    "precision.kind": {"precision.exponent": 0, "precision.mantissa": 3},
    "precision.specials": {"precision.exponent": 4, "precision.mantissa": 3},
    "precision.block_size": {"precision.granularity": "block"},
    "precision.scale": {"precision.granularity": "block"},
    **{f"recipe.{gemm}.product": {"precision.granularity": "tensor", "precision.scale": "e8m0"}
       for gemm in ("output", "grad_input", "grad_weight")},
    "recipe.word_length.lookback": {
        "precision.exponent": 0, "precision.mantissa": 6, "precision.granularity": "tensor",
        "precision.scale": "e8m0",
    },
}  # fmt: skip
SWEPT |= {
    "optim.weights_rounding": ("nearest_even", "stochastic"),
    "optim.state_rounding": ("nearest_even", "stochastic"),
    "optim.loss_scale_interval": (2_000, 1_000),
    "ptq.operands": ("weights", "weights_and_inputs"),
    "adapter.r": (8, 4),
    "adapter.lora_alpha": (8.0, 16.0),
    "adapter.use_rslora": (False, True),
    "adapter.target_modules": ([], ["mlp.down"]),
    "adapter.init": ("zero", "error"),
    "adapter.precision": ("", "int4_row"),
}
BASE = {"init_from": "runs/bases/one", "base.sha256": "ab" * 32}
EFFECT |= {key: BASE for key in SWEPT if key.startswith("base.")}
EFFECT |= {key: {"adapter.name": "lora", **BASE} for key in SWEPT if key.startswith("adapter.")}
LABELS = {
    *("model.name", "model.source", "data.name", "data.path", "data.max_epochs", "recipe.name"),
    *("data.tokenizer", "data.eos", "data.text_column", "base.sha256"),
}
OPERAND_OFF = tuple(f"recipe.{slot}" for slot in ("output.input", "grad_weight.grad_output"))


def leaves(part: dict[str, Any], above: str = "") -> set[str]:
    found: set[str] = set()
    for key, value in part.items():
        found |= leaves(value, f"{above}{key}.") if isinstance(value, dict) else {above + key}
    return found


def test_every_key_of_the_schema_that_makes_a_result_is_walked() -> None:
    flat = leaves(dataclasses.asdict(config(QUANTIZED)))
    keys = {key for key in flat if swept.is_key(key)} - LABELS
    impossible = {key for key in keys if key.endswith((".forward", ".gradient"))} - set(SWEPT)
    impossible |= {"model.sha256", "task.sha256", "trainer.callbacks_sha256"}  # filled in
    impossible.add("task.name")  # never alone: another task has other data and another model
    # Of files, whose content tells them apart: tests/experiments/data/test_images.py.
    impossible |= {f"data.image.{key}" for key in ("channels", "column", "label")}
    any_name = {"model.config.width", "task.config.points", "recipe.overrides"}
    assert keys - impossible == set(SWEPT) - any_name


def swept_pair(key: str) -> list[TrainConfig]:
    """Two runs that differ in a key alone, with one seed each that is not the other's."""
    found = []
    for seed, value in enumerate(SWEPT[key]):
        held = {**EFFECT.get(key, {}), key: value, "seed": seed}
        held["tokens"] = 65_536
        found.append(config(QUANTIZED, **held))
    return found


@pytest.mark.parametrize("key", SWEPT)
def test_a_key_alone_makes_two_cells(key: str, tmp_path: Path) -> None:
    pair = swept_pair(key)
    a, b = (science(run) | {"seed": 0} for run in pair)
    again = [dataclasses.replace(run, seed=run.seed + 2) for run in pair]
    runs = folder(tmp_path / "s", [record(r, 3.0 + 0.1 * i) for i, r in enumerate([*pair, *again])])
    table = load(runs)
    cells = table.groupby(cell_keys(table), dropna=False).ngroups
    assert cells == (1 if a == b else 2)
    table.to_csv(tmp_path / "results.csv", index=False)
    from_file = load(tmp_path / "results.csv")
    assert from_file.groupby(cell_keys(from_file), dropna=False).ngroups == cells
    pd.testing.assert_series_equal(
        from_file.groupby(cell_keys(from_file), dropna=False).ngroup(),
        table.groupby(cell_keys(table), dropna=False).ngroup(),
    )


@pytest.mark.parametrize("key", OPERAND_OFF)
def test_an_operand_that_is_off_makes_another_cell(key: str, tmp_path: Path) -> None:
    pair = [config(QUANTIZED, seed=0), config(QUANTIZED, seed=1, **{key: None})]
    table = load(folder(tmp_path, [record(run, 3.0 + run.seed) for run in pair]))
    assert noise_floor(table).dof == 0


def test_what_an_older_record_lacks_is_what_was_done_then(tmp_path: Path) -> None:
    heads: dict[str, Any] = dict.fromkeys(HEADS, ROUNDED)
    young = [record(config(QUANTIZED, seed=seed, **heads), 3.0 + seed / 10) for seed in (0, 1)]
    old = dataclasses.asdict(young[1])["config"]
    for name in swept.ABSENT:
        *above, key = name.split(".")
        place: Any = old
        for part in above:
            place = place[part]
        assert swept.plain(place.pop(key)) == swept.plain(swept.ABSENT[name]), name
    runs = [young[0], dataclasses.replace(young[1], config=old)]
    assert noise_floor(load(folder(tmp_path, runs))).dof == 1


def test_no_column_of_a_record_parts_runs_without_having_been_told_to() -> None:
    """A column that nobody had put anywhere would part runs that differ in their seed alone."""
    assert set(COLUMNS) <= OUTCOMES | KNOWN_TO_PART
    assert {"loss", "train_loss", "merged_loss", "bits_per_byte"} <= OUTCOMES


def test_seeds_of_an_adapter_are_repeats_whatever_merging_cost(tmp_path: Path) -> None:
    runs = [config({"seed": seed}) for seed in (0, 1)]
    losses = ((2.0, 2.5), (2.1, 2.4))
    records = [
        record(run, loss, merged_loss=merged)
        for run, (loss, merged) in zip(runs, losses, strict=True)
    ]
    noise = noise_floor(load(folder(tmp_path, records)))
    assert (noise.dof, noise.cells) == (1, 1)


def test_numerics_versions_are_not_seeds(tmp_path: Path) -> None:
    runs = [
        record(config(seed=seed), 3.0 + seed / 10, numerics_version=1 + seed) for seed in (0, 1)
    ]
    assert noise_floor(load(folder(tmp_path, runs))).dof == 0


def older(run: RunRecord, digits: str, **changes: Any) -> RunRecord:
    """The same run as an older version left it, without the sections that are younger."""
    held = {name: value for name, value in run.config.items() if name != "ptq"}
    held["recipe"] = {k: v for k, v in run.config["recipe"].items() if k != "word_length"}
    run_id = f"{run.run_id[:-12]}{digits:0>12}"
    return dataclasses.replace(run, run_id=run_id, numerics_version=2, config=held, **changes)


def test_a_run_that_a_newer_version_made_again_counts_once(tmp_path: Path) -> None:
    young = [record(config(QUANTIZED, seed=seed), 3.0 + seed / 10) for seed in (0, 1)]
    plain = record(config(seed=0), 2.9)
    alone = record(config(seed=1), 2.8)
    failed = dataclasses.replace(alone, status="failed", loss=None)
    runs = [*young, *(older(run, "a", loss=3.5) for run in young), plain, older(plain, "b")]
    place = folder(tmp_path / "runs", [*runs, older(alone, "c")])
    (place / failed.run_id).mkdir()
    (place / failed.run_id / "failure.json").write_text(failed.to_json())

    table = load(place)
    rows, excluded = select_rows(table)
    assert excluded == {"failed": 1, "superseded": 3}
    used = [*young, plain, older(alone, "c")]
    assert set(rows["run_id"]) == {run.run_id for run in used}
    again = table.set_index("run_id")["reason"][older(young[1], "a").run_id]
    assert again == f"made again: {young[1].run_id}"
    assert not [column for column in table if swept.is_key(column)], "what old records lack, too"
    # Of the quantized two seeds are a group; the unquantized are of two versions.
    assert noise_floor(table).dof == 1
    write_report(place, tmp_path / "no fit", tmp_path / "page", ("svg",))
    published = tmp_path / "page" / "results.csv"
    assert select_rows(load(published))[1] == excluded
    page = (tmp_path / "page" / "index.html").read_text(encoding="utf-8")
    assert "made again: " in page


def test_a_newer_run_that_diverged_early_stands_for_the_older_one_and_no_other(
    tmp_path: Path,
) -> None:
    finished = record(config(QUANTIZED, seed=0), 3.0)
    diverged = dataclasses.replace(finished, status="diverged", loss=None, tokens=512)
    place = folder(tmp_path / "runs", [diverged, older(finished, "a")])
    assert select_rows(load(place))[1] == {"diverged": 1, "superseded": 1}
    # Who says nothing of a configuration may be any run.
    said = [dataclasses.replace(finished, run_id="one", config={})]
    said += [dataclasses.replace(finished, run_id="two", config={}, numerics_version=2)]
    assert select_rows(load(folder(tmp_path / "bare", said)))[1] == {}


# --- the study of the issue --------------------------------------------------------------------

ABOVE = {0.016: (0.03, 0.06, 0.081), 0.001: (0.081, 0.088, 0.095)}


def rates() -> list[RunRecord]:
    """Two rates, three seeds, each unquantized and in E1M1: the rates 1.5 nats apart."""
    found = []
    for rate, above in ABOVE.items():
        for seed, more in enumerate(above):
            none = 2.5 + 1.5 * (rate < 0.01) + 0.01 * seed
            held = {"optim.lr": rate, "seed": seed}
            found.append(record(config(**held), none))
            found.append(record(config(QUANTIZED, **held), none + more))
    return found


def test_rates_are_compared_each_with_its_own_unquantized_runs(tmp_path: Path) -> None:
    table = load(folder(tmp_path, rates()))
    assert set(table["optim.lr"]) == {0.016, 0.001}
    floor = noise_floor(table)
    assert floor.dof == 8
    assert floor.std_loss < 0.03
    cells = compare_cells(table).set_index("optim.lr")
    for rate, above in ABOVE.items():
        assert cells.loc[rate, "difference"] == pytest.approx(sum(above) / 3)
        assert cells.loc[rate, "pairs"] == 3
        assert cells.loc[rate, "seeds"] == 3


def test_a_cell_without_its_own_unquantized_runs_is_compared_with_none(tmp_path: Path) -> None:
    runs = [r for r in rates() if r.recipe != "none" or r.config["optim"]["lr"] == 0.016]
    cells = compare_cells(load(folder(tmp_path, runs))).set_index("optim.lr")
    assert cells.loc[0.016, "pairs"] == 3
    assert cells.loc[0.001, "pairs"] == 0
    assert pd.isna(cells.loc[0.001, "difference"])


def test_the_page_and_the_fit_name_the_rate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = folder(tmp_path / "runs", rates())
    out = tmp_path / "out"
    page = write_report(runs, out, out, figure_files=("svg",))
    text = page.read_text(encoding="utf-8")
    for name in ("E1M1, optim.lr=0.016", "E1M1, optim.lr=0.001", "none, optim.lr=0.001"):
        assert name in text
    assert "another seed changes the loss by 0.8" not in text
    again = write_report(out / "results.csv", out, tmp_path / "again", figure_files=("svg",))
    assert again.read_text(encoding="utf-8") == text
    arguments = [f"results={runs}", "law=chinchilla", f"out={tmp_path}/fit", "bootstrap=0"]
    held = [f"freeze.{name}=1" for name in ("E", "A", "B", "alpha", "beta")]
    monkeypatch.setattr(sys, "argv", ["lowbit-fit", *arguments, *held])
    commands.fit()
    printed = " ".join(capsys.readouterr().out.split())
    assert "runs differ in optim.lr (0.001, 0.016), which the law does not know" in printed
    monkeypatch.setattr(sys, "argv", [*sys.argv, "where=optim.lr == 0.016"])
    commands.fit()
    printed = " ".join(capsys.readouterr().out.split())
    assert "6 used" in printed
    assert "optim.lr" not in printed


# --- tables of others --------------------------------------------------------------------------


def test_a_foreign_column_that_parts_runs_parts_cells() -> None:
    table = pd.DataFrame(
        {"params": 1e6, "tokens": 1e9, "lr": [1, 1, 2, 2], "seed": [0, 1, 0, 1],
         "loss": [3.0, 3.1, 4.0, 4.1], "status": "finished"}
    )  # fmt: skip
    assert noise_floor(table).dof == 2
    assert noise_floor(table).std_loss < 0.1
    assert noise_floor(table.drop(columns="seed")).dof == 0
    measured = table.assign(accuracy=[0.1, 0.2, 0.3, 0.4])
    assert noise_floor(measured).dof == 0, "nobody said that these are repeats"
    assert noise_floor(measured.assign(cell=["a", "a", "b", "b"])).dof == 2


def test_sizes_of_one_model_name_are_cells_of_their_own(tmp_path: Path) -> None:
    runs = []
    for layers in (1, 2):
        for seed in (0, 1):
            held = {"model.layers": layers, "seed": seed}
            runs.append(record(config(**held), 4.0 - layers + seed / 100))
            runs.append(record(config(QUANTIZED, **held), 4.1 - layers + seed / 100))
    study = load_study(folder(tmp_path, runs), tmp_path)
    assert study.noise.std_loss < 0.01
    assert study.cells is not None
    assert study.cells["params"].nunique() == 2
    assert study.cells["difference"].tolist() == pytest.approx([0.1, 0.1])


@pytest.mark.parametrize("key", ["data.seq_len", "model.vocab_size", "optim.lr", "compute_dtype"])
@pytest.mark.parametrize("published", [False, True])
def test_studies_that_differ_in_a_key_have_no_cell_in_common(
    key: str, published: bool, tmp_path: Path
) -> None:
    studies = []
    for number, value in enumerate(SWEPT[key]):
        runs = [record(config(seed=seed, **{key: value}), 3.0 + seed / 10) for seed in (0, 1)]
        place = folder(tmp_path / str(number), runs)
        if published:
            out = tmp_path / f"page{number}"
            write_report(place, out, out, figure_files=())
            place = out / "results.csv"
        studies.append(load_study(place, tmp_path / "no fit"))
    cells, _, reason = common_cells(*studies)
    assert cells.empty
    if key != "model.vocab_size":  # known by the size of the head already
        assert f"differ in {key} (" in reason
    same, _, _ = common_cells(studies[0], studies[0])
    assert len(same) == 1


def test_corpora_inside_a_study_are_not_pooled_when_it_is_compared(tmp_path: Path) -> None:
    runs = [record(config(seed=s), 3.0 + s, corpus=f"c{s}", run_id=f"r{s}") for s in (0, 1)]
    study = load_study(folder(tmp_path, runs), tmp_path)
    cells, _, _ = common_cells(study, study)
    assert sorted(cells["loss_a"]) == [3.0, 4.0]
