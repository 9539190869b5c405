"""study.json, beside a study's runs or its published table: its description and its plan.

Never trusted, like all files of our own: every value is checked by type.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fitting.files.own_json import DamagedError, JsonObject, read_object

STUDY = "study.json"
REMEDY = "delete it and run lowbit-train again, which writes it anew"


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_name(value: object) -> bool:
    """A name is a folder in the study's, not a way out of it."""
    return isinstance(value, str) and value == Path(value).name not in ("", "..")


def _is_count(value: object) -> bool:
    return type(value) in (int, float) and 0 <= value < 1e300  # type: ignore[operator]


def _list_of(holds: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda value: isinstance(value, list) and all(map(holds, value))


def _object_of(holds: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda value: isinstance(value, dict) and all(map(holds, value.values()))


_is_object = _object_of(lambda _: True)
_KEYS: dict[str, tuple[Callable[[object], bool], str]] = {
    **dict.fromkeys(("name", "title", "description"), (_is_text, "a text")),
    "planned": (_list_of(_is_name), "a list of runs"),
    "work": (_object_of(_is_count), "a FLOP count for each run"),
    "fit": (_is_object, "an object of options of lowbit-fit"),
    "notes": (_list_of(_is_text), "a list of texts"),
    "config": (_is_object, "an object of the keys in which all runs agree"),
    "provenance": (_object_of(_list_of(_is_text)), "an object of lists of texts"),
    "damaged": (_is_count, "a count of runs"),
}


def read_about(folder: Path) -> JsonObject:
    """The content of a folder's study.json, with whichever keys it has.

    Raises:
        FileNotFoundError: There is none.
        DamagedError: It cannot be read, or one of its values cannot be used.
    """
    path = folder / STUDY
    about = read_object(path, REMEDY)
    for key, (holds, what) in _KEYS.items():
        if key in about and not holds(about[key]):
            raise DamagedError(path, f"{key} is not {what}", REMEDY)
    return about


def read_study(folder: Path) -> JsonObject:
    """`read_about` with at least `name`, `title`, `description`, `planned` and `work`."""
    about = {"name": folder.name, "description": "", "planned": [], "work": {}}
    about |= read_about(folder)
    return {"title": about["name"]} | about
