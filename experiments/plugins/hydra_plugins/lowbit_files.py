"""Sources of configurations for Hydra besides conf/: the user's own files, and formats by name.

Hydra finds plugins only in packages called `hydra_plugins` on sys.path; `experiments.command.train`
and `experiments.configure` put this one's folder there.
"""

from __future__ import annotations

from dataclasses import asdict

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.object_type import ObjectType
from hydra.plugins.config_source import ConfigResult, ConfigSource
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import OmegaConf

from experiments.config.own_files import own_folder
from experiments.config.precision import PRESETS, PrecisionConfig
from experiments.quant.formats import FormatError

GROUP = "precision"


class Places(SearchPathPlugin):
    """The user's own files come before the built-in ones of the same name, formats last."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Put the folder of `--config-dir` first."""
        folder = own_folder()
        if folder is not None:
            search_path.prepend("own", f"file://{folder}", anchor="main")
        search_path.append("formats", "format://")


class Formats(ConfigSource):
    """The group `precision`: a configuration for every name that `Precision.parse` reads."""

    @staticmethod
    def scheme() -> str:
        """The name of this source in the search path."""
        return "format"

    def available(self) -> bool:
        """Always true: it is not a place on disk."""
        return True

    def is_group(self, config_path: str) -> bool:
        """Whether the path is the one group."""
        return config_path.strip("/") in ("", GROUP)

    def is_config(self, config_path: str) -> bool:
        """Whether the path names a format in that group."""
        group, _, name = config_path.partition("/")
        try:
            return group == GROUP and bool(PrecisionConfig.parse(name.removesuffix(".yaml")))
        except FormatError:
            return False

    def load_config(self, config_path: str) -> ConfigResult:
        """The keys below `precision`."""
        name = config_path.partition("/")[2].removesuffix(".yaml")
        config = OmegaConf.create(asdict(PrecisionConfig.parse(name)))
        return ConfigResult(self.provider, "format://", config, {"package": None})

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        """The names that help and errors list; the others have no end."""
        if config_path.strip("/") == GROUP:
            return [] if results_filter is ObjectType.GROUP else sorted(PRESETS)
        return [] if results_filter is ObjectType.CONFIG else [GROUP]
