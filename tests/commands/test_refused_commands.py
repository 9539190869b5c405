"""Wrong commands through the commands themselves: one line, exit code 2, nothing written anywhere.

Generated over the configuration's keys and over each option of each of the eight commands, so that
a new key or option is tried with what it cannot be.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from itertools import cycle
from pathlib import Path

import pytest

from experiments.config.own_files import groups
from experiments.config.schema import Request, leaves
from fitting.command.options import FitOptions, ReportOptions
from fitting.entry.options import option_of
from tests.support.command_shell import COMMANDS, Ended, Shell, contents
from tests.support.places import ROOT
from tests.support.report_study import a_fit, write_fit

Case = tuple[str, tuple[str, ...], str]
"""A command, what is typed after it, and what its line must name."""

TRAIN = ("data=tokens", "data.path=text", "debug=tiny", "tracking=none")
FIT = ("results=losses.csv", "out=new", "law=chinchilla", "bootstrap=0", "evidence=false")
REPORT = ("results=losses.csv", "fit=fits", "out=new", "figures=svg")
NO_NUMBER = ("many", "nan", "-1", "[1]", "", "1..2", "{a: 1}", "inf", "1 2")
LONG, BYTES = "x" * 5000, "\udcff"


def _beside(words: tuple[str, ...], *others: str) -> tuple[str, ...]:
    """The words and others, without the words' own values of keys that the others set."""
    keys = {other.partition("=")[0] for other in others}
    return (*(word for word in words if word.partition("=")[0] not in keys), *others)


def _keys() -> Iterator[Case]:
    """Each key of the configuration, each in one way that is wrong, and misspelt."""
    numbers, texts, flags = cycle(NO_NUMBER), cycle(("true", "[1]", "{a: 1}")), cycle(("many", "2"))
    for key, value in leaves(Request()):
        if isinstance(value, bool):
            wrong = next(flags)
        elif isinstance(value, int | float):
            wrong = next(numbers)
        elif isinstance(value, str):
            wrong = next(texts)
        else:
            wrong = "3"
        yield "lowbit-train", _beside(TRAIN, f"{key}={wrong}"), f"{key}="[:-1]
    ways = cycle(("{}s=1", "{}", "{}:1", "--{}=1", "{}=a=b", "{}=a\nb(", "{}=a'b", "{}.x=1"))
    for key, _ in leaves(Request()):
        word = next(ways).format(key)
        yield "lowbit-train", (*TRAIN, word), key


def _choices() -> Iterator[Case]:
    """Each group of files, with what is no choice of it."""
    wrong = cycle(("zzz", "4", "null", "[a,b]", "./x.yaml", "true", "a=b", LONG, "a b"))
    for group in groups():
        if group != "hydra":
            for _ in range(3):
                word = f"{group}={next(wrong)}"
                yield "lowbit-train", _beside(TRAIN, word), group
    for name in ("E9M9", "E4M3-block0", "E4M3-block32-zzz", "int9_row"):
        yield "lowbit-train", _beside(TRAIN, f"precision={name}"), f"precision={name}: "


def _of_hydra() -> Iterator[Case]:
    """Options of Hydra's that cannot go together or have no such value."""
    for words in (
        *(("--cfg=zzz",), ("--cfg",), ("-c", "zzz"), ("--run=1",), ("--info=zzz",), ("-i=zzz",)),
        *(("--resolve",), ("--package=x",), ("--cfg=job", "-m"), ("--info", "--cfg=job")),
        *(("--shell-completion",), ("-sc",), ("--config-name=other",), ("-cp", "/tmp")),
        *(("--config-dir=missing",), ("--config-dir=losses.csv",), ("--config-dir",), ("-x",)),
        *(("--multirun=1",), ("--law=chinchilla",), ("--version=3",), ("--hydra-help=x",)),
    ):
        yield "lowbit-train", (*TRAIN, *words), words[-1].partition("=")[0].split()[0][:2]
    for values in ("range(0)", "range(a)", "0,abc", "0,,1", "interval(0,1)", "glob(x)", "choice()"):
        yield "lowbit-train", ("-m", *TRAIN, f"seed={values}", "plan_only=true"), "seed"
    for grid, said in {
        **dict.fromkeys(("3", "[3]", "[[1]]", "zzz"), "study.grids"),
        "[{seed: abc}]": "seed",
        "[{sed: [1]}]": "sed",
        "[{precision: [zzz]}]": "precision",
    }.items():
        yield "lowbit-train", ("-m", *TRAIN, f"study.grids={grid}", "plan_only=true"), said
    yield "lowbit-train", ("-m", *TRAIN, "study.grids.x=1", "plan_only=true"), "study.grids.x"
    for words in (("retry_failed=true,false",), ("study.grids=[{budget.hours: [1]}]",)):
        yield "lowbit-train", ("-m", *TRAIN, *words), "belongs to a sweep as a whole"
    for file in ("missing", "losses.csv/x", f"own{BYTES}"):
        yield "lowbit-train", _beside(TRAIN, f"data.path={file}"), "data.path"


