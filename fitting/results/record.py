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
import lzma
import warnings
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fitting.files.atomic import create_exclusive as create_exclusive
from fitting.files.atomic import write_atomic as write_atomic
from fitting.files.own_json import DamagedError as DamagedError
from fitting.files.own_json import ResultsError as ResultsError
from fitting.files.own_json import read_object, strict
from fitting.files.tables import KINDS, can_read, counts, read_file
from fitting.results.study_file import STUDY as STUDY
from fitting.results.swept import is_key, swept
from fitting.results.values import SCHEMA_VERSION as SCHEMA_VERSION
from fitting.results.values import check, operand_values, short

if TYPE_CHECKING:  # a worker that writes one record needs no tables
    import pandas as pd

RESULT = "result.json"
FAILURE = "failure.json"
STATUSES = ("finished", "diverged", "failed")
OPERAND_VALUES = ("exact", "rounded")
REMEDY = "delete it and run the command again; the run is made anew"
"""Where a run's result or failure is damaged."""


class DamagedWarning(UserWarning):
    """A run is left out, for its record is damaged."""


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
    """exact: what was multiplied are numbers of the operands' formats; rounded: the compute dtype
    rounded them again (runs in bfloat16 of a version before 0.2)."""
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
        if self.operand_values not in OPERAND_VALUES:
            raise ResultsError(
                f"operand_values={self.operand_values!r}: must be one of "
                f"{', '.join(OPERAND_VALUES)}"
            )
        if self.status == "finished" and (self.loss is None or not np.isfinite(self.loss)):
            raise ResultsError(f"run {self.run_id}: finished with loss={self.loss}")

    @classmethod
    def from_json(cls, text: str) -> RunRecord:
        """Read one record; keys that a newer version may have added are an error, not a guess."""
        data = strict(text)
        if not isinstance(data, dict):
            raise ResultsError(f"holds a {type(data).__name__}, not an object")
        return cls.from_dict(data)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> RunRecord:
        """Check what was read by type and range.

        Raises:
            ResultsError: Names the key, its value and what would be right.
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
        """Strict JSON: a NaN or an infinity is an error here, not a surprise for the reader."""
        return json.dumps(asdict(self), indent=1, sort_keys=False, allow_nan=False) + "\n"


_MAYBE_EMPTY = {"operands", "reason", "metrics_sha256", "weights_sha256"}
WANDB_STATES = ("finished", "crashed", "failed", "killed", "running", "preempted", "preempting")
"""What W&B calls the state of a run; only a finished one has a result."""
_NEEDED = ("loss", "params", "tokens")
"""Columns that must be numbers; of others only a law's own (`fitting.command.describe`)."""
_COUNTS = ("params", "tokens", "params_total", "unique_tokens")
"""Columns that may say 7B or 300M."""
_MEASURED = (
    *("train_loss", "bits_per_byte", "wall_seconds", "tokens_per_second", "attempts", "flops"),
    *("bits_with_scales", "unique_tokens"),
)
"""Columns in which words mean that nothing was measured."""
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
    """A run's record as `read_record` has it, or the line that says what is wrong with it."""
    try:
        return read_record(folder), ""
    except DamagedError as error:
        return None, str(error)


def read_records(folder: Path) -> tuple[list[RunRecord], list[str]]:
    """The records of all runs in a study's folder, and a line for each that is damaged."""
    seen = [look_at(run) for run in sorted(folder.iterdir()) if run.is_dir()]
    return [record for record, _ in seen if record], [damaged for _, damaged in seen if damaged]


