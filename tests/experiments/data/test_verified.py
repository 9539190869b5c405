"""A corpus is trained on only if its bytes are what its identity says; imports take text alone."""

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from experiments.config.schema import TrainConfig
from experiments.data import verified
from experiments.data.batches import DataConfig, TokenData
from experiments.data.imports import import_path
from experiments.data.shards import DataError, file_sha256, read_manifest
from experiments.data.techdocs import techdocs
from experiments.data.writer import write_corpus
from experiments.sweep.plan import make_plan
from experiments.train import train

Compose = Callable[..., TrainConfig]
KEY = "data.path=x"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nothing is imported into the user's cache, or stamped there."""
    monkeypatch.setenv("LOWBIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Shards of the user's own."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    write_corpus({f"{n}": f"document {n} " * 40 for n in range(200)}, folder, "own", {}, 20_000)
    return folder


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    """The files of nanoGPT."""
    folder = tmp_path / "tokens"
    folder.mkdir()
    for part, count in (("train", 40_000), ("val", 4_000)):
        (np.arange(count) * 7 % 251).astype("<u2").tofile(folder / f"{part}.bin")
    return folder


def every_tenth(file: Path) -> None:
    values = np.fromfile(file, "<u2")
    values[::10] ^= 1
    values.tofile(file)


def half_zero(file: Path) -> None:
    values = np.fromfile(file, "<u2")
    values[: len(values) // 2] = 0
    values.tofile(file)


def one_bit(file: Path) -> None:
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2] ^= 4
    file.write_bytes(raw)


@pytest.mark.parametrize("damage", [every_tenth, half_zero, one_bit])
def test_damage_of_any_shard_that_keeps_its_size_is_one_line(
    corpus: Path, damage: Callable[[Path], None]
) -> None:
    """Found when it is opened, though this machine had verified it before."""
    config = DataConfig("tokens", str(corpus), seq_len=32)
    TokenData(config)
    shards = sorted(corpus.glob("*.bin"))
    assert len(shards) > 2
    for shard in shards:
        whole = shard.read_bytes()
        damage(shard)
        assert shard.stat().st_size == len(whole)
        with pytest.raises(DataError, match=rf"^data.path=.*{shard.name} .*has sha256") as caught:
            TokenData(config)
        assert "\n" not in str(caught.value)
        shard.write_bytes(whole)
    TokenData(config)


def test_a_run_and_a_plan_refuse_a_damaged_corpus(
    composed: Compose, corpus: Path, tmp_path: Path
) -> None:
    small = ["model=ladder/a", "data=tokens", "data.seq_len=64", "batch_size=4", "tokens=1024"]
    config = composed(*small, f"data.path={corpus}", "tracking=none")
    make_plan([config])
    times = os.stat(corpus / "train-0000.bin")
    every_tenth(corpus / "train-0000.bin")
    with pytest.raises(DataError, match="train-0000.bin .*has sha256"):
        train(config)
    # What a disk does to a file leaves its time as it was: a plan reads it all the same.
    os.utime(corpus / "train-0000.bin", ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(DataError, match="train-0000.bin .*has sha256"):
        make_plan([config])
    assert not Path(config.runs).exists()


def test_a_corpus_is_read_once_a_machine_and_again_when_a_file_was_replaced(
    corpus: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []

    def counted(path: Path) -> str:
        read.append(path.name)
        return file_sha256(path)

    monkeypatch.setattr(verified, "file_sha256", counted)
    config = DataConfig("tokens", str(corpus), seq_len=32)
    shards = sorted(path.name for path in corpus.glob("*.bin"))
    TokenData(config)
    assert sorted(read) == shards
    TokenData(config)
    assert sorted(read) == shards
    copy = corpus / "copy"
    copy.write_bytes((corpus / shards[0]).read_bytes())
    os.replace(copy, corpus / shards[0])
    TokenData(config)
    assert sorted(read) == sorted([*shards, shards[0]])
    [stamp] = (own_cache / "verified").iterdir()
    for nonsense in ("", "[]", '{"a": 1}', '{"a": [1, 2]}', "\0"):
        stamp.write_text(nonsense)
        read.clear()
        TokenData(config)
        assert sorted(read) == shards


def test_own_tokens_that_change_under_their_recorded_identity_are_refused(tokens: Path) -> None:
    config = DataConfig("tokens", str(tokens), seq_len=32)
    TokenData(config)
    file = tokens / "train.bin"
    times = file.stat()
    one_bit(file)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(DataError, match="train.bin .*has sha256 .* made again"):
        TokenData(config, verify=True)


def test_ids_beyond_the_vocabulary_that_a_manifest_states_are_one_line(corpus: Path) -> None:
    path = corpus / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"vocab_size": 100}))
    with pytest.raises(DataError, match="holds the token 117, beyond the vocabulary of 100") as one:
        TokenData(DataConfig("tokens", str(corpus), seq_len=32))
    assert "\n" not in str(one.value)


