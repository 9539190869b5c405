"""The table of runs that fits and reports read: from records, or from a file of any origin."""

from __future__ import annotations

import json
import lzma
import warnings
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fitting.files.own_json import JsonObject, ResultsError
from fitting.files.tables import KINDS, can_read, counts, read_file
from fitting.results.record import (
    COLUMNS,
    MAYBE_EMPTY,
    RESULT,
    STATUSES,
    VALIDATION,
    DamagedWarning,
    RunRecord,
    look_at,
)
from fitting.results.swept import complete, is_key, swept

if TYPE_CHECKING:  # so that help does not wait for it
    import pandas as pd

SUPERSEDED = "superseded"
"""The status of a run that a newer version has repeated (`superseded`)."""


WANDB_STATES = ("finished", "crashed", "failed", "killed", "running", "preempted", "preempting")
"""W&B's names for the state of a run; only a finished one has a result."""


_NEEDED = ("loss", "params", "tokens")
"""Columns that must be numbers, besides those of the law (`fitting.command.describe`)."""


_COUNTS = ("params", "tokens", "params_total", "unique_tokens")
"""Columns that may say 7B or 300M."""


_MEASURED = (
    *("train_loss", "bits_per_byte", "wall_seconds", "tokens_per_second", "attempts", "flops"),
    *("bits_with_scales", "unique_tokens"),
)
"""Columns in which words mean that nothing was measured."""
ERROR_DIGITS = 12
"""Digits to which two errors of formats are the same number."""


NUMERIC_COLUMNS = (
    "exponent mantissa bits bits_with_scales block_size params params_head params_embedding "
    "params_total params_quantized tokens unique_tokens flops seed loss train_loss bits_per_byte "
    "wall_seconds tokens_per_second attempts numerics_version schema_version"
).split()


def read_records(folder: Path) -> tuple[list[RunRecord], list[str]]:
    """The records of all runs in a study's folder, and a line for each damaged one."""
    seen = [look_at(run) for run in sorted(folder.iterdir()) if run.is_dir()]
    return [record for record, _ in seen if record], [damaged for _, damaged in seen if damaged]


def load(
    path: str | Path, columns: Mapping[str, str] | None = None, ptq: bool = False
) -> pd.DataFrame:
    """Read a results table: a folder of runs, or a file as `fitting.files.tables` reads it.

    Args:
        path: `runs/<study>` (each `*/result.json` or `*/failure.json`), `*.csv`, `*.parquet`, ...
        columns: Our name -> the table's name or a formula of these, e.g. {"params": "N",
            "tokens": "D*1e9"}; for format_weight and the like a format's name, too
            (`fitting.results.format_errors`).
        ptq: For a folder in which runs were scored with quantized weights: after each of these
            runs, add one row per format, with that loss.  All rows then have `bits_post`, bits of
            an element, and `format_post` and `operands_post`; for a run as it was trained these
            are those of its compute dtype, 32 or 16, and "none" twice.

    Returns:
        One row per run, sorted by `run_id` if there is one, with a column for each key of the
        configuration in which runs of a folder differ, e.g. `optim.lr`, unless other columns tell
        the same, with the rank and format of adapters, if any run has one, and with the errors on
        the runs' own tensors, `err_weight_measured` and the like.
        A foreign table keeps its other columns and gets `status` = "finished" if it has no status
        of its own (nor W&B's `State`).

    Raises:
        ResultsError: Nothing there, unreadable, or a named column is missing.
    """
    import pandas as pd

    from fitting.results.format_errors import ERRORS  # scipy

    path = Path(path)
    if path.is_dir():
        records, damaged = read_records(path)
        if not records:
            found = f"; {len(damaged)} damaged: {damaged[0]}" if damaged else ""
            raise ResultsError(f"results={path}: no */{RESULT} in this folder{found}")
        table = table_of(records, ptq)
        for line in damaged:
            warnings.warn(f"left out: {line}", DamagedWarning, stacklevel=2)
        if damaged:  # `fitting.results.table.select_rows` counts them among what is excluded
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
    for name in MAYBE_EMPTY & set(table.columns):  # which a CSV file cannot tell from missing
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
    for name in set(ERRORS) & set(table.columns):
        if pd.api.types.is_float_dtype(table[name]):  # computed: another version, another last bit
            table[name] = table[name].map(lambda error: float(f"{error:.{ERROR_DIGITS}g}"))
    if "run_id" not in table.columns:
        return table
    return table.sort_values("run_id", ignore_index=True, kind="stable")


def table_of(records: Sequence[RunRecord], ptq: bool = False) -> pd.DataFrame:
    """The rows of runs' records, with all other swept keys as columns."""
    import pandas as pd

    rows = _with_ptq if ptq and any(r.ptq for r in records) else _alone
    columns = {name: [getattr(r, name) for r in records] for name in COLUMNS}
    keys = swept([record.config for record in records], columns) | _adapters(records)
    newer = superseded(records)
    found = []
    for number, record in enumerate(records):
        more = {key: values[number] for key, values in keys.items()}
        if record.run_id in newer:
            more |= {"status": SUPERSEDED, "reason": f"made again: {newer[record.run_id]}"}
        elif _scored_quantized(record):
            more |= {"status": SUPERSEDED, "reason": "scored quantized by mistake: train it again"}
        more["numerics_version"] = _LIKE.get(record.numerics_version, record.numerics_version)
        found += [row | more for row in rows(record)]
    return pd.DataFrame(found)


