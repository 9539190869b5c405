"""From a finished, diverged or failed run to its `RunRecord`: every column in one place."""

from __future__ import annotations

import hashlib
import math
import platform
import subprocess
from dataclasses import asdict
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from experiments.accounting import count_parameters, flops_per_token
from experiments.config import TrainConfig
from experiments.identity import NUMERICS_VERSION
from experiments.data import TokenData
from experiments.model import Transformer
from experiments.quant.block import backend
from experiments.quant.linear import QuantLinear
from fitting.results import RunRecord

_RECORDED_VERSIONS = ("torch", "lightning", "ray", "wandb", "numpy", "hydra-core")


def make_record(
    config: TrainConfig,
    data: TokenData,
    *,
    run_id: str,
    status: str,
    reason: str,
    steps: int,
    loss: float | None,
    train_loss: float | None,
    wall_seconds: float,
    attempts: int,
    metrics: Path,
    weights_sha256: str,
    started: datetime,
) -> RunRecord:
    """The record of one run.

    Args:
        config: What was asked for.
        data: What it was trained on.
        run_id: The run's address.
        status: finished, diverged or failed.
        reason: Why it diverged or failed.
        steps: Optimizer steps taken.
        loss: Validation loss, nats per token.
        train_loss: Of the last tenth, nats per token.
        wall_seconds: Training time over all attempts.
        attempts: How often it was started.
        metrics: The loss curve's file.
        weights_sha256: Of the trained weights; "" where there are none.
        started: Of the last attempt.
    """
    model, quantized = config.model, config.recipe.quantized
    count = count_parameters(model)
    tokens = steps * config.batch_tokens
    (exponent, mantissa), sharing, bits_with_scales = _format_of(config)
    bytes_per_token = data.bytes_per_token
    return RunRecord(
        run_id=run_id,
        study=config.study.name,
        status=status,
        model=model.name,
        recipe=config.recipe.name,
        exponent=exponent,
        mantissa=mantissa,
        bits=1 + exponent + mantissa,
        bits_with_scales=bits_with_scales,
        block_size=sharing,
        granularity=config.precision.granularity if quantized else "none",
        scale=config.precision.scale if quantized else "none",
        operands=" ".join(quantized),
        params=count.block,
        params_head=count.head,
        params_embedding=count.embedding,
        params_total=count.total,
        params_quantized=count.block if quantized else 0,
        tokens=tokens,
        unique_tokens=data.unique_tokens(steps, config.batch_size),
        flops=tokens * flops_per_token(model, config.data.seq_len),
        seed=config.seed,
        loss=loss,
        train_loss=train_loss,
        bits_per_byte=loss / math.log(2) / bytes_per_token if loss and bytes_per_token else None,
        wall_seconds=wall_seconds,
        tokens_per_second=tokens / wall_seconds if wall_seconds else 0.0,
        attempts=attempts,
        corpus=data.label,
        quantize_backend=backend(config.precision.build(), config.resources.device)
        if quantized
        else "none",
        numerics_version=NUMERICS_VERSION,
        reason=reason,
        metrics_sha256=hashlib.sha256(metrics.read_bytes()).hexdigest()
        if metrics.is_file()
        else "",
        weights_sha256=weights_sha256,
        provenance=provenance(config, started),
        config=asdict(config),
    )


def _format_of(config: TrainConfig) -> tuple[tuple[int, int], float, float]:
    """(exponent, mantissa) bits, elements that share a scale, and bits with scales.

    Where the granularity is a row or the whole tensor the count differs between operands; the
    geometric mean is taken, for the laws take its logarithm.
    """
    if not config.recipe.quantized:
        bits = (8, 7) if config.compute_dtype == "bfloat16" else (8, 23)
        return bits, 1.0, float(1 + sum(bits))
    precision = config.precision.build()
    with torch.device("meta"):  # only the shapes are wanted
        model = Transformer(config.model, config.recipe, precision)
    rows = config.batch_tokens
    shapes = []
    for layer in model.modules():
        if isinstance(layer, QuantLinear):
            into, out = layer.in_features, layer.out_features
            shape_of = {
                "P1": (rows, into),
                "P2": (out, into),
                "P3": (rows, out),
                "P4": (into, out),
                "P5": (out, rows),
                "P6": (into, rows),
            }
            shapes += [shape_of[label] for label in config.recipe.quantized]
    elements = sum(r * c for r, c in shapes)
    mean_log2 = sum(math.log2(precision.sharing(r, c)) for r, c in shapes) / len(shapes)
    bits_with_scales = sum(r * c * precision.bits_per_element(r, c) for r, c in shapes) / elements
    return (config.precision.exponent, config.precision.mantissa), 2.0**mean_log2, bits_with_scales


def provenance(config: TrainConfig, started: datetime) -> dict[str, Any]:
    """Where and with what a run was made: recorded, never part of its identity."""
    sha, dirty = _git_state()
    return {
        "git_sha": sha,
        "git_dirty": dirty,
        "versions": {name: metadata.version(name) for name in _RECORDED_VERSIONS},
        "python": platform.python_version(),
        "host": platform.node(),
        "device": torch.cuda.get_device_name()
        if config.resources.device == "cuda"
        else platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "compute_dtype": config.compute_dtype,
        "started": started.isoformat(timespec="seconds"),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _git_state() -> tuple[str, bool]:
    """Commit and dirty flag of the checkout this code runs from; ("", False) for a wheel."""
    here = Path(__file__).parent

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(here), *arguments], capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", __file__)  # installed below somebody else's checkout?
        code = [str(here), str(here.parent / "conf"), str(here.parent / "fitting")]
        return git("rev-parse", "HEAD"), bool(git("status", "--porcelain", "--", *code))
    except (OSError, subprocess.CalledProcessError):
        return "", False
