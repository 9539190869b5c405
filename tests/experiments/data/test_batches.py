"""Batches by step: the same whatever is resumed, however many processes, and each token once."""

import hashlib
import json
import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from experiments.data.batches import DataConfig, StepLoader, TokenData, corpus_folder, corpus_sha256
from experiments.data.shards import DataError
from experiments.data.techdocs import TECHDOCS_SHA256
from experiments.data.writer import write_corpus
from tests.support.places import ROOT

T = 16
B = 8


@pytest.fixture(autouse=True)
def own_cache(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is imported into the user's cache; tests of the real corpus read it there."""
    if not request.node.get_closest_marker("corpus"):
        monkeypatch.setenv("LOWBIT_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus whose shards of 1,000 tokens are not a multiple of the windows."""
    path = tmp_path_factory.mktemp("corpus")
    draw = np.random.default_rng(0)
    texts = {f"doc{i}": bytes(draw.integers(97, 123, 80).tolist()).decode() for i in range(200)}
    manifest = write_corpus(texts, path, "small", {}, shard_tokens=1000)
    assert len(manifest.train) > 10
    return path


@pytest.fixture
def data(folder: Path) -> TokenData:
    """That corpus, opened."""
    return opened(folder)


def opened(path: Path, seq_len: int = T, validation_windows: int = 0) -> TokenData:
    """A corpus folder as `data=tokens` opens it."""
    return TokenData(DataConfig("tokens", str(path), seq_len, validation_windows))


def stream(folder: Path, part: str) -> np.ndarray:
    """One part's tokens, read without our code."""
    return np.concatenate([np.fromfile(f, "<u2") for f in sorted(folder.glob(f"{part}-*.bin"))])


def cycle(data: TokenData, steps: range, seed: int = 0) -> torch.Tensor:
    """The sequences of these steps."""
    return torch.cat([data.batch(step, B, seed) for step in steps])


def test_one_epoch_is_a_bijection_of_the_windows(data: TokenData, folder: Path) -> None:
    tokens = stream(folder, "train")
    windows = {tuple(tokens[s : s + T + 1].tolist()) for s in range(0, len(tokens) - T, T)}
    assert len(windows) == data.windows  # all different, so that the set below counts each once
    seen = [tuple(row) for row in cycle(data, range(-(-data.windows // B))).tolist()]
    assert set(seen[: data.windows]) == windows
    # The batch that begins in one epoch ends in the next, in that epoch's order.
    assert set(seen[data.windows :]) <= windows
    second = cycle(data, range(2 * data.windows // B))[data.windows :][: data.windows]
    assert [tuple(row) for row in second.tolist()] != seen[: len(second)]


def test_windows_across_shards_are_read_whole(folder: Path) -> None:
    tokens = stream(folder, "train")
    train = opened(folder).train
    for start, count in ((0, len(tokens)), (990, 20), (999, 1), (1000, 1), (500, 2600)):
        assert train.read(start, count).tolist() == tokens[start : start + count].tolist()


def test_the_union_over_ranks_is_the_single_rank_batch(data: TokenData) -> None:
    for step in (0, 7, 123):
        whole = data.batch(step, B, seed=3)
        for world in (2, 4, 8):
            parts = [data.batch(step, B, 3, rank, world) for rank in range(world)]
            assert torch.equal(torch.cat(parts), whole)


def test_a_run_resumed_at_step_k_sees_what_the_uninterrupted_one_sees(data: TokenData) -> None:
    whole = list(StepLoader(data, 0, B, 0, 20))
    assert len(whole) == 20
    interrupted = StepLoader(data, 0, B, 0, 20)
    batches = iter(interrupted)
    first = [next(batches) for _ in range(7)]
    assert interrupted.state_dict() == {"next_step": 7}
    resumed = StepLoader(data, 0, B, 0, 20)
    resumed.load_state_dict(interrupted.state_dict())
    assert len(resumed) == 20  # Lightning compares it with a count that goes on, too
    assert torch.equal(torch.stack(first + list(resumed)), torch.stack(whole))
    assert torch.equal(torch.stack(list(StepLoader(data, 0, B, 7, 20))), torch.stack(whole[7:]))
    assert not list(resumed)


def test_a_run_on_fewer_tokens_sees_a_prefix(data: TokenData) -> None:
    short = torch.stack(list(StepLoader(data, 5, B, 0, 10)))
    assert torch.equal(short, torch.stack(list(StepLoader(data, 5, B, 0, 30)))[:10])


def test_batch_size_regroups_the_same_sequences(data: TokenData) -> None:
    halves = torch.cat([data.batch(step, B // 2, 0) for step in range(20)])
    assert torch.equal(halves, cycle(data, range(10)))


def test_another_seed_is_another_order(data: TokenData) -> None:
    assert not torch.equal(cycle(data, range(5), seed=0), cycle(data, range(5), seed=1))


def test_the_order_of_the_windows_is_pinned(tmp_path: Path) -> None:
    """A change here changes every run's batches: it would need a new numerics version."""
    np.arange(41, dtype="<u2").tofile(tmp_path / "train.bin")
    np.arange(9, dtype="<u2").tofile(tmp_path / "val.bin")
    data = TokenData(DataConfig("tokens", str(tmp_path), seq_len=4))
    first = [batch[0, 0].item() // 4 for batch in StepLoader(data, 0, 1, 0, 10)]
    assert first == [0, 2, 9, 1, 8, 5, 4, 3, 6, 7]
    assert data.batch(0, 1, 0).tolist() == [[4 * first[0] + i for i in range(5)]]


# ---- Validation ----


@pytest.mark.parametrize("batch_size", [1, 7, 1000])
def test_every_validation_token_is_a_target_once(folder: Path, batch_size: int) -> None:
    tokens = stream(folder, "val")
    batches = list(opened(folder).validation_batches(batch_size))
    assert all(len(batch) == batch_size for batch in batches[:-1])
    rows = torch.cat(batches)
    targets = rows[:, 1:].flatten().tolist()
    assert targets == tokens[1 : 1 + len(targets)].tolist()
    assert 0 <= len(tokens) - 1 - len(targets) < T
    assert rows[:, :-1].flatten().tolist() == tokens[: len(targets)].tolist()


def test_some_validation_windows_are_a_fixed_set_over_the_whole_stream(folder: Path) -> None:
    whole = torch.cat(list(opened(folder).validation_batches(4)))
    some = opened(folder, validation_windows=5)
    assert some.validation[0] == 0
    gaps = [b - a for a, b in pairwise([*some.validation, len(whole)])]
    assert max(gaps) - min(gaps) <= 1
    assert torch.equal(torch.cat(list(some.validation_batches(4))), whole[some.validation])
    full = opened(folder, validation_windows=len(whole))
    assert full.validation == list(range(len(whole)))


# ---- What is refused ----


def test_repeating_tokens_needs_max_epochs(folder: Path, data: TokenData) -> None:
    steps = data.windows // B
    data.check(steps, B, 256)
    assert data.unique_tokens(steps, B) == steps * B * T
    with pytest.raises(DataError, match=r"^data.max_epochs=1: .*set data.max_epochs=2 ") as caught:
        data.check(steps + 1, B, 256)
    assert f"{data.windows * T:,}" in str(caught.value)
    twice = TokenData(DataConfig("tokens", str(folder), T, max_epochs=2))
    twice.check(steps + 1, B, 256)
    assert twice.unique_tokens(steps + B, B) == data.windows * T


def test_more_than_four_epochs_are_warned_about(folder: Path) -> None:
    data = TokenData(DataConfig("tokens", str(folder), T, max_epochs=9))
    steps = data.windows // B
    data.check(4 * steps, B, 256)
    with pytest.warns(UserWarning, match=r"^data.max_epochs=9: tokens are seen up to 5 times"):
        data.check(5 * steps, B, 256)


def test_a_batch_larger_than_the_corpus_is_refused(data: TokenData) -> None:
    with pytest.raises(DataError, match=rf"^batch_size=10000: must be at most {data.windows:,}, "):
        data.check(1, 10000, 256)


def test_a_vocabulary_that_is_too_small_is_refused(data: TokenData) -> None:
    with pytest.raises(DataError, match=r"^model.vocab_size=255: must be at least 256, "):
        data.check(1, B, 255)


def test_a_batch_that_the_processes_cannot_share_is_refused(data: TokenData) -> None:
    with pytest.raises(DataError, match=r"^batch_size=8: must be a multiple of 3 processes"):
        data.batch(0, B, 0, 0, 3)


def test_too_many_validation_windows_are_refused(folder: Path) -> None:
    with pytest.raises(DataError, match=r"^data.validation_windows=10000: must be from 1 to"):
        opened(folder, validation_windows=10_000)
    with pytest.raises(DataError, match=r"^data.validation_windows=-1: "):
        opened(folder, validation_windows=-1)


@pytest.mark.parametrize(("train", "val", "part"), [(4, 99, "training"), (99, 4, "validation")])
def test_a_part_shorter_than_one_window_is_refused(
    tmp_path: Path, train: int, val: int, part: str
) -> None:
    np.zeros(train, "<u2").tofile(tmp_path / "train.bin")
    np.zeros(val, "<u2").tofile(tmp_path / "val.bin")
    message = rf"^data.path=.*: the {part} stream has 4 tokens, fewer than one window of data.seq_"
    with pytest.raises(DataError, match=message):
        TokenData(DataConfig("tokens", str(tmp_path), seq_len=4))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (DataConfig("tokens", "/nowhere"), "data.path=/nowhere: no such file or folder"),
        (DataConfig("tokens"), "data.path=: data=tokens needs the path of your text or tokens"),
        (DataConfig("techdoc"), "data.name=techdoc: must be one of techdocs, tokens"),
        (DataConfig("techdocs", "/x"), "data.path=/x: is read with data=tokens only"),
    ],
)
def test_a_useless_name_or_path_is_one_line(config: DataConfig, message: str) -> None:
    for use in (corpus_folder, corpus_sha256, TokenData):
        with pytest.raises(DataError, match=rf"^{re.escape(message)}$"):
            use(config)


def test_an_empty_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty[1].txt").write_text("")
    with pytest.raises(DataError, match=r"^data.path=.*: the training stream has 0 tokens"):
        TokenData(DataConfig("tokens", str(tmp_path / "empty[1].txt"), T))
    assert not list((tmp_path / "cache" / "imported").glob(".building*"))


def test_a_damaged_shard_is_named_when_opened(tmp_path: Path) -> None:
    write_corpus({str(i): "some text " * 9 for i in range(200)}, tmp_path, "small", {})
    shard = tmp_path / "train-0000.bin"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1] + b"!")
    config = DataConfig("tokens", str(tmp_path), T)
    with pytest.raises(DataError, match=r"train-0000.bin has sha256 .*; restore it from where"):
        TokenData(config)
    shard.write_bytes(whole[:-2])
    with pytest.raises(DataError, match=r"^data.path=.*train-0000.bin has [\d,]+ bytes where"):
        TokenData(config)


# ---- Names and files ----


def test_the_corpus_identity_follows_the_contents(tmp_path: Path) -> None:
    text = tmp_path / "mine.txt"
    text.write_text("a page of text\n" * 100)
    config = DataConfig("tokens", str(text), T)
    first = corpus_sha256(config)
    data = TokenData(config)
    assert data.manifest.sha256 == first
    assert data.label == f"mine.txt-{first[:12]}"
    assert data.bytes_per_token == 1.0
    text.write_text("a page of text\n" * 101)
    assert corpus_sha256(config) != first


def test_the_identity_of_techdocs_needs_no_corpus(tmp_path: Path) -> None:
    assert corpus_sha256(DataConfig()) == TECHDOCS_SHA256
    assert not list(tmp_path.iterdir())


def test_the_yaml_files_hold_every_field_and_its_default() -> None:
    folder = ROOT / "conf" / "data"
    for name in ("techdocs", "tokens"):
        loaded = OmegaConf.to_container(OmegaConf.load(folder / f"{name}.yaml"))
        fields = vars(DataConfig(name=name))
        del fields["image"]  # of images alone
        assert loaded == fields


@pytest.mark.corpus
def test_the_batches_of_techdocs_are_pinned() -> None:
    data = TokenData(DataConfig())
    digests = [
        hashlib.sha256(data.batch(step, 32, seed=0).numpy().tobytes()).hexdigest()
        for step in (0, 100)
    ]
    assert digests == [
        "dfc09d64740960c1765f75a3d2976603177546da17d3a96f76fb16dd8440053c",
        "e524aaa4d5b2829e928300e5b656b8f9ec96ef1ecd9fe660e5db89f2439fa7bd",
    ]


@pytest.mark.corpus
def test_every_prefix_of_techdocs_is_a_mixture_of_its_sources() -> None:
    """A source's share of the first tenth of the documents is its share of all of them.

    Hypergeometric, n = 215 of 2,158: standard deviation at most 3.2 percentage points; the order is
    pinned, so there are no false alarms.
    """
    names = [
        name
        for name, _ in json.loads((corpus_folder(DataConfig()) / "documents.json").read_text())[
            "train"
        ]
    ]
    for source in ("botocore/", "google/", "cia/", "py/"):
        shares = [np.mean([n.startswith(source) for n in part]) for part in (names, names[:215])]
        assert abs(shares[0] - shares[1]) < 3 * 0.032