RANK, ADAPTER_FORMAT = "rank", "adapter_format"
UNQUANTIZED_BITS = 16
"""Bits of a base from which it was trained without being quantized."""


def _adapters(records: Sequence[RunRecord]) -> dict[str, list[Any]]:
    """Columns for the rank of the runs' adapters and their format, and for bases trained rounded.

    Without an adapter a run has no rank; what is in high precision has the format "none".
    `err_trained` is the error of the weights with which the base was trained, 0 where it was not
    rounded then.  Nothing where no run has an adapter.
    """
    each = [record.config.get("adapter") for record in records]
    adapters = [a if isinstance(a, dict) and a.get("name", "none") != "none" else {} for a in each]
    if not any(adapters):
        return {}
    return {
        RANK: [adapter.get("r") for adapter in adapters],
        ADAPTER_FORMAT: [adapter.get("precision") or "none" for adapter in adapters],
        "err_trained": [_err_trained(record) for record in records],
    }


def _err_trained(record: RunRecord) -> float | None:
    base = record.config.get("base")
    bits = base.get("bits", 0.0) if isinstance(base, dict) else 0.0
    return record.err_weight if 0 < bits < UNQUANTIZED_BITS else 0.0


_LIKE = {5: 4}
"""Versions of the numerics whose results compare with those of an older one."""


def _scored_quantized(record: RunRecord) -> bool:
    """Whether a run ended in high precision and was scored quantized, as version 4 had it.

    Version 5 is that of such runs alone; it computes the same as 4 in everything else.
    """
    recipe = record.config.get("recipe")
    share = recipe.get("high_precision_share") if isinstance(recipe, dict) else 0
    return bool(share and record.operands and record.numerics_version <= 4)


def superseded(records: Sequence[RunRecord]) -> dict[str, str]:
    """Runs that a newer version of the numerics has repeated -> the `run_id` of the new one.

    The two lie side by side in a study's folder.  They are not repetitions of each other.  A record
    without a whole configuration does not say which run it is, and stands for itself.
    """
    if len({record.numerics_version for record in records}) < 2:
        return {}
    known = [record for record in records if "tokens" in record.config]
    versions: dict[str, list[RunRecord]] = {}
    for run, science in zip(known, complete([run.config for run in known]), strict=True):
        # The tokens that were asked for: a run that diverged or failed has seen fewer.
        what = [science, run.config["tokens"], run.model, run.seed, run.corpus]
        versions.setdefault(json.dumps(what, sort_keys=True), []).append(run)
    found: dict[str, str] = {}
    for same in versions.values():
        if results := [run for run in same if run.status != "failed"]:
            newest = max(results, key=lambda run: run.numerics_version)
            older = [run for run in same if run.numerics_version < newest.numerics_version]
            found |= {run.run_id: newest.run_id for run in older}
    return found


def _mapped(table: pd.DataFrame, columns: Mapping[str, str]) -> pd.DataFrame:
    """The table with its columns under our names, each read from the original table."""
    from fitting.results.format_errors import FORMATS, named_errors  # scipy
    from fitting.results.where import ExpressionError, evaluate  # pandas

    found = named_errors(table, columns)
    for ours, theirs in columns.items():
        if ours in FORMATS:
            continue
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
    """The status of each run; a blank means nothing, so that a loss counts if there is one."""
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
    """A swept column as read back from a CSV file: numbers as numbers, blanks as missing."""
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


def _alone(record: RunRecord) -> list[JsonObject]:
    from fitting.results.format_errors import measured_errors  # scipy

    columns = {column: getattr(record, column) for column in COLUMNS}
    return [columns | _metrics(record.metrics) | measured_errors(record)]


def _metrics(measures: JsonObject) -> JsonObject:
    """Columns for a task's measures of the validation part."""
    return {f"{VALIDATION}{name}": value for name, value in measures.items()}


def _with_ptq(record: RunRecord) -> list[JsonObject]:
    """A run's row as it was trained, then one per format of its weights after training."""
    [row] = _alone(record)
    bits = 16 if record.config.get("compute_dtype") == "bfloat16" else 32
    rows = [row | {"bits_post": bits, "format_post": "none", "operands_post": "none"}]
    for name, scored in record.ptq.items():
        post = {"format_post": name, "operands_post": scored["operands"]}
        measures = _metrics(scored.get("metrics") or dict.fromkeys(record.metrics))
        scores = {"loss": scored["loss"], "bits_post": scored["bits"], **measures}
        rows.append(row | post | scores)
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


def select_rows(table: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, int]]:
    """The rows that have a loss to fit, and the number of the others, by reason."""
    import numpy as np

    require_columns(table, ("loss",), "a fit")
    loss = table["loss"].to_numpy(dtype=np.float64)
    status = table["status"].to_numpy(dtype=str) if "status" in table else np.full(loss.shape, "")
    reason = np.select(
        [(status != "") & (status != "finished"), ~np.isfinite(loss), loss <= 0],
        [status, "loss not finite", "loss not positive"],
        "",
    )
    names, counts = np.unique(reason[reason != ""], return_counts=True)
    rows: pd.DataFrame = table[reason == ""]
    excluded = {str(name): int(count) for name, count in zip(names, counts, strict=True)}
    if damaged := table.attrs.get("damaged", 0):  # records that `load` could not read
        excluded["damaged"] = int(damaged)
    return rows, excluded
