"""Batches from tokens on disk, addressed by step: batch k is a function of (seed, k) alone.

The training stream is cut into windows of T inputs and the T targets after them; window w holds
tokens [wT, wT + T], so that every token is a target once an epoch.  A permutation for (seed, epoch)
orders the windows; global batch k is sequences [kB, (k + 1)B) of that order, and rank r of a world
of W takes the r-th of W equal slices of it.

So the batches do not depend on the number of processes; resuming at step k is asking for batch k;
a run on fewer tokens sees a prefix of what a longer one sees; and runs that differ in precision
alone see the same batches, so that the data's noise cancels from the difference of their losses.
With data.windows=within_documents the windows lie otherwise (`experiments.data.windows`).
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from experiments.data.image_config import ImageConfig
from experiments.data.imports import TextOptions, import_path
from experiments.data.selection import selected
from experiments.data.shards import (
    DataError,
    Manifest,
    cache_folder,
    fingerprint,
    read_manifest,
)
from experiments.data.stream import TokenStream
from experiments.data.techdocs import REBUILD, TECHDOCS_SHA256, techdocs
from experiments.data.tokenizer import TIKTOKEN
from experiments.data.verified import verify as verify_shards
from experiments.data.windows import ACROSS, WINDOWS, WITHIN, Windows, document_starts

NAMES = ("techdocs", "tokens")
HARMLESS_SHARE = 0.5
"""Tokens that windows within documents may leave out before that is said."""
HARMLESS_EPOCHS = 4
"""Epochs up to which repeated data is nearly as good as new (Muennighoff et al., 2305.16264)."""


@dataclass
class DataConfig:
    """The text to train on."""

    name: str = "techdocs"
    """techdocs (built in) or tokens (yours, at `path`)."""
    path: str = ""
    """For tokens: what `experiments.data.imports.import_path` takes."""
    seq_len: int = 256
    """Targets in a window, T."""
    validation_windows: int = 0
    """0: the whole validation stream; n: the same n windows, evenly spaced over it, every time."""
    max_epochs: int = 1
    """How often a token may be seen in training."""
    only: list[str] = field(default_factory=list)
    """Beginnings of the names of the documents to take; none: all of them."""
    without: list[str] = field(default_factory=list)
    """Beginnings of the names of the documents to leave out."""
    tokenizer: str = ""
    """What `experiments.data.tokenizer.open_tokenizer` takes; "": tokens are bytes."""
    eos: str = ""
    """The token that ends a document, or its id; "": the tokenizer's own."""
    text_column: str = "text"
    """Key or column of the text, in JSON lines, Parquet and Arrow."""
    windows: str = ACROSS
    """across_documents, or within_documents: no window holds tokens of two."""
    image: ImageConfig = field(default_factory=ImageConfig)
    """What is made of an image, for data=digits and data=images."""

    @property
    def key(self) -> str:
        """The beginning of errors about the data itself."""
        own = self.name in ("tokens", "images")
        return f"data.path={self.path}" if own else f"data.name={self.name}"

    @property
    def text(self) -> TextOptions:
        """How text is read."""
        return TextOptions(self.tokenizer, self.eos, self.text_column)

    @property
    def tokenizer_file(self) -> Path | None:
        """The file of the tokenizer, if it is one."""
        own = self.tokenizer and not self.tokenizer.startswith(TIKTOKEN)
        return Path(self.tokenizer).expanduser() if own else None

    @property
    def selects(self) -> bool:
        """Whether it is some of the documents of a corpus."""
        return bool(self.only or self.without)


def corpus_folder(config: DataConfig, again: bool = False) -> Path:
    """The folder of the corpus' shards; makes, imports or selects it first if necessary.

    Args:
        config: The corpus.
        again: Make or import it even if that was done.

    Raises:
        DataError: The name or the path cannot be used; see `techdocs`, `import_path`, `selected`.
    """
    folder = _whole_folder(config, again)
    if not config.selects:
        return folder
    manifest, remedy = _manifest(folder, replace(config, only=[], without=[]))
    verify_shards(folder, manifest, config.key, remedy)
    only, without = tuple(config.only), tuple(config.without)
    return selected(folder, manifest, only, without, config.key, again)


