"""The run record: the result of one training run, and the table that fits read.

A run writes `runs/<study>/<run_id>/result.json` once, atomically and exclusively, when it finished
or diverged; a failed attempt leaves `failure.json` of the same shape beside it.  This module is the
whole contract between training and fitting: training imports nothing else from `fitting`, fitting
nothing at all from `experiments`.

One row is one run.  `exponent`, `mantissa`, `block_size` describe the format of the quantized
operands; a run without any has the format of its compute dtype and `block_size` 1, so that the
law's log2(block_size) is zero exactly as in Sun et al. (2501.02423, Eq. 1).
"""

from __future__ import annotations

import json
import math
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING

from fitting.files.atomic import create_exclusive
from fitting.files.own_json import DamagedError, JsonObject, ResultsError, read_object, strict
from fitting.results.values import SCHEMA_VERSION, check, operand_values, short

if TYPE_CHECKING:  # a worker that writes one record needs no tables
    pass

RESULT = "result.json"
FAILURE = "failure.json"
STATUSES = ("finished", "diverged", "failed")
OPERAND_VALUES = ("exact", "rounded")
REMEDY = "delete it and run the command again; the run is made anew"
"""What to do about a damaged result or failure of a run."""


class DamagedWarning(UserWarning):
    """A run is left out because its record is damaged."""


@dataclass(frozen=True)
class RunRecord:
    """One training run, as every fit and report sees it.

    Units: losses in nats per token on the fixed validation stream, `bits_per_byte` in bits,
    `wall_seconds` in seconds over all attempts, `flops` in multiply-adds counted as two.
    """

    run_id: str
    study: str
    status: str
    """finished, diverged (a result: the loss is kept if finite) or failed (no result)."""
    model: str
    recipe: str
    exponent: int
    mantissa: int
    bits: int
    """1 + exponent + mantissa: sign included, scales not."""
    bits_with_scales: float
    """Storage per element, scales included: MXFP4 4.25."""
    block_size: float
    """Elements that share a scale.  Per row or per tensor: 2 to the mean of log2 over operands."""
    granularity: str
    """none, block, tile, row or tensor."""
    scale: str
    """none, or the name of the scales' format and rule, e.g. fp32, e8m0, e4m3."""
    operands: str
    """The quantized ones of P1..P6 (Sun et al.), e.g. "P2 P4 P6"; empty for none."""
    operand_values: str = field(default="exact", kw_only=True)
    """exact: the multiplied values are numbers of the operands' formats; rounded: the compute dtype
    rounded them again (runs in bfloat16 of a version before 0.2)."""
    err_input: float | None = field(default=None, kw_only=True)
    """Relative squared error of P1 on normal data, its rounding included; 0 if not quantized.  The
    next five say the same of P2 to P6, in that order, named as in the recipe.  None in older
    records."""
    err_weight: float | None = field(default=None, kw_only=True)
    err_grad_input_grad_output: float | None = field(default=None, kw_only=True)
    err_grad_input_weight: float | None = field(default=None, kw_only=True)
    err_grad_weight_grad_output: float | None = field(default=None, kw_only=True)
    err_grad_weight_input: float | None = field(default=None, kw_only=True)
    params: int
    """Matrices inside the blocks: the papers' N.  No embedding, head or norm."""
    params_head: int
    params_embedding: int
    params_total: int
    params_quantized: int
    tokens: int
    """Training tokens seen: the papers' D."""
    unique_tokens: int
    flops: float
    seed: int
    loss: float | None
    """Validation loss, nats per token; None if the run has none."""
    train_loss: float | None
    """Mean training loss of the last tenth of the run, nats per token."""
    merged_loss: float | None = field(default=None, kw_only=True)
    """Validation loss with the adapter's product in the weights, as the recipe quantizes them;
    None for a run without an adapter."""
    bits_per_byte: float | None
    wall_seconds: float
    tokens_per_second: float
    attempts: int
    corpus: str
    """Corpus name and the first 12 digits of its SHA-256: never pool two."""
    quantize_backend: str
    numerics_version: int
    reason: str = ""
    """The reason why it diverged or failed, one line."""
    metrics_sha256: str = ""
    weights_sha256: str = ""
    """Hash of the trained weights, in the order of their names: equal where all bits are."""
    diagnostics: JsonObject = field(default_factory=dict)
    """Summary of the measurements in training: by operand P1..P6 and measure the `mean` over
    layers and time and the `worst`, with its `layer`; `gradient`, by start, middle and end."""
    metrics: JsonObject = field(default_factory=dict)
    """Other measures of the validation part by name, as a task has them: accuracy."""
    ptq: JsonObject = field(default_factory=dict)
    """By the name of a format to which the trained weights were quantized: `loss` (validation,
    nats per token; None if it is not finite), `bits` of an element, `operands` (weights or
    weights_and_inputs), and `metrics` if the task has any."""
    provenance: JsonObject = field(default_factory=dict)
    """git_sha, git_dirty, versions, host, device, threads, compute_dtype, started, finished; of the
    layers the formats, or why they are in high precision."""
    config: JsonObject = field(default_factory=dict)
    """The whole resolved configuration."""
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        """Refuse a record that would mislead a fit."""
        if self.status not in STATUSES:
            raise ResultsError(f"status={self.status!r}: must be one of {', '.join(STATUSES)}")
        if self.operand_values not in OPERAND_VALUES:
            raise ResultsError(
                f"operand_values={self.operand_values!r}: must be one of "
                f"{', '.join(OPERAND_VALUES)}"
            )
        if self.status == "finished" and (self.loss is None or not math.isfinite(self.loss)):
            raise ResultsError(f"run {self.run_id}: finished with loss={self.loss}")

    @classmethod
    def from_json(cls, text: str) -> RunRecord:
        """Read one record; unknown keys, perhaps of a newer version, are an error, not a guess."""
        data = strict(text)
        if not isinstance(data, dict):
            raise ResultsError(f"holds a {type(data).__name__}, not an object")
        return cls.from_dict(data)

    @classmethod
    def from_dict(cls, data: JsonObject) -> RunRecord:
        """Check the types and ranges of what was read.

        Raises:
            ResultsError: A key has a wrong value; gives both and what would be right.
        """
        known = {f.name for f in fields(cls)}
        unknown = sorted(set(data) - known)
        if unknown:
            raise ResultsError(f"unknown keys {unknown}: written by a newer version?")
        needed = {f.name for f in fields(cls) if f.default is MISSING is f.default_factory}
        if missing := sorted(needed - set(data)):
            raise ResultsError(f"lacks {', '.join(missing)}")
        for f in fields(cls):
            if f.name in data:
                check(f.name, str(f.type), data[f.name])
        data.setdefault("operand_values", operand_values(data))
        return cls(**data)

    def to_json(self) -> str:
        """The record as strict JSON: NaN and infinity are errors here, not surprises later."""
        return json.dumps(asdict(self), indent=1, sort_keys=False, allow_nan=False) + "\n"


