"""The user's own text or tokens, imported as a corpus into the cache."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments.data.progress import progress, say
from experiments.data.readers.arrow import dataset_files, is_dataset, read_arrow
from experiments.data.readers.compressed import PACKED, unpacked_name
from experiments.data.readers.documents import Advance, Reader, Source, Text
from experiments.data.readers.json_lines import read_json_lines
from experiments.data.readers.megatron import import_megatron, megatron_pairs
from experiments.data.readers.parquet import read_parquet
from experiments.data.readers.text import read_text
from experiments.data.readers.token_files import import_token_files
from experiments.data.shards import (
    ITEM_BYTES,
    MANIFEST,
    DataError,
    cache_folder,
    file_sha256,
    make_once,
)
from experiments.data.stamps import PLACE, remembered, stamps_path
from experiments.data.tokenizer import open_tokenizer, tokenized
from experiments.data.writer import Piece, sort_documents, write_shards
from fitting.entry.errors import of_the_system

TEXT_SUFFIXES = (".txt", ".md", ".jsonl")
PACKED_SUFFIXES = tuple(
    suffix + packed for packed in PACKED for suffix in (*TEXT_SUFFIXES, ".json")
)
KINDS: Mapping[str, Sequence[str]] = {
    "text": TEXT_SUFFIXES,
    "packed text": PACKED_SUFFIXES,
    "Parquet": (".parquet",),
    "Arrow": (".arrow",),
}
"""Kinds of files, of which a folder may have one; a packed .json holds lines, too."""
_READERS: Mapping[str, Reader] = {
    ".jsonl": read_json_lines,
    ".json": read_json_lines,
    ".parquet": read_parquet,
    ".arrow": read_arrow,
}
_ABOUT = re.compile(r"(readme|license|licence|changelog|notice|citation)(\..*)?", re.IGNORECASE)
"""Names of text files about data, which lie beside Parquet files of the hub."""
HELD_OUT = frozenset("val valid validation dev test eval heldout".split())
"""Words that name a part of a corpus on which nobody trains."""
_TRAIN = frozenset({"train", "training"})
_UNPACKED = {".gz": 4, ".zst": 4, ".parquet": 3}
"""Bytes of text per byte of a file, roughly."""


@dataclass(frozen=True)
class TextOptions:
    """The keys of `experiments.data.batches.DataConfig` that say how text is read."""

    tokenizer: str = ""
    eos: str = ""
    column: str = "text"

    def off_default(self) -> dict[str, str]:
        """What was set, by key."""
        named = {"tokenizer": self.tokenizer, "eos": self.eos, "text_column": self.column}
        unset = TextOptions()
        defaults = (unset.tokenizer, unset.eos, unset.column)
        pairs = zip(named.items(), defaults, strict=True)
        return {f"data.{name}": value for (name, value), default in pairs if value != default}


_BYTES = TextOptions()


def import_path(path: Path, key: str, options: TextOptions = _BYTES, again: bool = False) -> Path:
    """The corpus folder for the user's `path`; what is there is imported into the cache once.

    Args:
        path: A corpus folder; a folder with the `train.bin` and `val.bin` of nanoGPT (uint16, no
            header) or Megatron's pairs of .bin and .idx, used where they lie; a file of text, JSON
            lines, Parquet or Arrow, or a folder of such; a folder of the library datasets.  A
            document is a text file, a line or a row.
        key: The option as the user wrote it, e.g. "data.path=/my/text"; errors start with it.
        options: How text is read.
        again: Import it again, even if that was done.

    Raises:
        DataError: There is nothing at `path`, or nothing that can be used.
    """
    pairs = megatron_pairs(path)
    if not path.exists() and not pairs:
        raise DataError(f"{key}: no such file or folder")
    if path.is_dir() and (path / MANIFEST).exists():
        _only(options, (), f"{key}: is a corpus folder already, whose {MANIFEST} says it all")
        return path
    if path.is_dir() and ((path / "train.bin").exists() or (path / "val.bin").exists()):
        _only(options, ("data.eos",), f"{key}: holds tokens already, train.bin and val.bin")
        return import_token_files(path, key, options.eos, again)
    if pairs:
        _only(options, ("data.eos",), f"{key}: holds tokens already, .bin and .idx")
        return import_megatron(path, pairs, key, options.eos, again)
    files, left_out = _files(path, key)
    if options.column != _BYTES.column and all(_reader(file) is read_text for file in files):
        why = f"and {key} has none"
        raise DataError(f"data.text_column={options.column}: is there for lines and rows, {why}")
    return _import_text(path, files, key, left_out, options, again)


def _only(options: TextOptions, taken: Sequence[str], why: str) -> None:
    """Refuse options that would have no effect."""
    for name, value in options.off_default().items():
        if name not in taken:
            raise DataError(f"{name}={value}: is there for text, and {why}")


def _files(path: Path, key: str) -> tuple[list[Path], dict[str, int]]:
    """The files to read, in order, and how many were left out and why."""
    if path.is_dir() and is_dataset(path):
        return dataset_files(path, key), {}
    everything = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    seen = [file for file in everything if not _is_hidden(file, path)]
    kinds: dict[str, list[Path]] = {}
    for file in seen:
        if kind := _kind(file):
            kinds.setdefault(kind, []).append(file)
    if len(kinds) > 1 and all(_ABOUT.fullmatch(file.name) for file in kinds.get("text", ())):
        kinds.pop("text", None)
    if not kinds:
        ends = ", ".join(TEXT_SUFFIXES)
        raise DataError(
            f"{key}: must be text ({ends}), also packed (.gz, .zst), .parquet or .arrow, a folder "
            "of such, a folder of datasets, a folder with train.bin and val.bin, Megatron's .bin "
            f"and .idx, or a corpus folder with {MANIFEST}"
        )
    if len(kinds) > 1:
        counts = " and ".join(f"{len(files):,} of {kind}" for kind, files in kinds.items())
        raise DataError(f"{key}: holds files of several kinds, {counts}; give one kind alone")
    [files] = kinds.values()
    _refuse_held_out(path, files, key)
    return files, {"hidden": len(everything) - len(seen), "of other kinds": len(seen) - len(files)}


def _kind(file: Path) -> str:
    """The kind of a file by its name; "" if it is none that can be read."""
    return next((kind for kind, ends in KINDS.items() if file.name.endswith(tuple(ends))), "")


def _reader(file: Path) -> Reader:
    return _READERS.get(Path(unpacked_name(file)).suffix, read_text)


def _is_hidden(file: Path, base: Path) -> bool:
    """Whether a file belongs to a program and not to the user's text: .git, .ipynb_checkpoints."""
    parts = file.relative_to(base).parts
    return any(part.startswith(".") or part == "__MACOSX" for part in parts)


