"""What people have becomes the same corpus, whatever it is packed in; what is wrong is one line."""

import gzip
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from experiments.data.imports import TextOptions, import_path
from experiments.data.progress import Lines
from experiments.data.readers import documents as pieces_of
from experiments.data.shards import DataError, read_manifest
from tests.support.corpora import pages, texts
from tests.support.places import ROOT

KEY = "data.path=x"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nothing is imported into the user's cache."""
    monkeypatch.setenv("LOWBIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


# ---- What was there before ----


def test_text_of_before_keeps_its_address_and_identity(tmp_path: Path) -> None:
    """As version 0.1 had them before it streamed: returns, NULs, empty documents and all."""
    one = tmp_path / "folder"
    (one / "deep").mkdir(parents=True)
    for n in range(120):
        text = f"text {n} \r\nü\rand \0 more\n".encode() * (n % 9 + 1)
        (one / "deep" / f"{n}.txt").write_bytes(text)
    (one / "empty.md").write_bytes(b"")
    lines = [json.dumps({"text": f"line {n} é\r\n"}).encode() for n in range(200)]
    ends = [b"\r\n" if n % 2 else b"\n\n" for n in range(200)]
    (one / "a.jsonl").write_bytes(b"".join(a + b for a, b in zip(lines, ends, strict=True)))
    (one / "cr.jsonl").write_bytes(b'{"text": "old"}\r{"text": "mac"}\r')
    (one / "left.out").write_bytes(b"x")
    (tmp_path / "book.txt").write_bytes("A book of one document: ß.\n".encode() * 500)
    objects = (json.dumps({"text": "w " * (n % 50), "id": n}) + "\n" for n in range(3000))
    (tmp_path / "lines.jsonl").write_text("".join(objects))
    found = {}
    for path in (one, tmp_path / "book.txt", tmp_path / "lines.jsonl"):
        folder = import_path(path, KEY)
        listed = hashlib.sha256((folder / "documents.json").read_bytes()).hexdigest()[:12]
        found[folder.name] = (read_manifest(folder, KEY, verify=True).sha256[:12], listed)
    assert found == {
        "folder-e47119b48bec": ("567f5a329ef2", "bc1bbc7e3ead"),
        "book.txt-3b17191d0b77": ("e309227392a6", "30ece3c7ec3b"),
        "lines.jsonl-db42aaff63a2": ("0fc457d2474d", "637b38ab82d7"),
    }


# ---- Every kind ----


def lines_of(every: list[str], key: str = "text") -> bytes:
    return b"".join(json.dumps({"id": n, key: t}).encode() + b"\n" for n, t in enumerate(every))


def zst(content: bytes) -> bytes:
    """Several frames, as parallel programs write them."""
    zstandard = pytest.importorskip("zstandard", reason="needs the extra data")
    half = len(content) // 2
    return b"".join(zstandard.compress(part) for part in (content[:half], content[half:]))


def gz(content: bytes) -> bytes:
    """Several members."""
    half = len(content) // 2
    return gzip.compress(content[:half]) + gzip.compress(content[half:])


def write_parquet(path: Path, every: list[str], **kind: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    half = len(every) // 2
    for number, part in enumerate((every[:half], every[half:])):
        column = pa.array(part, **kind)
        table = pa.table({"id": list(range(len(part))), "text": column})
        parquet.write_table(table, path.with_stem(f"{number:03d}_00000"), row_group_size=37)


def write_arrow(path: Path, every: list[str], whole: bool) -> None:
    table = pa.table({"text": every})
    make = pa.ipc.new_file if whole else pa.ipc.new_stream
    with make(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=41)


WRITERS: dict[str, Callable[[Path, list[str]], object]] = {
    "a.jsonl": lambda path, every: path.write_bytes(lines_of(every)),
    "a.jsonl.gz": lambda path, every: path.write_bytes(gz(lines_of(every))),
    "c4-train.00000-of-01024.json.gz": lambda path, every: path.write_bytes(gz(lines_of(every))),
    "a.jsonl.zst": lambda path, every: path.write_bytes(zst(lines_of(every))),
    "hub/data/CC-MAIN-2024-10/0.parquet": write_parquet,
    "large/0.parquet": lambda path, every: write_parquet(path, every, type=pa.large_string()),
    "codes/0.parquet": lambda path, every: write_parquet(
        path, every, type=pa.dictionary(pa.int32(), pa.string())
    ),
    "stream.arrow": lambda path, every: write_arrow(path, every, False),
    "file.arrow": lambda path, every: write_arrow(path, every, True),
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_kind_gives_every_document_once(tmp_path: Path, name: str) -> None:
    every = pages(300)
    WRITERS[name](tmp_path / name, [*every[:100], "", *every[100:]])
    if name.startswith("hub"):
        (tmp_path / "hub" / "README.md").write_text("a card, which is not data")
    folder = import_path(tmp_path / name.partition("/")[0], KEY)
    assert texts(folder) == sorted(every)
    manifest = read_manifest(folder, KEY, verify=True)
    assert manifest.tokenizer == "bytes"
    assert manifest.bytes_per_token == 1
    assert 0 < manifest.documents["val"] < 40


@pytest.mark.parametrize("pack", [gz, zst])
def test_packed_text_is_a_document_a_file(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    source = tmp_path / "mine"
    source.mkdir()
    suffix = pack.__name__
    for number, page in enumerate(pages(20)):
        (source / f"{number}.txt.{suffix}").write_bytes(pack(page.encode()))
    assert texts_of_few(import_path(source, KEY)) == sorted(pages(20))


def texts_of_few(folder: Path) -> list[str]:
    """The texts of a corpus that was cut without regard to documents."""
    from tests.support.corpora import stream

    whole = [*stream(folder, "train"), *stream(folder, "val")]
    return sorted(bytes(whole).decode().split("\0")[:-1])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_folders_of_the_real_library_are_read(tmp_path: Path) -> None:
    """In a process of its own: the library changes much of the one that imports it."""
    pytest.importorskip("datasets", reason="needs the extra dev")
    program = (
        "import sys, json, datasets\n"
        "from tests.support.corpora import pages\n"
        "one = datasets.Dataset.from_dict({'id': list(range(400)), 'text': pages(400)})\n"
        "one.filter(lambda row: row['id'] < 300).save_to_disk('one', num_shards=3)\n"
        "both = datasets.DatasetDict(train=one, test=one.select([1]))\n"
        "both.save_to_disk('both')\n"
        "datasets.DatasetDict(train=one).save_to_disk('alone')\n"
    )
    environment = os.environ | {
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }
    command = [sys.executable, "-c", program]
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True)
    assert len(list((tmp_path / "one").glob("*.arrow"))) == 3
    assert texts(import_path(tmp_path / "one", KEY)) == sorted(pages(400)[:300])
    assert texts(import_path(tmp_path / "alone", KEY)) == sorted(pages(400))
    message = r"holds the splits train, test; give one of them, e.g. data.path=.*both/train$"
    with pytest.raises(DataError, match=message):
        import_path(tmp_path / "both", KEY)
    assert texts(import_path(tmp_path / "both" / "train", KEY)) == sorted(pages(400))
    missing = next((tmp_path / "one").glob("*.arrow"))
    missing.unlink()
    with pytest.raises(DataError, match=rf"state.json lists {missing.name}, which is not there"):
        import_path(tmp_path / "one", KEY)


def test_another_column_is_another_corpus(tmp_path: Path) -> None:
    every = pages(200)
    path = tmp_path / "a.jsonl"
    rows = ({"text": t, "title": f"{n}"} for n, t in enumerate(every))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert texts(import_path(path, KEY)) == sorted(every)
    titles = import_path(path, KEY, TextOptions(column="title"))
    assert texts_of_few(titles) == sorted(f"{n}" for n in range(200))


def test_a_long_document_comes_in_pieces_and_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from experiments.data.readers import text

    monkeypatch.setattr(pieces_of, "PIECE", 1000)
    monkeypatch.setattr(text, "PIECE", 1000)
    long = "".join(pages(100)) + "é" * 5000 + "\n" * 3000
    (tmp_path / "a.txt").write_text(long)
    (tmp_path / "a.jsonl").write_bytes(lines_of([long]))
    assert texts_of_few(import_path(tmp_path / "a.txt", KEY)) == [long]
    assert texts_of_few(import_path(tmp_path / "a.jsonl", KEY)) == [long]
    cut = [piece.text for piece in pieces_of.pieces("a", "".join(pages(100)))]
    assert max(map(len, cut)) <= 1000
    assert all(before[-1].isalnum() and after[0] == "\n" for before, after in pairwise(cut))


# ---- What is wrong ----


def parquet_of(table: dict[str, Any]) -> bytes:
    sink = pa.BufferOutputStream()
    parquet.write_table(pa.table(table), sink)
    return bytes(sink.getvalue())


def wrong_utf8_parquet() -> bytes:
    raw = pa.array([b"good", b"caf\xe9"], type=pa.binary())
    return parquet_of({"text": raw.view(pa.string())})


def stream_of(table: dict[str, Any]) -> bytes:
    sink = pa.BufferOutputStream()
    made = pa.table(table)
    with pa.ipc.new_stream(sink, made.schema) as writer:
        writer.write_table(made, max_chunksize=2)
    return bytes(sink.getvalue())


GOOD = lines_of([*"abc"])
WRONG: dict[str, tuple[str, bytes, str]] = {
    "no such key": ("a.jsonl", GOOD + b'{"tex": "x"}', r"line 4 of .*a.jsonl is not {.*keys tex"),
    "nested": ("a.jsonl", b'{"text": {"body": "x"}}', r"line 1 of .*text holds an object; nested"),
    "null": ("a.jsonl", b'{"text": null}', r"line 1 of .*text holds null"),
    "a list of objects": ("a.jsonl", b'[{"text": "x"}]', r"line 1 of .*it is a list"),
    "deep": ("a.jsonl", b"[" * 200_000, r"line 1 of .*no JSON"),
    "half a line": ("a.jsonl", GOOD + b'{"text": "x', r"line 4 of .*no JSON: Unterminated"),
    "no UTF-8": ("a.jsonl", GOOD + b'{"text": "caf\xe9"}', r"a.jsonl is not UTF-8 in line 4"),
    "half a pair": ("a.jsonl", GOOD + rb'{"text": "a\ud800"}', r"a.jsonl:4 holds half a surrogate"),
    "text": ("a.txt", b"one\ntwo\ncaf\xe9", r"a.txt is not UTF-8 in line 3 \(byte 11: "),
    "half a character": ("a.txt", "é".encode()[:1], r"a.txt is not UTF-8 in line 1 \(byte 0: unex"),
    "half a gz": ("a.jsonl.gz", gzip.compress(GOOD * 9000)[:-20], r"gz is cut off.*after line \d+"),
    "half a member": ("a.txt.gz", gz(GOOD)[:-3], r"a.txt.gz is cut off: .*, in line \d of"),
    "no gz": ("a.jsonl.gz", GOOD, r"a.jsonl.gz is damaged \(.*incorrect header"),
    "empty gz": ("a.jsonl.gz", b"", r"a.jsonl.gz is empty"),
    "no column": (
        "a.parquet",
        parquet_of({"body": ["x"], "id": [1]}),
        r"a.parquet has no column text; there are body, id: set data.text_column",
    ),
    "numbers": ("a.parquet", parquet_of({"text": [1]}), r"holds int64 in the column text, not"),
    "a struct": ("a.parquet", parquet_of({"text": [{"a": "x"}]}), r"holds struct<.*> in the col"),
    "nulls": (
        "a.parquet",
        parquet_of({"text": ["x", None]}),
        r"a.parquet holds no text in row 1 \(from 0\): text is null",
    ),
    "bytes": ("a.parquet", wrong_utf8_parquet(), r"a.parquet is not UTF-8 in row 1 \(from 0\)"),
    "half a Parquet": ("a.parquet", parquet_of({"text": ["x"]})[:-9], r"is not a whole Parquet"),
    "empty Parquet": ("a.parquet", b"", r"a.parquet is not a whole Parquet file"),
    "half a stream": ("a.arrow", stream_of({"text": [*"abcd"]})[:-8], r"a.arrow is cut off: it is"),
    "a null row": ("a.arrow", stream_of({"text": ["x", "y", "z", None]}), r"in row 3 \(from 0\)"),
    "no Arrow": ("a.arrow", b"x" * 100 + b"\xff\xff\xff\xff\0\0\0\0", r"is not a whole Arrow file"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_one_line_that_names_file_and_place(
    tmp_path: Path, own_cache: Path, case: str
) -> None:
    name, content, message = WRONG[case]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=rf"^data.path=x: .*{message}") as caught:
        import_path(tmp_path / name, KEY)
    assert "\n" not in str(caught.value)
    assert name in str(caught.value)
    assert {path.suffix for path in (own_cache / "imported").iterdir()} == {".lock"}


def test_a_zst_that_breaks_off_is_not_taken_for_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.zst"
    for broken in (zst(GOOD * 5000)[:-10], zst(GOOD)[:-1]):
        path.write_bytes(broken)
        with pytest.raises(DataError, match=r"a.jsonl.zst is cut off: .*, after line \d+$"):
            import_path(path, KEY)
    path.write_bytes(GOOD)
    with pytest.raises(DataError, match=r"a.jsonl.zst is damaged"):
        import_path(path, KEY)


def test_a_parquet_with_a_damaged_page_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    parquet.write_table(pa.table({"text": pages(3000)}), path, row_group_size=500)
    raw = bytearray(path.read_bytes())
    middle = len(raw) // 2
    raw[middle : middle + 2000] = b"\xff" * 2000
    path.write_bytes(raw)
    with pytest.raises(DataError, match=r"a.parquet is not (a whole Parquet|UTF-8 in row)"):
        import_path(path, KEY)


def test_a_folder_of_several_kinds_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "mine"
    source.mkdir()
    (source / "a.txt").write_text("x")
    (source / "a.txt.gz").write_bytes(gzip.compress(b"x"))
    with pytest.raises(DataError, match=r"1 of text and 1 of packed text; give one kind alone$"):
        import_path(source, KEY)


def test_a_held_out_part_is_refused_in_every_kind(tmp_path: Path) -> None:
    for name in ("validation-00000-of-00001.parquet", "validation.00000.json.gz"):
        source = tmp_path / name[:12]
        source.mkdir(exist_ok=True)
        (source / name).write_bytes(b"x")
        (source / name.replace("validation", "train")).write_bytes(b"x")
        with pytest.raises(DataError, match=r"by its name validation.* is a held-out part"):
            import_path(source, KEY)
        for file in source.iterdir():
            file.unlink()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (TextOptions(column="body"), r"^data.text_column=body: is there for lines and rows"),
        (TextOptions(eos="0"), r"^data.eos=0: bytes end a document with 0; it needs a tokenizer"),
    ],
)
def test_an_option_without_effect_is_refused(
    tmp_path: Path, options: TextOptions, message: str
) -> None:
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(DataError, match=message):
        import_path(tmp_path / "a.txt", KEY, options)


@pytest.mark.parametrize(
    ("name", "library"),
    [("a.jsonl.zst", "zstandard"), ("a.parquet", "pyarrow"), ("a.arrow", "pyarrow")],
)
def test_a_library_that_is_missing_is_named_with_the_command(
    tmp_path: Path, name: str, library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / name).write_bytes(b"x")
    monkeypatch.setitem(sys.modules, library, None)
    message = rf"^data.path=x: .* needs {library}; pip install 'lowbit-scaling\[data\]'$"
    with pytest.raises(DataError, match=message):
        import_path(tmp_path / name, KEY)


# ---- Once, whole or not at all, in bounded memory ----

IMPORT = (
    "import sys, pathlib; from experiments.data.imports import import_path; "
    "print(import_path(pathlib.Path(sys.argv[1]), 'data.path=x'))"
)


def start(path: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", IMPORT, str(path)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, stdout=pipe, stderr=pipe, text=True)


def test_a_killed_import_leaves_nothing_that_is_believed(tmp_path: Path, own_cache: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines_of(pages(400)) * 200)
    process = start(path)
    while not list((own_cache / "imported").glob(".building-*/unsorted-*")):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert [p for p in (own_cache / "imported").iterdir() if not p.name.startswith(".")] == []
    folder = import_path(path, KEY)
    assert sum(read_manifest(folder, KEY, verify=True).documents.values()) == 400 * 200
    assert not list((own_cache / "imported").glob(".building-*"))


def test_several_processes_import_once(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines_of(pages(400)) * 50)
    ended = [process.communicate() for process in [start(path) for _ in range(3)]]
    assert len({out for out, _ in ended}) == 1
    assert sum("data.path=x: read 1 file of text" in error for _, error in ended) == 1


def test_sources_are_hashed_once_a_machine_and_again_when_they_changed(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines_of(pages(100)))
    first = import_path(path, KEY)
    stat = path.stat()
    path.write_bytes(path.read_bytes().replace(b"the", b"The"))
    assert path.stat().st_size == stat.st_size
    assert import_path(path, KEY) != first


def test_progress_says_how_long_it_will_take(capsys: pytest.CaptureFixture[str]) -> None:
    lines = Lines("data.path=x: reading", 100_000_000, seconds=0)
    lines._start -= 10  # ten seconds ago
    lines.advance(25_000_000)
    said = capsys.readouterr().err
    assert re.match(r"data.path=x: reading 25 of 100 MB \(25%\), 2.5 MB/s, about 0:00:30", said)
    quiet = Lines("data.path=x: reading", 100)
    quiet.advance(50)
    assert capsys.readouterr().err == ""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_text(tmp_path: Path) -> None:
    """Peak above that of the program: 200 MB take at most 10 MiB over what 20 MB take.

    In documents of some kilobytes, as the web's are: a list of them, 64 MB at a time, is in memory.
    """
    program = (
        "import re, sys, pathlib; from experiments.data.imports import import_path\n"
        "peak = lambda: int(re.search(r'VmHWM:\\s+(\\d+)', "
        "pathlib.Path('/proc/self/status').read_text())[1]) / 1024\n"
        "before = peak(); import_path(pathlib.Path(sys.argv[1]), 'data.path=x')\n"
        "print(peak() - before)"
    )
    every = pages(3000)
    block = lines_of(["".join(every[n : n + 15]) for n in range(0, 3000, 15)])
    found = []
    for times in (1, 10):
        path = tmp_path / f"{times}.jsonl"
        with open(path, "wb") as file:
            for _ in range(20_000_000 * times // len(block)):
                file.write(block)
        done = subprocess.run(
            [sys.executable, "-c", program, str(path)], cwd=ROOT, check=True, capture_output=True
        )
        found.append(float(done.stdout))
    assert found[1] < found[0] + 10, found
