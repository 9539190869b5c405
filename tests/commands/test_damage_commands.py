"""Every kind of damage to every file of a run and of its study, as each command meets it.

Of nine runs one is damaged.  Whatever reads the folder says so in one line with the file's path, or
has no use for that file; it answers for the eight others, and what only reads writes nothing.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from experiments.command import main as commands
from experiments.configure import configure
from experiments.mirror import dashboard, sync, tracking
from experiments.mirror.files import run_files
from experiments.store import status
from experiments.store.curve import METRICS
from experiments.store.lease import ATTEMPTS, Lease
from experiments.sweep.plan import PlannedRun, make_plan, write_study
from fitting.command import main as fitting_commands
from fitting.results.record import FAILURE, RESULT
from fitting.results.study_file import STUDY
from tests.support.damage import DAMAGE
from tests.support.records import RECORD

SIZES, TOKENS = ("a", "b", "c"), (6144, 12288, 24576)
GRID = [
    *("recipe=none", "data=tokens", "data.path=text", "data.seq_len=64", "batch_size=4"),
    *("model=ladder/a,ladder/b,ladder/c", "tokens=6144,12288,24576", "study.name=s"),
]
LEASE, CONFIG, WANDB = "lease.1.json", "config.json", "a W&B file"
FILES = (RESULT, FAILURE, LEASE, ATTEMPTS, CONFIG, METRICS, WANDB, STUDY)
COMMANDS: dict[str, tuple[Callable[[], object], list[str]]] = {
    "lowbit-train": (commands.train, ["-m", *GRID, "plan_only=true"]),
    "lowbit-fit": (
        fitting_commands.fit,
        ["results=runs/s", "law=chinchilla", "bootstrap=0", "evidence=false", "out=fits/s"],
    ),
    "lowbit-report": (fitting_commands.report, ["study=s", "figures=svg"]),
    "lowbit-status": (status.main, ["study=s"]),
    "lowbit-sync": (sync.main, ["study=s", "dry_run=true"]),
    "lowbit-dashboard": (dashboard.main, ["study=s"]),
}
WRITES = {"lowbit-fit": "fits", "lowbit-report": "reports", "lowbit-dashboard": "runs/s/dashboard"}


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine planned runs with the results that a law gives, one with all that a run can leave."""
    root = tmp_path_factory.mktemp("template")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        Path("text").mkdir()
        for number in range(8):
            Path("text", f"{number}.txt").write_text("the run of a model in few bits\n" * 400)
        same = [word for word in GRID if "," not in word]
        configs = [
            configure(*same, f"model=ladder/{size}", f"tokens={tokens}", "tracking=offline")
            for size in SIZES
            for tokens in TOKENS
        ]
        plan = make_plan(configs)
        write_study(plan)
        for run in plan.runs:
            _leave(run)
        mirror = tracking.start(configs[0], plan.runs[0].run_id, plan.runs[0].folder, attempt=1)
        tracking.log(mirror, {"step": 1, "tokens": 256, "train/loss": 4.0})
        tracking.finish(0)
        tracking.shut_down()
        for other in plan.runs[1:3]:
            mirror = tracking.start(other.config, other.run_id, other.folder, attempt=1)
            tracking.log(mirror, {"step": 1, "tokens": 256, "train/loss": 4.0})
            tracking.finish(0)
        tracking.shut_down()
        Path("first").write_text(plan.runs[0].run_id)
    return root


def _leave(run: PlannedRun) -> None:
    """Files of a run that finished, with the loss of a law."""
    from experiments.run.record import design

    record = dataclasses.replace(RECORD, run_id=run.run_id)
    known = {f.name for f in dataclasses.fields(record)}
    found = design(run.config, run.config.steps)
    record = dataclasses.replace(record, **{k: v for k, v in found.items() if k in known})
    loss = 1.5 + 20 * record.params**-0.3 + 50 * record.tokens**-0.4
    record = dataclasses.replace(
        record, run_id=run.run_id, loss=loss, status="finished",
        config=dataclasses.asdict(run.config),
    )  # fmt: skip
    run.folder.mkdir(parents=True)
    (run.folder / RESULT).write_text(record.to_json())
    (run.folder / CONFIG).write_text(json.dumps(record.config))
    (run.folder / METRICS).write_text('{"step": 1, "tokens": 256, "train/loss": 4.0}\n')
    (run.folder / ATTEMPTS).write_text('{"attempts": 1}\n')


