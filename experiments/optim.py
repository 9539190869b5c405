"""AdamW, its schedule, and the formats in which weights and moments are stored between steps.

Between two steps an optimizer stores, for every weight, the weight itself (the master weight) and
two moments.  `optim.weights` and `optim.state` say in which formats; the step itself is computed in
float32 and its results are rounded.  Both apply to the matrices inside the blocks, the ones that a
recipe may quantize and that `params` counts, whatever the recipe keeps; embedding, head and norms
stay in float32, as 8-bit optimizers keep the embedding's (2110.02861, section 2.3): a study of few
bits then varies one thing.

What to expect, for a number that moves by less than half a step of its format's grid:

    weights   To nearest it never moves, so training stalls where lr * |update| is below half a
              step; rounded stochastically it moves on average as it should (2010.06192).
    moments   An average over 1 / (1 - beta) steps moves by a share of 1 - beta a step.  To nearest
              it sticks where that is below half a step: with beta2 = 0.95 in formats of 3 mantissa
              bits or fewer, with 0.999 in bf16 too.  There take optim.state_rounding=stochastic.
    second    One that rounds to zero leaves a division by eps alone, a step of thousands of times
    moment    lr.  So one that is not zero is stored as the smallest number above zero that there is
              at that scale: such a weight moves too slowly, not too far.  That still wants range.
              From the largest number to the smallest are factors of 2^261 in bf16, 2^40 in
              fp16-tensor, 2^33 in E5M2-block2048, 2^18 in E4M3-block2048, and 2^7 in
              INT8-block2048, which gets all but the largest moments wrong.  fp16 without a scale
              begins at 2^-24, above most squares of gradients.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.quant.block import quantize_as, round_elements
from experiments.quant.formats import (
    PRECISIONS,
    ElementFormat,
    FormatError,
    IntFormat,
    Precision,
    parse_element,
)
from experiments.quant.linear import STREAMS, NoiseClock, QuantLinear
from experiments.quant.modes import Direction, Rounding

STORAGE_ROUNDINGS = ("nearest_even", "stochastic")
_UP = Rounding(Direction.UP)

StorageFormat = ElementFormat | Precision


@dataclass
class OptimConfig:
    """AdamW with a linear warm-up and a cosine to `final_lr` times the peak."""

    lr: float = 4e-3
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    clip_norm: float = 1.0
    warmup: float = 0.1
    """Share of the steps."""
    final_lr: float = 0.0
    """Share of the peak reached at the last step."""
    weights: str = ""
    """Format of the stored weights of the blocks' matrices, a name `storage` reads; "": float32."""
    weights_rounding: str = "nearest_even"
    """nearest_even or stochastic."""
    state: str = ""
    """Format of their two moments; one name, or first+second; "": float32."""
    state_rounding: str = "nearest_even"
    loss_scale: str = "1"
    """A power of two, or dynamic (`experiments.loss_scale`)."""
    loss_scale_interval: int = 2_000
    """Steps without an overflow after which a dynamic scale doubles."""

    def problems(self) -> list[str]:
        """Errors, each as "key=value: what would be right"."""
        found = []

        def demand(holds: bool, key: str, right: str) -> None:
            if not holds:
                found.append(f"optim.{key}={getattr(self, key)}: {right}")

        for key in ("lr", "eps", "clip_norm"):
            demand(getattr(self, key) > 0, key, "must be positive")
        for key in ("warmup", "final_lr", "beta1", "beta2"):
            demand(0 <= getattr(self, key) <= 1, key, "must be from 0 to 1")
        for key, names in (("weights", [self.weights]), ("state", self.state.split("+"))):
            demand(len(names) <= 2, key, "must be one format, or two as first+second")
            for name in names if getattr(self, key) else ():
                try:
                    storage(name)
                except FormatError as error:
                    demand(False, key, str(error))
        for key in ("weights_rounding", "state_rounding"):
            right = f"must be one of {', '.join(STORAGE_ROUNDINGS)}"
            demand(getattr(self, key) in STORAGE_ROUNDINGS, key, right)
        scale = int(self.loss_scale) if self.loss_scale.isdecimal() else 0
        power = scale.bit_count() == 1 and scale < 2**127
        right = "must be a power of two from 1 to 2^126, or dynamic"
        demand(power or self.loss_scale == "dynamic", "loss_scale", right)
        demand(self.loss_scale_interval >= 1, "loss_scale_interval", "must be 1 or more")
        return found

    @property
    def moments(self) -> dict[str, StorageFormat]:
        """Format of each moment that is not stored in float32, by its name in torch's AdamW."""
        if not self.state:
            return {}
        first, _, second = self.state.partition("+")
        return {"exp_avg": storage(first), "exp_avg_sq": storage(second or first)}


