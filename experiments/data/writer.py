"""Corpora written: documents are split into training and validation, and stream into shards."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Mapping
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
_LIMIT = VALIDATION_SHARE * 2**64
"""Documents with a smaller key are validation."""


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
    found = sort_documents(pieces, folder, BYTES, expected)
    return write_shards(found, folder, name, sources, BYTES, shard_tokens)


def bytes_piece(document: str, text: str, last: bool = True) -> Piece:
    """The tokens of a text that are its bytes, 0 at the end of the document."""
    encoded = text.replace("\0", "").encode() + b"\0" * last
    return Piece(document, np.frombuffer(encoded, dtype=np.uint8), len(encoded), last)


class Unsorted(NamedTuple):
    """The documents of a corpus, on disk, before they are in order."""

    sorter: DocumentSorter
    tokens: int
    held_out: int
    """Tokens of the documents whose keys make them validation."""
    text_bytes: int


def sort_documents(
    pieces: Iterable[Piece], folder: Path, vocabulary: Vocabulary, expected: int = 0
) -> Unsorted:
    """Take in all documents, in bounded memory.

    Args:
        pieces: The documents, one after the other, each ending with the token that ends it.
        folder: Existing folder for them, until `write_shards`.
        vocabulary: What the tokens mean.
        expected: Bytes of all tokens on disk, roughly.
    """
    tokens = held_out = text_bytes = 0
    with DocumentSorter(folder, vocabulary.dtype, split_key, expected) as sorter:
        for document, some, size, last in pieces:
            key = sorter.add(document, some, last)
            tokens, text_bytes = tokens + len(some), text_bytes + size
            held_out += len(some) if key < _LIMIT else 0
    return Unsorted(sorter, tokens, held_out, text_bytes)


def write_shards(
    found: Unsorted,
    folder: Path,
    name: str,
    sources: Mapping[str, str],
    vocabulary: Vocabulary,
    shard_tokens: int = SHARD_TOKENS,
    advance: Callable[[int], object] = int,
) -> Manifest:
    """Split documents into training and validation and write them as shards, in bounded memory.

    Documents go in the order of `split_key`, which is as good as shuffled, so that every prefix of
    either part is a mixture of all sources.  The first 5 % of the keys are validation.  Where that
    gives a validation part of less than 1 % or more than 20 % of the tokens (a handful of
    documents), the last 5 % of the tokens are validation instead, cut without regard to documents.

    Args:
        found: The documents.
        folder: Existing, empty folder.
        name: The corpus' name in the manifest and in every run record.
        sources: File -> SHA-256 of what the documents come from, for the manifest.
        vocabulary: What the tokens mean.
        shard_tokens: Tokens per shard; the last of a part may have fewer.
        advance: Called with numbers of tokens that were written.
    """
    dtype, total = vocabulary.dtype, found.tokens
    by_document = 0.01 * total <= found.held_out <= 0.20 * total
    train, val = (PartWriter(folder, part, dtype, shard_tokens) for part in ("train", "val"))
    room = total - round(VALIDATION_SHARE * total)
    for key, document, tokens, blocks in found.sorter.in_order():
        if by_document:
            part = val if key < _LIMIT else train
            part.list(document, part.tokens)
            part.mark()
            for block in blocks:
                part.write(block)
        else:
            train.list(document, train.tokens + val.tokens)
            (train if train.tokens < room else val).mark()
            for block in blocks:
                fits = (room - train.tokens) * ITEM_BYTES[dtype]
                train.write(block[:fits])
                val.write(block[fits:])
        advance(tokens)
    shards = {"train": train.close(), "val": val.close()}
    join_documents(folder, {"train": train, "val": val})
    by_name = f"documents by sha256({SPLIT_SALT!r} + name), share {VALIDATION_SHARE}"
    manifest = Manifest(
        name=name,
        sha256=corpus_identity(shards["train"] + shards["val"], vocabulary),
        tokenizer=vocabulary.tokenizer,
        vocab_size=vocabulary.size,
        dtype=dtype,
        bytes_per_token=found.text_bytes / total if total else None,
        split=by_name if by_document else f"the last {VALIDATION_SHARE:.0%} of the tokens",
        sources=dict(sources),
        documents={"train": train.documents, "val": val.documents},
        train=shards["train"],
        val=shards["val"],
        tokenizer_sha256=vocabulary.sha256,
        eos=vocabulary.eos,
        starts={part: file_sha256(starts_file(folder, part)) for part in ("train", "val")},
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