def load(
    path: str | Path, columns: Mapping[str, str] | None = None, ptq: bool = False
) -> pd.DataFrame:
    """Read a results table: a folder of runs, or a file as `fitting.files.tables` reads it.

    Args:
        path: `runs/<study>` (each `*/result.json` or `*/failure.json`), `*.csv`, `*.parquet`, ...
        columns: Our name -> the table's name or a formula of these, e.g. {"params": "N",
            "tokens": "D*1e9"}.
        ptq: Of a folder in which runs were scored with quantized weights, behind each of these
            runs a row for each format, with that loss.  All rows then have `bits_post`, bits of an
            element, and `format_post` and `operands_post`; of a run as it was trained these are
            its compute dtype's, 32 or 16, and "none" twice.

    Returns:
        One row a run, sorted by `run_id` where there is one, with a column for each key of the
        configuration in which runs of a folder differ, e.g. `optim.lr`, as far as the others do
        not tell.  A foreign table keeps its other columns and gets `status` = "finished" where it
        has no status of its own (nor W&B's `State`).

    Raises:
        ResultsError: Nothing there, unreadable, or a named column is missing.
    """
    import pandas as pd

    path = Path(path)
    if path.is_dir():
        records, damaged = read_records(path)
        if not records:
            found = f"; {len(damaged)} damaged: {damaged[0]}" if damaged else ""
            raise ResultsError(f"results={path}: no */{RESULT} in this folder{found}")
        table = table_of(records, ptq)
        for line in damaged:
            warnings.warn(f"left out: {line}", DamagedWarning, stacklevel=2)
        if damaged:  # `fitting.fit.search.select_rows` counts them among what is excluded
            table.attrs["damaged"] = len(damaged)
    elif not path.exists():
        raise ResultsError(f"results={path}: no such file or folder")
    elif can_read(path):
        try:
            table = read_file(path)
        except (ValueError, OSError, ImportError, EOFError, lzma.LZMAError, zlib.error) as error:
            first_line = (str(error) or type(error).__name__).splitlines()[0]
            raise ResultsError(f"results={path}: cannot be read ({first_line})") from error
    else:
        raise ResultsError(f"results={path}: must be {KINDS}")

    table = _mapped(table, columns or {})
    table["status"] = _status(table)
    for name in _MAYBE_EMPTY & set(table.columns):  # which a CSV file cannot tell from missing
        table[name] = table[name].astype(object).fillna("")
    for name in filter(is_key, table.columns):
        table[name] = _settled(table[name])
    for name in NUMERIC_COLUMNS:
        if name in table.columns:
            if name in _COUNTS:
                table[name] = counts(table[name])
            try:
                table[name] = pd.to_numeric(table[name])
            except (ValueError, TypeError) as error:
                if name in _NEEDED:
                    said = f"column {name!r} of {path} is not numeric: {error}"
                    raise ResultsError(said) from error
                if name in _MEASURED:
                    table[name] = pd.to_numeric(table[name], errors="coerce")
    if "run_id" not in table.columns:
        return table
    return table.sort_values("run_id", ignore_index=True, kind="stable")


def table_of(records: Sequence[RunRecord], ptq: bool = False) -> pd.DataFrame:
    """The rows of runs' records, with what they swept besides (`fitting.results.swept`) as columns."""
    import pandas as pd

    rows = _with_ptq if ptq and any(r.ptq for r in records) else _alone
    columns = {name: [getattr(r, name) for r in records] for name in COLUMNS}
    keys = swept([record.config for record in records], columns)
    found = []
    for number, record in enumerate(records):
        more = {key: values[number] for key, values in keys.items()}
        found += [row | more for row in rows(record)]
    return pd.DataFrame(found)


def _mapped(table: pd.DataFrame, columns: Mapping[str, str]) -> pd.DataFrame:
    """The table with our names for columns of its own, each read from the table as it is."""
    from fitting.results.where import ExpressionError, evaluate  # pandas

    found = {}
    for ours, theirs in columns.items():
        if theirs in table.columns:
            found[ours] = table[theirs]
            continue
        names = ", ".join(map(str, table.columns))
        wrong = f"columns.{ours}={theirs}: no such column; the table has {names}"
        if not any(sign in theirs for sign in "+-*/"):
            raise ResultsError(wrong)
        try:
            found[ours] = evaluate(theirs, table)
        except ExpressionError as error:
            raise ResultsError(f"{wrong} (nor is it a formula of these: {error})") from error
    return table.assign(**found)


def _status(table: pd.DataFrame) -> pd.Series:
    """How each run ended; a blank says nothing, so that its loss counts if there is one."""
    import pandas as pd

    given = table.get("status")
    if given is None:
        # W&B exports it as State; a column called Status or state is as likely to be it.
        known_words = {*STATUSES, *WANDB_STATES, ""}
        for name in table:
            if str(name).lower() in ("state", "status") and set(_word(table[name])) <= known_words:
                given = table[name]
                break
    if given is None:
        return pd.Series("finished", index=table.index)
    words = _word(given)
    known = words.isin([*STATUSES, *WANDB_STATES])
    words = words.where(known, given.astype(str).str.strip())
    return words.mask(given.isna() | (words == ""), "finished")


def _word(column: pd.Series) -> pd.Series:
    return column.astype(object).where(column.notna(), "").astype(str).str.strip().str.lower()


def _settled(column: pd.Series) -> pd.Series:
    """A swept column as it comes back from a CSV file: numbers as numbers, nothing as missing."""
    import pandas as pd

    if pd.api.types.is_bool_dtype(column) or pd.api.types.is_numeric_dtype(column):
        return column
    column = column.astype(object).where(column.notna() & (column != ""), None)
    if column.map(lambda value: isinstance(value, bool)).any():
        return column.map(lambda value: None if value is None else str(value).lower())
    try:
        return pd.to_numeric(column)
    except (ValueError, TypeError):
        return column


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
