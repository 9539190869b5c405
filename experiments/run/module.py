"""The LightningModule: loss, optimizer, schedule.  Everything else is outside."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor

from experiments.config.schema import TrainConfig
from experiments.finetune.adapters import attach
from experiments.finetune.base import start_from
from experiments.loss_scale import LossScale
from experiments.measure.diagnostics import measure
from experiments.models.build import build, shape_of
from experiments.optim import lr_factor, make_optimizer, round_weights
from experiments.quant.word_length import WordLength
from experiments.tasks.choose import task_of
from experiments.tasks.task import Score

# Where the noise counter of validation starts: far from every training step's.
_VALIDATION_COUNTER = 2**40
_RANK_COUNTERS = 2**44


class LanguageModel(L.LightningModule):
    """Training of a model on the batches of a task."""

    def __init__(self, config: TrainConfig) -> None:
        super().__init__()
        self.config, self.task = config, task_of(config)
        self.model = build(
            config.model, config.recipe, config.precision.build(), config.seed, self.task.causal
        )
        if config.init_from:
            start_from(self.model, Path(config.init_from), config.base, config.model)
        round_weights(self.model, config.optim, config.seed)
        attach(self.model, shape_of(config.model), config.adapter, config.seed)
        if config.trainer.checkpointing:
            self.model.recompute_blocks()
        self.loss_scale = LossScale(config.optim.loss_scale, config.optim.loss_scale_interval)
        # At once: several processes compare their buffers before the first of them is used.
        self.model.extend_tables(config.data.seq_len)
        adaptive = config.recipe.word_length
        self.word_lengths = {
            name: WordLength(layer, adaptive)
            for name, layer in (self.model.linears().items() if adaptive.lookback else ())
        }
        """Word lengths by layer, for a recipe that moves them."""
        self.validation_loss = math.nan
        self.validation_metrics: dict[str, float] = {}
        """The task's other measures, by name."""
        self._scores: list[Score] = []

    def training_step(self, batch: Any, batch_index: int) -> Tensor:
        """The mean loss of one batch, or of one micro-batch of those that a step accumulates."""
        self._set_clock(batch_index % self.config.accumulate)
        return self.task.loss(self.model, batch)

    def _set_clock(self, part: int = 0) -> None:
        # Each micro-batch and each process of a run has noise of its own; with one of each, this
        # is the step.
        place = self.global_step * self.config.accumulate + part
        self.model.clock.counter = place + _RANK_COUNTERS * self.global_rank
        self.model.clock.quantizing = self.config.quantizes(self.global_step)

    def measure(self, batch: Any) -> dict[str, float]:
        """Diagnostics of the training step on `batch` that comes next, its first micro-batch."""
        self._set_clock()
        # What batch norms have seen so far does not count a batch for being measured.
        before = {name: buffer.clone() for name, buffer in self.model.named_buffers()}
        try:
            return measure(self.model, self.model.clock, lambda: self.task.loss(self.model, batch))
        finally:
            for name, buffer in self.model.named_buffers():
                buffer.copy_(before[name])

    def on_validation_epoch_start(self) -> None:
        """Forget the last scores."""
        self._scores = []

    def validation_step(self, batch: Any, batch_index: int) -> None:
        """Score one batch."""
        self.model.clock.counter = _VALIDATION_COUNTER + batch_index
        # Not by the step: the trainer that scores has taken none.
        self.model.clock.quantizing = self.config.quantizes(self.config.steps)
        self._scores.append(self.task.score(self.model, batch))

    def on_validation_epoch_end(self) -> None:
        """Means over the whole stream; every token weighs the same, whatever its batch's size."""
        count = sum(score.count for score in self._scores)
        self.validation_loss = sum(score.loss for score in self._scores) / count
        names = dict.fromkeys(name for score in self._scores for name in score.metrics)
        self.validation_metrics = {
            name: sum(score.metrics[name] for score in self._scores) / count for name in names
        }

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Gradients of the loss times the loss scale."""
        super().backward(loss * self.loss_scale.value, *args, **kwargs)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Gradients of the loss itself, before they are clipped; word lengths move by them."""
        self.loss_scale.unscale(self.parameters())
        for word_length in self.word_lengths.values():
            if (gradient := word_length.layer.weight.grad) is not None:
                word_length.observe(gradient)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the state that the weights and the optimizer do not hold."""
        if self.loss_scale.dynamic:
            checkpoint["loss_scale"] = self.loss_scale.state_dict()
        if self.word_lengths:
            states = {name: w.state_dict() for name, w in self.word_lengths.items()}
            checkpoint["word_lengths"] = states

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the state of the checkpoint."""
        if self.loss_scale.dynamic:
            self.loss_scale.load_state_dict(checkpoint["loss_scale"])
        for name, word_length in self.word_lengths.items():
            word_length.load_state_dict(checkpoint["word_lengths"][name])

    def configure_optimizers(self) -> Any:
        """The optimizer; its schedule steps with it."""
        optim = self.config.optim
        optimizer = make_optimizer(self.model, optim, self.config.seed)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: lr_factor(step, self.config.steps, optim)
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }


def measured_steps(config: TrainConfig) -> frozenset[int]:
    """The steps before which diagnostics are measured: quantized ones."""
    if not config.recipe.quantizes:
        return frozenset()
    return frozenset(config.diagnostics.steps(config.quantized_steps))