def _whole_folder(config: DataConfig, again: bool) -> Path:
    if config.name not in NAMES:
        raise DataError(f"data.name={config.name}: must be one of {', '.join(NAMES)}")
    if config.name == "techdocs":
        if config.path:
            raise DataError(f"data.path={config.path}: is read with data=tokens only")
        for key, value in config.text.off_default().items():
            raise DataError(f"{key}={value}: is read with data=tokens only")
        return techdocs(again)
    if not config.path:
        raise DataError("data.path=: data=tokens needs the path of your text or tokens")
    path = Path(config.path).expanduser()
    if again:
        return import_path(path, config.key, config.text, again)
    beside = [Path(f"{path}{suffix}") for suffix in (".idx", ".bin")]  # Megatron's
    files = [path, *beside, *filter(None, [config.tokenizer_file])]
    return _imported(path, config.key, config.text, "".join(map(fingerprint, files)))


@functools.lru_cache(maxsize=16)
def _imported(path: Path, key: str, text: TextOptions, state: str) -> Path:
    """`import_path`, once per process and `state` of the files: a sweep calls it for every run."""
    return import_path(path, key, text)


def corpus_sha256(config: DataConfig) -> str:
    """The corpus' identity, for a run's id; that of techdocs is known without making it."""
    whole = not (config.selects or config.text.off_default())
    if config.name == "techdocs" and not config.path and whole:
        return TECHDOCS_SHA256
    return _manifest(corpus_folder(config), config)[0].sha256


def _manifest(folder: Path, config: DataConfig) -> tuple[Manifest, str]:
    """A corpus' manifest, and what to do if its shards are damaged."""
    if config.name == "techdocs" and not config.selects:
        remedy = REBUILD
    elif folder.is_relative_to(cache_folder()):
        remedy = f"delete {folder}, and it is made again"
    else:
        remedy = "restore it from where it came from"
    manifest = read_manifest(folder, config.key, remedy)
    pinned = config.name == "techdocs" and not config.selects
    if pinned and manifest.sha256 != TECHDOCS_SHA256:
        raise DataError(f"{config.key}: {folder} is not techdocs-v1; {REBUILD}")
    return manifest, remedy