@dataclass
class Said:
    """What a command did."""

    code: int
    out: str
    err: str


@dataclass
class Place:
    """A copy of the study in the current folder."""

    root: Path
    run: Path
    """The folder of the run that is damaged."""
    capsys: pytest.CaptureFixture[str]

    @property
    def study(self) -> Path:
        return self.run.parent

    def file(self, name: str) -> Path:
        """Make one of `FILES` be there as a run leaves it."""
        if name == WANDB:
            return run_files(self.run)[0]
        if name == STUDY:
            return self.study / STUDY
        path = self.run / name
        if name in (FAILURE, LEASE):
            result = json.loads((self.run / RESULT).read_text())
            (self.run / RESULT).unlink()
            path.write_text(json.dumps(result | {"status": "failed", "loss": None}))
        if name == LEASE:
            path.unlink()
            with Lease(self.run, ttl=60.0):
                shutil.copy(next(self.run.glob("lease.*.json")), self.root / "lease")
            shutil.move(self.root / "lease", path)
        return path

    def call(self, name: str, *more: str) -> Said:
        """A command as its console script calls it."""
        entry, words = COMMANDS[name]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", [name, *words, *more])
            code = 0
            try:
                entry()
            except SystemExit as end:
                code = int(end.code or 0)
        captured = self.capsys.readouterr()
        return Said(code, captured.out, captured.err)

    def contents(self) -> dict[Path, int]:
        """All there is, with the time of its last change."""
        return {p: p.lstat().st_mtime_ns for p in self.root.rglob("*")}