MAYBE_EMPTY = {"operands", "reason", "metrics_sha256", "weights_sha256"}
_NO_COLUMNS = ("diagnostics", "metrics", "ptq", "provenance", "config")
"""Those of `metrics` are columns by themselves, with `VALIDATION` before their names."""
VALIDATION = "validation_"
COLUMNS = tuple(f.name for f in fields(RunRecord) if f.name not in _NO_COLUMNS)


def write_exclusive(record: RunRecord, folder: Path) -> bool:
    """Write `result.json`, unless there is one.

    Returns:
        True if this call wrote it, False if a result was already there (and was left alone).
    """
    return create_exclusive(record.to_json(), folder / RESULT)


def read_record(folder: Path) -> RunRecord | None:
    """The result in one run's folder, else its failure, else None.

    Raises:
        DamagedError: It cannot be read, or is another run's.
    """
    for name in (RESULT, FAILURE):
        path = folder / name
        try:
            record = RunRecord.from_dict(read_object(path, REMEDY))
        except FileNotFoundError:
            continue
        except DamagedError:
            raise
        except ResultsError as error:
            raise DamagedError(path, f"not a run record: {error}", REMEDY) from error
        if record.run_id != folder.absolute().name:
            why = f"not a run record of this folder: run_id={short(record.run_id)}"
            raise DamagedError(path, why, REMEDY)
        if (record.status == "failed") != (name == FAILURE):
            raise DamagedError(path, f"not a run record: status={record.status}", REMEDY)
        return record
    return None


def look_at(folder: Path) -> tuple[RunRecord | None, str]:
    """A run's record from `read_record`, or the line that says what is wrong with it."""
    try:
        return read_record(folder), ""
    except DamagedError as error:
        return None, str(error)
