"""Runs as configurations make them, with losses of our own."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from experiments.config.read import from_hydra
from experiments.config.schema import TrainConfig
from experiments.run.identity import numerics_version, run_id
from experiments.run.record import design
from fitting.results.record import RunRecord, write_exclusive

QUANTIZED = {
    "recipe": {
        "name": "nearest",
        "output": {"input": {}, "weight": {}},
        "grad_input": {"grad_output": {}, "weight": {}},
        "grad_weight": {"grad_output": {}, "input": {}},
    },
    "precision": {"exponent": 1, "mantissa": 1, "granularity": "row"},
}


SMALL = {"tokens": 65_536, "batch_size": 8, "data": {"seq_len": 64}, "tracking": {"mode": "none"}}


def config(*parts: dict[str, Any], **keys: Any) -> TrainConfig:
    """The defaults with `parts` and dotted keys put in."""
    whole = OmegaConf.merge(SMALL, *parts)
    for key, value in keys.items():
        OmegaConf.update(whole, key, value, force_add=True)
    return from_hydra(whole)  # type: ignore[arg-type]


def record(run: TrainConfig, loss: float, **changes: Any) -> RunRecord:
    """What such a run leaves, with a loss of our own."""
    known = design(run, run.steps)
    made = RunRecord(
        run_id=run_id(run), status="finished", loss=loss, train_loss=loss, bits_per_byte=None,
        unique_tokens=known["tokens"], wall_seconds=1.0, tokens_per_second=1.0, attempts=1,
        corpus="techdocs-v1-0123456789ab", numerics_version=numerics_version(run),
        config=dataclasses.asdict(run), **known,
    )  # fmt: skip
    return dataclasses.replace(made, **changes)


def folder(place: Path, records: list[RunRecord]) -> Path:
    for each in records:
        (place / each.run_id).mkdir(parents=True)
        assert write_exclusive(each, place / each.run_id)
    return place
