"""Tokenizers of the user: their tokens are those of the library, and nothing else is among them."""

import base64
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from experiments.data.batches import DataConfig, TokenData, corpus_sha256
from experiments.data.imports import TextOptions, import_path
from experiments.data.shards import DataError, file_sha256, read_manifest
from experiments.data.tokenizer import open_tokenizer
from tests.support.corpora import documents, pages, write_tokenizer

KEY = "data.path=x"
tokenizers = pytest.importorskip("tokenizers", reason="needs the extra data")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nothing is imported into the user's cache."""
    monkeypatch.setenv("LOWBIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    """Pages as JSON lines; one looks like the end of a document."""
    path = tmp_path / "a.jsonl"
    every = [*pages(400), "one <|endoftext|> two"]
    path.write_text("".join(json.dumps({"text": page}) + "\n" for page in every))
    return path


def changed(path: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return path


def test_tokens_are_those_of_the_library_document_by_document(tmp_path: Path, lines: Path) -> None:
    path = write_tokenizer(tmp_path / "tokenizer.json")
    folder = import_path(lines, KEY, TextOptions(str(path)))
    manifest = read_manifest(folder, KEY, verify=True)
    theirs = tokenizers.Tokenizer.from_file(str(path))
    end = theirs.token_to_id("<|endoftext|>")
    assert (manifest.eos, manifest.vocab_size, manifest.dtype) == (end, 500, "uint16")
    assert manifest.tokenizer_sha256 == file_sha256(path)
    found = documents(folder, "train", end) + documents(folder, "val", end)
    wanted = [theirs.encode(page).ids for page in pages(400)]
    others = [ids for ids in found if ids not in wanted]
    assert sorted(ids for ids in found if ids in wanted) == sorted(wanted)
    # What looks like the end is text, and no document begins in the middle of another.
    assert [theirs.decode(ids) for ids in others] == ["one <|endoftext|> two"]
    size = sum(len(page.encode()) + 1 for page in [*pages(400), "one <|endoftext|> two"])
    assert manifest.bytes_per_token == size / sum(len(ids) + 1 for ids in found)
    assert json.loads((folder / "documents.json").read_text())["train"][0][1] == 0


def test_a_tokenizer_is_known_by_its_content_and_not_by_its_place(
    tmp_path: Path, lines: Path
) -> None:
    path = write_tokenizer(tmp_path / "tokenizer.json")
    (tmp_path / "copy").mkdir()
    copy = tmp_path / "copy" / "tokenizer.json"
    copy.write_bytes(path.read_bytes())
    config = DataConfig("tokens", str(lines), 32, tokenizer=str(path))
    first = corpus_sha256(config)
    assert corpus_sha256(DataConfig("tokens", str(lines), 32, tokenizer=str(copy))) == first
    assert corpus_sha256(DataConfig("tokens", str(lines), 32)) != first
    write_tokenizer(path, vocab_size=450)
    assert corpus_sha256(config) != first
    assert TokenData(config).vocab_size == 450
    other = DataConfig("tokens", str(lines), 32, tokenizer=str(copy), eos="5")
    assert corpus_sha256(other) != first


def test_nothing_cuts_or_fills_up_a_text_or_comes_before_it(tmp_path: Path, lines: Path) -> None:
    """Settings that models of the hub ship with."""
    path = write_tokenizer(tmp_path / "tokenizer.json")
    plain = read_manifest(import_path(lines, KEY, TextOptions(str(path))), KEY)
    theirs = tokenizers.Tokenizer.from_file(str(path))
    theirs.enable_truncation(8)
    theirs.enable_padding(length=8)
    theirs.post_processor = tokenizers.processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
    )
    theirs.save(str(path))
    shipped = read_manifest(import_path(lines, KEY, TextOptions(str(path))), KEY)
    assert [shard.sha256 for shard in shipped.train] == [shard.sha256 for shard in plain.train]


def test_a_large_vocabulary_takes_32_bits(tmp_path: Path, lines: Path) -> None:
    path = write_tokenizer(tmp_path / "tokenizer.json")

    def grow(content: dict[str, Any]) -> None:
        content["model"]["vocab"] |= {f"more {n}": n for n in range(500, 70_001)}

    options = TextOptions(str(changed(path, grow)), eos="more 70000")
    folder = import_path(lines, KEY, options)
    manifest = read_manifest(folder, KEY, verify=True)
    assert (manifest.dtype, manifest.vocab_size, manifest.eos) == ("uint32", 70_001, 70_000)
    assert sum(map(len, (documents(folder, part, 70_000) for part in ("train", "val")))) == 401
    data = TokenData(DataConfig("tokens", str(lines), 32, tokenizer=str(path), eos="70000"))
    with pytest.raises(DataError, match=r"^model.vocab_size=50257: must be at least 70001, the v"):
        data.check(1, 1, 50_257)


def write_config(folder: Path, eos: object) -> None:
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": eos}))


def test_the_end_of_a_document_is_chosen_only_where_it_is_clear(tmp_path: Path) -> None:
    path = write_tokenizer(tmp_path / "tokenizer.json")

    def end(eos: str = "") -> int | None:
        return open_tokenizer(str(path), eos).vocabulary.eos

    assert end() == 0
    assert end("7") == 7
    assert end("a") == tokenizers.Tokenizer.from_file(str(path)).token_to_id("a")
    for eos in ("500", "<|im_end|>", "-1"):
        with pytest.raises(DataError, match=rf"^data.eos={eos.replace('|', '.')}: must be a token"):
            end(eos)
    write_config(tmp_path, {"content": "<|endoftext|>"})
    assert end() == 0
    write_config(tmp_path, "Ġ")  # another one: which of them is meant?
    with pytest.raises(DataError, match=r"may be any of Ġ, <\|endoftext\|>; set data.eos$"):
        end()
    (tmp_path / "tokenizer_config.json").unlink()
    write_tokenizer(path, end="")
    with pytest.raises(DataError, match=r"which of its tokens ends a document is not known; set"):
        end()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", "{}", r"tokenizer.json: is no tokenizer.json \("),
        ("tokenizer.json", "", r"tokenizer.json: is no tokenizer.json \("),
        ("mine.tiktoken", "", r"mine.tiktoken: tiktoken knows no mine; it has .*cl100k_base"),
        ("gpt2.tiktoken", "IQ== 0\n", r"gpt2.tiktoken: is not tiktoken's gpt2 \(Hash mismatch"),
    ],
)
def test_a_file_that_is_no_tokenizer_is_one_line(
    tmp_path: Path, name: str, content: str, message: str
) -> None:
    if name.endswith(".tiktoken"):
        pytest.importorskip("tiktoken", reason="needs the extra data")
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=rf"^data.tokenizer=.*{message}") as caught:
        open_tokenizer(str(tmp_path / name), "")
    assert "\n" not in str(caught.value)


def test_a_tokenizer_that_is_not_there_or_draws_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^data.tokenizer=/nowhere: no such file; must be a tok"):
        open_tokenizer("/nowhere", "")
    path = write_tokenizer(tmp_path / "tokenizer.json")
    changed(path, lambda content: content["model"].update(dropout=0.1))
    with pytest.raises(DataError, match=r'draws tokens at random \("dropout": 0.1'):
        open_tokenizer(str(path), "")


def test_a_library_that_is_missing_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_tokenizer(tmp_path / "tokenizer.json")
    for library, name in (("tokenizers", str(path)), ("tiktoken", "tiktoken:gpt2")):
        monkeypatch.setitem(sys.modules, library, None)
        message = rf"needs {library}; pip install 'lowbit-scaling\[data\]'$"
        with pytest.raises(DataError, match=message):
            open_tokenizer(name, "")


@pytest.mark.parametrize("option", ["tokenizer", "eos", "text_column"])
def test_the_built_in_text_and_shards_take_no_tokenizer(tmp_path: Path, option: str) -> None:
    message = rf"^data.{option}=mine: is read with data=tokens only$"
    for use in (corpus_sha256, TokenData):
        with pytest.raises(DataError, match=message):
            use(DataConfig(**{option: "mine"}))
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(DataError, match=rf"^data.{option}=mine: is there for text, and data.path"):
        corpus_sha256(DataConfig("tokens", str(tmp_path), **{option: "mine"}))


# ---- tiktoken, with an encoding of the test's own as its plugin ----

PLUGIN = """
from tiktoken.load import load_tiktoken_bpe
def tiny():
    ranks = load_tiktoken_bpe("https://nowhere.invalid/tiny.tiktoken", expected_hash="HASH")
    special = {"<|endoftext|>": len(ranks)}
    return {"name": "tiny", "pat_str": r"\\\\w+|\\\\W", "mergeable_ranks": ranks,
            "special_tokens": special}
ENCODING_CONSTRUCTORS = {"tiny": tiny}
"""


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The file of an encoding that tiktoken knows and does not have."""
    pytest.importorskip("tiktoken", reason="needs the extra data")
    import tiktoken_ext
    from tiktoken import registry

    file = tmp_path / "tiny.tiktoken"
    tokens = [bytes([byte]) for byte in range(256)] + [b"th", b"the", b"in"]
    ranks = (f"{base64.b64encode(t).decode()} {n}\n" for n, t in enumerate(tokens))
    file.write_text("".join(ranks))
    place = tmp_path / "plugins" / "tiktoken_ext"
    place.mkdir(parents=True)
    code = PLUGIN.replace("HASH", file_sha256(file)).replace("\\\\", "\\")
    (place / "tiny_of_a_test.py").write_text(code)
    monkeypatch.setattr(tiktoken_ext, "__path__", [*tiktoken_ext.__path__, str(place)])
    monkeypatch.setattr(registry, "ENCODING_CONSTRUCTORS", None)
    registry._available_plugin_modules.cache_clear()
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "theirs"))
    yield file
    registry._available_plugin_modules.cache_clear()
    sys.modules.pop("tiktoken_ext.tiny_of_a_test", None)


