"""A run's configuration from Python, as the command line composes it: for notebooks and tests."""

from __future__ import annotations

import sys
from pathlib import Path

from experiments.paths import conf_dir, plugins_dir

sys.path.append(str(plugins_dir()))  # before Hydra looks for plugins

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf, open_dict

from experiments.command_line import check_overrides, with_own_files
from experiments.config import ConfigError, TrainConfig, from_hydra, named, told


def configure(*overrides: str, folder: Path | str = "") -> TrainConfig:
    """What `lowbit-train OVERRIDE ...` would run.

    Args:
        overrides: As on the command line: "recipe=quest", "tokens=1_000_000".
        folder: Of YAML files of your own, as `--config-dir` takes it.

    Raises:
        ConfigError: One of them is wrong; one line says which, and what would be right.
    """
    check_overrides(overrides, several=False)
    try:
        with (
            with_own_files(folder),
            initialize_config_dir(str(conf_dir()), version_base="1.3"),
        ):
            cfg = compose("train", overrides=list(overrides), return_hydra_config=True)
        choices = cfg.hydra.runtime.choices
        OmegaConf.set_struct(cfg, True)
        with open_dict(cfg):
            cfg.pop("hydra", None)
        return from_hydra(named(cfg, choices))
    except Exception as error:
        if (said := told(error)) is None:
            raise
        raise ConfigError(said) from None
