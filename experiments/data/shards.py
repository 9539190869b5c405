"""Tokens on disk: the folder of a corpus, and the import of the user's text or tokens.

A corpus is a folder: `train-0000.bin`, ..., `val-0000.bin`, ... (little-endian tokens, no header),
`documents.json` (which document starts at which token) and `manifest.json` (what it is, and the
SHA-256 of every shard).  The tokens of a text are its UTF-8 bytes; 0 ends a document.
"""

from __future__ import annotations

import fcntl
import glob
import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fitting.entry.errors import Refusal

MANIFEST = "manifest.json"
DOCUMENTS = "documents.json"
FORMAT = 1
SHARD_TOKENS = 1 << 24
SPLIT_SALT = "v1"
VALIDATION_SHARE = 0.05
TEXT_SUFFIXES = (".txt", ".md", ".jsonl")
ITEM_BYTES = {"uint16": 2, "uint32": 4}
HELD_OUT = frozenset("val valid validation dev test eval heldout".split())
"""Words that name a part of a corpus on which nobody trains."""
_TRAIN = frozenset({"train", "training"})
LLM_C_MAGIC = (20240520, 20240801)
KINDS = {b"\x93NUMPY": "NumPy", b"PK\x03\x04": "zip", b"\x1f\x8b": "gzip", b"\x80\x04": "pickle"}
"""First bytes of files that are not bare tokens."""
HIGH_HALF = 4
"""A bound above the upper halves of all 32-bit ids below 262,144."""
_PRINTABLE = bytes(range(32, 127)) + b"\t\n\r"


class DataError(Refusal):
    """Data that cannot be used: one line that starts with the configuration's key."""


# ---- The cache ----


def cache_folder() -> Path:
    """`$LOWBIT_CACHE`, else `$XDG_CACHE_HOME/lowbit-scaling`, else `~/.cache/lowbit-scaling`."""
    if own := os.environ.get("LOWBIT_CACHE"):
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "lowbit-scaling"


def make_once(target: Path, make: Callable[[Path], None], again: bool = False) -> Path:
    """Run `make` on a new folder that then becomes `target`, whole or not at all.

    Other processes that need it at the same time wait for the one that makes it.

    Args:
        target: The corpus folder; there if it holds a manifest.
        make: Fills the folder it is given.
        again: Replace `target` even if it is there.

    Returns:
        `target`.
    """
    if (target / MANIFEST).exists() and not again:
        return target
    prefix = f".building-{target.name}-"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        lock = open(target.parent / f".{target.name}.lock", "w")  # noqa: SIM115
    except OSError as error:
        raise DataError(f"LOWBIT_CACHE={cache_folder()}: cannot be written ({error})") from error
    with lock:  # released when its holder dies, too
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (target / MANIFEST).exists() and not again:
            return target
        try:
            folder = Path(tempfile.mkdtemp(dir=target.parent, prefix=prefix))
            make(folder)
            folder.chmod(0o755)  # mkdtemp makes it private; a cache may be shared
            if target.exists():  # readers that have its files mapped keep them
                target.rename(Path(tempfile.mkdtemp(dir=target.parent, prefix=prefix)) / "old")
            folder.rename(target)
        finally:
            for leftover in target.parent.glob(glob.escape(prefix) + "*"):  # and of killed builds
                shutil.rmtree(leftover)
    return target


# ---- Shards and their manifest ----


@dataclass(frozen=True)
class Shard:
    """One file of tokens; `file` is relative to the manifest's folder, or absolute."""

    file: str
    tokens: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """The content of a corpus folder.  `manifest.json` has the same fields."""

    name: str
    sha256: str
    """Hash of the shards' hashes: what `sha256sum train-*.bin val-*.bin | sha256sum` prints."""
    tokenizer: str
    vocab_size: int
    dtype: str
    """uint16 or uint32, little-endian."""
    bytes_per_token: float | None
    """Bytes of text per token, a document's end counted as one; None if not known."""
    split: str
    """How the validation part was chosen."""
    sources: dict[str, str]
    """File -> SHA-256, for the files that it was made from."""
    documents: dict[str, int]
    """Part ("train", "val") -> number of documents; empty if not known."""
    train: tuple[Shard, ...]
    val: tuple[Shard, ...]
    format: int = FORMAT


