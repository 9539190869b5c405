"""Corpora read without our code, and tokenizers for tests."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np


def stream(folder: Path, part: str) -> np.ndarray:
    """One part's tokens, from the shards that its manifest lists."""
    manifest = json.loads((folder / "manifest.json").read_text())
    kind = {"uint16": "<u2", "uint32": "<u4"}[manifest["dtype"]]
    files = [np.fromfile(folder / shard["file"], kind) for shard in manifest[part]]
    return np.concatenate([np.zeros(0, kind), *files])


def documents(folder: Path, part: str, eos: int = 0) -> list[list[int]]:
    """One part's documents: the tokens before each end."""
    tokens = stream(folder, part)
    ends = np.flatnonzero(tokens == eos)
    assert len(tokens) == 0 or tokens[-1] == eos
    return [piece.tolist()[:-1] for piece in np.split(tokens, ends + 1)[:-1]]


def texts(folder: Path) -> list[str]:
    """The texts of a corpus of bytes, of both parts, in order of their content."""
    found = documents(folder, "train") + documents(folder, "val")
    return sorted(bytes(tokens).decode() for tokens in found)


def pages(count: int, seed: int = 0) -> list[str]:
    """Documents of different lengths, no two alike, with what is not ASCII."""
    draw = random.Random(seed)
    words = "the run of a model in few bits größere Ψ loss\nand saves\n\nmuch time — ok".split(" ")
    return [f"{n} " + " ".join(draw.choices(words, k=draw.randint(3, 90))) for n in range(count)]


def write_tokenizer(path: Path, vocab_size: int = 500, end: str = "<|endoftext|>") -> Path:
    """A byte-level BPE, as GPT-2 has it, trained on pages."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[end] if end else [],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(pages(300), trainer)
    tokenizer.save(str(path))
    return path