@pytest.mark.corpus
def test_techdocs_is_verified_like_any(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("LOWBIT_CACHE")
    whole = techdocs()
    copy = tmp_path / "cache" / whole.name
    copy.parent.mkdir()
    subprocess.run(["cp", "-r", whole, copy], check=True)
    monkeypatch.setenv("LOWBIT_CACHE", str(copy.parent))
    half_zero(copy / "val-0000.bin")
    with pytest.raises(DataError, match="val-0000.bin .*rebuild it with"):
        TokenData(DataConfig())


# ---- What is taken for text and tokens ----


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (np.arange(5000).astype("<u4").tobytes(), "holds tokens of 32 or 64 bits"),
        ((np.arange(5000) * 37 % 200_000).astype("<u4").tobytes(), "of 32 or 64 bits"),
        (np.arange(5000).astype("<i8").tobytes(), "holds tokens of 32 or 64 bits"),
        (np.array([20240520, 1, 9], "<i4").tobytes() + bytes(1012 + 500), "header of llm.c"),
        (np.array([20240801, 7, 9], "<i4").tobytes() + bytes(1012 + 500), "header of llm.c"),
        (b"\x93NUMPY" + bytes(1000), "is a NumPy file"),
        (b"PK\x03\x04" + bytes(1000), "is a zip file"),
        (b"\x1f\x8b" + bytes(1000), "is a gzip file"),
        (b"in few bits and in fewer, " * 100, "is text"),
    ],
)
@pytest.mark.parametrize("part", ["train", "val"])
def test_what_is_not_16_bit_tokens_is_refused(
    tokens: Path, part: str, raw: bytes, said: str
) -> None:
    (tokens / f"{part}.bin").write_bytes(raw)
    with pytest.raises(DataError, match=rf"{part}.bin .*{said}.*; write little-endian 16") as one:
        import_path(tokens, KEY)
    assert "\n" not in str(one.value)


@pytest.mark.parametrize("largest", [1, 3, 5, 256, 50_257, 65_536])
def test_16_bit_tokens_of_any_vocabulary_are_taken(tokens: Path, largest: int) -> None:
    for part in ("train", "val"):
        values = np.random.default_rng(3).integers(0, largest, 5000)
        values.astype("<u2").tofile(tokens / f"{part}.bin")
    assert read_manifest(import_path(tokens, KEY), KEY).vocab_size <= largest


@pytest.mark.parametrize(
    "name",
    [
        *("valid.txt", "test.txt", "val.md", "dev.jsonl", "validation.txt", "deep/test.txt"),
        *("wiki.valid.txt", "wiki_test_1.txt", "test/1.txt", "Valid/deep/2.md", "a/Dev/3.txt"),
    ],
)
def test_held_out_text_is_not_trained_on(tmp_path: Path, name: str) -> None:
    source = tmp_path / "mine"
    (source / "train").mkdir(parents=True)
    (source / "wiki.train.txt").write_text("text " * 100)
    import_path(source, KEY)
    file = source / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text('{"text": "held out"}')
    with pytest.raises(DataError, match="by its name .* is a held-out part") as caught:
        import_path(source, KEY)
    assert "\n" not in str(caught.value)
    import_path(file, KEY)  # asked for by name


@pytest.mark.parametrize(
    "train", ["train.txt", "wiki.train.txt", "train/1.txt", "a/Training/1.txt"]
)
def test_a_held_out_folder_is_known_beside_training_text(tmp_path: Path, train: str) -> None:
    source = tmp_path / "mine"
    for name in (train, "valid/b.txt"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text("text " * 100)
    with pytest.raises(DataError, match="by its name valid/ is a held-out part"):
        import_path(source, KEY)


def test_hidden_files_are_no_text_and_what_was_taken_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / ".mine"
    for name in (
        *("a.txt", "latest.md", "protests/b.txt", "code.py"),
        *(".git/x.txt", ".ipynb_checkpoints/a.txt", ".hidden.txt", "deep/.git/y.md"),
    ):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text(f"text of {name} " * 10)
    manifest = read_manifest(import_path(source, KEY), KEY)
    assert set(manifest.sources) == {"a.txt", "latest.md", "protests/b.txt"}
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("data.path=x: read 3 files of text, 3 documents, ")
    assert line.endswith("; left out 4 hidden, 1 of other kinds")
    import_path(source, KEY)
    assert not capsys.readouterr().err, "said once"


def test_what_was_taken_of_tokens_is_said(tokens: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import_path(tokens, KEY)
    [line] = capsys.readouterr().err.splitlines()
    assert line.endswith("16-bit tokens up to 250: 40,000 in train.bin and 4,000 in val.bin")
