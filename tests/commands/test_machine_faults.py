"""Faults of the machine, real ones: a line with the file and what to do, and nothing lost."""

import errno
import json
import os
import resource
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from experiments.sweep.work import FAILED, _Log
from experiments.train import _of_the_machine
from fitting.entry.answer import answer
from fitting.entry.errors import _REMEDIES
from fitting.files.atomic import create_exclusive, write_atomic
from tests.support.places import ROOT

COMMANDS = {
    "train": "experiments.command.main:train",
    "fit": "fitting.command.main:fit",
    "report": "fitting.command.main:report",
    "error": "experiments.errors.command:error",
}
FAULTS = {"full": "size=4k", "inodes": "nr_inodes=2", "readonly": "ro"}
SAYS = {"full": "No space left", "inodes": "No space left", "readonly": "Read-only file system"}
SMALL = ["model=ladder/a", "data=tokens", "data.seq_len=64", "data.max_epochs=200"]
SMALL += ["data.validation_windows=32", "batch_size=4", "tokens=2048", "tracking=none"]


def may_mount() -> bool:
    """Whether this user may have a file system of his own."""
    tried = ["unshare", "-rm", "mount", "-t", "tmpfs", "none", "/mnt"]
    try:
        return subprocess.run(tried, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


needs_mounts = pytest.mark.skipif(not may_mount(), reason="needs mount namespaces")


def typed(command: str, *arguments: str) -> str:
    """A command as a shell reads it."""
    module, _, name = COMMANDS[command].partition(":")
    program = f"import sys; sys.argv[0] = 'lowbit-{command}'; from {module} import {name} as f; f()"
    return shlex.join([sys.executable, "-c", program, *arguments])


def on(options: str, place: Path, *commands: str) -> subprocess.CompletedProcess[str]:
    """Run in a shell that has a file system with these options at `place`."""
    place.mkdir(exist_ok=True)
    mount = f"mount -t tmpfs -o {options} none {shlex.quote(str(place))}"
    if options == FAULTS["full"]:
        mount += f"; head -c 4096 /dev/zero > {shlex.quote(str(place))}/filler"
    return subprocess.run(
        ["unshare", "-rm", "sh", "-c", "; ".join([mount, *commands])],
        cwd=place.parent,
        capture_output=True,
        text=True,
        check=False,
    )


def one_line(done: subprocess.CompletedProcess[str], command: str) -> str:
    """The line that a command ended with; it must be its only one but for warnings."""
    assert done.returncode in (1, 2), done.stderr
    lines = [line for line in done.stderr.splitlines() if "max_epochs" not in line]
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith(f"lowbit-{command}: ")
    assert "a bug of" not in lines[0]
    return lines[0]


QUICK = {("fit", "full"), ("report", "readonly"), ("error", "inodes")}
WRITERS = [
    pytest.param(command, fault, marks=[] if (command, fault) in QUICK else pytest.mark.long)
    for command in ("fit", "report", "error")
    for fault in FAULTS
]


@needs_mounts
@pytest.mark.parametrize(("command", "fault"), WRITERS)
def test_results_that_cannot_be_written(command: str, fault: str, tmp_path: Path) -> None:
    demo, place = ROOT / "reports" / "demo", tmp_path / "place"
    law = ["law=floating_point", "evidence=false", "bootstrap=0"]
    arguments = {
        "fit": [f"results={demo / 'results.csv'}", *law, f"out={place}/out"],
        "report": ["study=demo", f"results={demo}", f"fit={demo}", f"out={place}/out"],
        "error": ["precision=mxfp4", "recipe=nearest", f"out={place}/out/out.csv"],
    }[command]
    done = on(FAULTS[fault], place, typed(command, *arguments))
    line = one_line(done, command)
    assert str(place / "out") in line
    assert SAYS[fault] in line


@needs_mounts
@pytest.mark.slow
@pytest.mark.parametrize(
    "fault", ["full", *(pytest.param(f, marks=pytest.mark.long) for f in FAULTS if f != "full")]
)
def test_a_run_goes_on_when_there_is_room_again(fault: str, tmp_path: Path, text: Path) -> None:
    place = tmp_path / "runs"
    run = typed("train", *SMALL, f"data.path={text}", f"runs={place}", "study.name=s")
    done = on(FAULTS[fault], place, run)
    line = one_line(done, "train")
    assert str(place) in line
    assert SAYS[fault] in line
    assert ("make room" if fault != "readonly" else "that can be written to") in line
    again = on(FAULTS[fault], place, run, f"mount -o remount,rw,size=64m,nr_inodes=0 {place}", run)
    assert again.returncode == 0, again.stderr
    assert "finished: loss" in again.stdout


@needs_mounts
@pytest.mark.slow
@pytest.mark.ray
def test_a_sweep_whose_folder_takes_nothing_says_so_before_ray_starts(
    tmp_path: Path, text: Path
) -> None:
    place, temporary = tmp_path / "runs", tmp_path / "nowhere"
    run = typed("train", "-m", *SMALL, f"data.path={text}", f"runs={place}", "study.name=s")
    done = on("ro", place, f"RAY_TMPDIR={temporary} {run}")  # Ray would complain of that
    assert f"{place}/s: Read-only file system; name a folder" in one_line(done, "train")


@needs_mounts
@pytest.mark.slow
@pytest.mark.ray
def test_runs_of_a_sweep_that_find_no_room_are_not_done_rather_than_failed(
    tmp_path: Path, text: Path
) -> None:
    """Room for the plan and for little else; then for all."""
    place = tmp_path / "runs"
    size = [*SMALL, f"data.path={text}", f"runs={place}", "study.name=s", "seed=0,1"]
    run = typed("train", "-m", *size)
    keep = f"mkdir {tmp_path}/kept; cp -r {place}/. {tmp_path}/kept; "
    remount = f"mount -o remount,rw,size=64m {place}"
    done = on("size=16k", place, run, "echo the first: $?", keep + remount, run, "echo second: $?")
    assert "the first: 1" in done.stdout, done.stdout + done.stderr
    assert "No space left on device; make room" in done.stdout + done.stderr
    assert "worker" not in done.stdout + done.stderr
    assert not list((tmp_path / "kept").rglob("result.json"))
    assert "second: 0" in done.stdout, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr


@pytest.fixture
def small_files() -> Iterator[None]:
    """No file may have more than 4 KiB."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.usefixtures("small_files")
@pytest.mark.parametrize("write", [write_atomic, create_exclusive])
def test_a_write_that_stops_half_way_names_its_file_and_leaves_none(
    write: object, tmp_path: Path
) -> None:
    target = tmp_path / "result.json"
    with pytest.raises(OSError, match="File too large") as failed:
        write("x" * 100_000, target)  # type: ignore[operator]
    assert failed.value.filename == str(target)
    assert failed.value.errno == errno.EFBIG
    assert not list(tmp_path.iterdir())


def test_a_log_on_a_full_disk_costs_its_lines_only() -> None:
    full = open("/dev/full", "w", buffering=1)  # noqa: SIM115
    with _Log(full) as log:
        print("a line", file=log)
        log.flush()
        with pytest.raises(OSError, match="No space"):
            full.write("a line\n")
    assert full.closed


@needs_mounts
@pytest.mark.slow
def test_a_worker_without_a_log_says_why_and_does_not_die(tmp_path: Path, text: Path) -> None:
    place = tmp_path / "runs"
    program = (
        "import sys, dataclasses, json; from experiments.configure import configure\n"
        "from experiments.sweep.work import execute\n"
        "print(json.dumps(execute(dataclasses.asdict(configure(*sys.argv[1:])), 'token')))"
    )
    size = [*SMALL, f"data.path={text}", f"runs={place}", "study.name=s"]
    done = on("nr_inodes=2", place, shlex.join([sys.executable, "-c", program, *size]))
    assert done.returncode == 0, done.stderr
    how, why = json.loads(done.stdout.splitlines()[-1])
    assert how == FAILED
    assert why.startswith(f"{place}/s")
    assert "No space left on device; make room" in why


@pytest.mark.parametrize(
    ("command", "option"), [("fit", "results"), ("report", "results"), ("train", "data.path")]
)
def test_a_disk_that_fails_while_it_is_read_is_said(
    command: str, option: str, tmp_path: Path
) -> None:
    """The kernel answers a read of that file with EIO, as it does for a bad sector."""
    name = "losses.csv" if option == "results" else "train.txt"
    broken = tmp_path / name
    broken.symlink_to("/proc/self/mem")
    more = {
        "fit": ["law=chinchilla", "bootstrap=0", f"out={tmp_path}/out"],
        "report": [f"fit={tmp_path}", f"out={tmp_path}/out"],
        "train": ["data=tokens", "debug=tiny", "tracking=none"],
    }[command]
    value = broken if option == "results" else tmp_path
    done = subprocess.run(
        ["sh", "-c", typed(command, f"{option}={value}", *more)],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert "Input/output error" in one_line(done, command)


@pytest.mark.parametrize("number", sorted(_REMEDIES), ids=errno.errorcode.get)
def test_each_error_of_the_system_says_what_to_do(
    number: int, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails() -> None:
        raise OSError(number, os.strerror(number), "runs/x")

    with pytest.raises(SystemExit) as end:
        answer("lowbit-x", fails)
    shown = capsys.readouterr().err
    assert end.value.code in (1, 2)
    assert shown == f"lowbit-x: runs/x: {os.strerror(number)}; {_REMEDIES[number]}\n"


@pytest.mark.parametrize(
    "name", ["ENOSPC", "EDQUOT", "EROFS", "EACCES", "EPERM", "EMFILE", "EFBIG"]
)
def test_a_run_is_not_failed_for_good_by_its_machine(name: str) -> None:
    number = getattr(errno, name)
    assert _of_the_machine(OSError(number, os.strerror(number)))
    assert not _of_the_machine(ValueError(name))
