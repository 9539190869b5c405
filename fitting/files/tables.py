"""Reading a table from a file: separators, comments, and counts such as 7B.

CSV with commas, semicolons or tabs, JSON, JSON lines and parquet; the text ones compressed too.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    import pandas as pd

Field: TypeAlias = Any
"""A value in a file's table, or a column of them."""


class CommentWarning(UserWarning):
    """A table has lines among its rows that are read as comments."""


TEXT = (".csv", ".tsv")
LINES = (".jsonl", ".ndjson")
JSON = (".json",)
PARQUET = (".parquet",)
_UNPACK: Mapping[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.decompress, ".bz2": bz2.decompress, ".xz": lzma.decompress,
}  # fmt: skip
KINDS = "a folder of runs, a .csv, .tsv, .jsonl, .json (each also .gz) or .parquet file"
SEPARATORS = ",;\t|"
_UNITS = {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9, "g": 1e9, "t": 1e12}
_COUNT = re.compile(r"\s*([0-9.]+(?:e[+-]?\d+)?)\s*([kmbgt]?)\s*", re.IGNORECASE)


def can_read(path: Path) -> bool:
    """Whether a file's name says that it is a table."""
    kind, packed = _kind(path)
    return kind in (*TEXT, *LINES, *JSON) or (kind in PARQUET and not packed)


def read_file(path: Path) -> pd.DataFrame:
    """The table in a file, its columns' names without spaces around them.

    Raises:
        OSError: It cannot be read.
        ImportError: The package that reads such files is not installed.
        ValueError: It is not such a table; the message's first line says what is wrong.
    """
    import pandas as pd

    kind, packed = _kind(path)
    if kind in PARQUET:
        table = pd.read_parquet(path)
        if any(name is not None for name in table.index.names):  # pandas wrote its index, too
            table = table.reset_index()
        for name in table.columns:
            if table[name].dtype == object:
                table[name] = table[name].map(_as_text)
    else:
        text = _text(path, packed)
        if kind in JSON:
            table = _json(text)
        else:
            table = _json_lines(text) if kind in LINES else _separated(text, kind)
    table.columns = [str(name).strip() for name in table.columns]
    _refuse_twins(list(table.columns))
    return table


def _kind(path: Path) -> tuple[str, str]:
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    packed = suffixes.pop() if suffixes and suffixes[-1] in _UNPACK else ""
    return (suffixes[-1] if suffixes else ""), packed


def _text(path: Path, packed: str) -> str:
    content = path.read_bytes()
    if packed:
        content = _UNPACK[packed](content)
    return content.decode("utf-8-sig")


def _separated(text: str, kind: str) -> pd.DataFrame:
    import pandas as pd

    lines = text.splitlines(keepends=True)
    kept = [line for line in lines if not line.lstrip().startswith("#")]
    header = next((line for line in kept if line.strip()), "")
    behind = lines[lines.index(header) + 1 :] if header else []
    if dropped := sum(line.lstrip().startswith("#") for line in behind):
        said = "1 line begins" if dropped == 1 else f"{dropped} lines begin"
        warnings.warn(
            f"below its columns' names {said} with # and {'is' if dropped == 1 else 'are'} left "
            "out as a comment; delete the # of what is a row",
            CommentWarning,
            stacklevel=2,
        )
    separator = "\t" if kind == ".tsv" else _separator(header)
    if header and all(map(_is_number, _fields(header, separator))):
        kept = [_names_in_comment(lines, header, separator), *kept]
    body = "".join(kept)
    decimal = "."
    if separator == ";" and re.search(r"\d,\d", body) and not re.search(r"\d\.\d", body):
        decimal = ","
    rows = _rows(body, separator)
    names, row = next(rows, []), next(rows, [])
    # Pandas would call the second one NAME.1.
    _refuse_twins([name.strip() for name in names if name.strip()])
    if len(row) > len(names):
        # Pandas would read the first field as a row's label and shift every name by one column.
        raise ValueError(f"its rows have {len(row)} fields, its first line names {len(names)}")
    return pd.read_csv(io.StringIO(body), sep=separator, decimal=decimal, skipinitialspace=True)


def _refuse_twins(names: Sequence[str]) -> None:
    """Refuse a table in which two columns have one name.

    Raises:
        ValueError: The first such name.
    """
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"two columns are called {name!r}")


def _rows(text: str, separator: str) -> Iterator[list[str]]:
    """The fields of each row that has any.

    Raises:
        ValueError: A quote that does not end, so that a field is longer than any can be.
    """
    try:
        yield from filter(None, csv.reader(io.StringIO(text), delimiter=separator))
    except csv.Error as error:
        raise ValueError(str(error)) from error


def _names_in_comment(lines: Sequence[str], first: str, separator: str) -> str:
    """The line of names above a first row of numbers, written as a comment by NumPy."""
    above = lines[lines.index(first) - 1] if lines.index(first) else ""
    names = above.lstrip().removeprefix("#")
    if above.lstrip().startswith("#") and len(_fields(names, separator)) == len(
        _fields(first, separator)
    ):
        return names
    raise ValueError("its first line holds numbers where the columns' names should be")


def _fields(line: str, separator: str) -> list[str]:
    return next(_rows(line, separator), [])


def _is_number(field: str) -> bool:
    try:
        float(field)
    except ValueError:
        return False
    return True


def _separator(header: str) -> str:
    """The separator of a header's names: the one of four that cuts it into the most parts."""
    return max(SEPARATORS, key=lambda s: len(_fields(header, s)))


def _json(text: str) -> pd.DataFrame:
    """A list of rows, each an object, or an object of columns, each a list."""
    try:
        held = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"not JSON: {error}") from error
    if isinstance(held, dict) and held and all(isinstance(x, list) for x in held.values()):
        lengths = {len(column) for column in held.values()}
        if len(lengths) > 1:
            raise ValueError("its columns, which are lists, have different lengths")
        held = [dict(zip(held, row, strict=True)) for row in zip(*held.values(), strict=True)]
    if not isinstance(held, list):
        raise ValueError("must be a list of rows, [{...}, ...], or columns, {name: [...], ...}")
    return _json_lines("\n".join(map(json.dumps, held)))


def _json_lines(text: str) -> pd.DataFrame:
    import pandas as pd

    rows = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            raise ValueError(f"line {number} is not JSON: {error}") from error
        if not isinstance(row, dict):
            raise ValueError(f"line {number} is not a JSON object")
        try:
            json.dumps(row, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"line {number} holds half a character (a lone surrogate)") from error
        rows.append({key: _as_text(value) for key, value in row.items()})
    return pd.DataFrame(rows)


def _as_text(value: Field) -> Field:
    """Lists, objects and bytes as text, since they can neither be compared nor written as CSV."""
    if hasattr(value, "tolist") and hasattr(value, "ndim"):
        value = value.tolist()
    if isinstance(value, dict | list | tuple | set):
        return json.dumps(value, default=str)
    return str(value) if isinstance(value, bytes) else value


def counts(values: Field) -> Field:
    """Counts written as 7B, 300M or 1.2T as numbers; a column without any is left as it is."""
    if values.dtype.kind in "biuf":
        return values
    found = [_COUNT.fullmatch(value) if isinstance(value, str) else None for value in values]
    if not any(match and match[2] for match in found):
        return values
    return values.map(_count)


def _count(value: Field) -> Field:
    match = _COUNT.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        return value
    try:
        return float(match[1]) * _UNITS[match[2].lower()]
    except ValueError:  # two points
        return value
