"""`python -m experiments.data`: makes what lowbit-train then finds, and answers in a line."""

import json
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from experiments.config.schema import TrainConfig
from experiments.data.batches import corpus_folder
from experiments.data.command import KEYS, TEXT, main
from experiments.run.identity import run_id, science
from experiments.train import train
from tests.support.corpora import pages, write_tokenizer

Compose = Callable[..., TrainConfig]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nothing is imported into the user's cache."""
    monkeypatch.setenv("LOWBIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The keys of a text and its tokenizer, by paths from the working folder."""
    pytest.importorskip("tokenizers", reason="needs the extra data")
    monkeypatch.chdir(tmp_path)
    write_tokenizer(tmp_path / "tokenizer.json")
    lines = "".join(json.dumps({"body": page}) + "\n" for page in pages(400))
    Path("a.jsonl").write_text(lines)
    return ["data.path=a.jsonl", "data.tokenizer=tokenizer.json", "data.text_column=body"]


def test_it_says_what_is_there_and_training_finds_it(
    mine: list[str], composed: Compose, capsys: pytest.CaptureFixture[str]
) -> None:
    main([*mine, "data.seq_len=32", "data.windows=within_documents", "--verify"])
    said = capsys.readouterr()
    assert "tokens: tokenizer.json, ids below 500, 0 ends a document, " in said.out
    assert "windows within documents: " in said.out
    assert said.err.startswith("data.path=a.jsonl: read 1 file of text, 400 documents, ")
    place = Path(said.out.splitlines()[-1])
    small = ["model=ladder/a", "data=tokens", "data.seq_len=32", "batch_size=4", "tokens=1024"]
    config = composed(*small, *mine, "model.vocab_size=500", "recipe=none", "tracking=none")
    assert Path(config.data.tokenizer).is_absolute()
    assert corpus_folder(config.data) == place
    assert capsys.readouterr().err == ""
    record = train(config).record
    assert record.status == "finished"
    assert record.corpus.startswith("a.jsonl-")
    assert record.bits_per_byte is not None
    assert 0 < record.bits_per_byte < record.loss / 0.6931


def test_a_run_is_known_by_the_tokenizers_content_and_the_windows(
    mine: list[str], composed: Compose, tmp_path: Path
) -> None:
    small = ["data=tokens", "data.seq_len=32", "model.vocab_size=500", *mine]
    first = composed(*small)
    (tmp_path / "other.json").write_bytes((tmp_path / "tokenizer.json").read_bytes())
    assert run_id(composed(*small, "data.tokenizer=other.json")) == run_id(first)
    assert run_id(composed(*small, "data.eos=0")) == run_id(first)
    assert str(tmp_path) not in str(science(first))
    within = composed(*small, "data.windows=within_documents")
    assert science(within) == science(first) | {"data.windows": "within_documents"}
    assert run_id(composed(*small, "data.eos=3")) != run_id(first)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["book.txt"], "book.txt: must be KEY=VALUE with one of data.path, "),
        (["data.pfad=x"], "data.pfad=x: must be KEY=VALUE with one of data.path, "),
        (["data.seq_len=x"], "data.seq_len=x: must be a number, 2 or more"),
        (["data.path=/nowhere"], "data.path=/nowhere: no such file or folder"),
        (["data.tokenizer=x"], "data.tokenizer=x: is read with data=tokens only"),
    ],
)
def test_a_wrong_word_is_one_line(words: list[str], message: str) -> None:
    with pytest.raises(SystemExit, match=f"^experiments.data: {message}") as caught:
        main(words)
    assert "\n" not in str(caught.value)


def test_a_rebuild_makes_it_again(mine: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    main([*mine, "data.seq_len=32"])
    first = capsys.readouterr()
    main([*mine, "data.seq_len=32", "--rebuild"])
    assert capsys.readouterr() == first


def test_a_choice_of_windows_is_checked_before_any_work(composed: Compose) -> None:
    with pytest.raises(ValueError, match=r"^data.windows=apart: must be one of across_documents, "):
        composed("data.windows=apart")


def test_the_help_shows_every_key(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    said = capsys.readouterr().out
    assert all(f"  {key} " in said for key in KEYS)
    lines = [line for line in TEXT.splitlines() if line.startswith("  python -m")]
    shown = [shlex.split(line.split("      ")[0])[3:] for line in lines]
    assert len(shown) >= 4
    assert all(word.partition("=")[0] in KEYS for words in shown for word in words)
