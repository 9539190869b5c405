"""Which task a run is trained on, as names: plain data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from experiments.data.batches import DataConfig
from experiments.data.images import IMAGES
from experiments.models.config import ModelConfig

TASKS = ("language_model", "classification", "custom")
CUSTOM_DATA = "custom"
"""`data.name` of data that a user's own task brings."""


@dataclass
class TaskConfig:
    """What is learned: the next token, the class of an image, or what a function of yours says."""

    name: str = "language_model"
    """One of `TASKS`."""
    factory: str = ""
    """A function package.module:name that returns an `experiments.tasks.custom.Own`, for custom."""
    config: dict[str, Any] = field(default_factory=dict)
    """The factory's arguments."""
    sha256: str = ""
    """Hash of the factory's file, filled in: a run's result depends on it."""

    def problems(self, data: DataConfig, model: ModelConfig) -> list[str]:
        """Errors of a task with its data and model, each as "key=value: what would be right"."""
        if self.name not in TASKS:
            return [f"task.name={self.name}: must be one of {', '.join(TASKS)}"]
        custom = self.name == "custom"
        for key, value in (("factory", self.factory), ("config", self.config)):
            if value and not custom:
                return [f"task.{key}={value}: belongs to task=custom; this is task={self.name}"]
        if custom and not self.factory:
            return ["task.factory=: task=custom needs one, package.module:function"]
        found = self._data_problems(data)
        if self.name != "language_model":
            named = f"model.name={model.name}: " if model.name else "model: "
            if not model.foreign:
                found.append(
                    f"{named}is a language model; task={self.name} takes model=convnet, or "
                    "model=module with model.factory"
                )
            elif not custom and not model.factory:
                found.append(f"{named}task=classification takes model.factory=package.module:name")
        if data.name in IMAGES:
            found += data.image.problems()
        return found

    def _data_problems(self, data: DataConfig) -> list[str]:
        """Errors of data that the task cannot use."""
        key = f"data.name={data.name}"
        if self.name == "custom" and data.name != CUSTOM_DATA:
            return [f"{key}: task=custom brings its own data; leave out data=..."]
        if self.name != "custom" and data.name == CUSTOM_DATA:
            return [f"{key}: belongs to task=custom; this is task={self.name}"]
        if self.name == "classification" and data.name not in IMAGES:
            return [f"{key}: task=classification needs data={' or data='.join(IMAGES)}"]
        if self.name == "language_model":
            if data.name in IMAGES:
                return [f"{key}: is of images; task=classification learns their classes"]
            if data.seq_len < 2:
                return [f"data.seq_len={data.seq_len}: must be 2 or more"]
        elif data.seq_len != 1:
            return [
                f"data.seq_len={data.seq_len}: must be 1 for task={self.name}, in which tokens "
                "counts examples"
            ]
        return []
