"""Locations of files and folders: the only module that knows them.

Results go below the folder a command is started in; configuration is read from the package.
"""

from pathlib import Path


def package_dir() -> Path:
    """The folder of the package `experiments`, beside which `fitting` lies."""
    return Path(__file__).resolve().parent


def conf_dir() -> Path:
    """The folder of the YAML configs, in a wheel (`experiments/conf`) or a checkout (`conf`)."""
    package = package_dir()
    for folder in (package / "conf", package.parent / "conf"):
        if (folder / "train.yaml").exists():
            return folder
    raise FileNotFoundError(f"no conf/train.yaml beside {package}: is the installation complete?")


def plugins_dir() -> Path:
    """The folder that must be on sys.path for Hydra to find our launcher and sweeper."""
    return package_dir() / "plugins"
