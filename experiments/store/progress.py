"""The progress of runs: one model, and one choice of words, behind every display."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from experiments.store.curve import duration

DONE = ("finished", "diverged")
ENDED = (*DONE, "failed")
KINDS = ("diverged", "running", "interrupted", "failed", "damaged", "waiting")
"""States of a run besides finished, in the order of a summary."""
SPEED = "train/tokens_per_second"


@dataclass
class RunState:
    """The progress of one run."""

    run_id: str
    kind: str
    """finished or one of `KINDS`."""
    work: float = 1.0
    """FLOPs of the whole run."""
    share: float = 0.0
    """Share of its tokens that are done."""
    rate: float = 0.0
    """Shares per second, of a running one."""
    text: str = ""
    """Text to show: a loss and a speed, or a reason."""

    def follow(self, row: Mapping[str, Any], tokens: float) -> None:
        """Update from a row of the loss curve, given all its tokens; a damaged row changes nothing.

        >>> run = RunState("a", "running")
        >>> run.follow({"tokens": 500, "train/loss": 2.5, "train/tokens_per_second": 1e3}, 1000)
        >>> run.share, run.rate, run.text
        (0.5, 1.0, 'loss 2.5000  1,000 tokens/s')
        """
        try:
            share, speed = float(row["tokens"]) / tokens, float(row.get(SPEED, 0.0))
            if not (share >= 0 and 0 <= speed < math.inf):
                return
        except (ValueError, TypeError, KeyError, OverflowError, ZeroDivisionError):
            return
        self.share, self.rate = min(1.0, share), speed / tokens
        if "train/loss" in row:
            self.text = f"loss {row['train/loss']:.4f}  {speed:,.0f} tokens/s"


@dataclass
class Progress:
    """The progress of several runs together."""

    runs: list[RunState] = field(default_factory=list)

    def of(self, kinds: Iterable[str]) -> list[RunState]:
        """The runs of these kinds."""
        among = set(kinds)
        return [run for run in self.runs if run.kind in among]

    @property
    def done(self) -> bool:
        """Whether every run has a result."""
        return len(self.of(DONE)) == len(self.runs)

    @property
    def share(self) -> float:
        """Share of all work that is done, weighted by FLOPs; runs that have ended are done."""
        total = sum(run.work for run in self.runs)
        return 1 - self._left / total if total else 1.0

    @property
    def eta(self) -> float | None:
        """Seconds left if runs go on as they do now; None if none is at work."""
        speed = sum(run.work * run.rate for run in self.of(["running"]))
        return self._left / speed if speed else None

    @property
    def _left(self) -> float:
        return sum(run.work * (1 - run.share) for run in self.runs if run.kind not in ENDED)

    def __str__(self) -> str:
        """One line: the number of runs in each state, the share of work done, the time left."""
        parts = [f"{len(self.of(DONE))} of {len(self.runs)} runs done"]
        parts += [f"{len(found)} {kind}" for kind in KINDS if (found := self.of([kind]))]
        left = "" if self.eta is None else f", about {duration(self.eta)} left"
        return f"{', '.join(parts)}; {self.share:.0%} of the work{left}"
