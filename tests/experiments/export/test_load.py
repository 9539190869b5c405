"""`lowbit.load`: the model of a run computes what the run computed; what cannot be had is named."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

import lowbit
from experiments.config.schema import TrainConfig
from experiments.configure import configure
from experiments.data.batches import TokenData
from experiments.export.load import ExportError
from experiments.quant.linear import QuantLinear
from experiments.store.curve import METRICS
from experiments.store.weights import WEIGHTS
from experiments.train import RunResult, train
from fitting.files.own_json import DamagedError
from fitting.results.record import RESULT
from tests.support.places import ROOT
from tests.support.small_runs import SMALL, Stop, small

Compose = Callable[..., TrainConfig]
__all__ = ["small"]  # a fixture


def scored(model: Any, config: TrainConfig) -> float:
    """The validation loss, as a run computes it."""
    data = TokenData(config.data)
    total = count = 0.0
    with torch.no_grad():
        for index, batch in enumerate(data.validation_batches(4_096 // config.data.seq_len)):
            model.clock.counter = 2**40 + index
            total += model.loss(batch, reduction="sum").double().item()
            count += batch[:, 1:].numel()
    return total / count


RECIPES = [
    ["recipe=none", "model.tied=false"],
    ["recipe=nearest", "precision=mxfp4", "optim.weights=E8M7-tensor-fp32"],
    ["recipe=stochastic", "recipe.keep_last=1"],
    ["recipe=hadamard", "seed=3"],
    ["recipe=luq", "recipe.high_precision_share=0.2"],
    ["recipe=fixed_adaptive", "recipe.word_length.lookback=6"],
]


@pytest.mark.parametrize("overrides", RECIPES, ids=lambda words: words[0])
def test_a_loaded_model_has_the_loss_of_its_record_to_the_last_bit(
    small: Compose, overrides: list[str]
) -> None:
    config = small(*overrides)
    result = train(config)
    before = torch.random.get_rng_state()
    model = lowbit.load(result.folder)
    assert torch.equal(torch.random.get_rng_state(), before), "others' draws are left alone"
    assert not model.training
    assert scored(model, config) == result.record.loss
    if "fixed_adaptive" in overrides[0]:
        bits = {m.precisions["P2"].element.bits for m in model.modules() if _quantizes(m)}
        assert bits != {8}, "no layer moved: this recipe needs a longer run"


def _quantizes(layer: object) -> bool:
    return isinstance(layer, QuantLinear) and not layer.kept


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    place = tmp_path_factory.mktemp("kept")
    (place / "text.txt").write_text("the run of a model in few bits\n" * 3000)
    return train(configure(*SMALL, f"data.path={place / 'text.txt'}", f"runs={place / 'runs'}"))


@pytest.fixture
def copy(kept: RunResult, tmp_path: Path) -> Path:
    return Path(shutil.copytree(kept.folder, tmp_path / kept.folder.name))


def rewrite(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the record."""
    data = json.loads((folder / RESULT).read_text())
    change(data)
    (folder / RESULT).write_text(json.dumps(data))


def test_a_run_can_be_copied_and_the_text_be_gone(copy: Path) -> None:
    rewrite(copy, lambda data: data["config"]["data"].update(path="/nowhere"))
    assert isinstance(lowbit.load(str(copy)), torch.nn.Module)


OTHERS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "older numerics": (lambda d: d.update(numerics_version=3), "numerics_version=3: this version"),
    "older record": (lambda d: d.update(config={}), "of an older version, has no configuration"),
    "newer key": (lambda d: d["config"].update(new_key=1), "another version wrote .*new_key"),
    "no config": (lambda d: d["config"].update(model=3), "another version wrote its configuration"),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_a_run_of_another_version_is_refused_in_one_line(copy: Path, kind: str) -> None:
    change, said = OTHERS[kind]
    rewrite(copy, change)
    with pytest.raises(ExportError, match=f"^run={copy}: .*{said}") as error:
        lowbit.load(copy)
    assert "\n" not in str(error.value)


def test_what_is_not_there_is_said_with_the_remedy(copy: Path, small: Compose) -> None:
    with pytest.raises(ExportError, match="^run=/nowhere: no such folder"):
        lowbit.load("/nowhere")
    (copy / WEIGHTS).unlink()
    with pytest.raises(ExportError, match=f"^run={copy}: its weights were not kept; .*keep=last"):
        lowbit.load(copy)
    with pytest.raises(ExportError, match="no run has ended here; there is no result.json"):
        lowbit.load(copy.parent)
    with pytest.raises(RuntimeError, match="stopped here"):
        train(small(), Stop(8, RuntimeError))
    [failed] = Path(small().runs).glob("*/nearest-*")
    with pytest.raises(ExportError, match="it failed .*stopped here.*; it has no weights"):
        lowbit.load(failed)


def test_weights_of_another_shape_or_type_are_damage_even_with_the_same_bits(copy: Path) -> None:
    """The hash is over names and bits."""
    state = safetensors.torch.load_file(copy / WEIGHTS)
    with safetensors.safe_open(copy / WEIGHTS, framework="pt") as file:
        metadata = file.metadata()
    name = "model.blocks.0.attention.qkv.weight"
    for other in (state[name].reshape(-1, 1), state[name].view(torch.int32)):
        safetensors.torch.save_file(state | {name: other}, copy / WEIGHTS, metadata)
        with pytest.raises(DamagedError, match="its weights do not suit the model of result.json"):
            lowbit.load(copy)


def test_a_loss_curve_that_is_not_the_records_gives_no_word_lengths(small: Compose) -> None:
    result = train(small("recipe=fixed_adaptive"))
    (result.folder / METRICS).write_text('{"word_length/blocks.0.mlp.down": 2}\n')
    with pytest.raises(DamagedError, match="not the loss curve of its record"):
        lowbit.load(result.folder)


def test_nothing_of_hugging_face_or_for_training_is_imported_to_load(kept: RunResult) -> None:
    """Lightning itself imports transformers, if it is installed, by way of torchmetrics."""
    program = (
        f"import sys, lowbit; lowbit.load({str(kept.folder)!r})\n"
        "print(*{'transformers', 'peft', 'tokenizers', 'lightning'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout) == (0, "\n"), done.stderr