def storage(name: str) -> StorageFormat:
    """The format that numbers are stored in.

    An element format alone is that format itself, without a scale: bf16, fp16, E4M3, E0M7 (fixed
    point).  One that says what shares a scale is scaled: E4M3-block2048, INT8-row; so are the
    published formats: mxfp8_e4m3, nvfp4, and fp8_e4m3, which has one scale per tensor.

    Raises:
        FormatError: No such format, or one that cannot store.

    >>> str(storage("bf16")), str(storage("E4M3-block2048"))
    ('E8M7-ieee', 'E4M3-block2048-fp32')
    """
    short = name.strip().lower()
    found: StorageFormat
    try:
        found = PRECISIONS[short] if short in PRECISIONS else parse_element(short)
    except FormatError:
        found = Precision.parse(short)
    if isinstance(found, IntFormat):
        raise FormatError(f"{found} without a scale has no fractions; write {found}-row")
    if isinstance(found, Precision) and found.tile:
        raise FormatError(f"{found}: what is stored is scaled by block, row or tensor, not by tile")
    return found


def stored(x: Tensor, to: StorageFormat, rounding: Rounding, key: int) -> Tensor:
    """The values of `x` after storage.

    Args:
        x: Float32, any shape; blocks are of consecutive values in row-major order, the last one
            may be shorter.
        to: The format.
        rounding: In a direction, or one of `STORAGE_ROUNDINGS`.
        key: Key of the noise of stochastic rounding (`experiments.quant.kernels.noise`).

    Returns:
        Float32 of the same shape.

    >>> stored(torch.tensor([1.01, -0.3]), parse_element("bf16"), Rounding(), key=0)
    tensor([ 1.0078, -0.3008])
    """
    if not isinstance(to, Precision):
        return round_elements(x, to, key if rounding.draws else None, rounding.direction)
    if x.shape[-1] % to.divisor == 0:
        return quantize_as(x, to, rounding, key)
    flat = x.flatten()
    padded = F.pad(flat, (0, -flat.numel() % to.divisor))  # zeros are never a block's largest
    return quantize_as(padded, to, rounding, key)[: flat.numel()].view_as(x)


def stored_second_moment(v: Tensor, to: StorageFormat, rounding: Rounding, key: int) -> Tensor:
    """As `stored`, but values above zero stay above zero: at least the smallest number."""
    rounded = stored(v, to, rounding, key)
    return torch.where((rounded == 0) & (v > 0), stored(v, to, _UP, key), rounded)


def block_matrices(model: nn.Module) -> list[Tensor]:
    """The weights to which `optim.weights` and `optim.state` apply, in order of creation."""
    return [layer.weight for layer in model.modules() if isinstance(layer, QuantLinear)]


@torch.no_grad()
def round_weights(model: nn.Module, optim: OptimConfig, seed: int) -> None:
    """Round the initial weights as `optim.weights` says, so that no step sees unrounded ones."""
    if optim.weights:
        for index, weight in enumerate(block_matrices(model)):
            _round_weight(weight, optim, NoiseClock(seed), 0, index)


def make_optimizer(model: nn.Module, optim: OptimConfig, seed: int) -> torch.optim.AdamW:
    """AdamW, no weight decay on norms, that stores weights and moments in the formats of `optim`.

    Args:
        model: The model whose parameters it updates.
        optim: The settings.
        seed: Seed of the rounding noise, which depends on this, the number of steps that
            the parameter took, and which parameter it is; so a resumed run sees the same.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": optim.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(
        groups, lr=optim.lr, betas=(optim.beta1, optim.beta2), eps=optim.eps
    )
    matrices, moments, clock = block_matrices(model), optim.moments, NoiseClock(seed)
    rounding = Rounding.parse(optim.state_rounding)

    @torch.no_grad()
    def round_stored(*_: Any) -> None:
        for index, weight in enumerate(matrices):
            if weight.grad is None:
                continue  # no step was taken
            state = optimizer.state[weight]
            step = int(state["step"])
            for name, to in moments.items():
                put = stored_second_moment if name == "exp_avg_sq" else stored
                key = clock.key(step, index, STREAMS[name])
                state[name].copy_(put(state[name], to, rounding, key))
            if optim.weights:
                _round_weight(weight, optim, clock, step, index)

    if optim.weights or optim.state:
        optimizer.register_step_post_hook(round_stored)
    return optimizer


def _round_weight(
    weight: Tensor, optim: OptimConfig, clock: NoiseClock, step: int, index: int
) -> None:
    key = clock.key(step, index, STREAMS["weight"])
    rounding = Rounding.parse(optim.weights_rounding)
    weight.copy_(stored(weight, storage(optim.weights), rounding, key))


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
