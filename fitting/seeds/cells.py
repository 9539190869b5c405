"""Cells of repeated runs: the columns that define them, and how a cell is named.

Runs of one cell agree in everything but the seed.  Every column of a table that is neither an
outcome nor a label separates its runs; only runs that agree in all such columns are repeats, and
only repeats show how large the noise is.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

from fitting.naming import is_quantized
from fitting.results.format_errors import ERRORS, FORMATS, MEASURED
from fitting.results.record import VALIDATION
from fitting.results.swept import is_key, is_quantization

CELL = ("model", "recipe", "exponent", "mantissa", "block_size", "granularity", "scale", "tokens")
"""Columns without which cells cannot be compared."""
OWN_CELL = "cell"
"""A column that says directly which runs are repeats, in place of columns that are not ours."""
OUTCOMES = frozenset(
    "run_id study status seed loss train_loss merged_loss bits_per_byte wall_seconds "
    "tokens_per_second attempts quantize_backend reason metrics_sha256 weights_sha256 "
    "schema_version bits format predicted".split()
) | frozenset(MEASURED)
"""Columns of ours that separate nothing: labels, outcomes, and what other columns already say."""
_ALWAYS = (*CELL, "params", "corpus")
_CONDITIONS = (
    *("numerics_version", "params_head", "params_embedding", "params_total", "unique_tokens"),
    "flops",
)
_FORMATS = (
    *("operands", "operand_values", "bits_with_scales", "params_quantized"),
    *("bits_post", "format_post", "operands_post", *ERRORS, *FORMATS),
    *("gmse", "bits_w", "bits_a", "bits_kv"),
)
KNOWN_TO_PART = frozenset((*_ALWAYS, *_CONDITIONS, *_FORMATS))
"""Columns of ours that may separate runs."""
_QUANTIZED = frozenset((*CELL, *_FORMATS)) - {"model", "tokens"}
MOST_VALUES = 24
"""Values of a foreign column beyond which cells are not named by it."""


def is_of_format(column: str) -> bool:
    """Whether a column says how a run is quantized: its unquantized counterpart differs in it."""
    return column in _QUANTIZED or (is_key(column) and is_quantization(column))


def condition_keys(table: pd.DataFrame) -> list[str]:
    """The fewest columns such that runs agree in all conditions if they agree in these.

    Always model, tokens, size and corpus, if present; then all other columns that separate runs and
    do not concern formats.  A quantized cell is compared with the unquantized one that agrees in
    them.
    """
    first = [c for c in _ALWAYS if c in table and not is_of_format(c)]
    return first + _parting(table, first, [c for c in _others(table) if not is_of_format(c)])


def cell_keys(table: pd.DataFrame) -> list[str]:
    """The fewest columns such that runs which agree in them differ in nothing but their seed.

    Always those of `CELL`, the size and the corpus, if present; then the other conditions and all
    other columns that separate runs.
    """
    first = [c for c in _ALWAYS if c in table]
    first += [c for c in condition_keys(table) if c not in first]
    return first + _parting(table, first, [c for c in _others(table) if is_of_format(c)])


def extra_keys(table: pd.DataFrame) -> list[str]:
    """The columns of `cell_keys` that separate runs beyond what every study varies."""
    return [c for c in cell_keys(table) if c not in _ALWAYS]


def _others(table: pd.DataFrame) -> list[str]:
    """Columns that may separate runs, in the order in which they are tried: swept keys first."""
    outcomes = [table[c] for c in ("loss", "train_loss", "seed", "run_id") if c in table]
    measured = [c for c in table.columns if str(c).startswith(VALIDATION)]
    known = {*OUTCOMES, *_ALWAYS, *measured}
    columns = [c for c in table.columns if c not in known]
    foreign = [c for c in columns if not (is_key(c) or c in _CONDITIONS or c in _FORMATS)]
    if OWN_CELL in columns:
        foreign = [OWN_CELL]
    # A column mapped onto an outcome is still present under its own name.
    foreign = [c for c in foreign if not any(table[c].equals(outcome) for outcome in outcomes)]
    swept = sorted(c for c in columns if is_key(c))
    return [*swept, *foreign, *(c for c in (*_CONDITIONS, *_FORMATS) if c in columns)]


def _parting(table: pd.DataFrame, first: Sequence[str], others: Iterable[str]) -> list[str]:
    """Those of `others`, in turn, that separate runs which agree in `first` and in those before."""
    groups = _numbered(table, first)
    count = len(np.unique(groups))
    found = []
    for column in others:
        codes = pd.factorize(table[column], use_na_sentinel=False)[0]
        finer = np.unique(groups * (codes.max(initial=0) + 1) + codes, return_inverse=True)[1]
        if (finer_count := int(finer.max(initial=-1)) + 1) > count:
            found.append(column)
            groups, count = finer, finer_count
    return found


def _numbered(table: pd.DataFrame, columns: Sequence[str]) -> np.ndarray:
    if not columns or table.empty:
        return np.zeros(len(table), dtype=np.int64)
    return table.groupby(list(columns), dropna=False, sort=False).ngroup().to_numpy()


def with_conditions(names: pd.Series, table: pd.DataFrame, among: pd.DataFrame) -> pd.Series:
    """Names of formats, extended until they tell cells of one size and token count apart.

    Args:
        names: One for each row of `table`, on its index.
        table: Rows with the columns by which they are told apart.
        among: The whole study, with its names as `format`.

    Returns:
        "E1M1, optim.lr=0.016"; a key that does not apply to a row is not in its name.
    """
    first = [c for c in ("format", "params", "tokens") if c in among]
    candidates = [c for c in ("model", "corpus") if c in among]
    candidates += [c for c in extra_keys(among) if _can_name(among, c)]
    if first == ["format"] or "format" not in among:
        return names
    quantized = is_quantized(table)
    for column in _parting(among, first, candidates):
        if column not in table:
            continue
        said = table[column].map(lambda value, key=column: f", {key}={_word(value)}")
        holds = table[column].notna()
        if is_of_format(column):
            holds &= quantized
        names = names + said.where(holds, "")
    return names


def _can_name(table: pd.DataFrame, column: str) -> bool:
    ours = is_key(column) or column in _CONDITIONS or column in _FORMATS or column == OWN_CELL
    return ours or table[column].nunique() <= MOST_VALUES


def _word(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, int | float) and value == value else str(value)
