"""Data: tokens on disk, checked, and batches addressed by step."""

from experiments.data.batches import (
    DataConfig,
    StepLoader,
    TokenData,
    corpus_folder,
    corpus_sha256,
)
from experiments.data.shards import DataError
from experiments.data.stream import TokenStream

__all__ = [
    "DataConfig",
    "DataError",
    "StepLoader",
    "TokenData",
    "TokenStream",
    "corpus_folder",
    "corpus_sha256",
]
