"""Command lines of key=value words: read into a dataclass, and listed by help.

A command's options are a frozen dataclass whose fields are made by `option`: each states its
default, how its text is read, and its line of help.  Nothing is imported that would delay help:
pydantic or OmegaConf takes longer to import than everything else, and both would read as YAML or
JSON what is meant as typed.
"""

from __future__ import annotations

import difflib
import math
import sys
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import Field, dataclass, field, fields
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from fitting.entry.answer import WRONG_REQUEST, answer
from fitting.entry.errors import UsageError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    from fitting.entry.answer import Told

HELP_WORDS = ("help", "-h", "--help")
_WIDTH = 100
_COLUMN = 23
"""Column of the help in which the description of an option begins."""

T = TypeVar("T", bound="DataclassInstance")
Value: TypeAlias = Any
"""The value of an option: a number, a text, a list, a dictionary."""
OptionField: TypeAlias = "Field[Value]"


@dataclass(frozen=True)
class Option:
    """What a field of a command's options has besides its default."""

    read: Callable[..., Value]
    """The value of a text, in a dictionary of a name and a text; raises a ValueError that says what
    would be right."""
    help: str
    shown: str
    """What help shows after the key's "=": NAME, or the default."""
    key: str
    """As typed, where the field's name cannot be; else ""."""
    several: bool
    """Whether the key may be given more than once, each time with more values."""


def option(
    default: Value,
    help: str,
    shown: str = "",
    *,
    read: Callable[[str], Value] | None = None,
    key: str = "",
    several: bool = False,
) -> Value:
    """A field of a command's options.

    Args:
        default: The value if the key is not typed.
        help: What it does; "": help does not list it.
        shown: What help shows after "="; else the default.
        read: Makes the value from the text; else the default's type decides.
        key: The key as typed, if that is not the field's name.
        several: Whether it may be given more than once, for lists.
    """
    by_type: dict[type, Callable[[str], Value]] = {
        bool: truth, int: whole, float: number, str: str, tuple: words_of
    }  # fmt: skip
    shown = shown or (f"{default:g}" if isinstance(default, float) else str(default).lower())
    about = Option(read or by_type[type(default)], help, shown, key, several)
    return field(default=default, metadata={"option": about})


def entries(help: str, shown: str, read: Callable[[str, str], Value]) -> Mapping[str, Option]:
    """The metadata of a field that is a dictionary, whose keys are typed after a dot.

    Args:
        help: What it does.
        shown: What help shows after the dot, NAME=VALUE.
        read: Makes the value of a name and a text.
    """
    return {"option": Option(read, help, shown, "", False)}


def number(text: str) -> float:
    """Any number, also inf and nan."""
    return float(_told(float, text, "must be a number"))


def whole(text: str) -> int:
    """A whole number."""
    return int(_told(int, text, "must be a whole number"))


def truth(text: str) -> bool:
    """True or false."""
    if text.lower() not in ("true", "false"):
        raise ValueError("must be true or false")
    return text.lower() == "true"


def words_of(text: str) -> tuple[str, ...]:
    """A list separated by commas, each word once."""
    return tuple(dict.fromkeys(text.split(",")))


def seconds(text: str) -> float:
    """A time to wait."""
    right = "must be a number of seconds, more than 0"
    return _above_0(float(_told(float, text, right)), right)


def positive(text: str) -> float:
    """A finite number above 0."""
    return _above_0(number(text), "must be a positive number")


def _above_0(value: float, right: str) -> float:
    if not 0 < value < math.inf:
        raise ValueError(right)
    return value


def at_least(smallest: int, largest: int = 10**18 - 1) -> Callable[[str], int]:
    """A whole number in a range, for an option's `read`."""

    def read(text: str) -> int:
        digits = len(str(largest))
        if text.isdecimal() and len(text) <= digits and smallest <= int(text) <= largest:
            return int(text)
        beyond = (
            f" to {largest}" if largest < 10**18 - 1 else f" or more, of {digits} digits or less"
        )
        raise ValueError(f"must be a whole number, {smallest}{beyond}")

    return read


def _told(kind: Callable[[str], Value], text: str, right: str) -> Value:
    try:
        return kind(text)
    except ValueError:
        raise ValueError(right) from None


def option_of(f: OptionField) -> Option:
    """The description with which a field was made."""
    found: Option = f.metadata["option"]
    return found


