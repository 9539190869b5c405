"""Corpora written: documents are split into training and validation, and stream into shards."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from experiments.data.shards import (
    BYTES,
    DOCUMENTS,
    ITEM_BYTES,
    Manifest,
    Shard,
    Vocabulary,
    corpus_identity,
    file_sha256,
    starts_file,
    write_manifest,
)
from experiments.data.sorting import DocumentSorter

SHARD_TOKENS = 1 << 24
SPLIT_SALT = "v1"
VALIDATION_SHARE = 0.05


def split_key(document: str) -> int:
    """The document's place in the corpus, uniform in [0, 2^64): a hash of its name alone.

    A document stays on its side of the split, whatever other documents are added.
    """
    digest = hashlib.sha256((SPLIT_SALT + document).encode()).digest()
    return int.from_bytes(digest[:8], "big")


class Piece(NamedTuple):
    """Tokens of a document, all of them or the next ones."""

    document: str
    tokens: np.ndarray
    text_bytes: int
    """Bytes of text that they stand for, a document's end counted as one."""
    last: bool = True
    """Whether the document ends here."""


def write_corpus(
    documents: Mapping[str, str],
    folder: Path,
    name: str,
    sources: Mapping[str, str],
    shard_tokens: int = SHARD_TOKENS,
) -> Manifest:
    """Split documents into training and validation and write them as shards of bytes.

    Args:
        documents: Name -> text; a NUL in the text is dropped, since it ends a document.
        folder: Existing, empty folder.
        name: The corpus' name in the manifest and in every run record.
        sources: File -> SHA-256 of what the documents come from, for the manifest.
        shard_tokens: Tokens per shard; the last of a part may have fewer.
    """
    expected = 2 * sum(map(len, documents.values()))
    pieces = (bytes_piece(d, text) for d, text in documents.items() if text)
    return write_shards(pieces, folder, name, sources, BYTES, expected, shard_tokens)


def bytes_piece(document: str, text: str, last: bool = True) -> Piece:
    """The tokens of a text that are its bytes, 0 at the end of the document."""
    encoded = text.replace("\0", "").encode() + b"\0" * last
    return Piece(document, np.frombuffer(encoded, dtype=np.uint8), len(encoded), last)


def write_shards(
    pieces: Iterable[Piece],
    folder: Path,
    name: str,
    sources: Mapping[str, str],
    vocabulary: Vocabulary,
    expected: int = 0,
    shard_tokens: int = SHARD_TOKENS,
) -> Manifest:
    """Split documents into training and validation and write them as shards, in bounded memory.

    Documents go in the order of `split_key`, which is as good as shuffled, so that every prefix of
    either part is a mixture of all sources.  The first 5 % of the keys are validation.  Where that
    gives a validation part of less than 1 % or more than 20 % of the tokens (a handful of
    documents), the last 5 % of the tokens are validation instead, cut without regard to documents.

    Args:
        pieces: The documents, one after the other, each ending with the token that ends it.
        folder: Existing, empty folder.
        name: The corpus' name in the manifest and in every run record.
        sources: File -> SHA-256 of what the documents come from, for the manifest.
        vocabulary: What the tokens mean.
        expected: Bytes of all tokens on disk, roughly.
        shard_tokens: Tokens per shard; the last of a part may have fewer.
    """
    limit = VALIDATION_SHARE * 2**64
    total = held_out = text_bytes = 0
    dtype = vocabulary.dtype
    with DocumentSorter(folder, dtype, split_key, expected) as sorter:
        for document, tokens, size, last in pieces:
            key, _ = sorter.add(document, tokens, last)
            total, text_bytes = total + len(tokens), text_bytes + size
            held_out += len(tokens) if key < limit else 0
        by_document = 0.01 * total <= held_out <= 0.20 * total
        split = f"documents by sha256({SPLIT_SALT!r} + name), share {VALIDATION_SHARE}"
        if not by_document:
            split = f"the last {VALIDATION_SHARE:.0%} of the tokens"
        parts = {part: PartWriter(folder, part, dtype, shard_tokens) for part in ("train", "val")}
        train, val = parts["train"], parts["val"]
        room = 0 if by_document else total - round(VALIDATION_SHARE * total)
        for key, document, _, blocks in sorter.in_order():
            if by_document:
                part = val if key < limit else train
                part.list(document, part.tokens)
            else:
                part = train if train.tokens < room else val
                train.list(document, train.tokens + val.tokens)
            part.mark()
            for block in blocks:
                first = (
                    (room - train.tokens) * ITEM_BYTES[dtype] if part is train and room else None
                )
                part.write(block[:first])
                if first is not None:
                    val.write(block[first:])
    shards = {part: writer.close() for part, writer in parts.items()}
    join_documents(folder, parts)
    manifest = Manifest(
        name=name,
        sha256=corpus_identity(shards["train"] + shards["val"], vocabulary),
        tokenizer=vocabulary.tokenizer,
        vocab_size=vocabulary.size,
        dtype=dtype,
        bytes_per_token=text_bytes / total if total else None,
        split=split,
        sources=dict(sources),
        documents={part: writer.documents for part, writer in parts.items()},
        train=shards["train"],
        val=shards["val"],
        tokenizer_sha256=vocabulary.sha256,
        eos=vocabulary.eos,
        starts={part: file_sha256(starts_file(folder, part)) for part in parts},
    )
    write_manifest(manifest, folder)
    return manifest


