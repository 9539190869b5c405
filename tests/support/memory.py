"""The memory that training takes, from the allocator's own events."""

from __future__ import annotations

import torch
from torch.profiler import ProfilerActivity, profile

from experiments.config.schema import TrainConfig
from experiments.models.build import shape_of
from experiments.run.module import LanguageModel


def peak_bytes(config: TrainConfig) -> int:
    """Most bytes of tensors alive at once within two steps, from the allocator's own events."""
    torch.set_num_threads(1)
    module = LanguageModel(config)
    optimizer = module.configure_optimizers()["optimizer"]
    held = sum(p.untyped_storage().nbytes() for p in set(module.parameters()))
    shape = (config.accumulate, config.batch_size // config.accumulate, config.data.seq_len + 1)
    batches = torch.randint(shape_of(config.model).vocab_size, (2, *shape))
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as measured:
        for step, parts in enumerate(batches):
            module.model.clock.counter = step
            for batch in parts:
                torch.autograd.backward(module.model.loss(batch) / config.accumulate)
            torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
    peak = most_held(measured)
    assert peak > held, "gradients and moments alone are more"
    return held + peak


def most_held(measured: profile) -> int:
    """Most bytes that were allocated at once, and not before, while a profile was made."""
    kineto = measured.profiler
    assert kineto is not None
    events = [e for e in kineto.kineto_results.events() if e.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak
