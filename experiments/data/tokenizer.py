"""From text to tokens: bytes, or a tokenizer of the user, known by its content.

A user's tokenizer is a `tokenizer.json`, as the library tokenizers writes it, or an encoding of
tiktoken: by name if it is in tiktoken's cache, since nothing is downloaded here, or from a file
.tiktoken of that name.  Whatever it is, nothing cuts or fills up a text, no token is put before it,
and what looks like a special token in a text is text: only a document's end ends a document.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from experiments.data.readers.documents import Text, library
from experiments.data.shards import BYTES, DataError, Vocabulary, file_sha256
from experiments.data.writer import Piece, bytes_piece
from fitting.entry.errors import first_line
from fitting.files.own_json import DamagedError, read_object

TIKTOKEN = "tiktoken:"
ENDS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|eos|>", "[EOS]")
"""Names of tokens that end a document, in the vocabularies of published models."""
_BATCH = 1 << 20
"""Characters that are tokenized at a time."""
_BATCH_TEXTS = 1024


class Tokenizer(Protocol):
    """What a text becomes."""

    vocabulary: Vocabulary

    def pieces(self, texts: Sequence[Text]) -> Iterator[Piece]:
        """The tokens of texts, each document's end after its last."""
        ...


def tokenized(texts: Iterable[Text], tokenizer: Tokenizer, key: str) -> Iterator[Piece]:
    """The tokens of texts, in their order; a batch of texts is in memory at a time.

    Raises:
        DataError: A text that UTF-8 does not have.
    """
    batch: list[Text] = []
    size = 0
    for text in texts:
        batch.append(text)
        size += len(text.text)
        if size >= _BATCH or len(batch) >= _BATCH_TEXTS:
            yield from _of(batch, tokenizer, key)
            batch, size = [], 0
    yield from _of(batch, tokenizer, key)


def _of(batch: Sequence[Text], tokenizer: Tokenizer, key: str) -> Iterator[Piece]:
    for document, text, _ in batch:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise DataError(
                f"{key}: {document} holds half a surrogate pair, {text[error.start]!a} (character "
                f"{error.start:,}), which is no text"
            ) from error
    yield from tokenizer.pieces(batch)


class Bytes:
    """The bytes of UTF-8 as tokens; 0 ends a document, and a NUL in a text is dropped."""

    vocabulary = BYTES

    def pieces(self, texts: Sequence[Text]) -> Iterator[Piece]:
        """See `Tokenizer`."""
        for document, text, last in texts:
            yield bytes_piece(document, text, last)


class Encoder:
    """A user's tokenizer.

    Args:
        vocabulary: With the token that ends a document.
        encode: Texts -> the ids of each.
    """

    def __init__(
        self, vocabulary: Vocabulary, encode: Callable[[list[str]], Iterable[Sequence[int]]]
    ) -> None:
        self.vocabulary, self._encode = vocabulary, encode

    def pieces(self, texts: Sequence[Text]) -> Iterator[Piece]:
        """See `Tokenizer`."""
        eos = self.vocabulary.eos
        for (document, text, last), ids in zip(
            texts, self._encode([text.text for text in texts]), strict=True
        ):
            tokens = np.fromiter([*ids, eos] if last else ids, np.uint32)
            yield Piece(document, tokens, len(text.encode()) + last, last)


def open_tokenizer(name: str, eos: str) -> Tokenizer:
    """The tokenizer that `data.tokenizer` and `data.eos` name.

    Args:
        name: "" for bytes, a tokenizer.json, a file .tiktoken, or "tiktoken:" and an encoding.
        eos: The token that ends a document, or its id; "": the tokenizer's own.

    Raises:
        DataError: There is no such tokenizer or token, or which token ends a document is unclear.
    """
    if not name:
        if eos:
            raise DataError(f"data.eos={eos}: bytes end a document with 0; it needs a tokenizer")
        return Bytes()
    if name.startswith(TIKTOKEN):
        return _tiktoken(name, name.removeprefix(TIKTOKEN), eos)
    path = Path(name).expanduser()
    if not path.is_file():
        raise DataError(
            f"data.tokenizer={name}: no such file; must be a tokenizer.json, a .tiktoken, or "
            "tiktoken:NAME"
        )
    if path.suffix == ".tiktoken":
        return _tiktoken(name, path.stem, eos, path.read_bytes())
    return _tokenizer_json(name, path, eos)


# ---- tokenizer.json ----


