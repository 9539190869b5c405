"""The configuration of one run: a tree of dataclasses.

`experiments.config.read` fills the tree from Hydra's composition.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, TypeVar

from experiments.config.precision import PrecisionConfig
from experiments.config.running import (
    ResourcesConfig,
    SweepConfig,
    TrackingConfig,
    TrainerConfig,
)
from experiments.data.batches import DataConfig
from experiments.finetune.config import AdapterConfig, BaseConfig
from experiments.measure.diagnostics import DiagnosticsConfig
from experiments.measure.ptq import PtqConfig
from experiments.models.config import ModelConfig
from experiments.optim import OptimConfig
from experiments.quant.recipe import RecipeConfig
from experiments.tasks.config import TaskConfig

COMPUTE_DTYPES = ("float32", "bfloat16")
TRACKING_MODES = ("offline", "online", "none")
DEVICES = ("cpu", "cuda")
ISOLATION = ("none", "process")
ON_FAILURE = ("continue", "stop")
MOST_LISTED = 6
"""Layers of somebody else's model in a message."""
KEEP = ("last", "none", "all")
KEPT = ("last", "all")
"""Those that ask for weights."""

Part = TypeVar("Part", "TrainConfig", SweepConfig)


@dataclass
class StudyConfig:
    """The study that a run belongs to: the folder of its results and the design of a sweep."""

    name: str = "scratch"
    title: str = ""
    description: str = ""
    grids: list[dict[str, Any]] = field(default_factory=list)
    """Each a product of choices, {key: [values]}; a sweep is their union."""
    fit: dict[str, Any] = field(default_factory=dict)
    """Defaults of `lowbit-fit` for this study, e.g. {law: floating_point}."""


@dataclass
class TrainConfig:
    """The whole configuration of one run."""

    study: StudyConfig = field(default_factory=StudyConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    task: TaskConfig = field(default_factory=TaskConfig)
    data: DataConfig = field(default_factory=DataConfig)
    precision: PrecisionConfig = field(default_factory=PrecisionConfig)
    recipe: RecipeConfig = field(default_factory=RecipeConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    ptq: PtqConfig = field(default_factory=PtqConfig)
    diagnostics: DiagnosticsConfig = field(default_factory=DiagnosticsConfig)
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    base: BaseConfig = field(default_factory=BaseConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    resources: ResourcesConfig = field(default_factory=ResourcesConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    tokens: int = 1_000_000
    """Training tokens, rounded down to whole steps."""
    batch_size: int = 8
    """Sequences per step."""
    accumulate: int = 1
    """Parts of a step's batch that are trained on one after the other, for one optimizer step."""
    compute_dtype: str = "float32"
    init_from: str = ""
    """A run, whose weights are the start: its folder, or a pattern that one run's matches."""
    seed: int = 0
    """Seed of the weights, the data order and the rounding noise."""
    runs: str = "runs"
    """Folder of all studies' results."""
    keep: str = ""
    """Weights that stay in a run's folder: one of `KEEP`; "": last, but none in a sweep."""
    checkpoint_seconds: float = 60.0
    lease_seconds: float = 60.0
    """Seconds without a sign of life after which another machine may take a run over."""
    timeout_seconds: float = 0.0
    """Seconds of training after which a run has failed; 0: none."""

    @property
    def batch_tokens(self) -> int:
        """Tokens per step."""
        return self.batch_size * self.data.seq_len

    @property
    def rows(self) -> int:
        """Tokens of one pass of one process, over which its products sum and its scales extend."""
        return self.batch_tokens // self.accumulate // self.trainer.num_workers

    @property
    def rows_name(self) -> str:
        """The keys that determine `rows`."""
        parts = {"accumulate": self.accumulate, "trainer.num_workers": self.trainer.num_workers}
        shared = "".join(f" / {key}" for key, count in parts.items() if count > 1)
        return f"batch_size x data.seq_len{shared}"

    @property
    def steps(self) -> int:
        """Optimizer steps."""
        return self.tokens // self.batch_tokens

    @property
    def quantized_steps(self) -> int:
        """The number of quantized steps, if the recipe quantizes any operand."""
        return round((1 - self.recipe.high_precision_share) * self.steps)

    def quantizes(self, step: int) -> bool:
        """Whether `step` is quantized, not one of the last that the recipe keeps in high precision.

        Step `steps` is the validation after training.
        """
        return self.recipe.high_precision_share == 0 or step < self.quantized_steps


@dataclass
class Request(TrainConfig, SweepConfig):
    """Everything that can be typed: a run, and the sweep that it may belong to."""

    def part(self, kind: type[Part]) -> Part:
        """The run or the sweep of a composed configuration."""
        return kind(**{f.name: getattr(self, f.name) for f in fields(kind)})


SWEEP_KEYS = tuple(f.name for f in fields(SweepConfig))


def leaves(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The dotted keys of a tree of dataclasses that hold a value, with their values."""
    for f in fields(tree):
        value = getattr(tree, f.name)
        if is_dataclass(value):
            yield from leaves(value, f"{prefix}{f.name}.")
        else:
            yield prefix + f.name, value


def known_keys() -> list[str]:
    """The dotted keys that can be typed, and the beginnings of their groups."""
    parts = (key.split(".") for key, _ in leaves(Request()))
    return list(dict.fromkeys(".".join(p[:n]) for p in parts for n in range(1, len(p) + 1)))
