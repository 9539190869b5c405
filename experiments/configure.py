"""A run's configuration from Python, as the command line composes it: for notebooks and tests."""

from __future__ import annotations

import sys
from pathlib import Path

from experiments.paths import conf_dir, plugins_dir

sys.path.append(str(plugins_dir()))  # before Hydra looks for plugins

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from experiments.config import ConfigError, TrainConfig, explain, from_hydra


def configure(*overrides: str, folder: Path | str = "") -> TrainConfig:
    """What `lowbit-train OVERRIDE ...` would run.

    Args:
        overrides: As on the command line: "recipe=quest", "tokens=1_000_000".
        folder: Of YAML files of your own, as `--config-dir` takes it.

    Raises:
        ConfigError: One of them is wrong; one line says which, and what would be right.
    """
    searched = []
    if folder:
        if not Path(folder).is_dir():
            raise ConfigError(f"--config-dir={folder}: no such folder")
        searched = [f"hydra.searchpath=['file://{Path(folder).absolute()}']"]
    try:
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            cfg = compose("train", overrides=[*overrides, *searched])
        OmegaConf.set_struct(cfg, True)
        with open_dict(cfg):
            cfg.pop("hydra", None)
        return from_hydra(cfg)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(explain(error)) from None
