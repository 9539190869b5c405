"""A part of a corpus: the documents that are chosen by the beginnings of their names.

A text can so be held out by its source: what the documents of one folder teach is learned from
all others first, and from them alone afterwards.  A document stays on its side of the split into
training and validation, and the order of documents stays as it was.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from experiments.data.shards import (
    DOCUMENTS,
    MANIFEST,
    SHARD_TOKENS,
    DataError,
    Manifest,
    Shard,
    cache_folder,
    make_once,
    shards_sha256,
    write_manifest,
)
from experiments.data.stream import TokenStream

PARTS = ("train", "val")
_LONGEST_NAME = 40
"""Characters of a part's name; a longer one is cut, and its hash tells it from others."""

Documents = dict[str, list[tuple[str, int]]]
"""Part ("train", "val") -> name and first token of each document."""


def selected(
    folder: Path, manifest: Manifest, only: tuple[str, ...], without: tuple[str, ...], key: str
) -> Path:
    """The folder of a corpus that has some of the documents of another; made once.

    Args:
        folder: The other corpus, whose shards were verified.
        manifest: Its manifest.
        only: Beginnings of the names of the documents to take; none: all of them.
        without: Beginnings of the names of the documents to leave out.
        key: The option that names the corpus; errors start with it.

    Raises:
        DataError: Where its documents begin is not known, or a beginning meets none of them.
    """
    words = [manifest.name, *only, *(["without", *without] if without else [])]
    name = re.sub(r"[^\w.]+", "-", " ".join(words)).strip("-")[:_LONGEST_NAME]
    asked = json.dumps([manifest.sha256, only, without])
    digest = hashlib.sha256(asked.encode()).hexdigest()[:12]
    target = cache_folder() / "parts" / f"{name}-{digest}"
    if (target / MANIFEST).exists():
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
        _write(new, folder, manifest, documents, [n for n in names if chosen(n)], name)

    return make_once(target, make)


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
    chosen: Sequence[str],
    name: str,
) -> None:
    wanted = set(chosen)
    shards: dict[str, tuple[Shard, ...]] = {}
    offsets: Documents = {}
    for part in PARTS:
        stream = TokenStream(folder, getattr(manifest, part), manifest.dtype)
        starts = [start for _, start in documents[part]] + [len(stream)]
        spans = [
            (document, start, end)
            for (document, _), (start, end) in zip(documents[part], pairwise(starts), strict=True)
            if document in wanted
        ]
        ends = np.cumsum([0] + [end - start for _, start, end in spans]).tolist()
        offsets[part] = [(s[0], first) for s, first in zip(spans, ends[:-1], strict=True)]
        pieces = (stream.read(start, end - start) for _, start, end in spans if end > start)
        shards[part] = tuple(_write_shards(new, part, pieces, manifest.dtype))
    (new / DOCUMENTS).write_text(json.dumps(offsets, indent=0), encoding="utf-8")
    made = Manifest(
        name=name,
        sha256=shards_sha256(shards["train"] + shards["val"]),
        tokenizer=manifest.tokenizer,
        vocab_size=manifest.vocab_size,
        dtype=manifest.dtype,
        bytes_per_token=manifest.bytes_per_token if manifest.tokenizer == "bytes" else None,
        split=manifest.split,
        sources={manifest.name: manifest.sha256},
        documents={part: len(found) for part, found in offsets.items()},
        train=shards["train"],
        val=shards["val"],
    )
    write_manifest(made, new)


def _write_shards(
    folder: Path, part: str, pieces: Iterator[np.ndarray], dtype: str
) -> Iterator[Shard]:
    """Write pieces of a stream one after the other, in files of at most `SHARD_TOKENS`."""
    kind, held = np.dtype(dtype).newbyteorder("<"), np.empty(0, dtype)

    def write(number: int, tokens: np.ndarray) -> Shard:
        content = tokens.astype(kind).tobytes()
        file = f"{part}-{number:04d}.bin"
        (folder / file).write_bytes(content)
        return Shard(file, len(tokens), hashlib.sha256(content).hexdigest())

    number, waiting, count = 0, [held], 0
    for piece in pieces:
        waiting.append(piece)
        count += len(piece)
        while count >= SHARD_TOKENS:
            joined = np.concatenate(waiting)
            yield write(number, joined[:SHARD_TOKENS])
            number, waiting, count = number + 1, [joined[SHARD_TOKENS:]], count - SHARD_TOKENS
    if count or not number:
        yield write(number, np.concatenate(waiting))