class TokenData:
    """A corpus, opened: training batches by step, and the fixed validation stream.

    Args:
        config: What to open; made or imported first if necessary.
        verify: Read all shards and compare their SHA-256 even if this machine did so before, and
            they are the same files since.

    Raises:
        DataError: No such data, a damaged shard, or a part shorter than one window.
    """

    def __init__(self, config: DataConfig, verify: bool = False) -> None:
        folder = corpus_folder(config)
        self.config = config
        self.manifest, remedy = _manifest(folder, config)
        verify_shards(folder, self.manifest, config.key, remedy, anew=verify)
        self.train = TokenStream(folder, self.manifest.train, self.manifest.dtype)
        self.val = TokenStream(folder, self.manifest.val, self.manifest.dtype)
        self.seq_len = config.seq_len
        if config.windows not in WINDOWS:
            raise DataError(f"data.windows={config.windows}: must be one of {', '.join(WINDOWS)}")
        self._train_windows = self._windows(folder, "train", len(self.train))
        self._val_windows = self._windows(folder, "val", len(self.val))
        self.windows = len(self._train_windows)
        """Windows in the training stream: sequences in one epoch."""
        self.validation = scored(config, len(self._val_windows), "windows in the validation stream")
        """The numbers of the validation windows that are scored, ascending."""

    @property
    def label(self) -> str:
        """The corpus' name and the first 12 digits of its SHA-256, as run records carry it."""
        return f"{self.manifest.name}-{self.manifest.sha256[:12]}"

    @property
    def vocab_size(self) -> int:
        """All token ids are below it."""
        return self.manifest.vocab_size

    @property
    def bytes_per_token(self) -> float | None:
        """Bytes of text per token; None if not known."""
        return self.manifest.bytes_per_token

    def check(self, steps: int, batch_size: int, vocab_size: int) -> None:
        """Refuse a training run that this corpus cannot feed, before any work.

        Args:
            steps: Steps of the whole run, not from where it resumes.
            batch_size: Sequences per step, over all processes.
            vocab_size: The model's.

        Raises:
            DataError: Token ids the model does not have, fewer windows than one batch, or more
                epochs than `max_epochs`.
        """
        config = self.config
        if vocab_size < self.vocab_size:
            raise DataError(
                f"model.vocab_size={vocab_size}: must be at least {self.vocab_size}, the "
                f"vocabulary of {config.key}"
            )
        if batch_size > self.windows:
            raise DataError(
                f"batch_size={batch_size}: must be at most {self.windows:,}, the windows of "
                f"data.seq_len={config.seq_len} in the training stream of {config.key}"
            )
        epochs = -(-steps * batch_size // self.windows)
        if epochs > config.max_epochs:
            raise DataError(
                f"data.max_epochs={config.max_epochs}: {steps:,} steps of {batch_size} sequences "
                f"are {steps * batch_size * config.seq_len:,} tokens, {self.label} has "
                f"{self.windows * config.seq_len:,}; "
                f"set data.max_epochs={epochs} to repeat them, or train on fewer"
            )
        if epochs > HARMLESS_EPOCHS:
            warnings.warn(
                f"data.max_epochs={config.max_epochs}: tokens are seen up to {epochs} times; "
                f"beyond {HARMLESS_EPOCHS} they count for less than new ones (arXiv:2305.16264)",
                stacklevel=1,  # one place, so that it is said once
            )

    def unique_tokens(self, steps: int, batch_size: int) -> int:
        """Different training targets seen in this many steps."""
        return min(steps * batch_size, self.windows) * self.seq_len

    def batch(self, step: int, batch_size: int, seed: int, rank: int = 0, world: int = 1) -> Tensor:
        """The sequences of one step: inputs are [:, :-1], targets [:, 1:].

        A batch may begin in one epoch and end in the next.

        Args:
            step: Counts from 0.
            batch_size: Sequences over all processes.
            seed: Seed of the windows' order.
            rank: Which of `world` equal slices.
            world: Number of processes; divides `batch_size`.

        Returns:
            int64 [batch_size / world, seq_len + 1].
        """
        windows = of_step(step, self.windows, batch_size, seed, rank, world)
        return self._gather(self.train, self._train_windows, windows)

    def validation_batches(self, batch_size: int) -> Iterator[Tensor]:
        """The validation windows in order, int64 [batch_size, seq_len + 1]; the last may be short.

        Every target of the stream comes once, except the last few that do not fill a window.
        """
        for start in range(0, len(self.validation), batch_size):
            some = self.validation[start : start + batch_size]
            yield self._gather(self.val, self._val_windows, some)

    def _gather(self, stream: TokenStream, where: Windows, windows: list[int]) -> Tensor:
        length = self.seq_len
        batch = np.empty((len(windows), length + 1), dtype=np.int64)
        for row, window in enumerate(windows):
            batch[row] = stream.read(where.start(window), length + 1)
        return torch.from_numpy(batch)

    def _windows(self, folder: Path, part: str, tokens: int) -> Windows:
        config, length = self.config, self.seq_len
        called = {"train": "training", "val": "validation"}[part]
        if tokens <= length:
            raise DataError(
                f"{config.key}: the {called} stream has {tokens:,} tokens, fewer than one "
                f"window of data.seq_len={length} and its last target"
            )
        if config.windows == ACROSS:
            return Windows(length, tokens)
        windows = Windows(length, tokens, document_starts(folder, self.manifest, part, config.key))
        if not len(windows):
            raise DataError(
                f"data.windows={WITHIN}: no document of the {called} stream of {config.key} is "
                f"longer than data.seq_len={length} tokens"
            )
        if len(windows) * length < (1 - HARMLESS_SHARE) * tokens:
            warnings.warn(
                f"data.windows={WITHIN}: {1 - len(windows) * length / tokens:.0%} of the {called} "
                f"tokens are in no window of data.seq_len={length}; a smaller one leaves out fewer",
                stacklevel=1,  # one place, so that it is said once
            )
        return windows


def scored(config: DataConfig, there: int, called: str) -> list[int]:
    """The numbers of what is scored, evenly spaced over all that is there.

    Args:
        config: Says how many are wanted.
        there: How many there are.
        called: What they are, for an error.

    Raises:
        DataError: More are wanted.
    """
    wanted = config.validation_windows or there
    if not 1 <= wanted <= there:
        raise DataError(
            f"data.validation_windows={wanted}: must be from 1 to {there:,}, the {called}, or 0 "
            "for all"
        )
    return [number * there // wanted for number in range(wanted)]


def of_step(
    step: int, count: int, batch_size: int, seed: int, rank: int = 0, world: int = 1
) -> list[int]:
    """The numbers, of `count` windows or examples, that a process is trained on in one step."""
    if batch_size % world:
        raise DataError(f"batch_size={batch_size}: must be a multiple of {world} processes")
    share = batch_size // world
    first = step * batch_size + rank * share
    numbers = []
    for place in range(first, first + share):
        epoch, position = divmod(place, count)
        numbers.append(int(_order(count, seed, epoch)[position]))
    return numbers


@functools.lru_cache(maxsize=4)
def _order(windows: int, seed: int, epoch: int) -> np.ndarray:
    """A permutation of range(windows), int64.

    Sorted by raw Philox output, which NumPy promises never to change; it makes no such promise for
    `Generator.permutation` (NEP 19).
    """
    keys = np.random.Philox(key=np.array([seed, epoch], dtype=np.uint64)).random_raw(windows)
    return np.argsort(keys, kind="stable")


class Batches(Protocol):
    """Data that has a batch for every step: `TokenData`, `experiments.data.examples.Examples`."""

    @property
    def label(self) -> str:
        """The data's name and the first 12 digits of a hash, as run records carry it."""

    @property
    def bytes_per_token(self) -> float | None:
        """Bytes of text per token; None if not known."""

    @property
    def validation(self) -> list[int]:
        """The numbers of the windows, or examples, that are scored."""

    def unique_tokens(self, steps: int, batch_size: int) -> int:
        """Different training targets seen in this many steps."""

    def batch(self, step: int, batch_size: int, seed: int, rank: int = 0, world: int = 1) -> Any:
        """What is trained on in one step."""

    def validation_batches(self, batch_size: int) -> Iterator[Any]:
        """What is scored, in order."""


class StepLoader:
    """The batches of a run from a given step on, for a Lightning Trainer.

    Its only state is the next step, so that resuming is exact and reads nothing twice.  Needs
    `use_distributed_sampler=False`, since each rank already gets its own slice.

    Args:
        data: Where the batches come from.
        seed: Seed of the windows' order.
        batch_size: Sequences per step, over all processes.
        start: First step.
        steps: Number of steps of the whole run: the last one is `steps - 1`.
        rank: This process.
        world: Number of processes.
        accumulate: Number of micro-batches in which each process gets its share of a step, one
            after the other.  A state is that of a whole step: save none between them.
    """

    def __init__(
        self,
        data: Batches,
        seed: int,
        batch_size: int,
        start: int,
        steps: int,
        rank: int = 0,
        world: int = 1,
        accumulate: int = 1,
    ) -> None:
        self.data, self.seed, self.batch_size = data, seed, batch_size
        self.start, self.steps, self.rank, self.world = start, steps, rank, world
        self.accumulate = accumulate
        self.next_step = start

    def __len__(self) -> int:
        """Batches from `start` to the end; loading a state does not change it."""
        return (self.steps - self.start) * self.accumulate

    def __iter__(self) -> Iterator[Any]:
        """Continue at the next step; ends for good after the last."""
        while self.next_step < self.steps:
            step = self.next_step
            self.next_step += 1  # before the yield: a state saved while step k runs says k + 1
            for part in range(self.accumulate):  # as if it were a process of its own
                place = self.rank * self.accumulate + part
                parts = self.world * self.accumulate
                yield self.data.batch(step, self.batch_size, self.seed, place, parts)

    def state_dict(self) -> dict[str, int]:
        """The next step."""
        return {"next_step": self.next_step}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue at the next step of `state`, whatever the number of processes was."""
        self.next_step = state["next_step"]
