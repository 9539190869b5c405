"""The task that a configuration names."""

from __future__ import annotations

from typing import Protocol

from experiments.data.batches import DataConfig
from experiments.finetune.config import AdapterConfig
from experiments.models.config import ModelConfig
from experiments.tasks.classification import Classification
from experiments.tasks.config import TaskConfig
from experiments.tasks.custom import Custom
from experiments.tasks.language_model import LanguageModelTask
from experiments.tasks.task import Task


class Configured(Protocol):
    """The parts of a run's configuration that say what its task is."""

    task: TaskConfig
    data: DataConfig
    model: ModelConfig
    adapter: AdapterConfig


def task_of(config: Configured) -> Task:
    """The task of a run; making it reads nothing."""
    if config.task.name == "classification":
        return Classification(config.data, config.model)
    if config.task.name == "custom":
        return Custom(config.task, config.data, config.model)
    return LanguageModelTask(config.data, config.model, config.adapter)