def test_an_encoding_from_its_file_or_from_the_cache(
    plugin: Path, tmp_path: Path, lines: Path
) -> None:
    import hashlib

    with pytest.raises(DataError, match=r"^data.tokenizer=tiktoken:tiny: is not in tik.*tiny.tik"):
        open_tokenizer("tiktoken:tiny", "")
    folder = import_path(lines, KEY, TextOptions(str(plugin)))
    assert not (tmp_path / "theirs").exists()
    manifest = read_manifest(folder, KEY, verify=True)
    assert (manifest.tokenizer, manifest.vocab_size, manifest.eos) == ("tiktoken:tiny", 260, 259)
    found = documents(folder, "train", 259) + documents(folder, "val", 259)
    tokens = dict(enumerate([bytes([b]) for b in range(256)] + [b"th", b"the", b"in"]))
    said = [b"".join(tokens[i] for i in ids).decode() for ids in found]
    assert sorted(said) == sorted([*pages(400), "one <|endoftext|> two"])
    assert {257, 258} <= {i for ids in found for i in ids}
    (tmp_path / "theirs").mkdir()
    address = hashlib.sha1(b"https://nowhere.invalid/tiny.tiktoken").hexdigest()
    (tmp_path / "theirs" / address).write_bytes(plugin.read_bytes())
    assert import_path(lines, KEY, TextOptions("tiktoken:tiny")) == folder
    with pytest.raises(DataError, match=r"^data.tokenizer=tiktoken:huge: tiktoken knows no huge"):
        open_tokenizer("tiktoken:huge", "")
