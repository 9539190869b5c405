"""The run record: what one training run leaves behind, and the table that fits read.

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
import os
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fitting.entry import Refusal

if TYPE_CHECKING:  # a worker that writes one record needs no tables
    import pandas as pd

SCHEMA_VERSION = 1
RESULT = "result.json"
FAILURE = "failure.json"
STUDY = "study.json"
STATUSES = ("finished", "diverged", "failed")


class ResultsError(Refusal):
    """A results table that cannot be used, with what would be right."""


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
    """Validation loss, nats per token; None where the run has none."""
    train_loss: float | None
    """Mean training loss of the last tenth of the run, nats per token."""
    bits_per_byte: float | None
    wall_seconds: float
    tokens_per_second: float
    attempts: int
    corpus: str
    """Corpus name and the first 12 digits of its SHA-256: never pool two."""
    quantize_backend: str
    numerics_version: int
    reason: str = ""
    """Why it diverged or failed, one line."""
    metrics_sha256: str = ""
    weights_sha256: str = ""
    """Of the trained weights, in the order of their names: what "the same bits" is checked by."""
    diagnostics: dict[str, Any] = field(default_factory=dict)
    """What was measured in training, summarised: by operand P1..P6 and measure the `mean` over
    layers and time and the `worst`, with its `layer`; `gradient`, by start, middle and end."""
    ptq: dict[str, Any] = field(default_factory=dict)
    """By the name of a format to which the trained weights were quantized: `loss` (validation,
    nats per token; None where it is not finite), `bits` of an element, `operands` (weights or
    weights_and_inputs)."""
    provenance: dict[str, Any] = field(default_factory=dict)
    """git_sha, git_dirty, versions, host, device, threads, compute_dtype, started, finished."""
    config: dict[str, Any] = field(default_factory=dict)
    """The whole resolved configuration."""
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        """Refuse a record that would mislead a fit."""
        if self.status not in STATUSES:
            raise ResultsError(f"status={self.status!r}: must be one of {', '.join(STATUSES)}")
        if self.status == "finished" and (self.loss is None or not np.isfinite(self.loss)):
            raise ResultsError(f"run {self.run_id}: finished with loss={self.loss}")

    @classmethod
    def from_json(cls, text: str) -> RunRecord:
        """Read one record; keys that a newer version may have added are an error, not a guess."""
        data = json.loads(text)
        known = {f.name for f in fields(cls)}
        unknown = sorted(set(data) - known)
        if unknown:
            raise ResultsError(f"unknown keys {unknown}: written by a newer version?")
        return cls(**data)

    def to_json(self) -> str:
        """Strict JSON: a NaN or an infinity is an error here, not a surprise for the reader."""
        return json.dumps(asdict(self), indent=1, sort_keys=False, allow_nan=False) + "\n"


_MAYBE_EMPTY = {"operands", "reason", "metrics_sha256", "weights_sha256"}
_NO_COLUMNS = ("diagnostics", "ptq", "provenance", "config")
COLUMNS = tuple(f.name for f in fields(RunRecord) if f.name not in _NO_COLUMNS)
NUMERIC_COLUMNS = (
    "exponent mantissa bits bits_with_scales block_size params params_head params_embedding "
    "params_total params_quantized tokens unique_tokens flops seed loss train_loss bits_per_byte "
    "wall_seconds tokens_per_second attempts numerics_version schema_version"
).split()


def write_exclusive(record: RunRecord, folder: Path) -> bool:
    """Write `result.json`, unless there is one.

    Returns:
        True if this call wrote it, False if a result was already there (and was left alone).
    """
    return create_exclusive(record.to_json(), folder / RESULT)


def create_exclusive(content: str, target: Path) -> bool:
    """Create a file so that readers see nothing or all of it, and nobody overwrites it.

    Returns:
        True if this call created it, False if it was already there (and was left alone).

    Raises:
        OSError: It cannot be written, e.g. for want of space; nothing is left behind.
    """
    temporary = _written_aside(content.encode(), target)
    try:
        os.link(temporary, target)  # fails if the target exists: the file system decides races
        created = True
    except FileExistsError:
        # A network file system may do the work and lose the answer; then ours is the second link.
        created = temporary.stat().st_nlink == 2
    finally:
        temporary.unlink()
    _sync_folder(target.parent)
    return created


def write_atomic(content: str | bytes, target: Path) -> None:
    """Replace `target` by `content` so that readers see the old file or the new one.

    Raises:
        OSError: It cannot be written, e.g. for want of space; the old file stays.
    """
    temporary = _written_aside(content.encode() if isinstance(content, str) else content, target)
    try:
        os.replace(temporary, target)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(target.parent)


def _written_aside(content: bytes, target: Path) -> Path:
    """A file beside `target` with this content, on the disk, not just in its cache."""
    # Not the process id: two machines may share the folder and have the same.
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    return temporary


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_record(folder: Path) -> RunRecord | None:
    """The result in one run's folder, else its failure, else None."""
    for name in (RESULT, FAILURE):
        path = folder / name
        if path.exists():
            try:
                return RunRecord.from_json(path.read_text(encoding="utf-8"))
            except (ResultsError, TypeError, ValueError) as error:  # bad JSON, or no text
                raise ResultsError(f"{path}: not a run record ({error})") from error
    return None


