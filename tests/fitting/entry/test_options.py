"""One way to type options: key=value into a dataclass, with what would be right where it is not."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest

from fitting.entry.errors import UsageError
from fitting.entry.options import (
    at_least,
    command,
    entries,
    listed,
    number,
    option,
    pairs,
    parse,
    positive,
    read,
    seconds,
)


@dataclass(frozen=True)
class Options:
    study: str = option("", "folder below runs", "NAME")
    more: tuple[str, ...] = option((), "a list", "A,B", several=True)
    wait: float = option(60.0, "for an answer", read=seconds)
    cost_k: float = option(0.375, "of the cost", key="cost.k", read=positive)
    draws: int = option(16, "how many", read=at_least(3, 100))
    dry: bool = option(False, "says only " + "what would be done " * 9)
    own: str = option("", "")
    freeze: Mapping[str, float] = field(
        default_factory=dict,
        metadata=entries("hold it", "NAME=VALUE", lambda _, text: number(text)),
    )


def test_words_become_values_of_their_kinds() -> None:
    words = [
        "study=s",
        "more=a,b,a",
        "wait=.5",
        "cost.k=2",
        "draws=3",
        "dry=True",
        "freeze.A[x=y]=1",
    ]
    assert parse(Options, words) == Options("s", ("a", "b"), 0.5, 2.0, 3, True, "", {"A[x=y]": 1.0})
    assert parse(Options, []) == Options()
    assert parse(Options, ["more=a", "study=a=b", "more=c"]).more == ("a", "c")
    assert read(Options, {"study": "as it is, 1e3"}).study == "as it is, 1e3"


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("studi=s", "studi=s: no such option; did you mean study?"),
        ("zzz=s", "zzz=s: no such option; there are study, more, wait, cost.k, draws, dry, own, "),
        ("cost_k=1", "cost_k=1: no such option; did you mean cost.k?"),
        ("study", "study: must be key=value or push; see --help"),
        ("=1", "=1: must be key=value or push"),
        ("study=", "study=: needs a value, study=..."),
        ("wait=soon", "wait=soon: must be a number of seconds, more than 0"),
        ("wait=inf", "wait=inf: must be a number of seconds, more than 0"),
        ("cost.k=a", "cost.k=a: must be a number"),
        ("cost.k=0", "cost.k=0: must be a positive number"),
        ("draws=2", "draws=2: must be a whole number, 3 to 100"),
        ("draws=1e1", "draws=1e1: must be a whole number, 3 to 100"),
        ("dry=yes", "dry=yes: must be true or false"),
        ("freeze=1", "freeze=1: no such option; did you mean freeze.<name>?"),
        ("freeze.=1", "freeze.=1: names nothing; must be freeze.NAME=VALUE"),
        ("freeze.E=x", "freeze.E=x: must be a number"),
    ],
)
def test_what_cannot_be_meant_is_said_with_what_could(word: str, said: str) -> None:
    with pytest.raises(UsageError) as error:
        parse(Options, [word], "push")
    assert str(error.value).startswith(said)


def test_a_key_of_elsewhere_may_have_been_meant() -> None:
    with pytest.raises(UsageError, match="^recip=a: no such option; did you mean recipe\\?$"):
        parse(Options, ["recip=a"], also=["recipe"])


def test_a_key_is_typed_once() -> None:
    with pytest.raises(UsageError, match="^study=b: study is given twice$"):
        pairs(Options, ["study=a", "study=b"])


def test_help_lists_what_has_a_help_in_lines_of_100() -> None:
    lines = listed(Options).splitlines()
    assert lines[:4] == [
        "  study=NAME           folder below runs",
        "  more=A,B             a list",
        "  wait=60              for an answer",
        "  cost.k=0.375         of the cost",
    ]
    assert lines[-1] == "  freeze.NAME=VALUE    hold it"
    assert lines[5].startswith("  dry=false            says only what")
    assert lines[6][:23].isspace()
    assert not lines[6][23].isspace()
    assert max(map(len, lines)) <= 100
    assert "own" not in listed(Options)


@pytest.mark.parametrize(
    ("words", "code"),
    [([], 2), (["help"], 0), (["-h"], 0), (["a=1", "--help", "b"], 0), (["a=1"], 3)],
)
def test_help_is_asked_for_anywhere_and_nothing_is_a_wrong_request(
    words: list[str],
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["lowbit-x", *words])
    ended = 0
    try:
        command("lowbit-x", "lowbit-x: helps\n", lambda typed: 3 if typed == words else None)
    except SystemExit as end:
        ended = int(end.code or 0)
    assert ended == code
    assert capsys.readouterr().out == ("" if code == 3 else "lowbit-x: helps\n")
