"""Verification of shards against their manifest: once per machine, not once per run."""

from __future__ import annotations

import os
from pathlib import Path

from experiments.data.shards import (
    DataError,
    Manifest,
    Shard,
    file_sha256,
    shard_sha256,
    token_blocks,
)
from experiments.data.stamps import PLACE, remembered, stamps_path


def verify(folder: Path, manifest: Manifest, key: str, remedy: str, anew: bool = False) -> None:
    """Make sure that every shard matches its manifest and holds ids of its vocabulary only.

    Args:
        folder: The corpus folder.
        manifest: Its manifest.
        key: The option as the user wrote it; errors start with it.
        remedy: What to do about a damaged shard; errors end with it.
        anew: Read all of them, whatever is known of them.

    Raises:
        DataError: A shard with other bytes, or with a token beyond the vocabulary.
    """
    shards = {_name(folder, shard): shard for shard in manifest.train + manifest.val}

    def find(name: str) -> list[int | str]:
        shard = shards[name]
        file = folder / shard.file
        sha256 = shard_sha256(file, shard, manifest.dtype) if shard.of else file_sha256(file)
        return [sha256, _largest(file, shard, manifest.dtype)]

    what = [os.fspath(folder.absolute()), [_name(Path(), s) for s in shards.values()]]
    files = {name: folder / shard.file for name, shard in shards.items()}
    path = stamps_path("verified", what)
    found = remembered(path, files, find, (str, int), anew)
    for name, shard in shards.items():
        sha256, largest = str(found[name][PLACE]), int(found[name][PLACE + 1])
        if sha256 != shard.sha256:
            raise DataError(
                f"{key}: {files[name]} has sha256 {sha256[:12]} where {shard.sha256[:12]} was "
                f"written; {remedy}".rstrip("; ")
            )
        if largest >= manifest.vocab_size:
            raise DataError(
                f"{key}: {files[name]} holds the token {largest:,}, beyond the vocabulary of "
                f"{manifest.vocab_size:,} that its manifest states; correct one of them"
            )


def _name(folder: Path, shard: Shard) -> str:
    """The shard's file, and its place in it if it is a part."""
    return f"{folder / shard.file}" + (f"@{shard.start}+{shard.tokens}" if shard.of else "")


def _largest(file: Path, shard: Shard, dtype: str) -> int:
    blocks = token_blocks(file, dtype, shard.start, shard.tokens)
    return max((int(block.max()) for block in blocks), default=-1)
