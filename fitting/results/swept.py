"""The swept keys of a study, those of its runs' configurations that tell runs apart, as columns.

A run's record has columns of its own for what most studies vary (`fitting.results.record.COLUMNS`).
Anything else that was varied, say the learning rate, becomes a column named after its key, so that
runs that differ in it are told apart and the table of results shows how.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

Value: TypeAlias = Any
"""The value of a configuration's key."""
Config: TypeAlias = Mapping[str, Value]

KEY = re.compile(
    r"(model|task|data|optim|precision|recipe|ptq|base|adapter)\.[\w.]+"
    r"|batch_size|accumulate|compute_dtype|trainer\.callbacks(_sha256)?"
)
"""Keys that a run's result depends on; the seed and the training tokens have columns already."""
_BESIDE = {
    *("model.name", "model.source", "recipe.name", "data.name", "data.path", "data.max_epochs"),
    *("data.tokenizer", "data.eos", "data.text_column"),
    "base.sha256",  # of one seed's base; the label says which base it is
}
"""Keys of names, of the data's place and of what is allowed: they do not change the computation.

How a text becomes tokens is known by the corpus.
"""
_OVERRIDES = "recipe.overrides"
"""A key that is one value: its names are those of layers."""
_SLOTS = (
    *("output.input", "output.weight", "grad_input.grad_output", "grad_input.weight"),
    *("grad_weight.grad_output", "grad_weight.input"),
    *("attention.query", "attention.key", "attention.probabilities", "attention.value"),
)
_OPERANDS = tuple(f"recipe.{slot}." for slot in _SLOTS)
ABSENT: Mapping[str, Value] = {
    "accumulate": 1,
    "trainer.callbacks": [],
    "trainer.callbacks_sha256": "",
    "adapter.init": "zero",
    "adapter.name": "none",
    "base.label": "",
    "base.bits": 0.0,
    "base.tokens": 0,
    "data.only": [],
    "task.name": "language_model",
    "task.factory": "",
    "task.config": {},
    "task.sha256": "",
    "data.image.size": 0,
    "data.image.channels": 1,
    "data.image.mean": [0.5],
    "data.image.std": [0.5],
    "data.image.column": "image",
    "data.image.label": "label",
    "data.validation_windows": 0,
    "data.without": [],
    "data.windows": "across_documents",
    "model.factory": "",
    "model.sha256": "",
    "optim.weights": "",
    "optim.weights_rounding": "nearest_even",
    "optim.state": "",
    "optim.state_rounding": "nearest_even",
    "optim.loss_scale": "1",
    "optim.loss_scale_interval": 2_000,
    "precision.kind": "float",
    "ptq.formats": [],
    "ptq.operands": "weights",
    "recipe.output.product": "exact",
    "recipe.grad_input.product": "exact",
    "recipe.grad_weight.product": "exact",
    "recipe.grad_input.row_hadamard": 0,
    "recipe.attention.value_along": "head_dim",
    "recipe.keep_first": 0,
    "recipe.keep_last": 0,
    "recipe.keep": [],
    "recipe.high_precision_share": 0.0,
    "recipe.word_length.lookback": 0,
    "recipe.word_length.bins": 30,
    **{f"recipe.{slot}.precision": "" for slot in _SLOTS},
    **{f"recipe.{slot}.forward": False for slot in _SLOTS},
    **{f"recipe.{slot}.gradient": "straight_through" for slot in _SLOTS},
}
"""The behaviour of runs from before a key existed, whose records lack it."""
_TOLD: Mapping[str, tuple[str, ...]] = {
    "model": ("model", "params"),
    "recipe": ("recipe", "operands"),
    "precision": (
        *("recipe", "operands", "exponent", "mantissa", "granularity", "scale", "block_size"),
    ),
}
"""Columns of a record that may say the same as a key, by the key's first part."""


def is_key(column: object) -> bool:
    """Whether a column is a key of the configuration: "optim.lr", "batch_size"."""
    return isinstance(column, str) and KEY.fullmatch(column) is not None


def is_quantization(column: str) -> bool:
    """Whether a key concerns the quantization of operands only, which unquantized runs lack.

    The formats to which weights were quantized after training do not change how it was trained.
    """
    return column.partition(".")[0] in ("precision", "recipe", "ptq")


def science(config: Config) -> dict[str, Value]:
    """The keys, dotted, that a run's result depends on, except its seed, tokens and corpus.

    A key without an effect is left out: the precision of a run that quantizes nothing to it, or
    the rounding of weights that are not stored in a format.  Lists are JSON, "" is None.

    >>> science({"seed": 3, "optim": {"lr": 0.016}, "batch_size": 8, "tracking": {"mode": "none"}})
    {'optim.lr': 0.016, 'batch_size': 8}
    """
    flat = {key: value for key, value in _flat(config) if is_key(key) and key not in _BESIDE}
    if isinstance(config.get("recipe"), Mapping):
        _without_effect(flat)
    for key in ("weights", "state"):
        if not flat.get(f"optim.{key}"):
            flat.pop(f"optim.{key}_rounding", None)
    if flat.get("optim.loss_scale", "dynamic") != "dynamic":
        flat.pop("optim.loss_scale_interval", None)
    if flat.get("adapter.name", "none") == "none":
        for key in [key for key in flat if key.startswith("adapter.") and key != "adapter.name"]:
            del flat[key]
    if flat.get("ptq.formats", []) == []:
        flat.pop("ptq.operands", None)
    if isinstance(overrides := flat.get(_OVERRIDES), Mapping):
        flat[_OVERRIDES] = json.dumps([[n, _override(how)] for n, how in overrides.items()])
    if isinstance(formats := flat.get("ptq.formats"), list):
        flat["ptq.formats"] = sorted(formats)
    return {key: plain(value) for key, value in flat.items()}


