"""Files of the user's own: the folder they are in, before ours, and what they are called."""

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
"""Groups whose files give a name, with the name that stands where none does."""
_own: ContextVar[Path | None] = ContextVar("own", default=None)


def own_folder() -> Path | None:
    """The folder of the user's own YAML files, where there is one."""
    return _own.get()


@contextlib.contextmanager
def with_own_files(folder: Path | str) -> Iterator[None]:
    """Have Hydra look into a folder of the user's before it looks into ours; "": into none.

    Raises:
        ConfigError: There is no such folder, or it has a file in the place of our train.yaml.
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
    """The groups that a choice is made for: model, recipe, ...; precision has no files."""
    folders = (path.name for path in conf_dir().iterdir() if path.is_dir())
    return tuple(sorted({*folders, "precision"}))


def named(
    cfg: DictConfig, choices: Mapping[str, Any], overrides: Collection[str] = ()
) -> DictConfig:
    """A composed configuration in which a file that gives no name of its own has the file's.

    A recipe, model or study of the user's may build on another one by `defaults`: then it is not
    the other one, whose name it inherits.

    Args:
        cfg: Changed in place.
        choices: The file chosen for each group.
        overrides: What was typed; a name that was stays.
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
    """Whether the chosen file is the user's own and says no name itself."""
    folder = own_folder()
    path = None if folder is None else folder / group / f"{chosen}.yaml"
    if path is None or not path.is_file():
        return False
    said = OmegaConf.load(path)
    if not isinstance(said, DictConfig):
        return False
    inner = said.get(group)
    return "name" not in said and not (isinstance(inner, DictConfig) and "name" in inner)
