"""The way from Hydra's composition to the dataclasses of the schema, checked before any work.

`from_hydra` is the one door of a run, `sweep_from_hydra` of a sweep: a typo, a wrong type, a value
out of range or a combination that cannot run raises `ConfigError`, one line that names the key, the
value and what would be right.
"""

from __future__ import annotations

import difflib
import functools
import re
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from experiments.config import demands
from experiments.config.callbacks import resolve_callbacks
from experiments.config.check import check
from experiments.config.overrides import resolve
from experiments.config.precision import ConfigError
from experiments.config.running import SweepConfig
from experiments.config.schema import (
    ON_FAILURE,
    Request,
    TrainConfig,
    known_keys,
    leaves,
)
from experiments.finetune.base import BaseError, base_of, find_run
from experiments.models.source import ModelError, resolved
from experiments.quant.formats import FormatError, Precision
from experiments.tasks import custom
from fitting.entry.errors import one_line
from fitting.files.own_json import DamagedError


def from_hydra(cfg: DictConfig) -> TrainConfig:
    """Check the run of a composed configuration and turn it into dataclasses.

    Raises:
        ConfigError: The first thing that is wrong, in one line.
    """
    return from_typed(typed(cfg))


def sweep_from_hydra(cfg: DictConfig) -> SweepConfig:
    """The sweep of a composed configuration, Hydra's own keys or not; raises as `from_hydra`."""
    ours = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
    sweep = _request(typed(ours)).part(SweepConfig)
    found = demands.problems(leaves(sweep))
    if sweep.on_failure not in ON_FAILURE:
        choices = ", ".join(ON_FAILURE)
        found.append(f"on_failure={sweep.on_failure}: must be one of {choices}")
    if found:
        raise ConfigError("\n".join(map(one_line, found)))
    return sweep


_RESOLVER = re.compile(r"(?<!\\)\$\{[^}]*:")


def refuse_resolvers(cfg: DictConfig) -> None:
    """Allow a configuration to refer to its own keys only, ${a.b}.

    Files are passed on, and the value of ${oc.env:NAME} would end up in results, records and W&B.

    Raises:
        ConfigError: A value refers to something outside.
    """

    def look(value: Any, key: str) -> None:
        if isinstance(value, dict):
            for name, inner in value.items():
                look(inner, f"{key}.{name}" if key else str(name))
        elif isinstance(value, list):
            for inner in value:
                look(inner, key)
        elif isinstance(value, str) and _RESOLVER.search(value):
            raise ConfigError(f"{key}={value}: may refer to other keys only, as ${{tokens}} does")

    look(OmegaConf.to_container(cfg, resolve=False), "")


@functools.cache
def plain_keys() -> dict[str, bool | int | float | str]:
    """The default of each key that holds a number, a word or a truth value."""
    kinds = bool | int | float | str
    return {key: value for key, value in leaves(Request()) if isinstance(value, kinds)}


def _misread(value: Any, default: str | bool) -> str:
    """The error of a value that YAML read as another type, which OmegaConf would convert."""
    truth, number = isinstance(value, bool), type(value) in (int, float)
    if isinstance(default, bool):
        return "must be true or false" if number else ""
    if truth or (isinstance(value, float) and not default.isdecimal()):  # "1" may be typed 0.5
        return f"was read as {'a truth value' if truth else 'a number'}; put the text in quotes"
    return ""


def _refuse_misread(cfg: DictConfig) -> None:
    """Refuse values that YAML read as something other than the key's text or truth value."""
    values = OmegaConf.to_container(cfg, resolve=False)
    for key, default in plain_keys().items():
        if not isinstance(default, str | bool):
            continue
        value: Any = values
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if wrong := _misread(value, default):
            raise ConfigError(f"{key}={value}: {wrong}")


def typed(cfg: DictConfig) -> DictConfig:
    """A composed configuration whose keys and values have the types of `Request`.

    Raises:
        ConfigError: One does not have its type, in one line.
    """
    refuse_resolvers(cfg)
    _refuse_misread(cfg)
    try:
        merged = OmegaConf.merge(schema(), cfg)
    except OmegaConfBaseException as error:
        raise ConfigError(explain(error, cfg)) from error
    assert isinstance(merged, DictConfig)
    return merged


def from_typed(merged: DictConfig) -> TrainConfig:
    """Check the result of `typed` and turn it into dataclasses; raises as `from_hydra` does."""
    return checked(_request(merged).part(TrainConfig))


def _request(merged: DictConfig) -> Request:
    try:
        request = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise ConfigError(explain(error, merged)) from error
    assert isinstance(request, Request)
    return request


