"""A run's configuration from Python, as the command line composes it: for notebooks and tests."""

from __future__ import annotations

import functools
import sys
from pathlib import Path

from experiments.paths import conf_dir, plugins_dir

sys.path.append(str(plugins_dir()))  # before Hydra looks for plugins

from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from experiments.config.command_line import check_overrides
from experiments.config.compose import Composer
from experiments.config.own_files import with_own_files
from experiments.config.precision import ConfigError
from experiments.config.read import told
from experiments.config.schema import TrainConfig


def configure(*overrides: str, folder: Path | str = "") -> TrainConfig:
    """The run that `lowbit-train OVERRIDE ...` would start.

    Args:
        overrides: As on the command line: "recipe=quest", "tokens=1_000_000".
        folder: A folder of YAML files of your own, as `--config-dir` takes it.

    Raises:
        ConfigError: One of them is wrong; one line says which, and what would be right.
    """
    check_overrides(overrides, several=False)
    try:
        if not folder:
            return _built_in()(overrides)
        with with_own_files(folder):  # which may change before the next call
            return _composer()(overrides)
    except Exception as error:
        if (said := told(error)) is None:
            raise
        raise ConfigError(said) from None


_NO_SWEEP = OmegaConf.create(
    {"hydra": {"overrides": {"hydra": []}, "job": {"config_name": "train"}}}
)
"""All that a composer asks of the configuration that a sweep was started with."""


def _composer() -> Composer:
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return Composer(GlobalHydra.instance().config_loader(), _NO_SWEEP)


@functools.cache
def _built_in() -> Composer:
    """A composer for the built-in files, which do not change."""
    return _composer()