@pytest.fixture
def place(
    template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Iterator[Place]:  # fmt: skip
    root = tmp_path / "here"
    shutil.copytree(template, root)
    monkeypatch.chdir(root)
    return Place(root, root / "runs" / "s" / (root / "first").read_text(), capsys)


TELLS = {
    RESULT: ("lowbit-train", "lowbit-fit", "lowbit-report", "lowbit-status"),
    FAILURE: ("lowbit-train", "lowbit-fit", "lowbit-report", "lowbit-status"),
    STUDY: ("lowbit-fit", "lowbit-report", "lowbit-status", "lowbit-dashboard"),
    WANDB: ("lowbit-sync", "lowbit-dashboard"),
}
"""Who reads a file, and so says that it is damaged; to all others it makes no difference."""
NO_FILE = ("folder", "pipe", "link to nothing", "ring of links")
KINDS = list(DAMAGE)
CASES = [(file, kind) for file in FILES for kind in KINDS if (file, kind) not in (
    (WANDB, "cut"), (WANDB, "twice"), (WANDB, "empty"), (METRICS, "twice"),
    *((WANDB, kind) for kind in NO_FILE),
)]  # fmt: skip
"""A W&B file that is empty or ends early is whole as far as it goes; what is no file is none."""


def expected_code(file: str, command: str) -> int:
    if file == STUDY and command in TELLS[STUDY]:
        return 2
    not_done = file in (RESULT, FAILURE, LEASE)
    if (command == "lowbit-status" and not_done) or (command == "lowbit-sync" and file == WANDB):
        return 1
    return 0


def check(place: Place, file: str, kind: str, command: str) -> None:
    """Damage the file so, call the command, and look at all that it did."""
    path = place.file(file)
    DAMAGE[kind](path)
    before = place.contents()
    said = place.call(command)
    where = f"{file}, {kind}: {said}"
    told = said.out + said.err
    assert said.code == expected_code(file, command), where
    assert "bug of" not in told, where
    assert "Traceback" not in told, where
    assert said.err.count("\n") <= 1, where
    tells = command in TELLS.get(file, ())
    named = str(path.relative_to(place.root))
    assert sum(named in line for line in told.splitlines()) == tells, where
    written = {p for p, when in place.contents().items() if before.get(p) != when}
    assert before.keys() <= place.contents().keys()
    kept = place.root / WRITES.get(command, "nowhere")
    folders = {kept, *kept.parents}
    assert all(p in folders or p.is_relative_to(kept) for p in written), where
    if said.code != 2:
        _answered(place, file, command, said)


def _answered(place: Place, file: str, command: str, said: Said) -> None:
    """What is healthy is dealt with: of nine runs eight at the least, of three curves two."""
    whole = 8 if file in (RESULT, FAILURE, LEASE) else 9
    if command == "lowbit-train":
        assert f"9 runs, {whole} done" in said.out
    elif command == "lowbit-fit":
        fit = json.loads((place.root / "fits/s/fit.json").read_text())
        assert fit["rows"]["used"] == whole
        excluded = fit["rows"].get("excluded", {})
        assert excluded.get("damaged", 0) == (file in (RESULT, FAILURE))
    elif command == "lowbit-report":
        assert (place.root / "reports/s/index.html").is_file()
    elif command == "lowbit-status":
        assert f"{whole} of 9 runs done" in said.out
    elif command == "lowbit-sync":
        assert said.out.count("would be pushed") >= 2
    else:
        report = json.loads((place.study / "dashboard" / "report.json").read_text())
        runs = 2 if file == WANDB else 3
        assert f"{runs} runs. The table" in json.dumps(report)


loud = pytest.mark.filterwarnings("always::fitting.results.record.DamagedWarning")


@loud
@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("file", FILES)
def test_each_command_lives_with_damage_to_each_file(place: Place, file: str, command: str) -> None:
    """One kind of damage each, another for each pair; every kind in the long test."""
    kinds = [kind for name, kind in CASES if name == file]
    number = 7 * FILES.index(file) + list(COMMANDS).index(command)
    check(place, file, kinds[number % len(kinds)], command)


@loud
@pytest.mark.long
@pytest.mark.parametrize(("file", "kind"), CASES)
def test_every_damage_to_each_file_is_lived_with(place: Place, file: str, kind: str) -> None:
    """By one of the commands, another for the next kind: all of them would take ten minutes."""
    check(place, file, kind, [*COMMANDS][CASES.index((file, kind)) % len(COMMANDS)])


@pytest.mark.filterwarnings("always:written anew from this plan:UserWarning")
@pytest.mark.slow
def test_a_sweep_goes_on_beside_what_is_damaged(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """On Ray: five runs, then one file of each damaged and one run more; then the remedy."""
    monkeypatch.chdir(tmp_path)
    words = ["-m", *(word for word in GRID if "," not in word), "model=ladder/a", "tokens=1024"]
    words += ["tracking=none", "hydra.launcher.max_parallel=2"]

    def sweep(seeds: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["lowbit-train", *words, f"seed={seeds}"])
        code = 0
        try:
            commands.train()
        except SystemExit as end:
            code = int(end.code or 0)
        said = capfd.readouterr()
        return code, said.out + said.err

    assert sweep("0,1,2,3,4")[0] == 0
    study = Path("runs/s")
    runs = {int(f.name.split("-s")[-1].split("-")[0]): f for f in study.iterdir() if f.is_dir()}
    result = runs[0] / RESULT
    lost = {seed: json.loads((runs[seed] / RESULT).read_text())["loss"] for seed in runs}
    DAMAGE["cut"](result)
    DAMAGE["zeroed"](runs[1] / CONFIG)
    DAMAGE["garbage"](runs[2] / METRICS)
    (runs[3] / ATTEMPTS).write_bytes(b"")
    (runs[3] / RESULT).unlink()
    (runs[4] / "lease.7.json").write_bytes(b"")
    os.utime(runs[4] / "lease.7.json", (0, 0))
    (runs[4] / RESULT).unlink()
    DAMAGE["empty"](study / STUDY)
    code, said = sweep("0,1,2,3,4,5")
    assert code == 1
    assert "Traceback" not in said
    assert f"{result}: damaged (" in said
    for path in (result, runs[3] / ATTEMPTS, study / STUDY):
        assert str(path) in said, "path and remedy"
    (runs[3] / ATTEMPTS).unlink()
    result.unlink()
    words.append("retry_failed=true")
    code, said = sweep("0,1,2,3,4,5")
    assert (code, "damaged" in said) == (0, False)
    assert {seed: json.loads((runs[seed] / RESULT).read_text())["loss"] for seed in runs} == lost, (
        "made anew, to the bit"
    )
