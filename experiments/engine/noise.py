"""Noise that advances by itself: every pass through a layer draws its place from torch's generator.

A training loop of ours counts its steps, and noise is a pure function of the step.  A loop of
somebody else's does not; there the number that stands for the step is drawn from torch's default
generator of the CPU.  So noise follows `torch.manual_seed`, is new in every pass (several in a
step, too), and is the same when activation checkpointing runs a pass again, because that puts the
generator back to where it was.
"""

from __future__ import annotations

import torch

from experiments.quant.linear import NoiseClock

_RANGE = 2**62


class DrawnNoise(NoiseClock):
    """A clock whose counter is drawn anew each time that a layer asks for it."""

    @property
    def counter(self) -> int:
        """A number that no other pass has, but for chance."""
        return int(torch.randint(_RANGE, (), device="cpu"))

    @counter.setter
    def counter(self, value: int) -> None:
        """Ignored: the dataclass sets its default."""
