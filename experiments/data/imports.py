"""The user's own text or tokens, imported as a corpus into the cache."""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from experiments.data.shards import (
    MANIFEST,
    DataError,
    Manifest,
    Shard,
    cache_folder,
    file_sha256,
    fingerprint,
    make_once,
    shards_sha256,
    write_corpus,
    write_manifest,
)

TEXT_SUFFIXES = (".txt", ".md", ".jsonl")
HELD_OUT = frozenset("val valid validation dev test eval heldout".split())
"""Words that name a part of a corpus on which nobody trains."""
_TRAIN = frozenset({"train", "training"})
LLM_C_MAGIC = (20240520, 20240801)
KINDS = {b"\x93NUMPY": "NumPy", b"PK\x03\x04": "zip", b"\x1f\x8b": "gzip", b"\x80\x04": "pickle"}
"""First bytes of files that are not bare tokens."""
HIGH_HALF = 4
"""A bound above the upper halves of all 32-bit ids below 262,144."""
_PRINTABLE = bytes(range(32, 127)) + b"\t\n\r"


def import_path(path: Path, key: str) -> Path:
    """The corpus folder for the user's `path`; text is imported into the cache once.

    Args:
        path: A corpus folder; a folder with the `train.bin` and `val.bin` of nanoGPT (uint16, no
            header), used where they lie; a .txt, .md or .jsonl file; a folder of those.  A document
            is a file, or the "text" of one line of a .jsonl file.
        key: The option as the user wrote it, e.g. "data.path=/my/text"; errors start with it.

    Raises:
        DataError: There is nothing at `path`, or nothing that can be used.
    """
    if not path.exists():
        raise DataError(f"{key}: no such file or folder")
    if path.is_dir() and (path / MANIFEST).exists():
        return path
    if path.is_dir() and ((path / "train.bin").exists() or (path / "val.bin").exists()):
        return _import_tokens(path, key)
    everything = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    seen = [file for file in everything if not _is_hidden(file, path)]
    files = [file for file in seen if file.suffix in TEXT_SUFFIXES]
    if not files:
        raise DataError(
            f"{key}: must be text ({', '.join(TEXT_SUFFIXES)}), a folder of text, a folder with "
            f"train.bin and val.bin, or a corpus folder with {MANIFEST}"
        )
    _refuse_held_out(path, files, key)
    left_out = {"hidden": len(everything) - len(seen), "of other kinds": len(seen) - len(files)}
    return _import_text(path, files, key, left_out)


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
        words = set(re.split(r"[^a-z]+", file.stem.lower()))
        folders = {part.lower() for part in relative.parts[:-1]}
        if file.stem.lower() in HELD_OUT or (words & HELD_OUT and _TRAIN & _words(files)):
            what = f"{relative} is"
        elif folders & HELD_OUT and _TRAIN & {*_words(files), *_folders(files, path)}:
            what = f"{relative.parent}/ is"
        else:
            continue
        raise DataError(
            f"{key}: by its name {what} a held-out part, which would be trained on; the split is "
            "made here: give the training text alone, or rename what is part of it"
        )


def _folders(files: Sequence[Path], base: Path) -> set[str]:
    return {part.lower() for file in files for part in file.relative_to(base).parts[:-1]}


def _words(files: Sequence[Path]) -> set[str]:
    return {word for file in files for word in re.split(r"[^a-z]+", file.stem.lower())}


def _say(key: str, taken: str, left_out: Mapping[str, int]) -> None:
    """Tell the user what an import took; once, when it is made."""
    rest = ", ".join(f"{count:,} {kind}" for kind, count in left_out.items() if count)
    print(f"{key}: read {taken}" + (f"; left out {rest}" if rest else ""), file=sys.stderr)