def _pairs(
    name: str, base: tuple[str, ...], options: dict[str, tuple[str, ...]], once: bool = True
) -> Iterator[Case]:
    """Options typed as key=value: each with wrong values, misspelt, twice, with dashes, bare."""
    for key, values in options.items():
        for value in values:
            said = value if value == "missing" else key
            yield name, _beside(base, f"{key}={value}"), said
        yield name, (*base, f"{key}s=1"), f"{key}s"
        yield name, (*base, f"--{key}=1"), f"--{key}"
        yield name, (*base, f"{key} =1"), f"{key} =1"
        yield name, (*base, key), key
        if once:
            yield name, (*_beside(base, f"{key}=1"), f"{key}=1"), key


def _fit() -> Iterator[Case]:
    wrong = cycle(("zzz", "", "1..2", "[1]", "0x10", "1,2", "9" * 5000))
    options: dict[str, tuple[str, ...]] = {}
    for f in fields(FitOptions):
        key = option_of(f).key or f.name
        if isinstance(f.default, bool | int | float):
            options[key] = (next(wrong), next(wrong))
        elif isinstance(f.default, str) and key not in ("study", "results", "expect", "out"):
            options[key] = ("zzz",) if key != "cluster" else ()
    yield from _pairs("lowbit-fit", FIT, options)
    for head, wrong_entries in {
        "freeze": ("foo=1", "E=zzz", "E=", "=1", "E"),
        "bounds": ("foo=1..2", "E=zzz", "E=1", "E=2..1", "=1..2", "E=.."),
        "columns": ("prams=N", "loss=zzz", "loss=", "=N", "tokens=N*"),
    }.items():
        for entry in wrong_entries:
            yield "lowbit-fit", (*FIT, f"{head}.{entry}"), head
    for where in ("zzz > 1", "loss >", "@x", "loss.to_csv('x')", "loss > 100", "lambda: 1", "("):
        yield "lowbit-fit", (*FIT, f"where={where}"), "where"
    for file in (
        "missing.csv",
        "empty",
        "empty.csv",
        "latin.csv",
        "text",
        "losses.csv/x",
        "x.json",
    ):
        yield "lowbit-fit", _beside(FIT, f"results={file}"), file.partition("/")[0]
    yield "lowbit-fit", _beside(FIT, "out=losses.csv"), "losses.csv"


def _others() -> Iterator[Case]:
    report = {
        f.name: () if f.name != "figures" else ("png", "", "svg,png") for f in fields(ReportOptions)
    }
    yield from _pairs("lowbit-report", REPORT, report)
    for word in ("fit=missing", "fit=losses.csv", "results=missing", "compare=a", "compare=a,b,c"):
        yield "lowbit-report", _beside(REPORT, word), word.partition("=")[0]
    for words in (("--compare",), ("--compare", "a"), ("--compare", "a=1", "b")):
        yield "lowbit-report", words, "--compare"
    seconds = ("zzz", "inf", "nan", "-1", "")
    status = {"study": ("", "missing", "a/b", ".."), "runs": ("missing",), "watch": seconds}
    yield from _pairs("lowbit-status", ("study=text",), status)
    sync = {
        "study": ("missing", "text"),
        "runs": ("missing",),
        "timeout": (*seconds, "0"),
        "dry_run": ("yes", "1", ""),
    }
    for case in _pairs("lowbit-sync", ("study=text",), sync, once=False):
        yield case if not case[1][-1].startswith("study=") else (*case[:2], case[1][-1][6:] or "s")
    yield "lowbit-sync", ("losses.csv",), "losses.csv"
    yield "lowbit-sync", ("study=text", "timeout=3", "timeout=4"), "timeout"
    dashboard = {
        "study": ("", "missing"),
        "runs": ("missing",),
        "entity": (),
        "project": (),
        "timeout": (*seconds, "0"),
    }
    yield from _pairs("lowbit-dashboard", ("study=text",), dashboard)
    export = {
        "run": ("missing", "losses.csv", "empty", ""),
        "to": ("zzz", "", "HF", "hf,safetensors"),
        "out": ("", "losses.csv", "text"),
    }
    yield from _pairs("lowbit-export", ("run=text", "to=hf", "out=new"), export)
    for key in export:
        words = (f"{other}=1" if other != "to" else "to=hf" for other in export if other != key)
        yield "lowbit-export", tuple(words), f"{key}: missing"
    number = ("zzz", "-1", "1.5", "", "inf", "9" * 5000)
    error = {
        "precision": ("zzz", "", "mxfp4,zzz", "E9M9", "E4M3-block0", "E4M3-block32-zzz"),
        "rounding": ("zzz", "", "stochastic_0", "stochastic_24"),
        "sigma": ("zzz", "0", "nan", "1e31", ""),
        **dict.fromkeys(("hadamard", "rows", "columns", "seed"), number),
    }
    yield from _pairs("lowbit-error", ("precision=mxfp4",), error)
    recipes = {
        "source": ("zzz", "", "normal,zzz"),
        "draws": ("zzz", "2", "", "9" * 5000),
        "out": ("x.txt", "", "empty"),
        "recipe": ("zzz", "", "nearest,zzz"),
    }
    for key, values in recipes.items():
        for value in values:
            yield "lowbit-error", _beside(("recipe=nearest", "draws=3"), f"{key}={value}"), key
    for words in (
        ("draws=4",),
        ("out=x.csv",),
        ("source=trained",),
        ("precision=mxfp4", "out=x.csv"),
    ):
        yield "lowbit-error", words, words[-1]
    for name in COMMANDS:
        for word in ("nonsense", "nonsense=1", "=", "=1", "-x", "--", BYTES, f"{LONG}=1"):
            yield name, (word,), word.partition("=")[0][:20] if word != BYTES else ""


