"""The tokenizer of a run, for a folder of Hugging Face: of bytes, the user's own, or none.

Their library has no tokenizer of bytes as such; byte-level BPE without merges is one.  It writes a
byte as a printable character, by GPT-2's table.  Byte 0, which ends each document and occurs in
none, is the end-of-text token.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import Any

from experiments.config.schema import TrainConfig
from experiments.data.batches import TokenData
from experiments.data.shards import DataError, file_sha256
from fitting.results.record import RunRecord

END_OF_TEXT = 0
_END = "\0"
_PRINTABLE = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
"""Bytes that GPT-2's table writes as the character of the same number."""
_BYTES = """
A token is a byte of UTF-8, and byte 0 ends a document.  The tokenizer here gives the tokens of
training exactly; it adds none at the start of a text.
"""
_OWN = """
The tokenizer here is the one that the text was read with, and gives its tokens; what it would add
at the start or the end of a text was not added in training, and is left out.  Token {end} ends a
document.
"""
_NONE = """
There is none in this folder: {why}.
"""


@dataclass(frozen=True)
class RunTokenizer:
    """What goes into the folder, and what the card says of it."""

    said: str
    """A paragraph for the card."""
    files: dict[str, str | bytes] = field(default_factory=dict)
    """By name; none where there is no tokenizer."""
    end: int | None = None
    """The token that ends a document, if that is known."""


def tokenizer_of(config: TrainConfig, record: RunRecord) -> RunTokenizer:
    """The tokenizer that made a run's tokens, if it is still what it was."""
    length = config.data.seq_len
    if _is_of_bytes(config, record):
        made = {"tokenizer.json": tokenizer_json(), "tokenizer_config.json": _config(_END, length)}
        return RunTokenizer(_BYTES, {n: _json(c) for n, c in made.items()}, END_OF_TEXT)
    path = config.data.tokenizer_file
    if path is None or path.suffix == ".tiktoken":
        why = "the run was trained on the user's own tokens, whose tokenizer it does\nnot know"
        if config.data.tokenizer:
            why = f"the tokens are those of {config.data.tokenizer}, which is no tokenizer.json"
        return RunTokenizer(_NONE.format(why=why))
    try:
        data = TokenData(config.data)
        sha256 = file_sha256(path)
    except (DataError, OSError) as error:
        return RunTokenizer(_NONE.format(why=f"{str(error).rstrip('.')}"))
    if data.label != record.corpus or sha256 != data.manifest.tokenizer_sha256:
        why = f"{path} and the text are not what they were when the run was trained"
        return RunTokenizer(_NONE.format(why=why))
    own, end = json.loads(path.read_bytes()), data.manifest.eos
    own |= {"post_processor": None, "truncation": None, "padding": None}
    tokens = {t["id"]: t["content"] for t in own.get("added_tokens", [])}
    vocabulary = own["model"].get("vocab", {})
    pairs = vocabulary.items() if isinstance(vocabulary, dict) else []
    name = tokens.get(end) or next((word for word, n in pairs if n == end), None)
    files = {"tokenizer.json": _json(own), "tokenizer_config.json": _json(_config(name, length))}
    return RunTokenizer(_OWN.format(end=end), {**files}, end)


def _is_of_bytes(config: TrainConfig, record: RunRecord) -> bool:
    """Whether tokens are the bytes of text: of the built-in text, and of a user's, but not tokens.

    Both losses of a record say how many bytes there are to a token, if that is known.
    """
    if config.data.name == "techdocs":
        return True
    if config.data.tokenizer or not record.loss or not record.bits_per_byte:
        return False
    return math.isclose(record.bits_per_byte * math.log(2), record.loss, rel_tol=1e-9)


def _json(content: object) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def tokenizer_json() -> dict[str, Any]:
    """The file tokenizer.json of a tokenizer of bytes."""
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False}
    end = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": END_OF_TEXT, "content": _END, **end, "special": True}],
        "normalizer": None,
        "pre_tokenizer": level | {"use_regex": False},
        "post_processor": None,
        "decoder": level | {"use_regex": False},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": {_END: END_OF_TEXT} | {_character(byte): byte for byte in range(1, 256)},
            "merges": [],
        },
    }


def _config(end: str | None, length: int) -> dict[str, Any]:
    """The file tokenizer_config.json, for a model trained on windows of `length` tokens."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": end,
        "clean_up_tokenization_spaces": False,
        "model_max_length": length,
    }


def _character(byte: int) -> str:
    """The character by which GPT-2's table writes a byte: the others follow from 256 on."""
    if byte in _PRINTABLE:
        return chr(byte)
    return chr(256 + sum(other not in _PRINTABLE for other in range(byte)))
