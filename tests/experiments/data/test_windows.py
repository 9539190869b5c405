"""Windows within documents: no window holds tokens of two, and none is missing."""

import json
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from experiments.data.batches import DataConfig, TokenData
from experiments.data.shards import DataError
from experiments.data.windows import WITHIN, Windows
from experiments.data.writer import write_corpus
from tests.support.corpora import pages, stream, write_tokenizer

T = 16


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nothing is imported into the user's cache."""
    monkeypatch.setenv("LOWBIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def windows_of(tokens: list[int], eos: int) -> list[tuple[int, ...]]:
    """Every window within a document, by walking over them."""
    found, document = [], []
    for token in tokens:
        document.append(token)
        if token == eos:
            while len(document) > T:
                found.append(tuple(document[: T + 1]))
                document = document[T:]
            document = []
    while len(document) > T:
        found.append(tuple(document[: T + 1]))
        document = document[T:]
    return found


def epoch(data: TokenData) -> list[tuple[int, ...]]:
    rows = torch.cat([data.batch(step, 1, seed=0) for step in range(data.windows)])
    return [tuple(row) for row in rows.tolist()]


@pytest.mark.parametrize("kind", ["bytes", "tokenizer", "as before", "cut"])
def test_an_epoch_is_every_window_within_a_document_once(tmp_path: Path, kind: str) -> None:
    texts = [page[: n % 150 + 1] for n, page in enumerate(pages(600))]
    if kind == "cut":
        texts = texts[::60]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    tokenizer = ""
    if kind == "tokenizer":
        tokenizer = str(write_tokenizer(tmp_path / "tokenizer.json", 300))
    if kind == "as before":  # a corpus of bytes without the list of starts
        path = tmp_path / "c"
        path.mkdir()
        write_corpus({f"{n}": text for n, text in enumerate(texts)}, path, "own", {}, 1000)
        manifest = json.loads((path / "manifest.json").read_text())
        del manifest["starts"]
        (path / "manifest.json").write_text(json.dumps(manifest))
        for part in ("train", "val"):
            (path / f"documents-{part}.uint64").unlink()
    config = DataConfig("tokens", str(path), T, tokenizer=tokenizer, windows=WITHIN)
    data = TokenData(config)
    folder = path if kind == "as before" else next((tmp_path / "cache" / "imported").glob("a*"))
    trained, scored = (windows_of(stream(folder, part).tolist(), 0) for part in ("train", "val"))
    assert sorted(epoch(data)) == sorted(trained)
    assert torch.cat(list(data.validation_batches(5))).tolist() == list(map(list, scored))
    assert all(0 not in row[:-1] for row in trained)
    assert data.unique_tokens(10**6, 8) == len(trained) * T


def test_across_documents_is_the_default_and_as_it_was() -> None:
    windows = Windows(4, 18)
    assert [windows.start(n) for n in range(len(windows))] == [0, 4, 8, 12]
    assert DataConfig().windows == "across_documents"


def test_documents_that_are_too_short_or_left_out_are_told(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    texts = ["x" * (T - 2 if n % 9 else 2 * T) for n in range(400)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        TokenData(DataConfig("tokens", str(path), T, windows=WITHIN))
    start = (
        r"data.windows=within_documents: {} of the {} tokens are in no window of data.seq_len=16"
    )
    said = [str(warning.message) for warning in caught]
    assert re.match(start.format("78%", "training"), said[0])
    assert re.match(start.format("84%", "validation"), said[1])
    with pytest.raises(DataError, match=r"^data.windows=within_doc.*: no document of the train"):
        TokenData(DataConfig("tokens", str(path), 3 * T, windows=WITHIN))


def test_where_documents_end_must_be_known(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    for part, count in (("train", 4000), ("val", 400)):
        draw.integers(0, 50, count).astype("<u2").tofile(tmp_path / f"{part}.bin")
    with pytest.raises(DataError, match=r"^data.windows=within_documents: where .* set data.eos"):
        TokenData(DataConfig("tokens", str(tmp_path), T, windows=WITHIN))
    data = TokenData(DataConfig("tokens", str(tmp_path), T, eos="49", windows=WITHIN))
    assert sorted(epoch(data)) == sorted(
        windows_of(np.fromfile(tmp_path / "train.bin", "<u2").tolist(), 49)
    )
    with pytest.raises(DataError, match=r"no document ends in the train part, which has no token"):
        TokenData(DataConfig("tokens", str(tmp_path), T, eos="60000", windows=WITHIN))
    with pytest.raises(DataError, match=r"^data.eos=the: must be the id of a token"):
        TokenData(DataConfig("tokens", str(tmp_path), T, eos="the"))


def test_a_list_of_documents_that_was_altered_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "c"
    path.mkdir()
    write_corpus({f"{n}": page for n, page in enumerate(pages(300))}, path, "own", {})
    starts = path / "documents-train.uint64"
    starts.write_bytes(starts.read_bytes()[:-8])
    with pytest.raises(DataError, match=r"documents-train.uint64 is not the list of documents"):
        TokenData(DataConfig("tokens", str(path), T, windows=WITHIN))
    TokenData(DataConfig("tokens", str(path), T))


def test_a_name_that_is_none_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x" * 1000)
    with pytest.raises(DataError, match=r"^data.windows=apart: must be one of across_documents, w"):
        TokenData(DataConfig("tokens", str(tmp_path / "a.txt"), T, windows="apart"))
