"""Hydra's composition, once for each choice of files instead of once per run.

Composing takes 50 to 100 ms, and a thousand runs of a sweep choose from a few dozen files; what
else distinguishes them is values.  A number, a word or a truth value is read once, by OmegaConf,
and set on a copy of the dataclasses; any other by Hydra's own code, which takes 10 ms per run.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import ConfigCompositionException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException, ValidationError

from experiments.config.command_line import refuse_inside_a_list, with_open_key
from experiments.config.own_files import named
from experiments.config.precision import ConfigError
from experiments.config.read import (
    checked,
    explain,
    from_typed,
    plain_keys,
    refuse_resolvers,
    schema,
    typed,
)
from experiments.config.schema import SWEEP_KEYS, Request, TrainConfig


class Composer:
    """Turns the overrides of one run after another into configurations.

    Args:
        loader: Hydra's, which found the files.
        master: The configuration that the sweep itself was started with.
    """

    def __init__(self, loader: ConfigLoader, master: DictConfig) -> None:
        assert isinstance(loader, ConfigLoaderImpl)
        self._loader, self._master = loader, master
        self._parser = OverridesParser.create(config_loader=loader)
        self._parse = functools.lru_cache(maxsize=None)(self._parser.parse_override)
        self._compose = functools.lru_cache(maxsize=256)(self._composed)
        self._plain = functools.lru_cache(maxsize=256)(self._as_dataclasses)
        self._value = functools.lru_cache(maxsize=None)(self._read)
        self._types = copy.deepcopy(schema())

    def __call__(self, overrides: Sequence[str]) -> TrainConfig:
        """The configuration of one run.

        Raises:
            ConfigError: It is wrong, in one line.
        """
        parsed = [self._parse(with_open_key(text)) for text in overrides]
        for override in parsed:
            refuse_inside_a_list(override.key_or_group, override.input_line or "")
            if override.key_or_group.partition(".")[0] in SWEEP_KEYS:
                raise ConfigError(
                    f"{override.input_line}: belongs to a sweep as a whole, not to one of its runs"
                )
        values = [override for override in parsed if self._is_value(override)]
        files = tuple(override.input_line or "" for override in parsed if override not in values)
        if (config := self._soon(files, values)) is not None:
            return checked(config)
        composed = copy.deepcopy(self._compose(files))
        try:
            ConfigLoaderImpl._apply_overrides_to_config(values, composed)
        except ConfigCompositionException as error:
            # The cause is a wrong value, which names its key, or a missing key, which does not.
            inner = error.__cause__
            told = inner if isinstance(inner, ValidationError) else error
            raise ConfigError(explain(told)) from error
        if any("${" in text for text in overrides):
            refuse_resolvers(composed)
        return from_typed(composed)

    def _soon(self, files: tuple[str, ...], values: Sequence[Override]) -> TrainConfig | None:
        """The configuration if each value stands for itself; None if Hydra has to set them."""
        plain = self._plain(files)
        if plain is None:
            return None
        config = copy.deepcopy(plain)
        for override in values:
            read = self._value(override.input_line or "")
            if read is None:
                return None
            *parents, name = override.key_or_group.split(".")
            holder: Any = config
            for parent in parents:
                holder = getattr(holder, parent)
            setattr(holder, name, read[0])
        return config

    def _read(self, text: str) -> tuple[Any] | None:
        """A value in its key's type; None if it is wrong, or sets more than itself."""
        override = self._parse(text)
        key = override.key_or_group
        if key not in plain_keys() or "${" in text or override.package is not None:
            return None
        try:
            ConfigLoaderImpl._apply_overrides_to_config([override], self._types)
        except ConfigCompositionException:
            return None
        return (OmegaConf.select(self._types, key),)

    def _as_dataclasses(self, files: tuple[str, ...]) -> TrainConfig | None:
        """The configuration composed from files; None if values refer to others, or are missing."""
        composed = self._compose(files)
        if "${" in str(OmegaConf.to_container(composed, resolve=False)):
            return None
        try:
            config = OmegaConf.to_object(composed)
        except OmegaConfBaseException:
            return None
        assert isinstance(config, Request)
        return config.part(TrainConfig)

    def _is_value(self, override: Override) -> bool:
        """Whether it sets an existing key of a run; all other overrides are left to Hydra."""
        other = override.is_add() or override.is_force_add() or override.is_delete()
        plain = not other and not override.is_hydra_override()
        return plain and not self._loader.repository.group_exists(override.key_or_group)

    def _composed(self, files: tuple[str, ...]) -> DictConfig:
        composed = self._loader.load_sweep_config(self._master, list(files))
        choices = composed.hydra.runtime.choices
        with open_dict(composed):
            del composed["hydra"]
        return typed(named(composed, choices))


def compose_all(composer: Composer, jobs: Sequence[Sequence[str]]) -> list[TrainConfig]:
    """The configurations of a sweep, whose runs keep no weights unless they are told to.

    Raises:
        ConfigError: The first that is wrong, with its run.
    """
    configs = []
    for number, overrides in enumerate(jobs):
        try:
            config = composer(overrides)
        except ConfigError as error:
            raise ConfigError(f"{error} (run {number}: {' '.join(overrides)})") from error
        config.keep = config.keep or "none"
        configs.append(config)
    return configs


def checked_grids(cfg: DictConfig) -> list[dict[str, list[Any]]]:
    """The grids of a study; a value alone stands for a list of it.

    Raises:
        ConfigError: They are not a list of {key: [values]}.
    """
    study: Any = OmegaConf.to_container(cfg.study, resolve=False)
    grids = study.get("grids") or []
    if not isinstance(grids, list):
        raise ConfigError(f"study.grids={grids}: must be a list of grids, [{{key: [values]}}]")
    found = []
    for number, grid in enumerate(grids):
        if not isinstance(grid, dict):
            raise ConfigError(f"study.grids[{number}]={grid}: must be a grid, {{key: [values]}}")
        for key, values in grid.items():
            where = f"study.grids[{number}].{key}={values}"
            if isinstance(values, dict) or values == []:
                raise ConfigError(f"{where}: must be a list of values")
            if isinstance(values, str) and "," in values:
                raise ConfigError(f"{where}: must be a list, [{values}]")
        found.append({str(k): v if isinstance(v, list) else [v] for k, v in grid.items()})
    return found