def checked(config: TrainConfig) -> TrainConfig:
    """The configuration, its paths made absolute in place; raises as `from_hydra` does."""
    if config.data.path:  # a worker has another working folder
        config.data.path = str(Path(config.data.path).expanduser().absolute())
    if file := config.data.tokenizer_file:
        config.data.tokenizer = str(file.absolute())
    config.runs = str(Path(config.runs).expanduser().absolute())
    resolve(config.recipe)
    if config.model.foreign and not config.model.problems():
        try:
            resolved(config.model)
        except ModelError as error:
            raise ConfigError(str(error)) from error
    if config.task.factory and not config.task.problems(config.data, config.model):
        try:
            custom.resolved(config.task)
        except custom.TaskError as error:
            raise ConfigError(str(error)) from error
    resolve_callbacks(config.trainer)
    if config.init_from and not config.base.sha256:
        try:
            folder = find_run(config.init_from)
            config.init_from, config.base = str(folder), base_of(folder, config.model)
        except (BaseError, DamagedError) as error:
            raise ConfigError(str(error)) from error
    check(config)
    return config


@functools.cache
def schema() -> DictConfig:
    """The tree with its types; making it takes longer than using it, and it is only read."""
    schema = OmegaConf.structured(Request)
    assert isinstance(schema, DictConfig)
    return schema


def from_dict(values: dict[str, Any]) -> TrainConfig:
    """A configuration made from its `asdict`, the form in which it travels to a worker."""
    return from_hydra(OmegaConf.create(values))


def explain(error: BaseException, cfg: DictConfig | None = None) -> str:
    """One line for an error of Hydra or OmegaConf: the key, the value, the nearest right key."""
    text = str(error)
    match = re.search(r"full_key: (\S+)", text)
    key = match[1] if match else ""
    first = text.splitlines()[0].strip()
    override = re.search(r"Could not override '([^']+)'", text)
    missing = re.search(r"Key '([^']+)' (?:is )?not in", text)
    if (override or missing) and (name := key or (override[1] if override else "")):
        if isinstance(dict(leaves(Request())).get(name), dict):
            return f"{name}: must be keys and values, as {name}={{a: 1}}"
        if name in known_keys():  # of a group whose chosen file leaves it out
            group = name.partition(".")[0]
            hint = "; model.source goes with model=hf, whose own keys are model.config.NAME"
            return f"{name}: does not go with the chosen {group}{hint * (group == 'model')}"
        near = difflib.get_close_matches(name, known_keys(), n=1)
        hint = f"; did you mean {near[0]}?" if near else "; see lowbit-train --help"
        return f"{name}: no such key{hint}"
    unread = re.search(r"Error parsing override '(.*)'", text)
    if unread:
        return f"{unread[1]}: cannot be read as key=value; put quotes around special characters"
    choice = re.search(r"In '[^']+': Could not find '([^']+)'", text) or re.search(
        r"Could not find '([^']+)'", text
    )
    if choice:
        options = re.search(r"Available options in '[^']+':\n((?:\s+\S+\n?)+)", text)
        group, _, option = choice[1].rpartition("/")
        if group == "precision" and re.match(r"e\d+m\d|int\d", option.lower()):
            return f"{group}={option}: {_no_format(option)}"
        known = " ".join(options[1].split()) if options else ""
        known += " and formats spelt out, as E3M2-block16-e8m0" * (group == "precision")
        return f"{group}={option}: no such choice" + (f"; there are: {known}" if known else "")
    inside = re.match(r"In '([^']+)': \w+ raised while composing config", first)
    if inside and "Cannot merge" in text:
        return (
            f"{inside[1]}.yaml: one of its keys holds a list where keys and values belong, or keys "
            "and values where a list does"
        )
    if inside:
        return f"{inside[1]}.yaml: must be keys and values, key: value ({text.splitlines()[-1]})"
    if key and "is not a ListConfig" in text:
        return f"{key}: must be a list, as {key}=[a,b]"
    if key and re.match(r"Cannot assign \w+ to Dict", text):
        return f"{key}: must be keys and values, as {key}={{a: 1}}"
    return f"{key}: {first}" if key and key not in first else first


def _no_format(name: str) -> str:
    """The error of a format's name."""
    try:
        Precision.parse(name)
    except FormatError as error:
        return str(error.__cause__ or error)
    return "no such choice"


def told(error: BaseException) -> str | None:
    """One line for an exception of Hydra, OmegaConf or YAML; None for any other."""
    from hydra.errors import HydraException
    from yaml import MarkedYAMLError  # type: ignore[import-untyped]

    if isinstance(error, MarkedYAMLError):
        mark = error.problem_mark
        where = f"{mark.name}, line {mark.line + 1}" if mark else "a YAML file"
        what = " ".join(part for part in (error.context, error.problem) if part)
        return f"{where}: not YAML ({one_line(what)})"
    return explain(error) if isinstance(error, (HydraException, OmegaConfBaseException)) else None
