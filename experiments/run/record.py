"""The `RunRecord` of a finished, diverged or failed run: every column in one place."""

from __future__ import annotations

import functools
import hashlib
import math
import platform
import subprocess
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from experiments.accounting import count_parameters
from experiments.config.schema import TrainConfig
from experiments.data.batches import Batches
from experiments.finetune.config import LOW_RANK
from experiments.models.build import shape_of
from experiments.paths import package_dir
from experiments.quant.block import backend
from experiments.quant.formats import Precision
from experiments.quant.normal_error import recipe_errors
from experiments.quant.recipe import SLOTS, RecipeConfig
from experiments.quant.slots import ATTENTION
from experiments.run.identity import numerics_version, quantization
from experiments.run.layers import layers_of
from experiments.tasks.choose import task_of
from fitting.results.record import RunRecord
from fitting.results.table import ERROR_DIGITS

_RECORDED_VERSIONS = ("torch", "lightning", "ray", "wandb", "numpy", "hydra-core")


@dataclass(frozen=True)
class Scored:
    """What the validation part gave."""

    loss: float | None
    """None if it is not finite."""
    metrics: dict[str, float]
    """The task's other measures, by name."""


def finite(metrics: Mapping[str, float]) -> dict[str, float]:
    """Those measures that are numbers."""
    return {name: value for name, value in metrics.items() if math.isfinite(value)}


def make_record(
    config: TrainConfig,
    data: Batches,
    *,
    run_id: str,
    status: str,
    reason: str,
    steps: int,
    loss: float | None,
    train_loss: float | None,
    wall_seconds: float,
    attempts: int,
    curve: Path,
    weights_sha256: str,
    started: datetime,
    diagnostics: dict[str, Any],
    metrics: dict[str, float],
    ptq: dict[str, Scored],
    merged_loss: float | None,
) -> RunRecord:
    """The record of one run.

    Args:
        config: The run's configuration.
        data: The data it was trained on.
        run_id: The run's address.
        status: finished, diverged or failed.
        reason: Why it diverged or failed.
        steps: Optimizer steps taken.
        loss: Validation loss, nats per token.
        train_loss: Mean of the last tenth, nats per token.
        wall_seconds: Training time over all attempts.
        attempts: Number of times it was started.
        curve: The loss curve's file.
        weights_sha256: Hash of the trained weights; "" if there are none.
        started: Start of the last attempt.
        diagnostics: Summary of the diagnostics.
        metrics: Other measures of the validation part, by name.
        ptq: What the validation part gave, by format of the weights.
        merged_loss: Validation loss with the adapter merged; None if there is none.
    """
    tokens = steps * config.batch_tokens
    bytes_per_token = data.bytes_per_token
    return RunRecord(
        run_id=run_id,
        status=status,
        unique_tokens=data.unique_tokens(steps, config.batch_size),
        loss=loss,
        train_loss=train_loss,
        bits_per_byte=loss / math.log(2) / bytes_per_token if loss and bytes_per_token else None,
        wall_seconds=wall_seconds,
        tokens_per_second=tokens / wall_seconds if wall_seconds else 0.0,
        attempts=attempts,
        corpus=data.label,
        numerics_version=numerics_version(config),
        reason=reason,
        metrics_sha256=hashlib.sha256(curve.read_bytes()).hexdigest() if curve.is_file() else "",
        weights_sha256=weights_sha256,
        diagnostics=diagnostics,
        metrics=metrics,
        ptq={
            name: {
                "loss": ptq[name].loss,
                "bits": precision.element.bits,
                "operands": config.ptq.operands,
            }
            | ({"metrics": ptq[name].metrics} if ptq[name].metrics else {})
            for name, precision in config.ptq.precisions().items()
            if name in ptq
        },
        merged_loss=merged_loss,
        provenance=provenance(config, started),
        config=asdict(config),
        **design(config, steps),
    )


