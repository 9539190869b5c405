"""Options for running and watching runs and sweeps: only callbacks change a result's address."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class TrackingConfig:
    """Weights & Biases: a mirror of the run, never a source."""

    mode: str = "offline"
    project: str = "lowbit-scaling"
    log_every: int = 10
    """Steps between two points of the loss curve."""


@dataclass
class ResourcesConfig:
    """The resources that one run takes; they do not change its identity."""

    cpus: int = 1
    """CPU cores and torch threads of a run."""
    gpus: float = 0.0
    """A fraction lets several runs share one."""
    memory: float = 0.0
    """GiB set aside for a run, and its limit; 0: neither."""
    device: str = "cpu"
    isolate: str = "none"
    """process: a fresh worker process for every run; none: one that other runs may have used."""


@dataclass
class TrainerConfig:
    """The training loop of one run; of all this only callbacks change its identity."""

    num_workers: int = 1
    """Processes that share a run's batches (data-parallel), each with `resources`."""
    spread: bool = False
    """On different nodes; false: all on one."""
    checkpointing: bool = False
    """Recompute each block's activations in the backward pass, to the same bits, to save memory."""
    callbacks: list[str] = field(default_factory=list)
    """Functions package.module:name that return a `lightning.Callback`, each called in training."""
    callbacks_sha256: str = ""
    """Hash of the functions' files, filled in: a run's result depends on it."""


@dataclass
class BudgetConfig:
    """The most that a sweep may cost; one that needs more is refused before it starts."""

    hours: float = 0.0
    """Device hours (GPUs; CPU cores for runs without a GPU), summed over runs; 0: no limit."""
    flops: float = 0.0
    """FLOPs of training, summed over runs; 0: no limit."""
    price: float = 0.0
    """Price of one device hour, for the plan's estimate of cost."""


@dataclass
class SweepConfig:
    """Options of a sweep that belong to none of its runs."""

    budget: BudgetConfig = field(default_factory=BudgetConfig)
    plan_only: bool = False
    plan_file: str = ""
    """Where the plan goes as a table of runs without losses; "": nowhere."""
    retry_failed: bool = False
    on_failure: str = "continue"
    """stop: once a run has failed, start no other, and let running ones write a checkpoint."""
