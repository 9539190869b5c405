"""Tokens on disk: the folder of a corpus, and the cache where corpora are made once.

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
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
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
ITEM_BYTES = {"uint16": 2, "uint32": 4}


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
