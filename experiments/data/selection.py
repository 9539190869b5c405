"""A part of a corpus: the documents that are chosen by the beginnings of their names.

A text can so be held out by its source: what the documents of one folder teach is learned from
all others first, and from them alone afterwards.  A document stays on its side of the split into
training and validation, and the order of documents stays as it was.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np

from experiments.data.shards import (
    DOCUMENTS,
    MANIFEST,
    DataError,
    Manifest,
    cache_folder,
    corpus_identity,
    file_sha256,
    make_once,
    starts_file,
    write_manifest,
)
from experiments.data.stream import TokenStream
from experiments.data.writer import SHARD_TOKENS, PartWriter, join_documents

PARTS = ("train", "val")
_LONGEST_NAME = 40
"""Characters of a part's name; a longer one is cut, and its hash tells it from others."""

Documents = dict[str, list[tuple[str, int]]]
"""Part ("train", "val") -> name and first token of each document."""


def selected(
    folder: Path,
    manifest: Manifest,
    only: tuple[str, ...],
    without: tuple[str, ...],
    key: str,
    again: bool = False,
) -> Path:
    """The folder of a corpus that has some of the documents of another; made once.

    Args:
        folder: The other corpus, whose shards were verified.
        manifest: Its manifest.
        only: Beginnings of the names of the documents to take; none: all of them.
        without: Beginnings of the names of the documents to leave out.
        key: The option that names the corpus; errors start with it.
        again: Make it even if that was done.

    Raises:
        DataError: Where its documents begin is not known, or a beginning meets none of them.
    """
    words = [manifest.name, *only, *(["without", *without] if without else [])]
    name = re.sub(r"[^\w.]+", "-", " ".join(words)).strip("-")[:_LONGEST_NAME]
    asked = json.dumps([manifest.sha256, only, without])
    digest = hashlib.sha256(asked.encode()).hexdigest()[:12]
    target = cache_folder() / "parts" / f"{name}-{digest}"
    if (target / MANIFEST).exists() and not again:
        return target
    documents = _documents(folder, manifest, key)
    names = [name for part in PARTS for name, _ in documents[part]]
    for option, beginnings in (("only", only), ("without", without)):
        for beginning in beginnings:
            if not any(name.startswith(beginning) for name in names):
                raise DataError(
                    f"data.{option}={beginning}: no document of {key} begins so; there are "
                    f"{_examples(names)}"
                )

    def chosen(document: str) -> bool:
        taken = not only or document.startswith(only)
        return taken and not document.startswith(without)

    def make(new: Path) -> None:
        _write(new, folder, manifest, documents, chosen, name)

    return make_once(target, make, again)


def _documents(folder: Path, manifest: Manifest, key: str) -> Documents:
    """Where a corpus' documents begin.

    Raises:
        DataError: It is not known, or of one part only.
    """
    try:
        found: Documents = json.loads((folder / DOCUMENTS).read_text("utf-8"))
        known = all(found[part] for part in PARTS)
    except (OSError, ValueError, KeyError, TypeError):
        known = False
    if not known:
        raise DataError(
            f"{key}: where its documents begin is not known, so data.only and data.without cannot "
            "choose among them"
        )
    return found


def _examples(names: Sequence[str], most: int = 4) -> str:
    """The folders that documents lie in, or some of their names."""
    folders = sorted({name.partition("/")[0] + "/" * ("/" in name) for name in names})
    return ", ".join(folders[:most]) + (", ..." if len(folders) > most else "")


def _write(
    new: Path,
    folder: Path,
    manifest: Manifest,
    documents: Documents,
    chosen: Callable[[str], bool],
    name: str,
) -> None:
    dtype, writers = manifest.dtype, {}
    for part in PARTS:
        stream = TokenStream(folder, getattr(manifest, part), dtype)
        writers[part] = writer = PartWriter(new, part, dtype, SHARD_TOKENS)
        starts = [start for _, start in documents[part]] + [len(stream)]
        for (document, _), (start, end) in zip(documents[part], pairwise(starts), strict=True):
            if chosen(document):
                writer.list(document, writer.tokens)
                writer.mark()
                tokens = stream.read(start, end - start)
                writer.write(tokens.astype(np.dtype(dtype).newbyteorder("<")).tobytes())
    train, val = (writers[part].close() for part in PARTS)
    join_documents(new, writers)
    made = replace(
        manifest,
        name=name,
        sha256=corpus_identity(train + val, manifest.vocabulary),
        bytes_per_token=manifest.bytes_per_token if manifest.tokenizer == "bytes" else None,
        sources={manifest.name: manifest.sha256},
        documents={part: writer.documents for part, writer in writers.items()},
        train=train,
        val=val,
        starts={part: file_sha256(starts_file(new, part)) for part in PARTS},
    )
    write_manifest(made, new)
