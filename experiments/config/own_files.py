"""The user's own files: their folder, which comes before ours, and their names."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Collection, Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from experiments.config.precision import ConfigError
from experiments.paths import conf_dir

_NAMED = {"recipe": None, "study": "scratch", "model": None}
"""Groups whose files give a name, with the name that is used if none does."""
_own: ContextVar[Path | None] = ContextVar("own", default=None)


def own_folder() -> Path | None:
    """The folder of the user's own YAML files, if there is one."""
    return _own.get()


@contextlib.contextmanager
def with_own_files(folder: Path | str) -> Iterator[None]:
    """Let Hydra search a folder of the user's before it searches ours; "": no such folder.

    Raises:
        ConfigError: There is no such folder, or it has a file that would replace our train.yaml.
    """
    if not folder:
        yield
        return
    found = Path(folder).expanduser().absolute()
    if not found.is_dir():
        raise ConfigError(f"--config-dir={folder}: no such folder")
    if (found / "train.yaml").exists() and found != conf_dir():
        raise ConfigError(
            f"--config-dir={folder}: its train.yaml has the name of the file that lists every key; "
            "write what you want to change into study/NAME.yaml and type study=NAME"
        )
    token = _own.set(found)
    try:
        yield
    except UnicodeDecodeError as error:
        for path in sorted(path for group in groups() for path in (found / group).rglob("*.yaml")):
            if not _is_text(path):
                raise ConfigError(f"{path}: not UTF-8 text ({error.reason})") from None
        raise
    finally:
        _own.reset(token)


def _is_text(path: Path) -> bool:
    try:
        path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return False
    return True


@functools.cache
def groups() -> tuple[str, ...]:
    """The groups from which files are chosen: model, recipe, ...; precision has no files."""
    folders = (path.name for path in conf_dir().iterdir() if path.is_dir())
    return tuple(sorted({*folders, "precision"}))


def named(
    cfg: DictConfig, choices: Mapping[str, Any], overrides: Collection[str] = ()
) -> DictConfig:
    """Name every chosen file that gives no name of its own after the file, in a configuration.

    A recipe, model or study of the user's may build on another one by `defaults`: it inherits the
    name of that other one, but is not the same.

    Args:
        cfg: Changed in place.
        choices: The file chosen for each group.
        overrides: The overrides as typed; a typed name stays.
    """
    with open_dict(cfg):
        for group, default in _NAMED.items():
            chosen = choices.get(group)
            if not chosen or any(
                word.lstrip("+").startswith(f"{group}.name=") for word in overrides
            ):
                continue
            if cfg[group].get("name") == default or _inherits_name(group, chosen):
                cfg[group].name = Path(chosen).name
    return cfg


def _inherits_name(group: str, chosen: str) -> bool:
    """Whether the chosen file is the user's own and does not give a name itself."""
    folder = own_folder()
    path = None if folder is None else folder / group / f"{chosen}.yaml"
    if path is None or not path.is_file():
        return False
    said = OmegaConf.load(path)
    if not isinstance(said, DictConfig):
        return False
    inner = said.get(group)
    return "name" not in said and not (isinstance(inner, DictConfig) and "name" in inner)