def keys(kind: type[DataclassInstance]) -> dict[str, OptionField]:
    """The fields of a command's options, by their keys as typed."""
    return {option_of(f).key or f.name: f for f in fields(kind)}


def pairs(kind: type[DataclassInstance], words: Iterable[str], instead: str = "") -> dict[str, str]:
    """The words as key and text.

    Args:
        kind: The command's options.
        words: As typed.
        instead: Another form that a word may have besides key=value.

    Raises:
        UsageError: A word of neither form, a key without a value, or a key given twice.
    """
    known = keys(kind)
    found: dict[str, str] = {}
    for word in words:
        # A name behind the dot may hold anything: freeze.eff_N[a=b]=1
        key, equals, text = (
            word.rpartition("=") if "[" in word.partition("=")[0] else (word.partition("="))
        )
        if not equals or not key:
            either = f"key=value or {instead}" if instead else "key=value"
            raise UsageError(f"{word}: must be {either}; see --help")
        if not text:
            raise UsageError(f"{word}: needs a value, {key}=...")
        if key in found:
            if not (key in known and option_of(known[key]).several):
                raise UsageError(f"{word}: {key} is given twice")
            text = f"{found[key]},{text}"
        found[key] = text
    return found


def read(kind: type[T], typed: Mapping[str, str], also: Iterable[str] = ()) -> T:
    """The options of a command from what was typed, key by key.

    Args:
        kind: The command's options.
        typed: As `pairs` returns it.
        also: Other keys that may have been meant by an unknown one.

    Raises:
        UsageError: No such option, or a text that is not of its kind.
    """
    known = keys(kind)
    values: dict[str, Value] = {}
    for key, text in typed.items():
        head, dot, tail = key.partition(".")
        try:
            if key in known and not _is_open(known[key]):
                values[known[key].name] = option_of(known[key]).read(text)
            elif dot and head in known and _is_open(known[head]):
                f = known[head]
                if not tail.strip():
                    raise ValueError(f"names nothing; must be {head}.{option_of(f).shown}")
                values.setdefault(f.name, {})[tail] = option_of(f).read(tail, text)
            else:
                raise ValueError(f"no such option; {_hint(key, known, also)}")
        except ValueError as error:
            raise UsageError(f"{key}={text}: {error}") from None
    return kind(**values)


def parse(kind: type[T], words: Iterable[str], instead: str = "", also: Iterable[str] = ()) -> T:
    """The options of a command line; `pairs` and `read` in one."""
    return read(kind, pairs(kind, words, instead), also)


def _is_open(f: OptionField) -> bool:
    """Whether an option is a dictionary, whose keys are typed behind a dot."""
    return f.default_factory is dict


def _hint(key: str, known: Mapping[str, OptionField], also: Iterable[str]) -> str:
    names = [f"{name}.<name>" if _is_open(f) else name for name, f in known.items()]
    close = difflib.get_close_matches(key, [*names, *also], n=1, cutoff=0.5)
    return f"did you mean {close[0]}?" if close else f"there are {', '.join(names)}"


def listed(kind: type[DataclassInstance]) -> str:
    """The options as help lists them, one or more lines each."""
    lines = []
    for key, f in keys(kind).items():
        of = option_of(f)
        if not of.help:
            continue
        start = f"  {key}{'.' if _is_open(f) else '='}{of.shown}"
        lines += textwrap.wrap(
            of.help,
            _WIDTH,
            initial_indent=f"{start:<{_COLUMN - 1}} ",
            subsequent_indent=" " * _COLUMN,
            break_long_words=False,
            break_on_hyphens=False,
        )
    return "\n".join(lines) + "\n"


def asks_for_help(words: Sequence[str]) -> bool:
    """Whether nothing was typed, or a word for help."""
    return not words or any(word in HELP_WORDS for word in words)


def command(
    name: str,
    help: str,
    work: Callable[[list[str]], int | None],
    told: Told | None = None,
) -> None:
    """Run a console script; ends as `answer` says.

    Help is printed where it is asked for, anywhere among the words, and where nothing was typed,
    which is a wrong request.

    Args:
        name: What the user typed, e.g. lowbit-fit.
        help: The text of --help, with examples and options.
        work: Does what the words ask for; returns the exit code, None for 0.
        told: As `answer` takes it.
    """
    words = sys.argv[1:]

    def run() -> int | None:
        if not asks_for_help(words):
            return work(words)
        sys.stdout.write(help)
        return 0 if words else WRONG_REQUEST

    answer(name, run, told)
