"""A run's address: what its result depends on, and nothing else."""

from __future__ import annotations

import hashlib
import json
import math
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

from experiments.config import TrainConfig
from experiments.data import corpus_sha256

NUMERICS_VERSION = 1
"""Raised by hand when a change alters losses: it is part of every run's address."""


def science(config: TrainConfig) -> dict[str, Any]:
    """What a run's result depends on, and nothing else: no paths, names, resources or logging.

    The precision of a run that quantizes nothing is left out, so that a sweep over formats has
    one baseline and not one a format.
    """
    model = asdict(config.model)
    data = asdict(config.data)
    recipe = asdict(config.recipe)
    for labelled in (model, recipe):
        del labelled["name"]
    for key in ("name", "path", "max_epochs"):  # where it lies, and what is allowed
        del data[key]
    identity = {
        "model": model,
        "data": {**data, "sha256": corpus_sha256(config.data)},
        "optim": asdict(config.optim),
        "steps": config.steps,
        "batch_size": config.batch_size,
        "compute_dtype": config.compute_dtype,
        "seed": config.seed,
        "numerics_version": NUMERICS_VERSION,
    }
    if config.recipe.quantized:
        precision = asdict(config.precision)
        if config.precision.granularity in ("row", "tensor"):
            del precision["block_size"]
        if config.precision.kind == "float":  # the key is younger than the addresses
            del precision["kind"]
        identity |= {"recipe": recipe, "precision": precision}
    return identity


def run_id(config: TrainConfig) -> str:
    """A readable slug and 12 hex digits of the SHA-256 of `science`."""
    canonical = json.dumps(science(config), sort_keys=True, separators=(",", ":"))
    digest = hashlib.sha256(canonical.encode()).hexdigest()[:12]
    parts = [config.recipe.name]
    if config.recipe.quantized:
        parts.append(config.precision.label)
    parts += [config.model.name, _short(config.steps * config.batch_tokens), f"s{config.seed}"]
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
