"""Modules as a user's factory returns them: token ids to logits."""

from __future__ import annotations

from torch import nn


def one(width: int = 32, vocab: int = 256) -> nn.Module:
    """No attention, and no numbered blocks."""
    return nn.Sequential(
        nn.Embedding(vocab, width), nn.Linear(width, width), nn.Linear(width, vocab)
    )


def other(width: int = 32) -> nn.Module:
    """With something between the layers."""
    return nn.Sequential(
        nn.Embedding(256, width), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 256)
    )
