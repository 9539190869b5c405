"""Tokens on disk: the folder of a corpus, and the cache where corpora are made once.

A corpus is a folder: `train-0000.bin`, ..., `val-0000.bin`, ... (little-endian tokens, no header),
`documents.json` (which document starts at which token) and `manifest.json` (what it is, and the
SHA-256 of every shard).  The tokens of a text are its UTF-8 bytes, and 0 ends a document, unless
the manifest names a tokenizer.
"""

from __future__ import annotations

import fcntl
import glob
import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from experiments.data.sorting import BLOCK
from fitting.entry.errors import Refusal, of_the_system

MANIFEST = "manifest.json"
DOCUMENTS = "documents.json"
FORMAT = 1
ITEM_BYTES = {"uint8": 1, "uint16": 2, "uint32": 4}


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
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"{target}: another process makes it; waiting", file=sys.stderr)
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
        except OSError as error:
            where = f"LOWBIT_CACHE={cache_folder()}"
            raise DataError(f"{where}: cannot be written ({of_the_system(error)})") from error
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
    start: int = 0
    """Tokens of the file before the first one."""
    of: int = 0
    """Tokens in the whole file, if these are a part of them."""


@dataclass(frozen=True)
class Manifest:
    """The content of a corpus folder.  `manifest.json` has the same fields."""

    name: str
    sha256: str
    """Hash of the shards' hashes: what `sha256sum train-*.bin val-*.bin | sha256sum` prints; where
    there is a tokenizer or an end-of-document token, these add a line each (`corpus_identity`)."""
    tokenizer: str
    vocab_size: int
    dtype: str
    """uint16 or uint32, little-endian; of images uint8."""
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
    tokenizer_sha256: str = ""
    """Hash of the tokenizer's content; "" for bytes, and where it is not known."""
    eos: int | None = None
    """The token that ends a document; None for bytes, where it is 0, and where it is not known."""
    starts: dict[str, str] = field(default_factory=dict)
    """Part -> SHA-256 of its `starts_file`; empty for corpora without one."""

    @property
    def vocabulary(self) -> Vocabulary:
        """The meaning of its tokens."""
        return Vocabulary(self.tokenizer, self.vocab_size, self.tokenizer_sha256, self.eos)


@dataclass(frozen=True)
class Vocabulary:
    """The meaning of tokens."""

    tokenizer: str
    """Its name, for people."""
    size: int
    """All ids are below it."""
    sha256: str = ""
    eos: int | None = None

    @property
    def dtype(self) -> str:
        """The type that holds all ids, uint16 or uint32."""
        return "uint16" if self.size <= 1 << 16 else "uint32"


BYTES = Vocabulary("bytes", 256)
"""UTF-8; 0 ends a document."""


def shards_sha256(shards: Sequence[Shard]) -> str:
    """SHA-256 of the lines that `sha256sum` prints for these files."""
    lines = "".join(f"{shard.sha256}  {Path(shard.file).name}\n" for shard in shards)
    return hashlib.sha256(lines.encode()).hexdigest()


def corpus_identity(shards: Sequence[Shard], vocabulary: Vocabulary) -> str:
    """Hash of the shards' hashes and of what their tokens mean."""
    said = {"tokenizer": vocabulary.sha256, "eos": vocabulary.eos}
    lines = "".join(f"{value}  {name}\n" for name, value in said.items() if value not in ("", None))
    own = shards_sha256(shards)
    return hashlib.sha256((own + "\n" + lines).encode()).hexdigest() if lines else own


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def token_blocks(file: Path, dtype: str, start: int, tokens: int) -> Iterator[np.ndarray]:
    """Tokens [start, start + tokens) of a file, some at a time; fewer if it is shorter."""
    kind = np.dtype(dtype).newbyteorder("<")
    with open(file, "rb") as opened:
        opened.seek(start * kind.itemsize)
        while tokens and len(block := np.fromfile(opened, kind, min(tokens, BLOCK))):
            tokens -= len(block)
            yield block


def shard_sha256(file: Path, shard: Shard, dtype: str) -> str:
    """SHA-256 of a shard's tokens, which may be a part of its file."""
    digest = hashlib.sha256()
    for block in token_blocks(file, dtype, shard.start, shard.tokens):
        digest.update(block.data)
    return digest.hexdigest()


def fingerprint(path: Path) -> str:
    """A value that changes with the name, size or time of any file at or below `path`."""
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    stats = [(str(f), f.stat().st_size, f.stat().st_mtime_ns) for f in files if f.exists()]
    return hashlib.sha256(json.dumps(stats).encode()).hexdigest()


def starts_file(folder: Path, part: str) -> Path:
    """Where each document of a part starts, as little-endian uint64."""
    return folder / f"documents-{part}.uint64"


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
    vocabulary = Vocabulary("", 0, manifest.tokenizer_sha256, manifest.eos)
    if not usable or manifest.sha256 != corpus_identity(train + val, vocabulary):
        raise DataError(f"{key}: {path} is of another format, or altered; {remedy}".rstrip("; "))
    for shard in train + val:
        file = folder / shard.file
        size = file.stat().st_size if file.exists() else 0
        whole = (shard.of or shard.tokens) * item
        if size != whole:
            problem = f"has {size:,} bytes where {whole:,} were written"
        elif verify and (found := shard_sha256(file, shard, manifest.dtype)) != shard.sha256:
            problem = f"has sha256 {found[:12]} where {shard.sha256[:12]} was written"
        else:
            continue
        raise DataError(f"{key}: {file} {problem}; {remedy}".rstrip("; "))
    return manifest
