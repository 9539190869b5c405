"""How much faster low precision is taken to train and to serve: ideal, or as somebody measured it.

Precisions are written forward:backward, FP4 standing for the low one and FP8 for the high one.  The
backward pass is two thirds of the work, so a forward pass that is faster by f and a backward pass
that is faster by b train 3/(1/f + 2/b) times as fast.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from fitting.entry.errors import Refusal

CHOICES = ("FP8:FP8", "FP4:FP8", "FP8:FP4", "FP4:FP4")
IDEAL = 2.0
"""How many times faster an FP4 pass is than one in FP8, by the peak rates of the chips."""
WRITTEN = "FP4:FP4=1.16, with FP4:FP8= and FP8:FP4= where they were measured"


def training_speedup(forward: float, backward: float) -> float:
    """Speed-up of training, from that of each pass: the backward one is two thirds of the work.

    >>> training_speedup(2, 1), training_speedup(1, 2), training_speedup(2, 2)
    (1.2, 1.5, 2.0)
    """
    return 3 / (1 / forward + 2 / backward)


@dataclass(frozen=True)
class Speeds:
    """Speeds over training in FP8:FP8."""

    serving: float
    """The speed of an FP4 forward pass."""
    training: Mapping[str, float]
    """The speed of each of `CHOICES`."""
    typed: str = ""
    """How it was asked for: a preset's name, or its numbers."""
    source: str = ""
    """Who measured it, and on what."""

    @classmethod
    def of_passes(cls, forward: float = IDEAL, backward: float = IDEAL) -> Speeds:
        """Speeds from those of both passes."""
        each = {
            choice: training_speedup(
                *(
                    faster if precision == "FP4" else 1.0
                    for faster, precision in zip(
                        (forward, backward), choice.split(":"), strict=True
                    )
                )
            )
            for choice in CHOICES
        }
        return cls(forward, each)

    @classmethod
    def measured(cls, training: Mapping[str, float], typed: str = "", source: str = "") -> Speeds:
        """Speeds from measured ones of training.

        Both passes are taken to gain alike, as far as only FP4:FP4 is known; FP4 serves as much
        faster as its forward pass trains.

        Raises:
            Refusal: FP4:FP4 is missing, or a speed is impossible.

        >>> speeds = Speeds.measured({"FP4:FP4": 1.16})
        >>> round(speeds.serving, 3), round(speeds.training["FP4:FP8"], 3)
        (1.16, 1.048)
        """
        wrong = f"speedup.measured={typed or dict(training)}"
        if not training or set(training) - set(CHOICES[1:]) or "FP4:FP4" not in training:
            raise Refusal(f"{wrong}: write {WRITTEN}, or {', '.join(PRESETS)}, or none")
        for choice, speed in training.items():
            # Even a pass that takes no time leaves the other one's.
            most = {"FP4:FP8": 1.5, "FP8:FP4": 3.0}.get(choice, math.inf)
            if not 0 < speed < most:
                right = "positive" if most == math.inf else f"between 0 and {most:g}"
                raise Refusal(f"{wrong}: {choice} must be {right}, is {speed:g}")
        forward = backward = training["FP4:FP4"]
        if "FP4:FP8" in training:
            forward = 1 / (3 / training["FP4:FP8"] - 2)
        if "FP8:FP4" in training:
            backward = 2 / (3 / training["FP8:FP4"] - 1)
        derived = cls.of_passes(forward, backward)
        return cls(forward, {**derived.training, **training}, typed, source)

    @classmethod
    def parse(cls, text: str) -> Speeds | None:
        """A preset's name, speeds as `WRITTEN`, or "none".

        Raises:
            Refusal: Anything else.
        """
        if text == "none":
            return None
        if text in PRESETS:
            both, source = PRESETS[text]
            return cls.measured({"FP4:FP4": both}, text, source)
        table = {}
        for part in text.split(","):
            choice, _, speed = part.strip().partition("=")
            try:
                table[choice] = float(speed)
            except ValueError as error:
                known = ", ".join(PRESETS)
                raise Refusal(
                    f"speedup.measured={text}: write {WRITTEN}, or {known}, or none"
                ) from error
        return cls.measured(table, text, "typed")

    def gains(self, choice: str) -> tuple[float, float]:
        """Factors in parameters and tokens that a choice can train at the cost of FP8:FP8.

        A forward pass that is faster by s serves a model s times as large at the same cost; what
        training gains beyond that goes into data: N s and D s_training/s.

        >>> [Speeds.of_passes().gains(choice) for choice in CHOICES]
        [(1.0, 1.0), (2.0, 0.6), (1.0, 1.5), (2.0, 1.0)]
        """
        serving = self.serving if choice.startswith("FP4") else 1.0
        return serving, self.training[choice] / serving


PRESETS: dict[str, tuple[float, str]] = {
    "nvfp4": (
        1805 / 1562,
        "NVFP4 over MXFP8, 1,805 against 1,562 TFLOP/s for each GPU (Megatron-Bridge, pull "
        "requests 1409 and 4458)",
    ),
    "nvfp4_deepseek": (
        1097 / 1161,
        "NVFP4 over MXFP8, 1,097 against 1,161 TFLOP/s, DeepSeek-V3 on B300, where BF16 reaches "
        "842 (Megatron-Bridge, pull requests 1409 and 4458)",
    ),
    "mxfp4_mi355x": (1.095, "MXFP4 over FP8, 1.09 to 1.10 times, MI355X (2605.09825)"),
}
"""Name -> measured speed of training with FP4 in both passes over FP8, and its source."""