def shards_sha256(shards: Sequence[Shard]) -> str:
    """SHA-256 of the lines that `sha256sum` prints for these files."""
    lines = "".join(f"{shard.sha256}  {Path(shard.file).name}\n" for shard in shards)
    return hashlib.sha256(lines.encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(path: Path) -> str:
    """A value that changes with the name, size or time of any file at or below `path`."""
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    stats = [(str(f), f.stat().st_size, f.stat().st_mtime_ns) for f in files if f.exists()]
    return hashlib.sha256(json.dumps(stats).encode()).hexdigest()


def split_key(document: str) -> int:
    """The document's place in the corpus, uniform in [0, 2^64): a hash of its name alone.

    A document stays on its side of the split, whatever other documents are added.
    """
    digest = hashlib.sha256((SPLIT_SALT + document).encode()).digest()
    return int.from_bytes(digest[:8], "big")


def write_corpus(
    documents: Mapping[str, str],
    folder: Path,
    name: str,
    sources: Mapping[str, str],
    shard_tokens: int = SHARD_TOKENS,
) -> Manifest:
    """Split documents into training and validation and write them as shards of bytes.

    Documents go in the order of `split_key`, which is as good as shuffled, so that every prefix of
    either part is a mixture of all sources.  The first 5 % of the keys are validation.  Where that
    gives a validation part of less than 1 % or more than 20 % of the tokens (a handful of
    documents), the last 5 % of the tokens are validation instead, cut without regard to documents.

    Args:
        documents: Name -> text; a NUL in the text is dropped, since it ends a document.
        folder: Existing, empty folder.
        name: The corpus' name in the manifest and in every run record.
        sources: File -> SHA-256 of what the documents come from, for the manifest.
        shard_tokens: Tokens per shard; the last of a part may have fewer.
    """
    order = sorted((d for d, text in documents.items() if text), key=split_key)
    encoded = {d: documents[d].replace("\0", "").encode() + b"\0" for d in order}
    total = sum(map(len, encoded.values()))
    limit = VALIDATION_SHARE * 2**64
    parts = {
        "train": [d for d in order if split_key(d) >= limit],
        "val": [d for d in order if split_key(d) < limit],
    }
    streams = {part: b"".join(encoded[d] for d in names) for part, names in parts.items()}
    split = f"documents by sha256({SPLIT_SALT!r} + name), share {VALIDATION_SHARE}"
    if not 0.01 * total <= len(streams["val"]) <= 0.20 * total:
        stream = b"".join(encoded.values())
        cut = len(stream) - round(VALIDATION_SHARE * len(stream))
        parts = {"train": order, "val": []}
        streams = {"train": stream[:cut], "val": stream[cut:]}
        split = f"the last {VALIDATION_SHARE:.0%} of the tokens"

    shards: dict[str, tuple[Shard, ...]] = {}
    for part, stream in streams.items():
        tokens = np.frombuffer(stream, dtype=np.uint8).astype("<u2")
        written = []
        for number, start in enumerate(range(0, len(tokens), shard_tokens)):
            data = tokens[start : start + shard_tokens].tobytes()
            file = f"{part}-{number:04d}.bin"
            (folder / file).write_bytes(data)
            written.append(Shard(file, len(data) // 2, hashlib.sha256(data).hexdigest()))
        shards[part] = tuple(written)

    offsets: dict[str, list[tuple[str, int]]] = {}
    for part, names in parts.items():
        starts = np.cumsum([0] + [len(encoded[d]) for d in names]).tolist()
        offsets[part] = list(zip(names, starts, strict=False))
    (folder / DOCUMENTS).write_text(json.dumps(offsets, indent=0), encoding="utf-8")

    manifest = Manifest(
        name=name,
        sha256=shards_sha256(shards["train"] + shards["val"]),
        tokenizer="bytes",
        vocab_size=256,
        dtype="uint16",
        bytes_per_token=1.0,
        split=split,
        sources=dict(sources),
        documents={part: len(names) for part, names in parts.items()},
        train=shards["train"],
        val=shards["val"],
    )
    write_manifest(manifest, folder)
    return manifest


def write_manifest(manifest: Manifest, folder: Path) -> None:
    """Write `manifest.json`: the last file of a corpus folder."""
    text = json.dumps(asdict(manifest), indent=1)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")


def read_manifest(folder: Path, key: str, remedy: str = "", verify: bool = False) -> Manifest:
    """Read a corpus folder's manifest and check that its shards are there and of the right size.

    Args:
        folder: The corpus folder.
        key: The option as the user wrote it, e.g. "data.path=/my/tokens"; errors start with it.
        remedy: What to do about a damaged shard; errors end with it.
        verify: Also read every shard and compare its SHA-256.

    Raises:
        DataError: There is no manifest, it is not ours, or a shard differs from it.
    """
    path = folder / MANIFEST
    try:
        raw: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        train, val = (tuple(Shard(**shard) for shard in raw[part]) for part in ("train", "val"))
        manifest = Manifest(**{**raw, "train": train, "val": val})
        item = ITEM_BYTES[manifest.dtype]
        usable = manifest.format == FORMAT
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DataError(f"{key}: {path} is not a corpus manifest ({error!r})") from error
    if not usable or manifest.sha256 != shards_sha256(train + val):
        raise DataError(f"{key}: {path} is of another format, or altered; {remedy}".rstrip("; "))
    for shard in train + val:
        file = folder / shard.file
        size = file.stat().st_size if file.exists() else 0
        if size != shard.tokens * item:
            problem = f"has {size:,} bytes where {shard.tokens * item:,} were written"
        elif verify and (found := file_sha256(file)) != shard.sha256:
            problem = f"has sha256 {found[:12]} where {shard.sha256[:12]} was written"
        else:
            continue
        raise DataError(f"{key}: {file} {problem}; {remedy}".rstrip("; "))
    return manifest


# ---- Importing ----


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
