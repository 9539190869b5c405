"""docs/tutorial.md: typed from first line to last in a clean copy, it does what it shows."""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.places import ROOT

PAGE = (ROOT / "docs" / "tutorial.md").read_text()
WALK = 1800
"""Seconds for the whole page on a loaded machine."""


@dataclass
class Step:
    """One command of the page."""

    command: str
    code: int
    block: int
    """Number of the `sh` block that holds it."""


def blocks(kind: str) -> list[tuple[int, str]]:
    """Fenced blocks of a kind with the number of `sh` blocks up to them."""
    found, commands = [], 0
    for language, text in re.findall(r"^```(\w+)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL):
        commands += language == "sh"
        if language == kind:
            found.append((commands, text))
    return found


def steps() -> list[Step]:
    """All commands in order; what a here-document holds belongs to its command."""
    found = []
    for block, text in blocks("sh"):
        for command in re.findall(r".*<<'END'\n(?:.*\n)*?END\n|.+\n", text):
            expected = re.search(r"# exit code (\d+)$", command.strip())
            found.append(Step(command, int(expected[1]) if expected else 0, block))
    return found


def shape(line: str) -> str:
    """A line without what differs between machines: numbers, and the blanks that align them.

    How far the sweep was when it was killed differs too, and, as losses do by a few hundredths,
    which parameters such a small study hardly identifies.
    """
    line = re.sub(r"(?<=warning: ).*(?= hardly identified:)", "PARAMETERS are", line)
    line = re.sub(r"(?<= runs done).*", "", line)
    line = re.sub(r"\d+ min \d+ s|\d+ s\b", "TIME", line)
    return " ".join(re.sub(r"[\d.,]*\d[\d.,]*", "#", line).split())


def clean_copy(target: Path) -> Path:
    """What a fresh clone of this working tree would hold."""
    names = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    for name in names.stdout.splitlines():
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)
    return target


@pytest.mark.corpus
@pytest.mark.ray
@pytest.mark.long
def test_a_stranger_gets_to_the_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All commands in one shell, with exit codes and times; then the files, then the text."""
    home = clean_copy(tmp_path / "clone")
    script = ["now() { date +%s.%N; }"]
    for number, step in enumerate(steps()):
        out = tmp_path / f"{number}.txt"
        script += [f"a=$(now); {{\n{step.command}}} > {out} 2>&1; c=$?; b=$(now)"]
        script += ["echo $c $a $b"]
    strangers = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_ENV"))}
    walked = subprocess.run(
        ["bash", "-c", "\n".join(script)],
        cwd=home,
        env=strangers,
        stdout=subprocess.PIPE,
        text=True,
        timeout=WALK,
    )
    results = [line.split() for line in walked.stdout.splitlines()]
    outputs: dict[int, list[str]] = {}
    total = 0.0
    with capsys.disabled():
        print()
        for number, (step, (code, begin, end)) in enumerate(zip(steps(), results, strict=True)):
            total += float(end) - float(begin)
            first = step.command.splitlines()[0]
            print(f"{float(end) - float(begin):7.1f} s  exit code {code}  {first}")
            text = (tmp_path / f"{number}.txt").read_text()
            assert int(code) == step.code, f"{first}\n{text}"
            outputs.setdefault(step.block, []).extend(map(shape, text.splitlines()))
        print(f"{total:7.1f} s  in all")
    shutil.rmtree(home / ".venv")  # a gigabyte, and pytest keeps its last three folders

    named = set(re.findall(r"(?:reports/bits|paper)[\w./-]*\.\w+", PAGE))
    assert len(named) >= 6
    for name in named:
        assert (home / name).is_file(), name
    for block, text in blocks("text"):
        for line in text.splitlines():
            if line.strip() != "...":
                assert shape(line) in outputs[block], line


def test_the_plan_of_the_page_is_the_study_of_the_page(tmp_path: Path, text: Path) -> None:
    """Without an installation: its file is written, its command planned, its counts are right."""
    [(study, plan)] = [
        (s.command, p.command)
        for s, p in zip(steps(), steps()[1:], strict=False)
        if s.command.startswith("cat > study/")
    ]
    (tmp_path / "study").mkdir()
    subprocess.run(["bash", "-c", study], cwd=tmp_path, check=True)
    words = [*plan.split()[1:], "data=tokens", f"data.path={text}", "data.max_epochs=1000"]
    words += ["data.validation_windows=0"]
    code = "from experiments.command.main import train; train()"
    done = subprocess.run(
        [sys.executable, "-c", code, *words], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    [runs] = set(re.findall(r"study bits: (\d+) runs", done.stdout))
    assert set(re.findall(r"study bits: (\d+) runs", PAGE)) == {runs}
    shown = re.findall(r"((?:none|nearest)-[\w-]+)-[0-9a-f]{12}", PAGE)
    assert shown
    for name in shown:
        assert name in done.stdout


def test_failures_are_announced() -> None:
    """A command after which the page goes on although it failed says its exit code."""
    assert {step.code for step in steps()} == {0, 1, 137}
    assert sum(step.code != 0 for step in steps()) == 2
