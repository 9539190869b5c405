"""A law of the user's own: read from a file or a module that they name."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

from fitting.entry.errors import one_line
from fitting.law.terms import FitError, Law


def own_law(typed: str) -> Law:
    """The law named by `FILE.py:NAME` or `package.module:NAME`.

    The file is run, as Python runs whatever it imports: do not name one that you would not run.

    Raises:
        FitError: There is no such file, module or name, it cannot be run, or it is not a law.
    """
    place, _, name = typed.rpartition(":")
    if not place or not name:
        raise FitError(f"law={typed}: must be FILE.py:NAME or package.module:NAME")
    module = _module(typed, place)
    found = getattr(module, name, None)
    if not isinstance(found, Law):
        laws = sorted(n for n, value in vars(module).items() if isinstance(value, Law))
        what = "is no Law" if hasattr(module, name) else "is not there"
        has = f"it has {', '.join(laws)}" if laws else "it has no Law"
        raise FitError(f"law={typed}: {name} {what}; {has}")
    return replace(found, typed=typed)


def _module(typed: str, place: str) -> ModuleType:
    path = Path(place)
    if path.suffix == ".py" and not path.is_file():
        raise FitError(f"law={typed}: there is no file {place}")
    try:
        if path.suffix != ".py":
            return importlib.import_module(place)
        # Each path has a name of its own, by which dataclasses look up their module.
        known = f"own_law_{path.resolve().as_posix().replace('/', '_').removesuffix('.py')}"
        spec = importlib.util.spec_from_file_location(known, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[known] = module
        spec.loader.exec_module(module)
    except Exception as error:  # whatever a user's file raises
        why = f"{type(error).__name__}: {one_line(error)}"
        raise FitError(f"law={typed}: {place} cannot be run ({why})") from error
    return module
