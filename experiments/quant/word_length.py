"""Fixed-point word lengths that move during training, layer by layer.

After AdaPT (2107.13490), which decides between windows of steps: *push down* to the smallest word
length that loses no information about the weights, then *push up* by how much the gradients of
the window point apart, so that learning goes on.  A layer whose gradients agree looks back longer.

What "no information" and "how much" mean here is our choice, because only the paper's abstract and
defaults were at hand:

- Down: the weights and their rounded selves are sorted into the same bins; their Kullback-Leibler
  divergence may be as large as that of two samples of so many values from one distribution is on
  average, (bins - 1) / values.
- Up: with d the sum of the norms of the window's n gradients over the norm of their sum, by
  log2(d / sqrt(n)) bits, rounded and at least 0.  Gradients that point anywhere have d = sqrt(n);
  where they cancel to less, the net step is that much smaller.
- The fraction's length follows: the integer part holds the tensor's largest value, a power of two
  for all its values or, in other granularities, for those that share a scale.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from experiments.quant.block import quantize
from experiments.quant.formats import FloatFormat, Precision
from experiments.quant.kernels.dense import of_one_process
from experiments.quant.linear import QuantLinear
from experiments.quant.recipe import LONGEST_WORD, SHORTEST_WORD, WordLengthConfig

_SHORTEST_LOOKBACK = 10
_LOOKBACK_MOMENTUM = 0.33  # both AdaPT's defaults


class WordLength:
    """The word length of one layer, moved by what is observed of its gradients.

    Args:
        layer: Its operands in fixed point get the word length, beginning with their own; the
            weight's decides.
        config: How far to look back, and the bins.

    Source:
        AdaPT, 2107.13490: the lookback's bounds and momentum are its defaults.
    """

    def __init__(self, layer: QuantLinear, config: WordLengthConfig) -> None:
        self.layer, self.config = layer, config
        self.lookback = config.lookback
        """Steps of the window at work."""
        self.seen = 0
        """Steps of it that were observed."""
        self._norms = 0.0
        self._sum: Tensor | None = None

    @property
    def bits(self) -> int:
        """Bits of a word, its sign included."""
        return self.layer.precisions["P2"].element.bits

    @bits.setter
    def bits(self, bits: int) -> None:
        for label, precision in self.layer.precisions.items():
            if precision.fixed_point:
                self.layer.precisions[label] = with_word_length(precision, bits)

    @torch.no_grad()
    def observe(self, gradient: Tensor) -> None:
        """Take in the weight's gradient of one step; at the end of a window decide."""
        self.seen += 1
        self._norms += float(gradient.norm())
        if self._sum is None:
            self._sum = gradient.clone()
        else:  # from a checkpoint it is on the CPU
            self._sum = self._sum.to(gradient.device).add_(gradient)
        if self.seen < self.lookback:
            return
        diversity = gradient_diversity(self._norms, float(self._sum.norm()))
        weight = self.layer.weight.detach()
        least = least_word_length(weight, self.layer.precisions["P2"], self.config.bins)
        beyond_chance = min(diversity / math.sqrt(self.seen), 2.0**LONGEST_WORD)
        more = max(round(math.log2(beyond_chance)), 0)
        self.bits = min(least + more, LONGEST_WORD)
        longest = self.config.lookback
        wanted = max(math.ceil(longest / diversity), min(_SHORTEST_LOOKBACK, longest))
        moved = _LOOKBACK_MOMENTUM * wanted + (1 - _LOOKBACK_MOMENTUM) * self.lookback
        self.lookback = math.ceil(moved)
        self.seen, self._norms, self._sum = 0, 0.0, None

    def state_dict(self) -> dict[str, Any]:
        """The state, as part of the checkpoint."""
        window = {"lookback": self.lookback, "seen": self.seen, "norms": self._norms}
        return {"bits": self.bits, **window, "sum": self._sum}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state from the checkpoint."""
        self.bits, self.lookback, self.seen = state["bits"], state["lookback"], state["seen"]
        self._norms, self._sum = state["norms"], state["sum"]


def gradient_diversity(norms: float, norm_of_sum: float) -> float:
    """Sum of the gradients' norms over the norm of their sum: 1 where they agree, else more.

    Infinite if nothing is left of them, or if one is not finite, as in a run that diverges.
    """
    if not (norm_of_sum > 0 and math.isfinite(norms) and math.isfinite(norm_of_sum)):
        return math.inf
    return max(norms / norm_of_sum, 1.0)


def with_word_length(precision: Precision, bits: int) -> Precision:
    """A fixed-point precision with another word length.

    >>> str(with_word_length(Precision.parse("E0M7-tensor-e8m0_ceil"), 5))
    'E0M4-tensor-e8m0_ceil'
    """
    return replace(precision, element=FloatFormat(0, bits - 1))


@of_one_process
def least_word_length(weight: Tensor, precision: Precision, bins: int) -> int:
    """The smallest word length whose rounding leaves the histogram of `weight` unchanged.

    Args:
        weight: [out, in].
        precision: A fixed point; its own word length plays no part.
        bins: Bins of both histograms, between the least and the largest weight.

    Returns:
        At most `LONGEST_WORD`, enough or not.
    """
    lowest, largest = float(weight.min()), float(weight.max())
    if not lowest < largest:
        return SHORTEST_WORD
    counts = torch.histc(weight, bins, lowest, largest)
    allowed = (bins - 1) / weight.numel()
    for bits in range(SHORTEST_WORD, LONGEST_WORD):
        rounded = quantize(weight, with_word_length(precision, bits)).clamp(lowest, largest)
        if divergence(counts, torch.histc(rounded, bins, lowest, largest)) <= allowed:
            return bits
    return LONGEST_WORD


@of_one_process
def divergence(counts: Tensor, others: Tensor) -> float:
    """Kullback-Leibler's, in nats, of two histograms; infinite where one lacks the other's values.

    >>> divergence(torch.tensor([1.0, 1.0]), torch.tensor([3.0, 1.0]))  # (ln 2/3 + ln 2) / 2
    0.1438...
    """
    p, q = (h.double() / h.double().sum() for h in (counts, others))
    return float(torch.where(p > 0, p * (p / q).log(), 0.0).sum())
