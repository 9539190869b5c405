"""The LightningModule: loss, optimizer, schedule.  Everything else is outside."""

from __future__ import annotations

import math
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor

from experiments.config import OptimConfig, TrainConfig
from experiments.diagnostics import measure
from experiments.model import Transformer
from experiments.quant.linear import QuantLinear

# Where the noise counter of validation starts: far from every training step's.
_VALIDATION_COUNTER = 2**40
_RANK_COUNTERS = 2**44


class LanguageModel(L.LightningModule):
    """Next-token training of a `Transformer` on batches of [B, T + 1] token ids."""

    def __init__(self, config: TrainConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Transformer(
            config.model, config.recipe, config.precision.build(), seed=config.seed
        )
        self.model.initialize(config.seed)
        # At once: several processes compare their buffers before the first of them is used.
        self.model.extend_tables(config.data.seq_len)
        self.validation_loss = math.nan
        self._validation_sum, self._validation_tokens = 0.0, 0

    def loss(self, batch: Tensor, reduction: str = "mean") -> Tensor:
        """Cross-entropy in nats of each position's next token, in float32."""
        logits = self.model(batch[:, :-1])
        return F.cross_entropy(
            logits.flatten(0, 1).float(), batch[:, 1:].flatten(), reduction=reduction
        )

    def training_step(self, batch: Tensor, batch_index: int) -> Tensor:
        """The mean loss of one batch."""
        self._set_clock()
        return self.loss(batch)

    def _set_clock(self) -> None:
        # Each process of a run has noise of its own; where there is one, this is the step.
        self.model.clock.counter = self.global_step + _RANK_COUNTERS * self.global_rank
        self.model.clock.quantizing = quantizes(self.global_step, self.config)

    def measure(self, batch: Tensor) -> dict[str, float]:
        """`experiments.diagnostics.measure` of the training step on `batch` that comes next."""
        self._set_clock()
        return measure(self.model, self.model.clock, lambda: self.loss(batch))

    def quantizable(self) -> list[QuantLinear]:
        """The layers that the recipe does not keep in high precision."""
        recipe, blocks = self.config.recipe, self.config.model.layers
        return [
            layer
            for name, layer in self.model.named_modules()
            if isinstance(layer, QuantLinear) and not recipe.keeps(name, blocks)
        ]

    def on_validation_epoch_start(self) -> None:
        """Start the sum anew."""
        self._validation_sum, self._validation_tokens = 0.0, 0

    def validation_step(self, batch: Tensor, batch_index: int) -> None:
        """Add one batch to the sum; every token weighs the same, whatever its batch's size."""
        self.model.clock.counter = _VALIDATION_COUNTER + batch_index
        self.model.clock.quantizing = quantizes(self.global_step, self.config)
        self._validation_sum += self.loss(batch, reduction="sum").double().item()
        self._validation_tokens += batch.shape[0] * (batch.shape[1] - 1)

    def on_validation_epoch_end(self) -> None:
        """Nats a token over the whole stream."""
        self.validation_loss = self._validation_sum / self._validation_tokens

    def configure_optimizers(self) -> Any:
        """AdamW, no weight decay on norms; the schedule steps with the optimizer."""
        optim = self.config.optim
        parameters = list(self.model.parameters())
        groups = [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": optim.weight_decay},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(
            groups, lr=optim.lr, betas=(optim.beta1, optim.beta2), eps=optim.eps
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: lr_factor(step, self.config.steps, optim)
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }


def quantizes(step: int, config: TrainConfig) -> bool:
    """Whether `step` is quantized: not among the last that the recipe has in high precision.

    Step `config.steps` is the validation after training.
    """
    return config.recipe.high_precision_share == 0 or step < quantized_steps(config)


def quantized_steps(config: TrainConfig) -> int:
    """How many steps are quantized, where the recipe quantizes any operand."""
    return round((1 - config.recipe.high_precision_share) * config.steps)


def measured_steps(config: TrainConfig) -> frozenset[int]:
    """Before which steps diagnostics are measured: quantized ones."""
    if not config.recipe.quantized:
        return frozenset()
    return frozenset(config.diagnostics.steps(quantized_steps(config)))


def lr_factor(step: int, steps: int, optim: OptimConfig) -> float:
    """Share of the peak learning rate at `step` of `steps`: linear up, cosine down.

    The first step already learns, and the last one ends at `final_lr`.

    >>> [round(lr_factor(s, 10, OptimConfig(warmup=0.2)), 3) for s in (0, 1, 5, 9)]
    [0.5, 1.0, 0.5, 0.0]
    """
    warmup = round(optim.warmup * steps)
    if step < warmup:
        return (step + 1) / warmup
    progress = min(1.0, (step - max(warmup - 1, 0)) / max(1, steps - max(warmup, 1)))
    return optim.final_lr + (1 - optim.final_lr) * 0.5 * (1 + math.cos(math.pi * progress))