def _import_text(path: Path, files: Sequence[Path], key: str, left_out: Mapping[str, int]) -> Path:
    """A corpus in the cache for the user's text, found again by its files' names and contents."""
    base = path if path.is_dir() else path.parent
    sources = {file.relative_to(base).as_posix(): file_sha256(file) for file in files}
    content = hashlib.sha256(json.dumps(sources, sort_keys=True).encode()).hexdigest()
    target = cache_folder() / "imported" / f"{path.resolve().name}-{content[:12]}"

    def make(folder: Path) -> None:
        documents = {
            name: text
            for relative, file in zip(sources, files, strict=True)
            for name, text in _read_documents(file, relative, key)
        }
        written = write_corpus(documents, folder, path.resolve().name, sources)
        tokens = sum(shard.tokens for shard in written.train + written.val)
        many = f"{len(files):,} file{'s' * (len(files) > 1)} of text"
        _say(key, f"{many}, {len(documents):,} documents, {tokens:,} tokens (bytes)", left_out)

    return make_once(target, make)


def _read_documents(file: Path, name: str, key: str) -> Iterator[tuple[str, str]]:
    """(Name, text) of each document in a text file."""
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{key}: {file} is not UTF-8 ({error})") from error
    if file.suffix != ".jsonl":
        yield name, text
        return
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                document = json.loads(line)["text"]
            except (ValueError, KeyError, TypeError):
                document = None
            if not isinstance(document, str):
                raise DataError(f'{key}: line {number} of {file} is not {{"text": "..."}}')
            yield f"{name}:{number}", document


def _import_tokens(path: Path, key: str) -> Path:
    """A manifest in the cache for a foreign train.bin and val.bin, which stay where they are.

    Found again by path, size and time of change, since reading gigabytes again for every run of a
    sweep would cost more than a small run.
    """
    files = {"train": (path / "train.bin").resolve(), "val": (path / "val.bin").resolve()}
    for file in files.values():
        if not file.exists() or file.stat().st_size == 0 or file.stat().st_size % 2:
            raise DataError(f"{key}: {file} must be there, and hold uint16 tokens")
        if problem := _no_tokens(file):
            raise DataError(
                f"{key}: {file} {problem}; write little-endian 16-bit tokens without a header, or "
                f"shards with a {MANIFEST}, which also says dtype uint32"
            )
    identity = "".join(fingerprint(file) for file in files.values())
    digest = hashlib.sha256(identity.encode()).hexdigest()[:12]
    target = cache_folder() / "imported" / f"{path.resolve().name}-{digest}"

    def make(folder: Path) -> None:
        shards = {
            part: Shard(str(file), file.stat().st_size // 2, file_sha256(file))
            for part, file in files.items()
        }
        largest = max(int(np.memmap(f, dtype="<u2", mode="r").max()) for f in files.values())
        manifest = Manifest(
            name=path.resolve().name,
            sha256=shards_sha256(list(shards.values())),
            tokenizer="unknown",
            vocab_size=largest + 1,
            dtype="uint16",
            bytes_per_token=None,
            split="as given",
            sources={},
            documents={},
            train=(shards["train"],),
            val=(shards["val"],),
        )
        write_manifest(manifest, folder)
        counts = [f"{shards[part].tokens:,} in {part}.bin" for part in ("train", "val")]
        _say(key, f"16-bit tokens up to {largest:,}: {' and '.join(counts)}", {})

    return make_once(target, make)


def _no_tokens(file: Path) -> str:
    """Other content that a file evidently holds instead of 16-bit tokens; "" if there is none."""
    with open(file, "rb") as opened:
        head = opened.read(4096)
    if int.from_bytes(head[:4], "little") in LLM_C_MAGIC:
        return "has the header of llm.c, 1,024 bytes"
    for magic, kind in KINDS.items():
        if head.startswith(magic):
            return f"is a {kind} file"
    if len(head) >= 64 and not head.strip(_PRINTABLE):
        return "is text"
    tokens = np.memmap(file, "<u2", "r")
    # In numbers of 32 or 64 bits, every second half, or three of four, are close to zero.
    if len(tokens) >= 64 and int(tokens[1::2].max()) < HIGH_HALF <= int(tokens[::2].max()):
        return "holds tokens of 32 or 64 bits"
    return ""
