"""Streaming into shards gives what sorting everything in memory gives, to the byte."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from experiments.data import sorting
from experiments.data.shards import BYTES, Vocabulary, read_manifest
from experiments.data.writer import Piece, bytes_piece, sort_documents, write_shards


def key(document: str) -> int:
    """The rule of the split, from its description."""
    return int.from_bytes(hashlib.sha256(f"v1{document}".encode()).digest()[:8], "big")


Listed = dict[str, list[list[object]]]


def expected(documents: dict[str, bytes]) -> tuple[dict[str, bytes], Listed]:
    """Both parts and the list of documents, all in memory: the rule as it was before."""
    order = sorted(documents, key=key)
    total = sum(map(len, documents.values()))
    held_out = [name for name in order if key(name) < 0.05 * 2**64]
    parts = {"train": [name for name in order if name not in held_out], "val": held_out}
    streams = {p: b"".join(documents[name] for name in names) for p, names in parts.items()}
    if not 0.01 * total <= len(streams["val"]) <= 0.2 * total:
        whole = b"".join(documents[name] for name in order)
        cut = len(whole) - round(0.05 * len(whole))
        parts, streams = {"train": order, "val": []}, {"train": whole[:cut], "val": whole[cut:]}
    listed: Listed = {}
    for part, names in parts.items():
        start, listed[part] = 0, []
        for name in names:
            listed[part].append([name, start])
            start += len(documents[name])
    return streams, listed


@pytest.mark.parametrize("count", [1, 2, 30, 1000])
@pytest.mark.parametrize("files", [1, 5])
def test_shards_and_list_are_those_of_sorting_in_memory(
    tmp_path: Path, count: int, files: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sorting, "FULL", 1000)
    monkeypatch.setattr(sorting, "MOST_FILES", files)
    monkeypatch.setattr(sorting, "BLOCK", 64)
    texts = {f"doc {n}": f"text {n} ü " * (n * n % 23 + 1) for n in range(count)}
    pieces = (bytes_piece(name, text) for name, text in texts.items())
    found = sort_documents(pieces, tmp_path, BYTES, 10_000)
    assert len(list(tmp_path.glob("unsorted-*"))) == 2 * files
    manifest = write_shards(found, tmp_path, "mine", {}, BYTES, shard_tokens=700)
    streams, listed = expected({name: text.encode() + b"\0" for name, text in texts.items()})
    for part, stream in streams.items():
        shards = sorted(tmp_path.glob(f"{part}-*.bin"))
        tokens = np.concatenate([np.zeros(0, "<u2"), *[np.fromfile(s, "<u2") for s in shards]])
        assert tokens.astype("u1").tobytes() == stream
        assert all(len(np.fromfile(s, "<u2")) == 700 for s in shards[:-1])
        ends = [0] + [place + 1 for place, byte in enumerate(stream[:-1]) if byte == 0]
        starts = np.fromfile(tmp_path / f"documents-{part}.uint64", "<u8").tolist()
        assert sorted({0, *starts} if stream else {}) == (ends if stream else [])
    written = (tmp_path / "documents.json").read_text()
    assert written == json.dumps(listed, indent=0)
    assert not list(tmp_path.glob("unsorted-*"))
    assert read_manifest(tmp_path, "data.path=x", verify=True) == manifest


def test_a_document_in_pieces_is_the_document(tmp_path: Path) -> None:
    def pieces(size: int) -> list[Piece]:
        found = []
        for n in range(50):
            text = f"document {n} " * (n + 1)
            cuts = range(0, len(text), size)
            found += [bytes_piece(f"{n}", text[c : c + size], c == cuts[-1]) for c in cuts]
        return found

    identities = set()
    for size in (7, 10_000):
        folder = tmp_path / str(size)
        folder.mkdir()
        found = sort_documents(pieces(size), folder, BYTES)
        identities.add(write_shards(found, folder, "mine", {}, BYTES).sha256)
    assert len(identities) == 1


def test_tokens_beyond_16_bits_are_written_in_32(tmp_path: Path) -> None:
    large = Vocabulary("mine", 100_000, "ab", 99_999)
    pieces = [Piece(f"{n}", np.array([70_000 + n, 3, 99_999]), 20) for n in range(400)]
    manifest = write_shards(sort_documents(pieces, tmp_path, large), tmp_path, "m", {}, large)
    assert manifest.dtype == "uint32"
    tokens = np.fromfile(tmp_path / "train-0000.bin", "<u4").reshape(-1, 3)
    assert set(tokens[:, 0]) <= set(range(70_000, 70_400))
    assert (tokens[:, 2] == 99_999).all()
    assert manifest.bytes_per_token == 20 / 3


def test_the_identity_knows_the_tokenizer_and_the_end(tmp_path: Path) -> None:
    """Equal tokens mean something else."""
    identities = set()
    for number, vocabulary in enumerate(
        [
            Vocabulary("mine", 300, "ab", 0),
            Vocabulary("mine", 300, "cd", 0),
            Vocabulary("mine", 300, "ab", 1),
            Vocabulary("mine", 300),
        ]
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        pieces = [Piece(f"{n}", np.array([n, 0]), 2) for n in range(200)]
        found = sort_documents(pieces, folder, vocabulary)
        identities.add(write_shards(found, folder, "m", {}, vocabulary).sha256)
        read_manifest(folder, "data.path=x", verify=True)
    assert len(identities) == 4
