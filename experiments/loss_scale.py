"""Loss scaling: gradients are computed `value` times too large and divided again before use.

If the numbers of a backward pass reach below their format's range, this keeps small gradients
from rounding to zero (1710.03740, section 3.2).  The formats of this package are scaled by their
own data and float32 and bfloat16 reach down to 2^-126, so a scale that is a power of two changes
no bit of a run here unless something under- or overflows.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

INITIAL = 2.0**16
_LARGEST = 2.0**127  # the next power of two is not a float32


class LossScale:
    """A constant, or one that halves on overflow and doubles after some steps without any.

    Source:
        The dynamic one is that of `torch.amp.GradScaler` with its default initial value and
        factors.  A constant one that overflows leaves the gradients as they are, so the run
        diverges and says so.

    Args:
        scale: A power of two in decimals, or dynamic.
        interval: Steps without overflow after which a dynamic scale doubles.
    """

    def __init__(self, scale: str, interval: int) -> None:
        self.dynamic, self.interval = scale == "dynamic", interval
        self.value = INITIAL if self.dynamic else float(scale)
        """The factor by which the loss is multiplied."""
        self.since_change = 0
        """Steps without overflow since the value last changed."""

    @torch.no_grad()
    def unscale(self, parameters: Iterable[nn.Parameter]) -> None:
        """Divide all gradients by the scale, then adapt it.

        On an overflow of a dynamic scale every gradient becomes None, so that the optimizer leaves
        this step out; the learning rate's schedule goes on.
        """
        with_gradient = [p for p in parameters if p.grad is not None]
        if self.value != 1:
            for p in with_gradient:
                assert p.grad is not None
                p.grad.mul_(1 / self.value)
        if not self.dynamic or not with_gradient:
            return
        finite = torch.stack([p.grad.isfinite().all() for p in with_gradient if p.grad is not None])
        if bool(finite.all()):
            self.since_change += 1
            if self.since_change == self.interval:
                self.value, self.since_change = min(2 * self.value, _LARGEST), 0
            return
        self.value, self.since_change = self.value / 2, 0
        for p in with_gradient:
            p.grad = None

    def state_dict(self) -> dict[str, float]:
        """The state, as part of the checkpoint."""
        return {"value": self.value, "since_change": self.since_change}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Restore the state from the checkpoint."""
        self.value, self.since_change = state["value"], int(state["since_change"])
