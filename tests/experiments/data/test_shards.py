"""Corpus folders and importing: hashes, split, damage, and what users point `data.path` at."""

import hashlib
import json
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from experiments.data.imports import import_path
from experiments.data.shards import (
    DataError,
    Manifest,
    fingerprint,
    make_once,
    read_manifest,
)
from experiments.data.writer import write_corpus

KEY = "data.path=x"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nothing is imported into the user's cache."""
    monkeypatch.setenv("LOWBIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def documents(count: int) -> dict[str, str]:
    """Texts of different lengths."""
    return {f"doc{i}": f"text {i} " * (i % 7 + 1) for i in range(count)}


def corpus(folder: Path, count: int = 300, shard_tokens: int = 1000) -> Manifest:
    """A small corpus of several shards."""
    folder.mkdir()
    return write_corpus(documents(count), folder, "small", {}, shard_tokens)


def tokens(folder: Path, part: str) -> bytes:
    """One part's tokens, which are bytes, read without our code."""
    files = sorted(folder.glob(f"{part}-*.bin"))
    return np.concatenate([np.fromfile(f, "<u2") for f in files]).astype(np.uint8).tobytes()


def test_every_document_is_whole_on_one_side_of_the_split(tmp_path: Path) -> None:
    corpus(tmp_path / "c")
    found = {}
    for part, entries in json.loads((tmp_path / "c" / "documents.json").read_text()).items():
        stream = tokens(tmp_path / "c", part)
        for name, start in entries:
            assert name not in found
            found[name] = stream[start : stream.index(b"\0", start)].decode()
        assert stream.count(b"\0") == len(entries)
    assert found == documents(300)


def test_a_document_stays_on_its_side_when_others_are_added(tmp_path: Path) -> None:
    sides = []
    for number, count in enumerate((300, 600)):
        corpus(tmp_path / str(number), count)
        entries = json.loads((tmp_path / str(number) / "documents.json").read_text())
        sides.append({name for name, _ in entries["val"]})
    assert sides[0] == {name for name in sides[1] if int(name[3:]) < 300}
    # Binomial(600, 0.05): mean 30, standard deviation 5.3; fixed names, so no false alarms.
    assert 15 <= len(sides[1]) <= 45


def test_corpus_sha256_is_what_sha256sum_would_print(tmp_path: Path) -> None:
    manifest = corpus(tmp_path / "c")
    files = sorted((tmp_path / "c").glob("train-*")) + sorted((tmp_path / "c").glob("val-*"))
    assert len(files) > 3
    lines = "".join(f"{hashlib.sha256(f.read_bytes()).hexdigest()}  {f.name}\n" for f in files)
    assert manifest.sha256 == hashlib.sha256(lines.encode()).hexdigest()
    assert read_manifest(tmp_path / "c", KEY, verify=True) == manifest


def test_one_document_is_split_by_its_last_five_percent(tmp_path: Path) -> None:
    write_corpus({"only": "abcdefghi\n" * 100}, tmp_path, "one", {})
    text = b"abcdefghi\n" * 100 + b"\0"
    assert tokens(tmp_path, "train") == text[:951]
    assert tokens(tmp_path, "val") == text[951:]


def test_a_nul_in_a_text_does_not_end_its_document(tmp_path: Path) -> None:
    write_corpus({"only": "ab\0cd" * 20}, tmp_path, "one", {})
    assert tokens(tmp_path, "train") + tokens(tmp_path, "val") == b"abcd" * 20 + b"\0"


def test_a_truncated_shard_is_named(tmp_path: Path) -> None:
    corpus(tmp_path / "c")
    shard = tmp_path / "c" / "train-0001.bin"
    shard.write_bytes(shard.read_bytes()[:-2])
    with pytest.raises(DataError, match=r"x: .*train-0001.bin has 1,998 bytes .* 2,000.*; do it"):
        read_manifest(tmp_path / "c", KEY, "do it")


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    corpus(tmp_path / "c")
    (tmp_path / "c" / "val-0000.bin").unlink()
    with pytest.raises(DataError, match=r"^data.path=x: .*val-0000.bin has 0 bytes"):
        read_manifest(tmp_path / "c", KEY)


def test_an_altered_shard_is_found_when_asked_to_verify(tmp_path: Path) -> None:
    corpus(tmp_path / "c")
    shard = tmp_path / "c" / "train-0000.bin"
    shard.write_bytes(b"!" + shard.read_bytes()[1:])
    read_manifest(tmp_path / "c", KEY)
    with pytest.raises(DataError, match=r"train-0000.bin has sha256 [0-9a-f]{12} where"):
        read_manifest(tmp_path / "c", KEY, verify=True)


@pytest.mark.parametrize("damage", ['{"format": 1}', "not json", "[]"])
def test_a_manifest_that_is_not_ours_is_one_line(tmp_path: Path, damage: str) -> None:
    (tmp_path / "manifest.json").write_text(damage)
    with pytest.raises(DataError, match=r"manifest.json is not a corpus manifest") as caught:
        read_manifest(tmp_path, KEY)
    assert "\n" not in str(caught.value)


def test_an_altered_manifest_is_refused(tmp_path: Path) -> None:
    corpus(tmp_path / "c")
    path = tmp_path / "c" / "manifest.json"
    raw = json.loads(path.read_text())
    raw["train"][0]["sha256"] = "0" * 64
    path.write_text(json.dumps(raw))
    with pytest.raises(DataError, match="altered"):
        read_manifest(tmp_path / "c", KEY)


# ---- Importing ----


def test_a_folder_of_text_is_one_document_a_file_and_a_jsonl_line(tmp_path: Path) -> None:
    source = tmp_path / "mine"
    (source / "deep").mkdir(parents=True)
    (source / "a.txt").write_text("first ü")
    (source / "deep" / "b.md").write_text("second")
    (source / "c.jsonl").write_text('{"text": "third"}\n\n{"text": "fourth", "id": 4}\n')
    (source / "ignored.py").write_text("fifth")
    folder = import_path(source, KEY)
    stream = tokens(folder, "train") + tokens(folder, "val")
    assert sorted(stream.split(b"\0")) == [b"", "first ü".encode(), b"fourth", b"second", b"third"]
    assert read_manifest(folder, KEY, verify=True).name == "mine"


def test_text_is_imported_once_and_again_when_it_changed(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("one two three " * 50)
    first = import_path(file, KEY)
    made = (first / "manifest.json").stat().st_mtime_ns
    assert import_path(file, KEY) == first
    assert (first / "manifest.json").stat().st_mtime_ns == made
    state = fingerprint(file)
    file.write_text("one two three " * 51)
    assert fingerprint(file) != state
    assert import_path(file, KEY) != first


def test_nanogpt_tokens_are_used_where_they_lie(tmp_path: Path) -> None:
    np.arange(100, dtype="<u2").tofile(tmp_path / "train.bin")
    np.array([7, 50256, 3], dtype="<u2").tofile(tmp_path / "val.bin")
    manifest = read_manifest(import_path(tmp_path, KEY), KEY, verify=True)
    assert manifest.vocab_size == 50257
    assert manifest.bytes_per_token is None
    assert [shard.file for shard in manifest.val] == [str(tmp_path / "val.bin")]
    assert [shard.tokens for shard in manifest.train] == [100]


def test_a_corpus_folder_is_used_as_it_is(tmp_path: Path, own_cache: Path) -> None:
    corpus(tmp_path / "c")
    assert import_path(tmp_path / "c", KEY) == tmp_path / "c"
    assert not own_cache.exists()


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, r"must be text \(.txt, .md, .jsonl\)"),
        ({"a.csv": b"1,2"}, r"must be text"),
        ({"train.bin": b"1234"}, r"val.bin must be there, and hold uint16 tokens"),
        ({"train.bin": b"123", "val.bin": b"12"}, r"train.bin must be there, and hold uint16"),
        ({"a.txt": b"caf\xe9"}, r"a.txt is not UTF-8"),
        ({"a.jsonl": b'{"text": "x"}\n{"tex": "x"}'}, r'line 2 of .*a.jsonl is not {"text"'),
        ({"a.jsonl": b'{"text": 3}'}, r"line 1 of"),
        ({"a.jsonl": b'{"text": '}, r"line 1 of"),
    ],
)
def test_what_cannot_be_imported_is_one_line(
    tmp_path: Path, files: dict[str, bytes], message: str
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name, content in files.items():
        (source / name).write_bytes(content)
    with pytest.raises(DataError, match=rf"^data.path=x: .*{message}") as caught:
        import_path(source, KEY)
    assert "\n" not in str(caught.value)


def test_a_path_that_is_not_there_is_one_line() -> None:
    with pytest.raises(DataError, match=r"^data.path=/nowhere: no such file or folder$"):
        import_path(Path("/nowhere"), "data.path=/nowhere")


# ---- Making a corpus once ----


def test_two_at_once_make_one_corpus(tmp_path: Path) -> None:
    made = []

    def make(folder: Path) -> None:
        made.append(folder)
        time.sleep(0.1)  # long enough for the other to arrive; the claim holds either way
        (folder / "manifest.json").write_text("{}")

    target = tmp_path / "cache" / "corpus"
    threads = [threading.Thread(target=make_once, args=(target, make)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    assert (target / "manifest.json").exists()


def test_a_build_that_fails_leaves_nothing_and_keeps_the_old_one(tmp_path: Path) -> None:
    target = tmp_path / "corpus"
    make_once(target, _touch)
    leftover = tmp_path / ".building-corpus-killed"
    leftover.mkdir()

    def fail(folder: Path) -> None:
        (folder / "half").write_text("half")
        raise DataError("data.name=techdocs: no")

    with pytest.raises(DataError, match="no"):
        make_once(target, fail, again=True)
    assert (target / "manifest.json").exists()
    assert not list(tmp_path.glob(".building*"))


def _touch(folder: Path) -> None:
    (folder / "manifest.json").write_text("{}")


def test_a_rebuild_replaces_the_folder_under_open_maps(tmp_path: Path) -> None:
    target = tmp_path / "corpus"

    def make(value: int) -> None:
        def write(folder: Path) -> None:
            np.full(10, value, "<u2").tofile(folder / "train.bin")
            _touch(folder)

        make_once(target, write, again=True)

    make(1)
    mapped = np.memmap(target / "train.bin", "<u2", "r")
    make(2)
    assert mapped.tolist() == [1] * 10
    assert np.fromfile(target / "train.bin", "<u2").tolist() == [2] * 10


def test_a_cache_that_cannot_be_written_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LOWBIT_CACHE", str(tmp_path / "file"))
    with pytest.raises(DataError, match=r"^LOWBIT_CACHE=.*file: cannot be written"):
        make_once(tmp_path / "file" / "corpus", _touch)