def _tokenizer_json(name: str, path: Path, eos: str) -> Encoder:
    key = f"data.tokenizer={name}"
    loaded = library("tokenizers", key, "a tokenizer.json").Tokenizer
    try:
        tokenizer = loaded.from_file(os.fspath(path))
    except Exception as error:  # the library raises Exception itself
        raise DataError(f"{key}: is no tokenizer.json ({first_line(error)})") from error
    if getattr(tokenizer.model, "dropout", None):
        raise DataError(
            f'{key}: draws tokens at random ("dropout": {tokenizer.model.dropout}); set it to null'
        )
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    ids = tokenizer.get_vocab(with_added_tokens=True)
    special = [t.content for t in tokenizer.get_added_tokens_decoder().values() if t.special]
    own = _end_of_config(path.with_name("tokenizer_config.json"))
    ends = [end for end in dict.fromkeys([*own, *ENDS]) if end in special or end in own]
    size = max(ids.values()) + 1
    chosen = _end(key, eos, [end for end in ends if end in ids], ids.get, size)

    def encode(texts: list[str]) -> Iterator[Sequence[int]]:
        for encoding in tokenizer.encode_batch_fast(texts, add_special_tokens=False):
            yield encoding.ids

    return Encoder(Vocabulary(path.name, size, file_sha256(path), chosen), encode)


def _end_of_config(path: Path) -> list[str]:
    """The end-of-sequence token that a tokenizer_config.json beside the tokenizer names."""
    try:
        found = read_object(path, "").get("eos_token")
    except (OSError, DamagedError):
        return []
    content = found.get("content") if isinstance(found, dict) else found
    return [content] if isinstance(content, str) else []


def _end(
    key: str, eos: str, candidates: Sequence[str], find: Callable[[str], int | None], size: int
) -> int:
    """The id of the token that ends a document."""
    if eos:
        chosen = int(eos) if eos.isdecimal() else find(eos)
        if chosen is None or chosen >= size:
            raise DataError(
                f"data.eos={eos}: must be a token of {key}, or an id below its vocabulary of "
                f"{size:,}"
            )
        return chosen
    if len(candidates) != 1:
        which = f"may be any of {', '.join(candidates)}" if candidates else "is not known"
        raise DataError(f"{key}: which of its tokens ends a document {which}; set data.eos")
    [only] = candidates
    found = find(only)
    assert found is not None
    return found


# ---- tiktoken ----


def _tiktoken(name: str, encoding: str, eos: str, own: bytes | None = None) -> Encoder:
    key = f"data.tokenizer={name}"
    tiktoken = library("tiktoken", key, "an encoding of tiktoken")
    registry = library("tiktoken.registry", key, "an encoding of tiktoken")
    names = sorted(tiktoken.list_encoding_names())
    if encoding not in names:
        raise DataError(f"{key}: tiktoken knows no {encoding}; it has {', '.join(names)}")
    with _no_network(library("tiktoken.load", key, "an encoding of tiktoken"), name, own):
        try:
            parts = registry.ENCODING_CONSTRUCTORS[encoding]()
        except DataError:
            raise
        except ValueError as error:  # another hash, or no such lines
            raise DataError(f"{key}: is not tiktoken's {encoding} ({first_line(error)})") from error
    made = tiktoken.Encoding(**parts)
    special: dict[str, int] = parts["special_tokens"]
    content = {
        "pattern": parts["pat_str"],
        "ranks": sorted((rank, token.hex()) for token, rank in parts["mergeable_ranks"].items()),
        "special": sorted(special.items()),
    }
    sha256 = hashlib.sha256(json.dumps(content).encode()).hexdigest()
    candidates = [end for end in ENDS if end in special]
    chosen = _end(key, eos, candidates, special.get, made.n_vocab)
    vocabulary = Vocabulary(TIKTOKEN + encoding, made.n_vocab, sha256, chosen)
    threads = min(8, os.cpu_count() or 1)

    def encode(texts: list[str]) -> Iterable[Sequence[int]]:
        found: Iterable[Sequence[int]] = made.encode_ordinary_batch(texts, num_threads=threads)
        return found

    return Encoder(vocabulary, encode)


@contextmanager
def _no_network(load: Any, name: str, own: bytes | None) -> Iterator[None]:
    """Keep tiktoken, which has no option for that, from downloading what is not in its cache.

    Args:
        load: The module that would.
        name: The tokenizer as the user named it.
        own: What it is to read instead: its hash is compared, and its cache stays as it is.
    """

    def read(url: str) -> bytes:
        if own is not None:
            return own
        encoding, file = name.removeprefix(TIKTOKEN), Path(url).name
        other = f", or set data.tokenizer to a copy of {file}" if file.endswith(".tiktoken") else ""
        raise DataError(
            f"data.tokenizer={name}: is not in tiktoken's cache, and nothing is downloaded here; "
            f"set TIKTOKEN_CACHE_DIR to a folder and fill it where there is a network: python -c "
            f'"import tiktoken; tiktoken.get_encoding({encoding!r})"{other}'
        )

    theirs, cache = load.read_file, os.environ.get("TIKTOKEN_CACHE_DIR")
    with tempfile.TemporaryDirectory() as empty:
        load.read_file = read
        if own is not None:
            os.environ["TIKTOKEN_CACHE_DIR"] = empty
        try:
            yield
        finally:
            load.read_file = theirs
            if own is not None:
                os.environ.pop("TIKTOKEN_CACHE_DIR")
                if cache is not None:
                    os.environ["TIKTOKEN_CACHE_DIR"] = cache
