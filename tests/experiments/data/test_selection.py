"""Documents chosen by their names: the same documents, in their order, on their side."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.data import selection
from experiments.data.batches import DataConfig, TokenData, corpus_folder, corpus_sha256
from experiments.data.shards import MANIFEST, DataError
from experiments.data.verified import verify
from experiments.data.writer import write_corpus

WORDS = "a run of few bits costs some loss and saves much time".split()
DOCUMENTS = {
    f"{source}/{number:03d}": " ".join(
        [source, *(WORDS[(number + k * k) % 12] for k in range(60 + number))]
    )
    for source in ("api", "py", "cia")
    for number in range(150)
}


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LOWBIT_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "corpus"
    folder.mkdir()
    write_corpus(DOCUMENTS, folder, "three sources", {})
    return folder


def opened(corpus: Path, only: tuple[str, ...] = (), without: tuple[str, ...] = ()) -> TokenData:
    config = DataConfig("tokens", str(corpus), seq_len=16, only=[*only], without=[*without])
    return TokenData(config, verify=True)


def texts(data: TokenData, part: str) -> list[str]:
    stream = getattr(data, part)
    return bytes(stream.read(0, len(stream)).astype("u1")).decode().split("\0")[:-1]


@pytest.mark.parametrize(
    ("only", "without"), [(("py/",), ()), ((), ("py/",)), (("py/", "api/"), ("api/1",))]
)
def test_a_part_has_its_documents_and_no_others(
    corpus: Path, only: tuple[str, ...], without: tuple[str, ...]
) -> None:
    whole, some = opened(corpus), opened(corpus, only, without)
    name = {text: document for document, text in DOCUMENTS.items()}
    assert len(name) == len(DOCUMENTS)
    for part in ("train", "val"):
        chosen = [
            text
            for text in texts(whole, part)
            if (not only or name[text].split("/")[0] + "/" in only)
            and not any(name[text].startswith(beginning) for beginning in without)
        ]
        assert texts(some, part) == chosen
        assert some.manifest.documents[part] == len(chosen) > 0
    assert some.label != whole.label
    assert some.manifest.sources == {"three sources": whole.manifest.sha256}


def test_a_part_in_several_files_is_the_same_stream(
    corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = opened(corpus, ("py/",))
    expected = {part: texts(whole, part) for part in ("train", "val")}
    monkeypatch.setattr(selection, "SHARD_TOKENS", 999)
    several = opened(corpus, ("py",))
    assert len(several.manifest.train) == -(-len(several.train) // 999) > 10
    assert {part: texts(several, part) for part in ("train", "val")} == expected
    verify(corpus_folder(several.config), several.manifest, "x", "", anew=True)


def test_its_identity_is_its_content(corpus: Path) -> None:
    config = opened(corpus).config
    hashes = {
        corpus_sha256(DataConfig("tokens", config.path, only=only, without=without))
        for only, without in (([], []), (["py/"], []), ([], ["py/"]))
    }
    assert len(hashes) == 3
    again = DataConfig("tokens", config.path, only=["py/0", "py/1"])
    assert corpus_sha256(again) == corpus_sha256(DataConfig("tokens", config.path, only=["py/"]))


def test_it_is_made_once(corpus: Path) -> None:
    folder = corpus_folder(opened(corpus, ("py/",)).config)
    stamp = (folder / MANIFEST).stat().st_mtime_ns
    assert corpus_folder(opened(corpus, ("py/",)).config) == folder
    assert (folder / MANIFEST).stat().st_mtime_ns == stamp


def test_a_beginning_that_meets_nothing_is_refused(corpus: Path) -> None:
    with pytest.raises(DataError, match=r"^data\.only=pyy/: no document .*api/, cia/, py/$"):
        opened(corpus, ("pyy/",))
    with pytest.raises(DataError, match=r"^data\.without=x: no document of data\.path="):
        opened(corpus, ("py/",), ("x",))


def test_tokens_without_documents_cannot_be_chosen_among(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOWBIT_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "tokens"
    folder.mkdir()
    for part in ("train", "val"):
        (folder / f"{part}.bin").write_bytes(bytes([7, 0] * 500))
    with pytest.raises(DataError, match=r"where its documents begin is not known"):
        opened(folder, ("py/",))


def test_text_cut_without_regard_to_documents_cannot_be_chosen_among(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two documents: the validation part is the end of the second."""
    monkeypatch.setenv("LOWBIT_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "two"
    folder.mkdir()
    write_corpus({"a": "one " * 500, "b": "two " * 500}, folder, "two", {})
    with pytest.raises(DataError, match=r"where its documents begin is not known"):
        opened(folder, ("a",))