def _refuse_held_out(path: Path, files: Sequence[Path], key: str) -> None:
    """Refuse validation and test sets that would be trained on because they lie beside the rest."""
    if path.is_file():
        return
    for file in files:
        relative = file.relative_to(path)
        words = set(re.split(r"[^a-z]+", _stem(file)))
        folders = {part.lower() for part in relative.parts[:-1]}
        if _stem(file) in HELD_OUT or (words & HELD_OUT and _TRAIN & _words(files)):
            what = f"{relative} is"
        elif folders & HELD_OUT and _TRAIN & {*_words(files), *_folders(files, path)}:
            what = f"{relative.parent}/ is"
        else:
            continue
        raise DataError(
            f"{key}: by its name {what} a held-out part, which would be trained on; the split is "
            "made here: give the training text alone, or rename what is part of it"
        )


def _stem(file: Path) -> str:
    """A file's name without its kind, in small letters."""
    return Path(unpacked_name(file)).stem.lower()


def _folders(files: Sequence[Path], base: Path) -> set[str]:
    return {part.lower() for file in files for part in file.relative_to(base).parts[:-1]}


def _words(files: Sequence[Path]) -> set[str]:
    return {word for file in files for word in re.split(r"[^a-z]+", _stem(file))}


def _import_text(
    path: Path,
    files: Sequence[Path],
    key: str,
    left_out: Mapping[str, int],
    options: TextOptions,
    again: bool,
) -> Path:
    """A corpus in the cache for the user's text, found again by its files' names and contents."""
    base = path if path.is_dir() else path.parent
    sources = _hashes(base, files, key)
    tokenizer = open_tokenizer(options.tokenizer, options.eos)
    vocabulary = tokenizer.vocabulary
    identity: object = sources
    if options != _BYTES:
        identity = [sources, vocabulary.sha256, vocabulary.eos, options.column]
    content = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    name = path.resolve().name
    target = cache_folder() / "imported" / f"{name}-{content[:12]}"

    def make(folder: Path) -> None:
        def pieces(advance: Advance) -> Iterator[Piece]:
            return tokenized(_texts(sources, base, key, options.column, advance), tokenizer, key)

        size = sum(file.stat().st_size for file in files)
        expected = sum(file.stat().st_size * _UNPACKED.get(file.suffix, 1) for file in files)
        with progress(f"{key}: reading", size) as advance:
            found = sort_documents(pieces(advance), folder, vocabulary, 2 * expected)
        item = ITEM_BYTES[vocabulary.dtype]
        with progress(f"{key}: writing", found.tokens * item) as advance:
            written = write_shards(
                *(found, folder, name, sources, vocabulary),
                advance=lambda tokens: advance(tokens * item),
            )
        tokens = sum(shard.tokens for shard in written.train + written.val)
        documents = sum(written.documents.values())
        many = f"{len(files):,} file{'s' * (len(files) > 1)} of {_kind(files[0])}"
        of_what = "bytes" if not options.tokenizer else f"of {written.vocab_size:,}"
        say(key, f"{many}, {documents:,} documents, {tokens:,} tokens ({of_what})", left_out)

    return make_once(target, make, again)


def _hashes(base: Path, files: Sequence[Path], key: str) -> dict[str, str]:
    """File -> SHA-256; a file that this machine has read before is not read again."""
    names = {file.relative_to(base).as_posix(): file for file in files}
    path = stamps_path("sources", [str(base.resolve()), sorted(names)])
    try:
        found = remembered(path, names, lambda name: [file_sha256(names[name])], (str,))
    except OSError as error:
        raise DataError(f"{key}: cannot be read ({of_the_system(error)})") from error
    return {name: str(stamp[PLACE]) for name, stamp in found.items()}


def _texts(
    sources: Mapping[str, str], base: Path, key: str, column: str, advance: Advance
) -> Iterator[Text]:
    """The documents of all files."""
    for name in sources:
        source = Source(base / name, name, key, column)
        try:
            yield from _reader(source.file)(source, advance)
        except OSError as error:
            raise DataError(f"{key}: cannot be read ({of_the_system(error)})") from error