def design(config: TrainConfig, steps: int) -> dict[str, Any]:
    """The columns of a run's record that are known before it is run.

    Args:
        config: The run's configuration.
        steps: Optimizer steps taken, or to take.
    """
    model = config.model
    count = count_parameters(model)
    tokens = steps * config.batch_tokens
    formats = _format_of(config)
    return {
        "study": config.study.name,
        "model": model.name,
        "recipe": config.recipe.name,
        "exponent": formats.exponent,
        "mantissa": formats.mantissa,
        "bits": 1 + formats.exponent + formats.mantissa,
        "bits_with_scales": formats.bits_with_scales,
        "block_size": formats.sharing,
        "granularity": formats.granularity,
        "scale": formats.scale,
        "operands": " ".join(_operands(config.recipe)),
        "operand_values": "exact",  # QuantLinear has no other way
        **{SLOTS[label].error: error for label, error in formats.errors.items()},
        "params": count.block,
        "params_head": count.head,
        "params_embedding": count.embedding,
        "params_total": count.total,
        "params_quantized": formats.params,
        "tokens": tokens,
        "flops": tokens * task_of(config).flops_per_token(),
        "seed": config.seed,
        "quantize_backend": formats.backend,
    }


def _operands(recipe: RecipeConfig) -> list[str]:
    """The operands that a recipe or any of its overrides quantizes, of linear layers first."""
    found = {o for each in recipe.recipes() for o in (*each.quantized, *each.attention.quantized)}
    return [label for label in (*SLOTS, *ATTENTION) if label in found]


def columns(config: TrainConfig) -> dict[str, int | str]:
    """Columns to group and sort runs by in W&B, named by the letters of the papers.

    E, M, bits and N are the record's exponent, mantissa, bits and params; D is its tokens, once the
    run is through.
    """
    known = design(config, config.steps)
    letters = {"E": "exponent", "M": "mantissa", "bits": "bits", "N": "params", "D": "tokens"}
    return {"quantization": quantization(config)} | {
        letter: known[name] for letter, name in letters.items()
    }


@dataclass(frozen=True)
class _Formats:
    """The record's facts about the quantized operands."""

    exponent: int
    mantissa: int
    sharing: float
    """Elements that share a scale."""
    bits_with_scales: float
    granularity: str
    scale: str
    errors: dict[str, float]
    """By label, the operand's relative squared error on normal data."""
    params: int
    """Parameters in quantized layers."""
    backend: str


