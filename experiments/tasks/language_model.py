"""The next token of a text."""

from __future__ import annotations

import math

from torch import Tensor

from experiments.accounting import flops_per_token, training_bytes
from experiments.data.batches import Batches, DataConfig, TokenData, corpus_sha256
from experiments.finetune.config import AdapterConfig
from experiments.models.build import shape_of
from experiments.models.config import ModelConfig
from experiments.models.next_token import NextToken
from experiments.quant.recipe import RecipeConfig
from experiments.tasks.task import Score, Task

_VALIDATION_BATCH_TOKENS = 4_096
"""Measured: activations that stay in the cache score half as fast again as at 16,384."""


class LanguageModelTask(Task):
    """Cross-entropy of each next token, in nats, on batches of [B, T + 1] token ids."""

    causal = True
    unit = "token"

    def __init__(self, data: DataConfig, model: ModelConfig, adapter: AdapterConfig) -> None:
        self.data, self.model, self.adapter = data, model, adapter

    def corpus(self) -> str:
        """The corpus' SHA-256."""
        return corpus_sha256(self.data)

    def open(self, verify: bool = False) -> TokenData:
        """The corpus."""
        return TokenData(self.data, verify)

    def check(self, data: Batches, steps: int, batch_size: int) -> None:
        """Refuse token ids that the model does not have, and too little text."""
        assert isinstance(data, TokenData)
        data.check(steps, batch_size, shape_of(self.model).vocab_size)

    def loss(self, model: NextToken, batch: Tensor) -> Tensor:
        """Mean over tokens."""
        return model.loss(batch)

    def score(self, model: NextToken, batch: Tensor) -> Score:
        """Every token weighs the same, whatever its batch's size."""
        total = model.loss(batch, reduction="sum").double().item()
        return Score(total, batch.shape[0] * (batch.shape[1] - 1))

    @property
    def scored_at_once(self) -> int:
        """Windows."""
        return max(1, _VALIDATION_BATCH_TOKENS // self.data.seq_len)

    def ceiling(self, data: Batches) -> float:
        """No knowledge at all costs log(vocabulary) nats."""
        return math.log(shape_of(self.model).vocab_size)

    def flops_per_token(self) -> float:
        """By formula for the built-in model, counted on any other."""
        return flops_per_token(self.model, self.data.seq_len, self.adapter)

    def training_bytes(self, rows: int, recipe: RecipeConfig, recomputed: bool = False) -> int:
        """By formula for the built-in model, counted on any other."""
        how = self.data.seq_len, self.adapter, recomputed
        return training_bytes(self.model, rows, recipe, *how)
