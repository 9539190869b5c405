"""Estimates of a run's time: from finished runs, from a short probe, or from an assumption."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Iterable

from experiments.config.schema import TrainConfig
from experiments.finetune.adapters import attach
from experiments.models.build import build, shape_of
from experiments.tasks.choose import task_of

_ASSUMED_FLOPS_PER_SECOND = 3e10
"""Speed of one core on a small model, used if nothing has been run yet to measure it."""
_PROBE_SECONDS = 10.0
"""Seconds for all probes of a plan together."""
_STEP_SECONDS = 1.0
"""Seconds beyond which a step is not probed: scaling from smaller ones is accurate enough."""

Kind = tuple[object, ...]


class Speeds:
    """Training FLOPs per second and core by kind of run, or of the nearest kind that is known.

    Nearest: the same model, adapter and recipe, then the same model and adapter, then anything.
    """

    def __init__(self) -> None:
        self._known: dict[Kind, list[float]] = defaultdict(list)
        self.basis = "a guess: nothing has run yet"

    @property
    def measured(self) -> bool:
        """Whether anything is known."""
        return bool(self._known)

    def learn(self, config: TrainConfig, flops_per_second: float, basis: str) -> None:
        """Record the speed of a core on one run."""
        self.basis = basis
        for kind in _kinds(config):
            self._known[kind].append(flops_per_second)

    def __call__(self, config: TrainConfig) -> float:
        """FLOPs per second and core."""
        for kind in _kinds(config):
            if kind in self._known:
                return statistics.median(self._known[kind])
        return _ASSUMED_FLOPS_PER_SECOND


def _kinds(config: TrainConfig) -> tuple[Kind, ...]:
    """From the narrowest to the widest."""
    model = config.model
    sizes = str(shape_of(model).parameters) if model.foreign else ""
    shape = (config.resources.device, model.hidden, model.ffn, model.layers, sizes)
    tuned = (config.adapter.name, config.adapter.r) if config.adapter.there else ()
    return ((*shape, config.recipe.name, *tuned), (*shape, *tuned), (config.resources.device,))


def probe(configs: Iterable[TrainConfig], speeds: Speeds) -> None:
    """Run a few steps of each kind of run, the quickest kinds first, for a few seconds in all.

    Takes place in this process, on its first core; kinds for another device are left out.  Forward
    and backward only: torch's optimizers take longer to import than a probe, and little of a step.
    """
    import torch

    kinds = {_kinds(config)[0]: config for config in configs}
    began, threads = time.monotonic(), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for config in sorted(kinds.values(), key=_step_flops):
            flops = _step_flops(config)
            if config.resources.device != "cpu" or flops > (
                _STEP_SECONDS * _ASSUMED_FLOPS_PER_SECOND
            ):
                continue
            if time.monotonic() - began > _PROBE_SECONDS:
                return
            task, precision = task_of(config), config.precision.build()
            model = build(config.model, config.recipe, precision, config.seed, task.causal)
            attach(model, shape_of(config.model), config.adapter, config.seed)
            data = task.open()
            seconds = []
            for step in range(4):  # the first step bears one-time costs
                start = time.perf_counter()
                loss = task.loss(model, data.batch(step, config.batch_size, config.seed))
                torch.autograd.backward(loss)
                seconds.append(time.perf_counter() - start)
            speeds.learn(config, flops / min(seconds[1:]), "measured on a few steps")
    finally:
        torch.set_num_threads(threads)


def _step_flops(config: TrainConfig) -> float:
    return config.batch_tokens * task_of(config).flops_per_token()
