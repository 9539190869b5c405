"""Megatron's .bin and .idx are used where they lie, and held to each other."""

import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from experiments.data.batches import DataConfig, TokenData
from experiments.data.imports import import_path
from experiments.data.shards import DataError, read_manifest
from experiments.data.windows import WITHIN

KEY = "data.path=x"
CODES = {"uint8": 1, "int16": 3, "int32": 4, "int64": 5, "uint16": 8}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nothing is imported into the user's cache."""
    monkeypatch.setenv("LOWBIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


Documents = Sequence[Sequence[Sequence[int]]]


def write(prefix: Path, documents: Documents, dtype: str = "uint16") -> None:
    """The format, transcribed from IndexedDatasetBuilder: documents of sequences of tokens."""
    sequences = [sequence for document in documents for sequence in document]
    tokens = np.array([token for sequence in sequences for token in sequence], dtype)
    Path(f"{prefix}.bin").write_bytes(tokens.tobytes())
    bounds, pointer, pointers = [0], 0, []
    for document in documents:
        bounds.append(bounds[-1] + len(document))
    for sequence in sequences:
        pointers.append(pointer)
        pointer += len(sequence) * tokens.itemsize
    with open(f"{prefix}.idx", "wb") as file:
        file.write(b"MMIDIDX\x00\x00" + struct.pack("<QB", 1, CODES[dtype]))
        file.write(struct.pack("<QQ", len(sequences), len(bounds)))
        file.write(struct.pack(f"<{len(sequences)}i", *map(len, sequences)))
        file.write(struct.pack(f"<{len(sequences)}q", *pointers))
        file.write(struct.pack(f"<{len(bounds)}q", *bounds))


def made(count: int, seed: int = 0, top: int = 900) -> list[list[list[int]]]:
    """Documents of one to three sequences, each document ending with token 1."""
    draw = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        parts = draw.integers(1, 4)
        document = [draw.integers(2, top, draw.integers(1, 40)).tolist() for _ in range(parts)]
        document[-1].append(1)
        found.append(document)
    return found


def flat(documents: Documents) -> list[int]:
    return [token for document in documents for sequence in document for token in sequence]


@pytest.mark.parametrize("dtype", ["uint16", "int32"])
@pytest.mark.parametrize("named", ["", ".bin", ".idx"])
def test_documents_are_whole_on_one_side_and_in_order(
    tmp_path: Path, dtype: str, named: str
) -> None:
    documents = made(500, top=900 if dtype == "uint16" else 70_000)
    write(tmp_path / "v1.5_text_document", documents, dtype)
    path = tmp_path / f"v1.5_text_document{named}"
    data = TokenData(DataConfig("tokens", str(path), 8))
    tokens = flat(documents)
    train, val = (stream.read(0, len(stream)).tolist() for stream in (data.train, data.val))
    assert train + val == tokens
    assert train[-1] == 1
    assert 0.04 < len(val) / len(tokens) < 0.06
    assert data.manifest.documents == {"train": train.count(1), "val": val.count(1)}
    assert data.vocab_size == max(tokens) + 1
    assert data.manifest.train[0].file == str(tmp_path / "v1.5_text_document.bin")
    folder = import_path(path, KEY)
    assert not list(folder.glob("*.bin"))
    assert read_manifest(folder, KEY, verify=True) == data.manifest


def test_windows_within_documents_follow_the_index(tmp_path: Path) -> None:
    """Where sequences begin is no document's end."""
    documents = made(300)
    write(tmp_path / "a", documents)
    data = TokenData(DataConfig("tokens", str(tmp_path / "a"), 8, windows=WITHIN))
    wanted = []
    for document in documents:
        tokens = flat([document])
        wanted += [tokens[k : k + 9] for k in range(0, len(tokens) - 8, 8)]
    rows = torch.cat([data.batch(step, 1, 0) for step in range(data.windows)]).tolist()
    scored = torch.cat(list(data.validation_batches(7))).tolist()
    assert sorted(rows + scored) == sorted(wanted)


def test_a_folder_of_pairs_gives_validation_from_each(tmp_path: Path) -> None:
    source = tmp_path / "mine"
    source.mkdir()
    parts = {name: made(200, seed) for seed, name in enumerate(("b", "a"))}
    for name, documents in parts.items():
        write(source / name, documents)
    data = TokenData(DataConfig("tokens", str(source), 8, windows=WITHIN))
    assert [Path(s.file).name for s in data.manifest.val] == ["a.bin", "b.bin"]
    assert sum(data.manifest.documents.values()) == 400
    ends = [0] + [s.tokens for s in data.manifest.train]
    first = data.train.read(0, ends[1]).tolist()
    assert first == flat(parts["a"])[: ends[1]]
    assert data.train.read(ends[1], ends[2]).tolist() == flat(parts["b"])[: ends[2]]


def test_one_long_document_is_cut(tmp_path: Path) -> None:
    write(tmp_path / "a", [[list(range(1000))]])
    manifest = read_manifest(import_path(tmp_path / "a", KEY), KEY)
    assert [shard.tokens for shard in manifest.train + manifest.val] == [950, 50]
    assert manifest.split == "the last 5% of the tokens of each file"


def test_damage_that_keeps_the_size_is_found(tmp_path: Path) -> None:
    write(tmp_path / "a", made(300))
    config = DataConfig("tokens", str(tmp_path / "a"), 8)
    first = TokenData(config)
    raw = bytearray((tmp_path / "a.bin").read_bytes())
    raw[40] ^= 1
    (tmp_path / "a.bin").write_bytes(raw)
    assert TokenData(config).manifest.sha256 != first.manifest.sha256


def broken(path: Path, kind: str) -> None:
    index, data = Path(f"{path}.idx"), Path(f"{path}.bin")
    raw = bytearray(index.read_bytes())
    sequences = struct.unpack_from("<Q", raw, 18)[0]
    if kind == "cut":
        index.write_bytes(raw[:-5])
    elif kind == "header":
        index.write_bytes(raw[:20])
    elif kind == "empty":
        index.write_bytes(b"")
    elif kind == "other":
        index.write_bytes(b"TNTIDX\x00\x00" + bytes(raw))
    elif kind == "version":
        raw[9] = 2
        index.write_bytes(raw)
    elif kind == "pointers":
        struct.pack_into("<q", raw, 34 + 4 * sequences, 2)
        index.write_bytes(raw)
    elif kind == "bounds":
        struct.pack_into("<q", raw, len(raw) - 8, 7)
        index.write_bytes(raw)
    elif kind == "short":
        data.write_bytes(data.read_bytes()[:-2])
    elif kind == "gone":
        data.unlink()


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (
            "cut",
            r"a.idx has [\d,]+ bytes where [\d,]+ sequences and 31 document bounds need",
        ),
        ("header", r"a.idx is cut off in its header, after 20 of 34 bytes$"),
        ("empty", r"a.idx is no index of Megatron, which begins with MMIDIDX$"),
        ("other", r"a.idx is no index of Megatron"),
        ("version", r"a.idx is of version 2 and type 8; known are"),
        ("pointers", r"a.idx has sequences that do not lie one after the other$"),
        ("bounds", r"a.idx has document bounds that do not lead from 0 to its \d+ sequences$"),
        ("short", r"a.idx counts [\d,]+ tokens of 2 bytes, but a.bin has [\d,]+ bytes$"),
        ("gone", r"a.bin is not there; Megatron's tokens are a .bin and an .idx$"),
    ],
)
def test_a_pair_that_does_not_fit_is_one_line(tmp_path: Path, kind: str, message: str) -> None:
    write(tmp_path / "a", made(30))
    broken(tmp_path / "a", kind)
    with pytest.raises(DataError, match=rf"^data.path=x: .*{message}"):
        import_path(tmp_path / "a", KEY)


def test_types_that_are_no_ids_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "a", [[[1, 2, 3]] * 40], "int64")
    with pytest.raises(DataError, match=r"a.idx has tokens of int64; must be uint16 or int32$"):
        import_path(tmp_path / "a", KEY)
    write(tmp_path / "a", [[[1, 2, -3]] * 40], "int32")
    with pytest.raises(DataError, match=r"a.bin holds negative numbers, which are no tokens$"):
        import_path(tmp_path / "a", KEY)
    write(tmp_path / "a", [[[1, 2, 3]]] * 40)
    with pytest.raises(DataError, match=r"^data.tokenizer=t.json: is there for text, and data.pat"):
        TokenData(DataConfig("tokens", str(tmp_path / "a"), 8, tokenizer="t.json"))
