"""One run record, and a way to write others like it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from fitting.results.record import RunRecord, write_exclusive

RECORD = RunRecord(
    run_id="a-e2m1-0123456789ab",
    study="demo",
    status="finished",
    model="a",
    recipe="sun",
    exponent=2,
    mantissa=1,
    bits=4,
    bits_with_scales=4.25,
    block_size=32.0,
    granularity="block",
    scale="e8m0",
    operands="P2 P4 P6",
    params=40_894_464,
    params_head=131_072,
    params_embedding=131_072,
    params_total=41_156_608,
    params_quantized=40_894_464,
    tokens=10_485_760_000,
    unique_tokens=10_485_760_000,
    flops=2.57e18,
    seed=3,
    loss=3.1234567890123456,
    train_loss=3.1,
    bits_per_byte=1.2,
    wall_seconds=12.5,
    tokens_per_second=1e6,
    attempts=1,
    corpus="techdocs-v1 0123456789ab",
    quantize_backend="plain",
    numerics_version=1,
    provenance={"git_sha": "f" * 40, "threads": 1},
    config={"seed": 3, "model": {"layers": 2}},
)


def save(folder: Path, **changes: Any) -> RunRecord:
    """Write one run into its own folder."""
    record = dataclasses.replace(RECORD, **changes)
    run = folder / record.run_id
    run.mkdir(parents=True, exist_ok=True)
    assert write_exclusive(record, run)
    return record