def _flat(config: Config, above: str = "") -> Iterator[tuple[str, Value]]:
    for key, value in config.items():
        if f"{above}{key}" == _OVERRIDES:
            if value:
                yield _OVERRIDES, value
        elif isinstance(value, Mapping):
            yield from _flat(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


def _uses_run_precision(how: Value) -> bool:
    """Whether an override has operands to which neither it nor its recipe gives a format."""
    if not isinstance(how, Mapping) or how.get("precision"):
        return False
    flat = dict(_flat({"recipe": how.get("recipe", {})}))
    return any(
        flat.get(f"recipe.{slot}.rounding", "none") != "none"
        and not flat.get(f"recipe.{slot}.precision")
        for slot in _SLOTS
    )


def _override(how: Value) -> Value:
    """What an override does: None, or its format and its recipe's keys that have an effect."""
    if not isinstance(how, Mapping):
        return how
    said = science({"recipe": how.get("recipe", {})})
    there = {key: value for key, value in said.items() if value is not None}
    effective = {k: v for k, v in there.items() if k not in ABSENT or v != plain(ABSENT[k])}
    return [how.get("precision", ""), dict(sorted(effective.items()))]


def plain(value: Value) -> Value:
    """A key's value in the form of `science`."""
    if isinstance(value, list):
        return json.dumps(value)
    return None if value == "" else value


def _without_effect(flat: dict[str, Value]) -> None:
    """Remove the keys that a recipe does not use."""
    rounding = {
        slot: flat.get(f"recipe.{slot}.rounding")
        for slot in _SLOTS
        if f"recipe.{slot}.rounding" in flat
    }
    if not rounding:
        scored = flat.get("ptq.formats", [])
        for key in [key for key in flat if key.startswith("recipe.") and key != _OVERRIDES]:
            if not (scored and key.startswith("recipe.keep")):
                del flat[key]
    if "attention.value" not in rounding:
        flat.pop("recipe.attention.value_along", None)
    used = any(
        how != "none" and not flat.get(f"recipe.{slot}.precision") for slot, how in rounding.items()
    ) or any(map(_uses_run_precision, flat.get(_OVERRIDES, {}).values()))
    for key in [key for key in flat if key.startswith("precision.")]:
        if not used:
            del flat[key]
    if flat.get("precision.granularity") in ("row", "tensor"):
        flat.pop("precision.block_size", None)


def swept(
    configs: Sequence[Config], columns: Mapping[str, Sequence[Value]]
) -> dict[str, list[Value]]:
    """The keys in which runs differ, as columns; None for a run to which the key does not apply.

    Args:
        configs: The runs' configurations, as their records hold them.
        columns: The same runs' columns.  A key that says no more than these is left out.
    """
    each = complete(configs)
    keys = sorted({key for run in each for key in run})
    found = {}
    for key in keys:
        values = [run.get(key) for run in each]
        if len(set(values)) > 1 and not _told(key, values, columns):
            found[key] = values
    return found


def constant(configs: Sequence[Config]) -> dict[str, Value]:
    """The keys that all runs have and in which they agree, with their values."""
    each = complete(configs)
    first = each[0] if each else {}
    return {
        key: value
        for key, value in sorted(first.items())
        if all(key in run and run[key] == value for run in each)
    }


def complete(configs: Sequence[Config]) -> list[dict[str, Value]]:
    """Each run's `science`, with keys that are newer than its record filled in."""
    every = {key for config in configs for key, _ in _flat(config)}
    missing = {key: value for key, value in ABSENT.items() if key in every}
    return [science(_with(config, missing)) for config in configs]


def _with(config: Config, missing: Mapping[str, Value]) -> Config:
    """A configuration with missing keys and sections filled in, but not missing operands."""
    filled = dict(config)
    for name, value in missing.items():
        *above, key = name.split(".")
        absent: Value = None if name.startswith(_OPERANDS) else {}
        place: Value = filled
        for part in above:
            below = place.get(part, absent)
            if not isinstance(below, Mapping):
                break
            place[part] = place = dict(below)
        else:
            place.setdefault(key, value)
    return filled


def _told(key: str, values: Sequence[Value], columns: Mapping[str, Sequence[Value]]) -> bool:
    """Whether columns of the record tell as much as a key."""
    told = [columns[name] for name in _TOLD.get(key.partition(".")[0], ()) if name in columns]
    if not told:
        return False
    groups = list(zip(*told, strict=True))
    return len(set(zip(groups, values, strict=True))) == len(set(groups))
