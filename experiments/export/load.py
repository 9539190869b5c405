"""The trained model of a run, from its folder alone.

What is read is JSON and safetensors, checked against the run's record; nothing from a folder is
imported or executed.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import torch

from experiments.config.precision import ConfigError
from experiments.config.read import from_dict
from experiments.config.schema import TrainConfig
from experiments.finetune.adapters import attach
from experiments.finetune.base import PREFIX, fill
from experiments.models.build import build, shape_of
from experiments.models.next_token import NextToken
from experiments.quant.word_length import WordLength
from experiments.run.identity import numerics_version
from experiments.store.curve import METRICS
from experiments.store.weights import WEIGHTS, read_weights
from fitting.entry.errors import Refusal, one_line
from fitting.files.own_json import DamagedError
from fitting.results.record import RESULT, RunRecord, read_record

_WORD_LENGTH = "word_length/"
"""Beginning of the loss curve's columns for the word lengths of layers."""


class ExportError(Refusal):
    """A run whose model cannot be had, with the reason."""


@dataclass(frozen=True)
class Trained:
    """A run that has ended: its record, its configuration and its model."""

    record: RunRecord
    config: TrainConfig
    model: NextToken


def load(run: Path | str) -> NextToken:
    """The trained model of a run, whose layers quantize as they did when it was scored.

    In evaluation mode, on the CPU, in float32; a run with `compute_dtype=bfloat16` was scored under
    `torch.autocast`.  Rounding noise, if the recipe draws any, is the same in every pass, until
    `model.clock.counter` is moved.

    Args:
        run: The run's folder, runs/<study>/<run_id>.

    Raises:
        ExportError: No run has ended there, it did not keep its weights, or another version of this
            program wrote it; one line says which, and what to do.
        DamagedError: The record or the weights are damaged.
    """
    return trained(run).model


def trained(run: Path | str) -> Trained:
    """The run with its model; arguments and errors are those of `load`."""
    folder = Path(run)
    record, config = configuration(folder)
    try:
        state = read_weights(folder, record.weights_sha256)
    except FileNotFoundError:
        raise ExportError(
            f"run={folder}: its weights were not kept; train it again with keep=last and another "
            "runs=FOLDER, to the same bits"
        ) from None
    with torch.random.fork_rng(devices=[]):  # layers draw weights, which are replaced
        model = build(config.model, config.recipe, config.precision.build(), config.seed)
        attach(model, shape_of(config.model), config.adapter, config.seed)
    fill(model, state, folder)
    model.clock.quantizing = config.quantizes(config.steps)
    if config.recipe.word_length.lookback:
        _set_word_lengths(model, config, folder, record)
    return Trained(record, config, model.eval())


def configuration(run: Path) -> tuple[RunRecord, TrainConfig]:
    """The record and the configuration of a run, whether or not it kept its weights.

    Raises:
        ExportError: No run has ended there, or another version wrote it.
    """
    record = _record(run)
    return record, _config(run, record)


def _record(folder: Path) -> RunRecord:
    if not folder.is_dir():
        raise ExportError(f"run={folder}: no such folder; a run's is runs/<study>/<run_id>")
    record = read_record(folder)
    if record is None:
        raise ExportError(f"run={folder}: no run has ended here; there is no {RESULT}")
    if record.status == "failed":
        raise ExportError(f"run={folder}: it failed ({one_line(record.reason)}); it has no weights")
    return record


def _config(folder: Path, record: RunRecord) -> TrainConfig:
    if not record.config:
        raise ExportError(f"run={folder}: its record, of an older version, has no configuration")
    model = record.config.get("model")
    factory = model.get("factory") if isinstance(model, dict) else ""
    if factory:  # code, which no record may name
        raise ExportError(
            f"run={folder}: its model is made by {factory}; call that yourself, quantize_ it, and "
            f"load the names of {WEIGHTS} without their beginning, {PREFIX}module."
        )
    task = record.config.get("task")
    if isinstance(task, dict) and task.get("factory"):
        raise ExportError(
            f"run={folder}: its task is made by {task['factory']}, code that no record may name; "
            f"make the model yourself and load {WEIGHTS}"
        )
    try:
        config = from_dict(record.config)
    except ConfigError as error:
        if str(error).startswith(("model.source", "model.sha256")):
            raise ExportError(
                f"run={folder}: its model cannot be made again: {one_line(error)}; put it back "
                "there"
            ) from error
        raise ExportError(
            f"run={folder}: another version wrote its configuration ({one_line(error)}); load it "
            "with that one"
        ) from error
    if record.numerics_version != (now := numerics_version(config)):
        raise ExportError(
            f"run={folder}: numerics_version={record.numerics_version}: this version computes "
            f"otherwise ({now}); load it with the version that trained it"
        )
    return config


def _set_word_lengths(
    model: NextToken, config: TrainConfig, folder: Path, record: RunRecord
) -> None:
    """Give each layer the word length with which training ended: the loss curve has it."""
    path, remedy = folder / METRICS, "restore it from a copy"
    content = path.read_bytes() if path.is_file() else b""
    if hashlib.sha256(content).hexdigest() != record.metrics_sha256:
        raise DamagedError(path, "not the loss curve of its record, or none", remedy)
    bits: dict[str, int] = {}
    for line in content.splitlines():
        row = json.loads(line)
        bits |= {key: row[key] for key in row if key.startswith(_WORD_LENGTH)}
    for name, layer in model.linears().items():
        if (key := f"{_WORD_LENGTH}{name}") in bits:
            WordLength(layer, config.recipe.word_length).bits = bits[key]
