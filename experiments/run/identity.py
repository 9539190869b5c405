"""A run's address: everything that its result depends on, and nothing else."""

from __future__ import annotations

import functools
import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from experiments.config.schema import TrainConfig, leaves
from experiments.quant.recipe import OperandConfig
from experiments.tasks.choose import task_of
from fitting.results import swept

NUMERICS_VERSION = 4
"""Raised by hand when a change alters losses or addresses: it is part of every run's address.

Where quantized operands are multiplied in bfloat16, version 3 computed the same as 4; elsewhere
version 2 did.
"""
_ENDS_IN_HIGH_PRECISION = 5
"""The version of runs that do: version 4 scored them quantized.  All others are as they were."""


def numerics_version(config: TrainConfig) -> int:
    """The version of the numerics that a run's result depends on."""
    share = config.recipe.high_precision_share if config.recipe.quantizes else 0.0
    return _ENDS_IN_HIGH_PRECISION if share else NUMERICS_VERSION


def science(config: TrainConfig) -> dict[str, Any]:
    """The settings that a run's result depends on, by dotted keys: no paths, names or resources.

    A key without an effect is left out, so that a sweep over formats has one baseline and not one
    per format; so is a key at its default, so that a new key leaves the addresses as they are.
    """
    values = asdict(config)
    values["ptq"]["formats"] = list(config.ptq.precisions())
    base = {"base.sha256": config.base.sha256} if config.init_from else {}
    return (
        off_default(values)
        | base
        | {
            "corpus": task_of(config).corpus(),
            "steps": config.steps,
            "seed": config.seed,
            "numerics_version": numerics_version(config),
        }
    )


def off_default(values: Mapping[str, Any]) -> dict[str, Any]:
    """The keys that have an effect and are not at their default, of a configuration in a record.

    Records of an older version may lack keys, which then did not exist: as if at their default.
    """
    defaults = _defaults()
    said = swept.science(values)
    return {key: value for key, value in said.items() if value != defaults.get(key, _NEVER)}


_NEVER = object()
"""The default of a key that is always hashed."""


@functools.cache
def _defaults() -> dict[str, Any]:
    """The default of every key, those of an operand included, which is there or not as a whole."""
    found = dict(leaves(TrainConfig()))
    operands = [key for key, value in found.items() if value is None]
    for name, value in leaves(OperandConfig()):
        if name != "rounding":  # it says that the operand is there
            found |= {f"{operand}.{name}": value for operand in operands}
    return {key: swept.plain(value) for key, value in found.items()}


def quantization(config: TrainConfig) -> str:
    """The recipe's name, and the run's precision where it is used: "none", "sun E2M1-row-fp32"."""
    precision = [config.precision.label] if config.recipe.uses_run_precision else []
    return " ".join([config.recipe.name, *precision])


def run_id(config: TrainConfig) -> str:
    """A readable slug and 12 hex digits of the SHA-256 of `science`."""
    canonical = json.dumps(science(config), sort_keys=True, separators=(",", ":"))
    digest = hashlib.sha256(canonical.encode()).hexdigest()[:12]
    parts = [quantization(config), config.model.name]
    parts += [_short(config.steps * config.batch_tokens), f"s{config.seed}"]
    slug = re.sub(r"[^A-Za-z0-9.]+", "-", "-".join(parts))
    return f"{slug}-{digest}"


def run_folder(config: TrainConfig) -> Path:
    """Where a run's files lie."""
    return Path(config.runs).absolute() / config.study.name / run_id(config)


def _short(count: int) -> str:
    """1_048_576 as 1.05M.

    >>> _short(1_048_576), _short(20_480)
    ('1.05M', '20.5k')
    """
    power = min(3, int(math.log10(max(count, 1)) // 3))
    return f"{count / 1000**power:.3g}{['', 'k', 'M', 'B'][power]}"
