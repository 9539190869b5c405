"""Demands on each key of the configuration by itself: ranges of numbers, lengths of names.

Demands on several keys together are checked where these are used.  A test walks the whole tree: a
new key without a demand fails it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`: without `low` itself if `above`, without `high` if `below`."""

    low: float
    high: float
    above: bool = False
    below: bool = False

    def holds(self, value: float) -> bool:
        """Whether a number is one of them; numbers that are not finite never are."""
        inside = value > self.low if self.above else value >= self.low
        inside &= value < self.high if self.below else value <= self.high
        return math.isfinite(value) and inside

    def demand(self, value: float) -> str:
        """The requirement in the words of an error."""
        if math.isfinite(value) and value <= self.low:
            positive = self.above and self.low == 0
            return "must be positive" if positive else f"must be {self.low:g} or more"
        if self.high == _FINITE.high:
            return f"must be a finite number, {'above ' if self.above else ''}{self.low:g}" + (
                "" if self.above else " or more"
            )
        beyond = "below " if self.below else ""
        return f"must be from {self.low:.17g} to {beyond}{self.high:.17g}"


_FINITE = Range(0, math.nextafter(math.inf, 0))
_POSITIVE = Range(0, _FINITE.high, above=True)
_SHARE = Range(0, 1)
_DECAY = Range(0, 1, below=True)
_SECONDS = Range(0, 1e9)
_COUNT, _COUNT_OR_NONE = Range(1, 10**12), Range(0, 10**12)
_ROTATION = Range(0, 2**20)

NUMBERS = {
    "model.layers": Range(1, 10_000),
    "model.hidden": Range(1, 2**20),
    "model.ffn": Range(1, 2**22),
    "model.heads": Range(1, 2**16),
    "model.vocab_size": Range(1, 2**32),
    "model.rope_base": _POSITIVE,
    "data.seq_len": Range(1, 2**24),  # of text 2
    "data.image.size": Range(0, 4_096),
    "data.image.channels": Range(1, 3),
    "data.validation_windows": _COUNT_OR_NONE,
    "data.max_epochs": Range(1, 10**6),
    "precision.exponent": Range(0, 64),  # the format says which of these there are
    "precision.mantissa": Range(0, 64),
    "precision.block_size": Range(1, 2**24),
    **{f"recipe.{gemm}.hadamard": _ROTATION for gemm in ("output", "grad_input", "grad_weight")},
    "recipe.grad_input.row_hadamard": _ROTATION,
    "recipe.keep_first": Range(0, 10_000),
    "recipe.keep_last": Range(0, 10_000),
    "recipe.high_precision_share": _SHARE,
    "recipe.word_length.lookback": _COUNT_OR_NONE,
    "recipe.word_length.bins": Range(2, 10**6),
    "optim.lr": _POSITIVE,
    "optim.beta1": _DECAY,
    "optim.beta2": _DECAY,
    "optim.eps": _POSITIVE,
    "optim.weight_decay": _FINITE,
    "optim.clip_norm": _POSITIVE,
    "optim.warmup": _SHARE,
    "optim.final_lr": _SHARE,
    "optim.loss_scale_interval": _COUNT,
    "adapter.r": Range(1, 2**16),
    "adapter.lora_alpha": Range(0, 10**6, above=True),
    "base.bits": Range(0, 10**3),
    "base.tokens": Range(0, 10**15),
    "diagnostics.points": Range(0, 10**6),
    "diagnostics.apart": _COUNT,
    "tracking.log_every": _COUNT,
    "resources.cpus": Range(1, 2**16),
    "resources.gpus": Range(0, 2**16),
    "resources.memory": Range(0, 2**30),
    "trainer.num_workers": Range(1, 2**16),
    "budget.hours": _FINITE,
    "budget.flops": _FINITE,
    "budget.price": _FINITE,
    "tokens": Range(1, 10**15),
    "batch_size": Range(1, 2**24),
    "accumulate": Range(1, 2**24),
    "seed": Range(0, 2**63 - 1),
    "checkpoint_seconds": _SECONDS,
    "lease_seconds": Range(0, 1e9, above=True),
    "timeout_seconds": _SECONDS,
}
"""Every key that holds a number."""

LENGTHS = {
    "study.name": 200,
    "model.name": 80,
    "recipe.name": 80,
    "tracking.project": 128,
}
"""Most characters in the name of a folder or W&B project; folders of runs join two of them."""


def problems(leaves: Iterable[tuple[str, Any]]) -> list[str]:
    """Errors of single keys, each as "key=value: what would be right"."""
    found = []
    for key, value in leaves:
        if key in NUMBERS and not NUMBERS[key].holds(value):
            found.append(f"{key}={value}: {NUMBERS[key].demand(value)}")
        elif key in LENGTHS and len(value) > LENGTHS[key]:
            found.append(f"{key}={value[:24]}...: must be at most {LENGTHS[key]} characters")
    return found
