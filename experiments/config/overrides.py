"""`recipe.overrides`: names of recipes become the recipes, so that a run carries what it does.

A worker and an old record's reader need no recipe files, and a run is known by what its recipes
say, not by what they are called.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from experiments.config.own_files import own_folder
from experiments.config.precision import ConfigError
from experiments.paths import conf_dir
from experiments.quant.formats import FormatError, Precision
from experiments.quant.recipe import Override, RecipeConfig
from fitting.entry.errors import one_line

_KEY = "recipe.overrides"
_WAYS = "must be a recipe's name, [recipe, precision] or null"


def resolve(recipe: RecipeConfig) -> None:
    """Put recipes in the place of their names, in place; what is resolved stays as it is.

    Raises:
        ConfigError: There is no such recipe or format, in one line.
    """
    recipe.overrides = {
        pattern: _resolved(f"{_KEY}[{pattern}]", how) for pattern, how in _flat(recipe.overrides)
    }


def _flat(named: Mapping[Any, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Names and what is said of them: a name typed as a key, a.b, is nested."""
    for key, how in named.items():
        name = f"{above}{key}"
        if name == "re":
            raise ConfigError(
                f"{_KEY}[re]={how}: a pattern begins with re: and its colon must be escaped where "
                r"it is typed, '{re\:.*down: nearest}'"
            )
        if isinstance(how, Mapping) and not {"recipe"} <= set(how) <= {"recipe", "precision"}:
            yield from _flat(how, f"{name}.")
        else:
            yield name, how


def _resolved(where: str, how: Any) -> Override | None:
    if how is None or isinstance(how, Override):
        return how
    if isinstance(how, Mapping):
        named, precision = how["recipe"], how.get("precision", "")
    elif isinstance(how, list | tuple) and len(how) == 2:
        named, precision = how
    else:
        named, precision = how, ""
    if not isinstance(precision, str) or not isinstance(named, str | Mapping):
        raise ConfigError(f"{where}={how}: {_WAYS}")
    if precision:
        try:
            Precision.parse(precision)
        except FormatError as error:
            raise ConfigError(f"{where}={how}: {one_line(error)}") from None
    values = _read(where, named) if isinstance(named, str) else named
    try:
        made = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(RecipeConfig), values))
    except OmegaConfBaseException as error:
        raise ConfigError(f"{where}: {one_line(str(error).splitlines()[0])}") from None
    assert isinstance(made, RecipeConfig)
    return Override(made, precision)


def _read(where: str, name: str) -> dict[str, Any]:
    """A recipe's values by its name: the user's own file, or ours, with what it builds on."""
    folders = [folder / "recipe" for folder in (own_folder(), conf_dir()) if folder is not None]
    path = next((p for folder in folders if (p := folder / f"{name}.yaml").is_file()), None)
    if path is None or Path(name).name != name:
        known = sorted({file.stem for folder in folders for file in folder.glob("*.yaml")})
        raise ConfigError(f"{where}={name}: no such recipe; there are: {' '.join(known)}")
    said = OmegaConf.load(path)
    values: Any = OmegaConf.to_container(said) if isinstance(said, DictConfig) else None
    if not isinstance(values, dict):
        raise ConfigError(f"{where}={name}: {path} must be keys and values, key: value")
    found: dict[str, Any] = {}
    own = {"name": name} | {key: value for key, value in values.items() if key != "defaults"}
    for base in values.get("defaults", ["_self_"]):
        if not isinstance(base, str):
            raise ConfigError(f"{where}={name}: {path} builds on other groups, defaults: {base}")
        found = _merged(found, own if base == "_self_" else _read(where, base))
    return found


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Values with others over them, key by key."""
    found = dict(below)
    for key, value in above.items():
        both = isinstance(value, Mapping) and isinstance(found.get(key), Mapping)
        found[key] = _merged(found[key], value) if both else value
    return found