def load(
    path: str | Path, columns: Mapping[str, str] | None = None, ptq: bool = False
) -> pd.DataFrame:
    """Read a results table: a folder of runs, a CSV or a parquet file.

    Args:
        path: `runs/<study>` (each `*/result.json` or `*/failure.json`), `*.csv` or `*.parquet`.
        columns: Our name -> the table's name, e.g. {"params": "N", "tokens": "D"}.
        ptq: Of a folder in which runs were scored with quantized weights, behind each of these
            runs a row for each format, with that loss.  All rows then have `bits_post`, bits of an
            element, and `format_post` and `operands_post`; of a run as it was trained these are
            its compute dtype's, 32 or 16, and "none" twice.

    Returns:
        One row a run, sorted by `run_id` where there is one; a foreign table keeps its other
        columns and gets `status` = "finished" where it has no status of its own.

    Raises:
        ResultsError: Nothing there, unreadable, or a named column is missing.
    """
    import pandas as pd

    path = Path(path)
    if path.is_dir():
        records = [r for d in sorted(path.iterdir()) if d.is_dir() and (r := read_record(d))]
        if not records:
            raise ResultsError(f"results={path}: no */{RESULT} in this folder")
        rows = _with_ptq if ptq and any(r.ptq for r in records) else _alone
        table = pd.DataFrame([row for record in records for row in rows(record)])
    elif not path.exists():
        raise ResultsError(f"results={path}: no such file or folder")
    elif path.suffix in (".csv", ".parquet"):
        try:
            table = pd.read_csv(path) if path.suffix == ".csv" else pd.read_parquet(path)
        except (ValueError, OSError, ImportError) as error:
            first_line = str(error).splitlines()[0]
            raise ResultsError(f"results={path}: cannot be read ({first_line})") from error
    else:
        raise ResultsError(f"results={path}: must be a folder of runs, a .csv or a .parquet file")

    for ours, theirs in (columns or {}).items():
        if theirs not in table.columns:
            raise ResultsError(
                f"columns.{ours}={theirs}: no such column; the table has {', '.join(table.columns)}"
            )
        table[ours] = table[theirs]
    if "status" not in table.columns:
        table["status"] = "finished"
    for name in _MAYBE_EMPTY & set(table.columns):  # which a CSV file cannot tell from missing
        table[name] = table[name].astype(object).fillna("")
    for name in NUMERIC_COLUMNS:
        if name in table.columns:
            try:
                table[name] = pd.to_numeric(table[name])
            except (ValueError, TypeError) as error:
                raise ResultsError(f"column {name!r} of {path} is not numeric: {error}") from error
    if "run_id" not in table.columns:
        return table
    return table.sort_values("run_id", ignore_index=True, kind="stable")


def _alone(record: RunRecord) -> list[dict[str, Any]]:
    return [{column: getattr(record, column) for column in COLUMNS}]


def _with_ptq(record: RunRecord) -> list[dict[str, Any]]:
    """A run's row as it was trained, then one for each format of its weights after training."""
    [row] = _alone(record)
    bits = 16 if record.config.get("compute_dtype") == "bfloat16" else 32
    rows = [row | {"bits_post": bits, "format_post": "none", "operands_post": "none"}]
    for name, scored in record.ptq.items():
        post = {"format_post": name, "operands_post": scored["operands"]}
        rows.append(row | post | {"loss": scored["loss"], "bits_post": scored["bits"]})
    return rows


def require_columns(table: pd.DataFrame, names: tuple[str, ...], source: str) -> None:
    """Raise one clear line if `table` lacks a column that `source` (a law, a figure) needs."""
    missing = [name for name in names if name not in table.columns]
    if missing:
        raise ResultsError(
            f"{source} needs column{'s' if len(missing) > 1 else ''} {', '.join(missing)}; "
            f"the table has {', '.join(map(str, table.columns))}; "
            f"map one with columns.{missing[0]}=<its name>"
        )