def _format_of(config: TrainConfig) -> _Formats:
    """The formats of a run in one row.

    Element, granularity and scale are those of the first quantized operand, P1 before P2 and so
    on, where the recipe gives operands formats of their own, and of the run's recipe where
    overrides have others.  Bits with scales is the mean over all elements of all operands of all
    quantized layers, errors are means over these layers; attention has no part in it.  The number
    that shares a scale differs between operands if that is a row or a whole tensor; the geometric
    mean is taken, because the laws take its logarithm.  If a run has several processes, each
    quantizes its own share of a batch: that is what shares a scale.
    """
    run, shape = config.precision.build(), shape_of(config.model)
    task = task_of(config)
    layers = [
        (name, matrix, treated.recipe, treated.format_of(run))
        for name, (matrix, treated) in shape.quantized(config.recipe).items()
        if treated.recipe is not None
    ]
    if not layers:
        exponent, mantissa = (8, 7) if config.compute_dtype == "bfloat16" else (8, 23)
        bits = float(1 + exponent + mantissa)
        return _Formats(
            exponent, mantissa, 1.0, bits, "none", "none", dict.fromkeys(SLOTS, 0.0), 0, "none"
        )
    count = sum(matrix.copies for _, matrix, _, _ in layers)

    def shapes(rows: int, into: int, out: int) -> dict[str, tuple[int, int]]:
        return {
            "P1": (rows, into),
            "P2": (out, into),
            "P3": (rows, out),
            "P4": (into, out),
            "P5": (out, rows),
            "P6": (into, rows),
        }

    operands, errors, backends = [], dict.fromkeys(SLOTS, 0.0), set()
    seen: Counter[tuple[Any, ...]] = Counter()
    kinds: dict[tuple[Any, ...], tuple[RecipeConfig, Precision]] = {}
    for name, matrix, recipe, precision in layers:
        rows = max(1, round(config.rows * task.rows_per_token(name) * matrix.share))
        sizes = rows, matrix.in_features, matrix.out_features
        precisions = recipe.precisions(precision)
        labels = tuple(label for label in recipe.quantized if label in matrix.labels)
        operands += [(precisions[at], *shapes(*sizes)[at], matrix.copies) for at in labels]
        backends |= {backend(precisions[at], config.resources.device) for at in labels}
        if any(rounding.moves_scales for rounding in recipe.roundings().values()):
            backends.add("torch")
        key = id(recipe), precision, labels, sizes  # many products have few shapes
        seen[key] += matrix.copies
        kinds[key] = recipe, precision
    for key, times in seen.items():
        recipe, precision = kinds[key]
        *_, labels, sizes = key
        precisions = recipe.precisions(precision)
        sharing = {label: precisions[label].sharing(*shapes(*sizes)[label]) for label in precisions}
        for label, error in recipe_errors(recipe, precision, sharing).items():
            errors[label] += error * times / count if label in labels else 0.0
    elements = sum(r * c * n for _, r, c, n in operands)
    mean_log2 = sum(math.log2(p.sharing(r, c)) * n for p, r, c, n in operands)
    mean_log2 /= sum(n for *_, n in operands)
    own = [layer for layer in layers if layer[2] is config.recipe]
    _, _, recipe, precision = (own or layers)[0]
    first = recipe.precisions(precision)[recipe.quantized[0]]
    return _Formats(
        first.element.exponent,
        first.element.mantissa,
        2.0**mean_log2,
        sum(r * c * n * p.bits_per_element(r, c) for p, r, c, n in operands) / elements,
        first.granularity,
        first.scale.value,
        # A mean of equal numbers may differ from them in its last bit, and models by that.
        {label: float(f"{error:.{ERROR_DIGITS}g}") for label, error in errors.items()},
        sum(matrix.in_features * matrix.out_features * matrix.copies for _, matrix, _, _ in layers),
        "+".join(sorted(backends)),
    )


def provenance(config: TrainConfig, started: datetime) -> dict[str, Any]:
    """The origin of a run (code, machine, time): recorded, never part of its identity."""
    sha, dirty = _git_state()
    versions = (
        *_RECORDED_VERSIONS,
        *(("transformers",) if config.model.from_transformers else ()),
        *(("peft",) if config.adapter.name in LOW_RANK else ()),
    )
    return {
        "git_sha": sha,
        "git_dirty": dirty,
        "versions": {name: metadata.version(name) for name in versions},
        "python": platform.python_version(),
        "host": platform.node(),
        "device": torch.cuda.get_device_name()
        if config.resources.device == "cuda"
        else platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "compute_dtype": config.compute_dtype,
        "layers": {layer.name: layer.said for layer in layers_of(config).layers},
        "started": started.isoformat(timespec="seconds"),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }


@functools.cache
def _git_state() -> tuple[str, bool]:
    """Commit and dirty flag of the checkout from which this code runs; ("", False) for a wheel."""
    here = package_dir()

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(here), *arguments], capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    try:
        git(
            "ls-files", "--error-unmatch", str(here / "paths.py")
        )  # installed below somebody else's checkout?
        code = [str(here), str(here.parent / "conf"), str(here.parent / "fitting")]
        return git("rev-parse", "HEAD"), bool(git("status", "--porcelain", "--", *code))
    except (OSError, subprocess.CalledProcessError):
        return "", False
