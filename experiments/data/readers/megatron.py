"""Megatron's .bin and .idx, used where they lie.

The .bin is nothing but tokens.  The .idx says what they are, little-endian: "MMIDIDX" and two
zeros; version 1 as uint64; a code for the tokens' type in a byte; the numbers of sequences S and of
document bounds D as uint64; S lengths as int32, S places in bytes as int64, D numbers of the
sequence with which a document begins, as int64, the last of which is S.  A file for several kinds
of media ends with S bytes more.  (NVIDIA/Megatron-LM, megatron/core/datasets/indexed_dataset.py)
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from experiments.data.progress import say
from experiments.data.readers.token_files import end_of_tokens
from experiments.data.shards import (
    DataError,
    Manifest,
    Shard,
    Vocabulary,
    cache_folder,
    corpus_identity,
    file_sha256,
    fingerprint,
    make_once,
    shard_sha256,
    starts_file,
    token_blocks,
    write_manifest,
)
from experiments.data.writer import VALIDATION_SHARE

MAGIC = b"MMIDIDX\0\0"
_HEADER = struct.Struct("<9sQBQQ")
TYPES = {1: "uint8", 2: "int8", 3: "int16", 4: "int32", 5: "int64", 6: "float64", 7: "float32"}
TYPES |= {8: "uint16"}
"""Code -> type of the tokens."""
TAKEN = {"uint16": "uint16", "int32": "uint32"}
"""Types that can be used where they lie -> as what; ids are not negative."""
_LARGEST = 2**31 - 1


@dataclass(frozen=True)
class Index:
    """The content of an .idx."""

    dtype: str
    starts: np.ndarray
    """The token with which each document begins."""
    tokens: int


def megatron_pairs(path: Path) -> list[Path]:
    """The files without .bin and .idx that `path` means: a folder of pairs, one of them, neither.

    Megatron itself names a pair by what both have in common.
    """
    if path.is_dir():
        found = [p.with_suffix("") for p in sorted(path.rglob("*.idx")) if p.is_file()]
        return [p for p in found if not any(x.startswith(".") for x in p.relative_to(path).parts)]
    if path.suffix in (".idx", ".bin") and path.with_suffix(".idx").is_file():
        return [path.with_suffix("")]
    return [path] if not path.exists() and Path(f"{path}.idx").is_file() else []


def import_megatron(
    path: Path, prefixes: Sequence[Path], key: str, eos: str = "", again: bool = False
) -> Path:
    """A manifest in the cache for pairs of .bin and .idx, which stay where they are.

    The last documents of each pair, a twentieth of its tokens, are for validation, as Megatron
    splits.  Found again by path, size and time of change.

    Args:
        path: What the user named.
        prefixes: The pairs, without .bin and .idx.
        key: The option as the user wrote it; errors start with it.
        eos: The id of the token that ends a document; "": not known.
        again: Make the manifest again, even if it is there.

    Returns:
        The corpus folder.

    Raises:
        DataError: A file is missing, cut off, not of tokens or of a type that cannot be used.
    """
    pairs = [(_beside(p, ".bin", key), _beside(p, ".idx", key)) for p in prefixes]
    end = end_of_tokens(eos)
    identity = "".join(fingerprint(file) for pair in pairs for file in pair)
    identity += "" if end is None else f"eos {end}"
    digest = hashlib.sha256(("megatron" + identity).encode()).hexdigest()[:12]
    target = cache_folder() / "imported" / f"{path.resolve().name}-{digest}"

    def make(folder: Path) -> None:
        manifest = _manifest(path.resolve().name, pairs, key, end, folder)
        write_manifest(manifest, folder)
        tokens = sum(shard.tokens for shard in manifest.train + manifest.val)
        documents = sum(manifest.documents.values())
        many = f"{len(pairs):,} pair{'s' * (len(pairs) > 1)} of .bin and .idx"
        below = f"{tokens:,} tokens below {manifest.vocab_size:,}"
        say(key, f"{many}, {documents:,} documents, {below}")

    return make_once(target, make, again)


def _beside(prefix: Path, suffix: str, key: str) -> Path:
    file = Path(f"{prefix}{suffix}").resolve()
    if not file.is_file():
        raise DataError(f"{key}: {file} is not there; Megatron's tokens are a .bin and an .idx")
    return file


def _manifest(
    name: str, pairs: Sequence[tuple[Path, Path]], key: str, eos: int | None, folder: Path
) -> Manifest:
    shards: dict[str, list[Shard]] = {"train": [], "val": []}
    starts: dict[str, list[np.ndarray]] = {"train": [], "val": []}
    dtypes, largest = set(), -1
    by_document = True
    for data, path in pairs:
        index = read_index(path, data, key)
        kind = TAKEN[index.dtype]
        dtypes.add(kind)
        cut = _cut(index)
        by_document &= cut in index.starts
        for part, first, end in (("train", 0, cut), ("val", cut, index.tokens)):
            if first == end:
                continue
            shard = Shard(str(data), end - first, "", first, index.tokens)
            before = sum(s.tokens for s in shards[part])
            within = index.starts[(index.starts >= first) & (index.starts < end)]
            starts[part].append(within - first + before)
            shards[part].append(
                Shard(shard.file, shard.tokens, shard_sha256(data, shard, kind), first, shard.of)
            )
        blocks = token_blocks(data, kind, 0, index.tokens)
        found = max(int(block.max()) for block in blocks)
        if found > _LARGEST:
            raise DataError(f"{key}: {data} holds negative numbers, which are no tokens")
        largest = max(largest, found)
    if len(dtypes) != 1:
        raise DataError(f"{key}: holds tokens of 16 and of 32 bits; give one kind alone")
    for part, found_starts in starts.items():
        every = np.concatenate([np.zeros(0, np.uint64), *found_starts])
        starts_file(folder, part).write_bytes(every.astype("<u8").tobytes())
    train, val = tuple(shards["train"]), tuple(shards["val"])
    split = f"the last {VALIDATION_SHARE:.0%} of the tokens of each file"
    return Manifest(
        name=name,
        sha256=corpus_identity(train + val, Vocabulary("", 0, eos=eos)),
        tokenizer="unknown",
        vocab_size=largest + 1,
        dtype=dtypes.pop(),
        bytes_per_token=None,
        split=split + (", whole documents" if by_document else ""),
        sources={path.name: file_sha256(path) for _, path in pairs},
        documents={part: sum(map(len, found_starts)) for part, found_starts in starts.items()},
        train=train,
        val=val,
        eos=eos,
        starts={part: file_sha256(starts_file(folder, part)) for part in starts},
    )


def _cut(index: Index) -> int:
    """The first token of validation: the document's start next to the last twentieth.

    Where that gives less than 1 % or more than 20 % of the tokens, the twentieth itself.
    """
    wanted = index.tokens - round(VALIDATION_SHARE * index.tokens)
    cut = int(index.starts[np.argmin(np.abs(index.starts - wanted))])
    held_out = index.tokens - cut
    return cut if 0.01 * index.tokens <= held_out <= 0.20 * index.tokens else wanted


def read_index(path: Path, data: Path, key: str) -> Index:
    """The content of an .idx, held to its own size and to its .bin.

    Raises:
        DataError: It is cut off, no index, does not suit its .bin, or of tokens we cannot use.
    """

    def refuse(problem: str) -> DataError:
        return DataError(f"{key}: {path} {problem}")

    with open(path, "rb") as file:
        head = file.read(_HEADER.size)
    if head[: len(MAGIC)] != MAGIC[: len(head)] or not head:
        raise refuse("is no index of Megatron, which begins with MMIDIDX")
    if len(head) < _HEADER.size:
        raise refuse(f"is cut off in its header, after {len(head)} of {_HEADER.size} bytes")
    _, version, code, sequences, bounds = _HEADER.unpack(head)
    dtype = TYPES.get(code, "")
    if version != 1 or not dtype:
        raise refuse(f"is of version {version} and type {code}; known are version 1, types 1 to 8")
    if dtype not in TAKEN:
        raise refuse(f"has tokens of {dtype}; must be {' or '.join(TAKEN)}")
    size, wanted = path.stat().st_size, _HEADER.size + 12 * sequences + 8 * bounds
    if size not in (wanted, wanted + sequences):
        raise refuse(
            f"has {size:,} bytes where {sequences:,} sequences and {bounds:,} document bounds "
            f"need {wanted:,}: cut off"
        )
    place = _HEADER.size
    lengths = np.fromfile(path, "<i4", sequences, offset=place)
    pointers = np.fromfile(path, "<i8", sequences, offset=place + 4 * sequences)
    documents = np.fromfile(path, "<i8", bounds, offset=place + 12 * sequences)
    item, ends = np.dtype(dtype).itemsize, np.cumsum(lengths, dtype=np.int64)
    tokens = int(ends[-1]) if sequences else 0
    firsts = ends - lengths
    if bool((lengths < 0).any()) or not np.array_equal(pointers, firsts * item):
        raise refuse("has sequences that do not lie one after the other")
    rising = bool((np.diff(documents) >= 0).all())
    if bounds < 1 or not rising or documents[0] != 0 or documents[-1] != sequences:
        raise refuse(f"has document bounds that do not lead from 0 to its {sequences:,} sequences")
    if data.stat().st_size != tokens * item:
        raise refuse(
            f"counts {tokens:,} tokens of {item} bytes, but {data.name} has "
            f"{data.stat().st_size:,} bytes"
        )
    if not tokens:
        raise refuse("counts no tokens")
    starts = np.append(firsts, tokens)[documents[:-1]]
    return Index(dtype, np.unique(starts[starts < tokens]), tokens)
