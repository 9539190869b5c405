"""The command that makes corpora before they are trained on, and says what is in them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from experiments.data.batches import DataConfig, TokenData, corpus_folder
from experiments.data.shards import DataError
from experiments.data.windows import WITHIN

TEXT = """\
python -m experiments.data: make a corpus in the cache, check it, and say what is in it.

  python -m experiments.data                              the built-in corpus techdocs-v1
  python -m experiments.data data.path=book.txt           your own, of whatever kind
  python -m experiments.data data.path=fineweb/data data.tokenizer=tokenizer.json
  python -m experiments.data data.path=c4 data.tokenizer=tiktoken:gpt2 data.text_column=content
  python -m experiments.data data.path=corpus_text_document.bin data.eos=50256

data.path is a file of text, JSON lines (plain, .gz or .zst), Parquet or Arrow, a folder of such, a
folder of the library datasets, nanoGPT's train.bin and val.bin, Megatron's .bin and .idx, or a
corpus folder.  The same keys given to lowbit-train data=tokens then find it made.  docs/data.md
says more.
"""
KEYS = {
    "data.path": "what to read; without it, the built-in corpus",
    "data.tokenizer": "a tokenizer.json, a .tiktoken or tiktoken:NAME; without it, bytes",
    "data.eos": "the token that ends a document, or its id; else the tokenizer's own",
    "data.text_column": "key or column of the text; else text",
    "data.seq_len": "targets in a window; else 256",
    "data.windows": "across_documents, or within_documents",
}


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line: see `TEXT`."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.data",
        usage=argparse.SUPPRESS,
        description=TEXT + "\n" + "\n".join(f"  {k:17} {v}" for k, v in KEYS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("keys", nargs="*", metavar="KEY=VALUE", help="as listed above")
    parser.add_argument("--verify", action="store_true", help="read all shards, compare hashes")
    parser.add_argument("--rebuild", action="store_true", help="make it again")
    options = parser.parse_args(arguments)
    try:
        config = _config(options.keys)
        corpus_folder(config, options.rebuild)
        print("\n".join(_lines(TokenData(config, options.verify))))
    except DataError as error:
        sys.exit(f"experiments.data: {error}")


def _config(words: Sequence[str]) -> DataConfig:
    """The configuration that was typed.

    Raises:
        DataError: A word that is no such key with a value.
    """
    config = DataConfig()
    for word in words:
        key, equals, value = word.partition("=")
        if key not in KEYS or not equals:
            raise DataError(f"{word}: must be KEY=VALUE with one of {', '.join(KEYS)}")
        if key == "data.seq_len":
            if not value.isdecimal() or int(value) < 2:
                raise DataError(f"{word}: must be a number, 2 or more")
            config.seq_len = int(value)
        else:
            setattr(config, key.partition(".")[2], value)
    config.name = "tokens" if config.path else "techdocs"
    return config


def _lines(data: TokenData) -> list[str]:
    manifest, lines = data.manifest, []
    for part, stream in (("train", data.train), ("val", data.val)):
        documents = manifest.documents.get(part)
        count = f" {documents:>10,} documents" if documents is not None else ""
        lines.append(f"{part:5} {len(stream):>15,} tokens{count}")
    size = manifest.bytes_per_token
    known = f", {size:.4g} bytes of text a token" if size else ""
    end = "" if manifest.eos is None else f", {manifest.eos} ends a document"
    lines.append(f"tokens: {manifest.tokenizer}, ids below {manifest.vocab_size:,}{end}{known}")
    if data.config.windows == WITHIN:
        share = data.windows * data.seq_len / len(data.train)
        many = f"{data.windows:,} of {data.seq_len} for training"
        lines.append(f"windows within documents: {many}, {share:.1%} of its tokens")
    return [*lines, f"sha256 {manifest.sha256}", str(corpus_folder(data.config))]
