"""Callbacks as a user's functions return them."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint


class Average(L.Callback):
    """A running average of the weights, which they become in the end and are drawn to before."""

    def __init__(self) -> None:
        self.average: dict[str, torch.Tensor] = {}

    @torch.no_grad()
    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        for name, weight in module.named_parameters():
            kept = self.average.setdefault(name, weight.clone())
            kept.lerp_(weight, 0.25)
            weight.lerp_(kept, 0.5)

    @torch.no_grad()
    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        for name, weight in module.named_parameters():
            weight.copy_(self.average[name])

    def state_dict(self) -> dict[str, Any]:
        return dict(self.average)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.average = dict(state_dict)


class Clip(L.Callback):
    """Weights of at most 0.05."""

    @torch.no_grad()
    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        for weight in module.parameters():
            weight.clamp_(-0.05, 0.05)


class Stops(L.Callback):
    """Ends training after five steps."""

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        trainer.should_stop = trainer.global_step >= 5


class Holds(Clip):
    """With a state that only code could read again."""

    def state_dict(self) -> dict[str, Any]:
        return {"made": Stops()}


average, clip, stops, holds = Average, Clip, Stops, Holds


def checkpoint() -> L.Callback:
    """One that writes checkpoints of its own."""
    return ModelCheckpoint()


def early() -> L.Callback:
    """One that is not ours to refuse by name."""
    return EarlyStopping("loss")


def nothing() -> None:
    """No callback."""


def raises() -> L.Callback:
    """Fails."""
    raise RuntimeError("no such thing\nat all")
