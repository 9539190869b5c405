"""Tokens of other programs, used where they lie: the train.bin and val.bin of nanoGPT."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from experiments.data.progress import say
from experiments.data.shards import (
    MANIFEST,
    DataError,
    Manifest,
    Shard,
    Vocabulary,
    cache_folder,
    corpus_identity,
    file_sha256,
    fingerprint,
    make_once,
    token_blocks,
    write_manifest,
)

LLM_C_MAGIC = (20240520, 20240801)
KINDS = {b"\x93NUMPY": "NumPy", b"PK\x03\x04": "zip", b"\x1f\x8b": "gzip", b"\x80\x04": "pickle"}
"""First bytes of files that are not bare tokens."""
HIGH_HALF = 4
"""A bound above the upper halves of all 32-bit ids below 262,144."""
_PRINTABLE = bytes(range(32, 127)) + b"\t\n\r"


def import_token_files(path: Path, key: str, eos: str = "", again: bool = False) -> Path:
    """A manifest in the cache for a foreign train.bin and val.bin, which stay where they are.

    Found again by path, size and time of change, since reading gigabytes again for every run of a
    sweep would cost more than a small run.

    Args:
        path: The folder that holds them.
        key: The option as the user wrote it; errors start with it.
        eos: The id of the token that ends a document; "": not known.
        again: Make the manifest again, even if it is there.

    Returns:
        The corpus folder.

    Raises:
        DataError: A file is missing, or evidently holds something else.
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
    end = end_of_tokens(eos)
    identity = "".join(fingerprint(file) for file in files.values())
    identity += "" if end is None else f"eos {end}"
    digest = hashlib.sha256(identity.encode()).hexdigest()[:12]
    target = cache_folder() / "imported" / f"{path.resolve().name}-{digest}"

    def make(folder: Path) -> None:
        shards = {
            part: Shard(str(file), file.stat().st_size // 2, file_sha256(file))
            for part, file in files.items()
        }
        largest = max(
            int(block.max())
            for part, file in files.items()
            for block in token_blocks(file, "uint16", 0, shards[part].tokens)
        )
        manifest = Manifest(
            name=path.resolve().name,
            sha256=corpus_identity(list(shards.values()), Vocabulary("", 0, eos=end)),
            tokenizer="unknown",
            vocab_size=largest + 1,
            dtype="uint16",
            bytes_per_token=None,
            split="as given",
            sources={},
            documents={},
            train=(shards["train"],),
            val=(shards["val"],),
            eos=end,
        )
        write_manifest(manifest, folder)
        counts = [f"{shard.tokens:,} in {part}.bin" for part, shard in shards.items()]
        say(key, f"16-bit tokens up to {largest:,}: {' and '.join(counts)}")

    return make_once(target, make, again)


def end_of_tokens(eos: str) -> int | None:
    """The id that `data.eos` names where there is no tokenizer.

    Raises:
        DataError: It is no id.
    """
    if eos and not (eos.isdecimal() and int(eos) < 1 << 32):
        raise DataError(f"data.eos={eos}: must be the id of a token, since data.path has only ids")
    return int(eos) if eos else None


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