CASES = [*_keys(), *_choices(), *_of_hydra(), *_fit(), *_others()]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's machine: a folder to work in, a home, a place for temporary files."""
    root = tmp_path_factory.mktemp("machine")
    for folder in ("here/empty", "here/text", "home", "tmp"):
        (root / folder).mkdir(parents=True)
    here = root / "here"
    for number in range(8):
        (here / "text" / f"{number}.txt").write_text("some loss in few bits on chip\n" * 2000)
    lines = [f"{3 + 1e6 / n},{n},{d}" for n in (10**6, 10**7) for d in (10**8, 10**9, 10**10)]
    (here / "losses.csv").write_text("\n".join(["loss,params,tokens", *lines, ""]))
    (here / "empty.csv").write_text("")
    (here / "latin.csv").write_bytes("loss,params,tokens\nM\xfc,1,2\n".encode("latin-1"))
    (here / "x.json").write_text("{")
    write_fit(here / "fits", a_fit())
    return root


@pytest.fixture(scope="module")
def shell(place: Path) -> Iterator[Shell]:
    here = {"HOME": str(place / "home"), "TMPDIR": str(place / "tmp")}
    with Shell(place / "here", {**here, "XDG_CACHE_HOME": str(place / "home" / ".cache")}) as ready:
        ready("lowbit-fit", ["--help"])  # what imports leave in a home was there before
        yield ready


def faults(name: str, said: str, ended: Ended) -> list[str]:
    """What is wrong with how a wrong command was answered."""
    checks = {
        f"exit code {ended.code}": ended.code == 2,
        "not one line": ended.err.count("\n") == 1 and ended.err.startswith(f"{name}: "),
        f"does not name {said}": said in ended.err,
        "taken for a bug": "a bug of" not in ended.err and "Traceback" not in ended.err,
        "printed something": ended.out == "",
    }
    return [fault for fault, right in checks.items() if not right]


def test_there_are_enough_of_them_and_each_command_has_its_own() -> None:
    assert len({case[:2] for case in CASES}) == len(CASES) >= 400
    assert {name for name, _, _ in CASES} == set(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_wrong_command_is_refused_in_one_line_and_writes_nothing(
    command: str, shell: Shell, place: Path
) -> None:
    found = []
    for name, words, said in CASES:
        if name == command:
            before = contents(place)
            ended = shell(name, words)
            wrong = faults(name, said, ended)
            if changed := before.items() ^ contents(place).items():
                wrong.append(f"changed {sorted(path for path, _ in changed)}")
            if wrong:
                found.append(f"{name} {words}: {'; '.join(wrong)}: {ended.err[:300]}")
    assert not found, "\n".join([f"{len(found)} commands", *found])


@pytest.mark.parametrize("command", COMMANDS)
def test_help_in_the_middle_is_help(command: str, shell: Shell) -> None:
    ended = shell(command, ["nonsense=1", "--help", "zzz=2"])
    assert (ended.code, ended.err) == (0, "")
    assert f"{command}:" in ended.out


@pytest.mark.parametrize("command", COMMANDS)
def test_a_process_of_its_own_answers_like_a_fork(command: str, shell: Shell, place: Path) -> None:
    name, words, _ = next(case for case in CASES if case[0] == command)
    module, function = COMMANDS[name]
    program = f"from {module} import {function}; {function}()"
    root = str(ROOT)
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {root!r}); {program}", *words],
        cwd=place / "here",
        capture_output=True,
        text=True,
        env={**os.environ, "HOME": str(place / "home")},
    )
    assert (done.returncode, done.stdout, done.stderr) == (2, "", shell(name, words).err)
