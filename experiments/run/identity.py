"""A run's address: what its result depends on, and nothing else."""

from __future__ import annotations

import hashlib
import json
import math
import re
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any

from experiments.config.schema import TrainConfig
from experiments.data.batches import corpus_sha256
from experiments.optim import OptimConfig

NUMERICS_VERSION = 2
"""Raised by hand when a change alters losses: it is part of every run's address."""
_BFLOAT16_NUMERICS_VERSION = 3
"""The same of quantized operands that are multiplied in bfloat16, which 2 rounded again."""


def numerics_version(config: TrainConfig) -> int:
    """Which generation of the arithmetic a run's losses belong to."""
    quantizes = config.recipe.quantized or config.ptq.formats
    in_bfloat16 = config.compute_dtype == "bfloat16"
    return _BFLOAT16_NUMERICS_VERSION if quantizes and in_bfloat16 else NUMERICS_VERSION


def science(config: TrainConfig) -> dict[str, Any]:
    """What a run's result depends on, and nothing else: no paths, names, resources or logging.

    The precision is left out of a run that quantizes nothing to it, so that a sweep over formats
    has one baseline and not one a format.
    """
    model = asdict(config.model)
    data = asdict(config.data)
    del model["name"]
    for key in ("name", "path", "max_epochs"):  # where it lies, and what is allowed
        del data[key]
    identity = {
        "model": model,
        "data": {**data, "sha256": corpus_sha256(config.data)},
        "optim": _optim(config.optim),
        "steps": config.steps,
        "batch_size": config.batch_size,
        "compute_dtype": config.compute_dtype,
        "seed": config.seed,
        "numerics_version": numerics_version(config),
    }
    if config.recipe.quantized:
        identity["recipe"] = _recipe(config.recipe)
    if config.recipe.uses_run_precision:
        precision = asdict(config.precision)
        if config.precision.granularity in ("row", "tensor"):
            del precision["block_size"]
        if config.precision.kind == "float":  # the key is younger than the addresses
            del precision["kind"]
        identity["precision"] = precision
    if config.ptq.formats:
        scored = {"formats": sorted(config.ptq.precisions()), "operands": config.ptq.operands}
        if not config.recipe.quantized:  # otherwise the layers that it keeps are named above
            named = _recipe(config.recipe)
            scored |= {key: named[key] for key in named if key.startswith("keep")}
        identity["ptq"] = scored
    return identity


_FIRST_OPTIM_KEYS = "lr beta1 beta2 eps weight_decay clip_norm warmup final_lr".split()


def _optim(optim: OptimConfig) -> dict[str, Any]:
    """Of the keys younger than the addresses those off their default that have an effect."""
    effect = {
        "weights_rounding": optim.weights != "",
        "state_rounding": optim.state != "",
        "loss_scale_interval": optim.loss_scale == "dynamic",
    }
    return {
        f.name: getattr(optim, f.name)
        for f in fields(optim)
        if f.name in _FIRST_OPTIM_KEYS
        or (getattr(optim, f.name) != f.default and effect.get(f.name, True))
    }


_FIRST_RECIPE_KEYS = (
    "output grad_input grad_weight input weight grad_output rounding hadamard signs".split()
)


def _recipe(part: Any) -> dict[str, Any]:
    """A recipe or a part of it; keys younger than the addresses only off their default."""
    named = {}
    for f in fields(part):
        value = getattr(part, f.name)
        default = f.default_factory() if callable(f.default_factory) else f.default
        if f.name in _FIRST_RECIPE_KEYS or (f.name != "name" and value != default):
            named[f.name] = _recipe(value) if is_dataclass(value) else value
    return named


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