class PartWriter:
    """One part of a corpus, written shard by shard, with the list of its documents.

    Args:
        folder: The corpus folder.
        part: "train" or "val".
        dtype: Type of the tokens, "uint16" or "uint32".
        shard_tokens: Tokens per shard.
    """

    def __init__(self, folder: Path, part: str, dtype: str, shard_tokens: int) -> None:
        self._folder, self._part = folder, part
        self._item, self._full = ITEM_BYTES[dtype], shard_tokens * ITEM_BYTES[dtype]
        self._shards: list[Shard] = []
        self._file: BinaryIO | None = None
        self._hash, self._size = hashlib.sha256(), 0
        self.tokens = 0
        """Tokens so far."""
        self.documents = 0
        """Documents that are listed."""
        self.listing = folder / f".{part}.json"
        """Their names and starts, as a part of `documents.json`."""
        self._listed = open(self.listing, "w", encoding="utf-8")  # noqa: SIM115
        self._starts = open(starts_file(folder, part), "wb")  # noqa: SIM115

    def list(self, document: str, start: int) -> None:
        """Name a document, and say where it starts."""
        comma = ",\n" if self.documents else ""
        self._listed.write(f"{comma}[\n{json.dumps(document)},\n{start}\n]")
        self.documents += 1

    def mark(self) -> None:
        """The next token is the first of a document."""
        self._starts.write(self.tokens.to_bytes(8, "little"))

    def write(self, data: bytes) -> None:
        """Append tokens, as they are on disk."""
        while data:
            if self._file is None:
                path = self._folder / f"{self._part}-{len(self._shards):04d}.bin"
                self._file = open(path, "wb")  # noqa: SIM115
            fits, data = data[: self._full - self._size], data[self._full - self._size :]
            self._file.write(fits)
            self._hash.update(fits)
            self._size += len(fits)
            self.tokens += len(fits) // self._item
            if self._size == self._full:
                self._end_shard()

    def close(self) -> tuple[Shard, ...]:
        """The part's shards, in order."""
        self._end_shard()
        self._listed.close()
        self._starts.close()
        return tuple(self._shards)

    def _end_shard(self) -> None:
        if self._file is not None:
            self._file.close()
            name = Path(self._file.name).name
            self._shards.append(Shard(name, self._size // self._item, self._hash.hexdigest()))
            self._file, self._hash, self._size = None, hashlib.sha256(), 0


def join_documents(folder: Path, parts: Mapping[str, PartWriter]) -> None:
    """Write `documents.json` from the parts' lists, which may be larger than memory."""
    with open(folder / DOCUMENTS, "w", encoding="utf-8") as joined:
        start = "{\n"
        for part, writer in parts.items():
            joined.write(f'{start}"{part}": ' + ("[\n" if writer.documents else "["))
            with open(writer.listing, encoding="utf-8") as listed:
                shutil.copyfileobj(listed, joined)
            joined.write("\n]" if writer.documents else "]")
            writer.listing.unlink()
            start = ",\n"
        joined.write("\n}")
