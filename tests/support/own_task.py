"""Tasks as a user's factory returns them, and models for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class Line:
    """y = 2x of numbers from -1 to 1."""

    corpus = "line-v1"
    guess = 1.4  # the mean square of y is 4/3

    def __init__(self, points: int = 100) -> None:
        x = torch.linspace(-1, 1, points)[:, None]
        self.train = [(row, 2 * row) for row in x]
        self.validation = self.train[::10]

    def losses(self, model: Callable[[Tensor], Tensor], batch: Any) -> Tensor:
        """Squared errors."""
        x, y = batch
        return (model(x) - y).square().mean(-1)

    def metrics(self, model: Callable[[Tensor], Tensor], batch: Any) -> dict[str, Tensor]:
        """Whether a prediction has the right sign."""
        x, y = batch
        return {"sign": (model(x).sign() == y.sign()).squeeze(-1)}


class Steep(Line):
    """y = 3x under another name."""

    corpus = "steep-v1"

    def losses(self, model: Callable[[Tensor], Tensor], batch: Any) -> Tensor:
        """Squared errors."""
        x, y = batch
        return (model(x) - 1.5 * y).square().mean(-1)


def net(width: int = 16) -> nn.Module:
    """With dropout, so that a resumed run would notice another draw."""
    return nn.Sequential(
        nn.Linear(1, width), nn.Tanh(), nn.Dropout(0.1), nn.BatchNorm1d(width), nn.Linear(width, 1)
    )
