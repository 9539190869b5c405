"""The tokens of built-in text, the bytes of UTF-8, as a tokenizer of Hugging Face.

Their library has no tokenizer of bytes as such; byte-level BPE without merges is one.  It writes a
byte as a printable character, by GPT-2's table.  Byte 0, which ends each document and occurs in
none, is the end-of-text token.
"""

from __future__ import annotations

from typing import Any

END_OF_TEXT = 0
_END = "\0"
_PRINTABLE = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
"""Bytes that GPT-2's table writes as the character of the same number."""


def tokenizer_json() -> dict[str, Any]:
    """The file tokenizer.json."""
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


def tokenizer_config(length: int) -> dict[str, Any]:
    """The file tokenizer_config.json, for a model trained on windows of `length` tokens."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": _END,
        "clean_up_tokenization_spaces": False,
        "model_max_length": length,
    }


def _character(byte: int) -> str:
    """The character by which GPT-2's table writes a byte: the others follow from 256 on."""
    if byte in _PRINTABLE:
        return chr(byte)
    return chr(256 + sum(other not in _PRINTABLE for other in range(byte)))
