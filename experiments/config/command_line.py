"""The command line of `lowbit-train`, before Hydra reads it.

Hydra answers a word that it cannot read in terms of its grammar; here the word is named, with the
way to write it.  The user's own files (`--config-dir`) come before built-in ones of the same name.
"""

from __future__ import annotations

import functools
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from experiments.config.own_files import groups
from experiments.config.precision import ConfigError
from experiments.config.schema import Request, leaves
from fitting.entry.errors import one_line

_WITH_VALUE = (
    *("--config-dir", "-cd", "--config-path", "-cp", "--config-name", "-cn"),
    *("--package", "-p", "--cfg", "-c"),
)
_INFO, _SHOWN = ("--info", "-i"), ("--cfg", "-c")
_COMPLETION, _PACKAGE = ("--shell-completion", "-sc"), ("--package", "-p")
_FLAGS = (
    *("--multirun", "-m", "--run", "-r", "--help", "-h", "--hydra-help", "--version"),
    *("--resolve", *_COMPLETION),
)
_CHOICES = {
    **dict.fromkeys(_SHOWN, ("job", "hydra", "all")),
    **dict.fromkeys(_INFO, ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")),
}
_MODES = (("--multirun", "-m"), ("--run", "-r"), _SHOWN, _INFO, _COMPLETION)
"""Groups of options of which a command line may have one."""
_OPEN = ("model.config.", "task.config.", "recipe.overrides.", "recipe.overrides=")
"""Beginnings of keys that end as the user likes."""
_OPERAND = re.compile(
    r"recipe\.((output|grad_input|grad_weight)\.(input|weight|grad_output)"
    r"|attention\.(query|key|probabilities|value))[.=]"
)
"""The beginning of a word that sets an operand of a recipe, or one of its keys."""
_INSTEAD = ("--config-path", "-cp", "--config-name", "-cn")
_OF_HYDRA = {
    "hydra.sweeper": "a sweep is typed with -m key=a,b or written as study.grids",
    "hydra.sweep": "results go below runs=FOLDER",
    "hydra.run": "results go below runs=FOLDER",
    "hydra.searchpath": "files of your own are found by --config-dir=FOLDER",
}


def arrange(words: Sequence[str]) -> tuple[list[str], str]:
    """A command line in the form that Hydra needs, and the folder of the user's own files.

    argparse takes options before the overrides only; here they may stand anywhere.

    Raises:
        ConfigError: A word that makes no sense, with what could be meant.
    """
    options, overrides, folder = [], [], ""
    waiting = iter(words)
    for word in waiting:
        name, equals, value = word.partition("=")
        if name in _WITH_VALUE:
            value = value if equals else next(waiting, "")
            if not value:
                raise ConfigError(f"{name}: needs a value, {name}=...")
            if name in _INSTEAD:
                instead = _OF_HYDRA["hydra.searchpath"]
                raise ConfigError(f"{name}={value}: no such option; {instead}")
            if name in ("--config-dir", "-cd"):
                folder = value
            else:
                options.append(_with_value(name, value))
        elif name in _INFO:
            options.append(_with_value(name, value if equals else "all"))
        elif name in _FLAGS and equals:
            raise ConfigError(f"{word}: {name} takes no value")
        elif name in _FLAGS:
            options.append(word)
        elif word.startswith("-"):
            raise ConfigError(f"{word}: no such option; see lowbit-train --help")
        elif word == "help":
            options.append("--help")
        else:
            overrides.append(word)
    if {"--help", "-h"} & set(options):  # whatever else was typed is not done
        return ["--help"], ""
    _check_options(options, overrides)
    check_overrides(overrides, several={"-m", "--multirun"} & set(options) != set())
    return [*options, *map(with_open_key, overrides)], folder


def with_open_key(word: str) -> str:
    """An override as Hydra takes it, for keys that need not be there before.

    A user's own model, or task, has whatever keys it has; an operand of a recipe may be null,
    which a typed tree cannot fill.

    >>> with_open_key("model.config.hidden_size=64,128")
    '++model.config.hidden_size=64,128'
    >>> with_open_key("recipe.output.weight.precision=mxfp4")
    '++recipe.output.weight.precision=mxfp4'
    """
    if _OPERAND.match(word) and word.endswith("={}"):
        word = word.removesuffix("={}") + ".rounding=nearest_even"
    return f"++{word}" if word.startswith(_OPEN) or _OPERAND.match(word) else word


def _with_value(name: str, value: str) -> str:
    """An option of Hydra's as one word; in two words, its value may be taken for an override."""
    choices = _CHOICES.get(name, (value,))
    if value not in choices:
        raise ConfigError(f"{name}={value}: must be one of {', '.join(choices)}")
    return f"{name}={value}" if name.startswith("--") else f"{name}{value}"


def _check_options(options: Sequence[str], overrides: Sequence[str]) -> None:
    """Refuse options that do not go together, which Hydra would not name."""

    def given(names: Sequence[str]) -> list[str]:
        return [word for word in options if word.startswith(tuple(names))]

    modes = [given(names)[0] for names in _MODES if given(names)]
    if len(modes) > 1:
        raise ConfigError(f"{modes[1]}: cannot go with {modes[0]}; leave out one")
    for word in given(("--resolve", *_PACKAGE)):
        if not given(_SHOWN):
            raise ConfigError(f"{word}: goes with --cfg job, which shows the configuration")
    does = ("install=", "uninstall=", "query=")
    if given(_COMPLETION) and not any(word.startswith(does) for word in overrides):
        raise ConfigError(f"{modes[0]}: needs install=SHELL or uninstall=SHELL, e.g. install=bash")


@functools.cache
def _parser() -> OverridesParser:
    return OverridesParser.create()


def check_overrides(words: Sequence[str], several: bool) -> None:
    """Make sure that every word can be read, and means what it seems to.

    Args:
        words: key=value, as typed.
        several: Whether a key may have several values to choose from.

    Raises:
        ConfigError: The first that does not.
    """
    parser = _parser()
    for word in words:
        if word.startswith("="):  # which Hydra takes for an override of nothing
            raise ConfigError(one_line(_unreadable(word, parser)))
        try:
            override = parser.parse_override(word)
        except HydraException:
            raise ConfigError(one_line(_unreadable(word, parser))) from None
        _check(override, word, several)


def _unreadable(word: str, parser: OverridesParser) -> str:
    """The error for a word that does not fit Hydra's grammar."""
    if word.startswith("recipe.overrides."):
        return (
            f"{word}: a pattern cannot be typed as a key; write it with a backslash before each of "
            r": ( ) [ ] { } and in single quotes, 'recipe.overrides={re\:.*down: nearest}', or as "
            "recipe.overrides in a recipe's file"
        )
    key, equals, value = word.partition("=")
    if not equals or not key:
        return f"{word}: cannot be read as key=value; see lowbit-train --help"
    quoted = key + "='" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
    try:
        parser.parse_override(quoted)
    except HydraException:
        return f"{word}: cannot be read as key=value; see lowbit-train --help"
    return f"{word}: cannot be read as key=value; put the value in quotes: {_for_a_shell(quoted)}"


def _for_a_shell(word: str) -> str:
    """The text in quotes, double ones if possible."""
    plain = not any(mark in word for mark in '"$`\\!')
    return f'"{word}"' if plain else shlex.quote(word)


@functools.cache
def _lists() -> tuple[str, ...]:
    """The keys that hold a list."""
    return tuple(name for name, value in leaves(Request()) if isinstance(value, list))


def refuse_inside_a_list(key: str, word: str) -> None:
    """Refuse keys below one that holds a list.

    Raises:
        ConfigError: It is one.
    """
    for name in _lists():
        if key.startswith(f"{name}."):
            right = "[{key: [values]}]" if name == "study.grids" else "[a,b]"
            raise ConfigError(f"{word}: {name} is a list; write {name}={right}")


def _check(override: Override, word: str, several: bool) -> None:
    key = override.key_or_group
    refuse_inside_a_list(key, word)
    for start, instead in _OF_HYDRA.items():
        if key == start or key.startswith(f"{start}."):
            raise ConfigError(f"{word}: has no effect here; {instead}")
    if override.is_sweep_override() and not several:
        value = word.partition("=")[2]
        as_text = _for_a_shell(f"{key}='{value}'")
        raise ConfigError(
            f"{word}: has several values; add -m to sweep over them, or write {key}=[{value}] for "
            f"a list, or {as_text} for one text"
        )
    if key == "recipe.overrides" and not override.is_sweep_override():
        if not isinstance(override.value(), dict):
            raise ConfigError(
                f"{word}: must be names of layers and recipes, {key}={{NAME: nearest}}"
            )
        return
    if key not in groups() or override.is_delete() or override.is_sweep_override():
        return
    chosen = override.value()
    if isinstance(chosen, list):
        names = ",".join(str(name) for name in chosen)
        raise ConfigError(f"{word}: a run has one; with -m, {key}={names} sweeps over them")
    if isinstance(chosen, dict):
        return
    if not isinstance(chosen, str):
        raise ConfigError(f"{word}: must be the name of a choice; leave it out for the default")
    path = Path(chosen)
    if path.suffix in (".yaml", ".yml") or chosen.startswith((".", "/")):
        above = path.parent.parent if path.parent.name == key else path.parent
        raise ConfigError(
            f"{word}: must be a choice, not a file; with {path.name} in a folder {key}, type "
            f"--config-dir={above} {key}={path.stem}"
        )
