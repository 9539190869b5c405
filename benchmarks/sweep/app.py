"""The script of somebody who trains with our code but launches with Hydra's own launchers."""

from __future__ import annotations

import hydra
from omegaconf import DictConfig

from experiments.config.read import from_hydra
from experiments.paths import conf_dir


@hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="train")
def app(cfg: DictConfig) -> float | None:
    """One run; returns its validation loss."""
    from experiments.train import train  # here, so that only what trains waits for Lightning

    return train(from_hydra(cfg)).record.loss


if __name__ == "__main__":
    app()
