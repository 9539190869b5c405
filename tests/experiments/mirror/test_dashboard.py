"""Workspace and report name what runs log and nothing else, and a push makes each of them once."""

import fcntl
import json
import os
import pty
import re
import select
import shlex
import signal
import struct
import subprocess
import sys
import termios
import time
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from experiments.configure import configure
from experiments.measure.diagnostics import MEASURES
from experiments.mirror import dashboard, panels, sync
from experiments.mirror.files import read_run
from experiments.train import train
from fitting.entry.errors import UsageError
from tests.support.places import ROOT
from tests.support.wandb_server import KEY, WandbServer

PAGE = (ROOT / "docs" / "wandb.md").read_text()
SMALL = ("data=tokens", "data.seq_len=64", "batch_size=4", "tokens=4096", "tracking.log_every=2")
SMALL += ("diagnostics.points=2", "diagnostics.apart=2", "study.name=s")
RUNS = (
    ("recipe=none", "model=ladder/a"),
    ("recipe=none", "model=ladder/a", "seed=1"),
    ("recipe=nearest", "model=ladder/b", "precision=e2m1", "ptq.formats=[int4_row]"),
)


def in_a_process(main: str, *words: str, **environment: str) -> str:
    """What a console script prints; it must end well."""
    done = subprocess.run(
        [sys.executable, "-c", f"from {main}; main()", *words],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=1200,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)} | environment,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def write_study(folder: Path, planned: list[str], **about: str) -> None:
    content = {"name": folder.name, "title": "How few bits?", "description": "Three runs."}
    (folder / "study.json").write_text(json.dumps(content | about | {"planned": planned}))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with runs/s: three runs as lowbit-train does them, offline, in little time."""
    folder = tmp_path_factory.mktemp("study")
    (folder / "text.txt").write_text("the run of a model in few bits costs some loss\n" * 2000)
    planned = []
    for overrides in RUNS:
        given = [*overrides, *SMALL, f"data.path={folder / 'text.txt'}", f"runs={folder / 'runs'}"]
        result = train(configure(*given))
        assert result.record.status == "finished"
        planned.append(result.folder.name)
    write_study(folder / "runs" / "s", planned)
    return folder


@pytest.fixture
def study(trained: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(trained)
    return trained / "runs" / "s"


@pytest.fixture
def logged(study: Path) -> panels.Logged:
    return panels.read_logged(study)


def named(part: Any) -> Iterator[tuple[str, str]]:
    """All that a specification says about columns: (history, summary, config or run, name).

    Read from W&B's JSON, not by what wrote it.
    """
    if isinstance(part, list):
        for below in part:
            yield from named(below)
    if not isinstance(part, dict):
        return
    for key, value in part.items():
        if key == "metrics":
            kind = "history" if part.get("xAxis") else "summary"
            yield from ((kind, name) for name in value)
        elif key in ("xAxis", "yAxis", "zAxis", "accessor", "columnOrder"):
            for text in value if isinstance(value, list) else [value]:
                section, colon, name = text.partition(":")
                yield (section, name) if colon else ("history", text)
        elif key in ("grouping", "filters"):
            entries = value["filters"] if key == "filters" else value
            for entry in entries:
                place = entry.get("key", entry)
                yield place["section"], place["name"]
        elif key == "keys":
            yield from ((e["key"]["section"], e["key"]["name"]) for e in value)
        else:
            yield from named(value)


def test_all_that_panels_name_is_in_the_files_of_the_runs(
    study: Path, logged: panels.Logged
) -> None:
    """W&B wraps each key of a configuration: precision.exponent is precision.value.exponent."""
    history, config = set(), set()
    for folder in study.glob("*-*"):
        run = read_run(folder)
        assert run.group == "s"
        history |= {name for row in run.history for name in row}
        for key, value in run.config.items():
            config.add(f"{key}.value")
            if isinstance(value, dict):
                config |= {f"{key}.value.{below}" for below in value}
    known = {"history": history, "summary": history, "config": config}
    known["run"] = {"group", "tags", "displayName"}
    for view in (panels.workspace(logged), panels.report(logged)):
        found = set(named(view.spec)) - {("history", "_step")}  # of settings that ask for nothing
        assert len(found) > 15
        assert not {(kind, name) for kind, name in found if name not in known[kind]}
        assert {("config", f"{name}.value") for name in ("E", "M", "bits", "N", "D")} <= found
        assert ("summary", "validation/loss") in found


def test_every_measure_of_a_run_has_its_panel(logged: panels.Logged) -> None:
    """But for the layers' crest factors and the like: qsnr and the cosine are shown by layer."""
    shown = {name for kind, name in named(panels.workspace(logged).spec) if kind != "config"}
    by_layer = {n for n in logged.metrics if "blocks." in n}
    assert logged.metrics - by_layer - {"step"} <= shown
    means = {name for name in logged.metrics if re.fullmatch(r"\w+/P\d", name)}
    assert {name.partition("/")[0] for name in means} == set(MEASURES)
    assert by_layer & shown == {n for n in by_layer if n.startswith(("qsnr_", "gradient_cosine/"))}
    layers = {n.partition("/")[2] for n in by_layer}
    assert len(by_layer & shown) == 7 * len(layers) == 7 * 8


def test_runs_are_grouped_by_all_but_their_seed(logged: panels.Logged) -> None:
    keys = panels.grouping(logged)
    cells = {tuple(run.get(key) for key in keys) for run in logged.runs.values()}
    assert cells == {("none",), ("nearest E2M1-block32-fp32",)}
    [quantized] = [run for run in logged.runs.values() if run["quantization"] != "none"]
    wider = replace(logged, runs=logged.runs | {"lr": quantized | {"optim.lr": 1.0, "seed": 3}})
    assert panels.grouping(wider) == ["quantization", "optim.lr"]
    more = quantized | {"D": 99, "tokens": 99, "data.path": "/elsewhere", "resources.cpus": 7}
    wider = replace(logged, runs=logged.runs | {"longer": more})
    assert panels.grouping(wider) == ["quantization", "D"]


def test_columns_of_a_run_are_those_of_its_record(study: Path, logged: panels.Logged) -> None:
    pairs = {"E": "exponent", "M": "mantissa", "bits": "bits", "N": "params", "D": "tokens"}
    for name, run in logged.runs.items():
        record = json.loads((study / name / "result.json").read_text())
        assert {ours: run[ours] for ours in pairs} == {k: record[v] for k, v in pairs.items()}


def test_the_librarys_models_take_both_back(logged: panels.Logged) -> None:
    """Each panel as its own type: one that the models do not know becomes UnknownPanel."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        from wandb_workspaces.reports.v2 import internal
        from wandb_workspaces.workspaces.internal import WorkspaceViewspec
    space, text = panels.workspace(logged), panels.report(logged)
    read = WorkspaceViewspec.model_validate_json(json.dumps(space.spec))
    assert read.model_dump(by_alias=True, exclude_none=True) == space.spec
    kinds = [type(p) for s in read.section.panel_bank_config.sections for p in s.panels]
    assert len(kinds) == len(list(space.panels()))
    assert not {kind.__name__ for kind in kinds} & {"UnknownPanel", "dict"}
    blocks = internal.Spec.model_validate_json(json.dumps(text.spec)).blocks
    assert "UnknownBlock" not in {type(block).__name__ for block in blocks}
    sizes = [
        r.name for b in blocks if isinstance(b, internal.PanelGrid) for r in b.metadata.run_sets
    ]
    assert sizes[:2] == ["ladder-a", "ladder-b"]


def test_same_runs_same_bytes(study: Path) -> None:
    """Also in another process, whose sets have another order."""
    files = [study / "dashboard" / name for name in dashboard.FILES.values()]
    dashboard.run(["study=s"])
    written = [file.read_bytes() for file in files]
    assert all(str(study).encode() not in content for content in written), "not of this machine"
    in_a_process("experiments.mirror.dashboard import main", "study=s", PYTHONHASHSEED="7")
    assert [file.read_bytes() for file in files] == written


def test_a_pushed_dashboard_is_made_once_and_then_kept_up_to_date(
    study: Path, server: WandbServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sync.run(["study=s", "timeout=300"]) == 0
    capsys.readouterr()
    assert {run.summary.keys() >= {"validation/loss"} for run in server.runs.values()} == {True}
    dashboard.run(["push", "study=s"])
    first = capsys.readouterr().out.splitlines()[-2:]
    space, text = server.views.values()
    assert (space.kind, text.kind) == ("project-view", "runs")
    assert re.fullmatch(r"nw-[0-9a-f]{11}-v", space.name)
    page = f"{server.url}/me/lowbit-scaling"
    assert first == [
        f"created  {page}?nw={space.name[3:-2]}",
        f"created  {page}/reports/How-few-bits--{text.id.rstrip('=')}",
    ]
    for view, file in ((space, "workspace.json"), (text, "report.json")):
        written = json.loads((study / "dashboard" / file).read_text())
        assert (view.spec, view.title) == (written["spec"], written["displayName"])

    server.views[text.id] = replace(text, spec={"changed": "by hand"})
    dashboard.run(["push", "study=s", "project=lowbit-scaling", "entity=me"])
    again = capsys.readouterr().out.splitlines()[-2:]
    assert again == [line.replace("created", "updated") for line in first]
    assert list(server.views) == [space.id, text.id]
    assert server.views[text.id].spec == text.spec
    for path in study.rglob("*"):
        assert not path.is_file() or KEY.encode() not in path.read_bytes(), path


@pytest.mark.parametrize(
    ("behaviour", "message"),
    [
        ({"status": 401}, "{url} refuses the key: log in again with `wandb login`"),
        ({"status": 403}, "{url} refuses the key: log in again with `wandb login`"),
        ({"delay": 60.0}, "{url} does not answer; nothing was lost, try again"),
        ({}, "there is no project me/lowbit-scaling on {url}, or none that you may see: "),
    ],
)
def test_a_server_that_does_not_take_it_costs_one_line_and_little_time(
    study: Path, monkeypatch: pytest.MonkeyPatch, behaviour: dict[str, Any], message: str
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    with WandbServer(**behaviour) as running:
        monkeypatch.setenv("WANDB_BASE_URL", running.url)
        started = time.monotonic()
        with pytest.raises(dashboard.PushError) as caught:
            dashboard.run(["push", "study=s", "timeout=3"])
        assert time.monotonic() - started < 30
        assert str(caught.value).startswith(message.format(url=running.url))
        assert "\n" not in str(caught.value)
        assert KEY not in str(caught.value)


@pytest.mark.parametrize(
    ("words", "key", "code", "message"),
    [
        (["push", "study=s", "timeout=3"], KEY, 1, "{dead} does not answer; nothing was lost"),
        (["push", "study=s"], "", 2, "no W&B key: log in with `wandb login`, or set WANDB_API_KEY"),
        (["study=nowhere"], "", 2, "study=nowhere: there is no runs/nowhere/study.json"),
        (["push"], "", 2, "study: missing; give study=<name>"),
    ],
)
def test_what_cannot_be_done_ends_the_command_with_one_line(
    study: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    key: str,
    code: int,
    message: str,
) -> None:
    dead = "http://127.0.0.1:9"
    monkeypatch.setenv("WANDB_BASE_URL", dead)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("NETRC", raising=False)
    if key:
        monkeypatch.setenv("WANDB_API_KEY", key)
    monkeypatch.setattr(sys, "argv", ["lowbit-dashboard", *words])
    with pytest.raises(SystemExit) as ended:
        dashboard.main()
    assert ended.value.code == code
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"lowbit-dashboard: {message.format(dead=dead)}")


def test_help_teaches() -> None:
    said = in_a_process("experiments.mirror.dashboard import main", "--help")
    assert "lowbit-dashboard push study=demo" in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["pull", "study=s"], "pull: must be key=value or push; see --help"),
        (["study=s", "colour=red"], "colour=red: no such option; there are study, runs, entity"),
        (["study=s", "timeout=inf"], "timeout=inf: must be a number of seconds, more than 0"),
        (["study=bare"], "study=bare: no run of it has W&B files; was it trained with"),
        (["push", "study=two"], "project=: the runs were logged to a and b; which one"),
    ],
)
def test_a_wrong_request_is_one_line(
    study: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], message: str
) -> None:
    (study.parent / "bare").mkdir(exist_ok=True)
    write_study(study.parent / "bare", ["never-begun"])
    if "study=two" in words:
        found = replace(panels.read_logged(study), projects={"a", "b"})
        monkeypatch.setattr(panels, "read_logged", lambda folder: found)
        (study.parent / "two").mkdir(exist_ok=True)
    with pytest.raises(UsageError, match=re.escape(message)):
        dashboard.run(words)


def test_runs_of_an_older_version_are_counted(
    study: Path,
    logged: panels.Logged,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Their panels stay; what they lack is said."""
    dashboard.run(["study=s"])
    assert "older version" not in capsys.readouterr().out
    for run in list(logged.runs.values())[:2]:
        for name in panels.COLUMNS:
            del run[name]
    monkeypatch.setattr(panels, "read_logged", lambda folder: logged)
    dashboard.run(["study=s"])
    assert "2 of 3 runs were logged by an older version" in capsys.readouterr().out


def test_a_study_of_any_name_and_title_can_be_shown(logged: panels.Logged) -> None:
    """W&B refuses symbols in names, and titles of more than 128 characters."""
    odd = replace(logged, name="a.b-v_1-v", title="Δ > 0.5 € " * 40, description="")
    space, text = panels.workspace(odd), panels.report(odd)
    assert len(text.title) == 128
    assert not set(text.title) & set(">€")
    assert space.name != panels.workspace(logged).name
    for view in (space, text):
        groups = {value for name, value in compared(view.spec) if name == "group"}
        assert groups == {"a.b-v_1-v"}


def compared(part: Any) -> Iterator[tuple[str, Any]]:
    """What a specification's filters compare with what."""
    if isinstance(part, dict) and {"key", "op", "value"} <= set(part):
        yield part["key"]["name"], part["value"]
    elif isinstance(part, dict | list):
        for below in part.values() if isinstance(part, dict) else part:
            yield from compared(below)


def wandb() -> str:
    return str(Path(sys.executable).with_name("wandb"))


def leet(folder: str) -> str:
    """What `wandb leet` draws first on a terminal of 160 x 40, until it names its runs."""
    main, theirs = pty.openpty()
    fcntl.ioctl(main, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 160, 0, 0))
    process = subprocess.Popen(
        [wandb(), "leet", folder],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=os.environ | {"TERM": "xterm-256color"},
        start_new_session=True,
    )
    drawn, deadline = "", time.monotonic() + 600
    try:
        while time.monotonic() < deadline and "[3 items]" not in drawn and process.poll() is None:
            if select.select([main], [], [], 0.2)[0]:
                drawn += os.read(main, 65536).decode(errors="replace")
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        os.close(main)
        os.close(theirs)
    return drawn


def test_leet_shows_all_runs_of_a_study_side_by_side(
    study: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The command that is printed; runs are linked once more each time, and synced once."""
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path))
    for _ in range(2):
        dashboard.run(["study=s"])
    said = capsys.readouterr().out
    [words] = {line.strip() for line in said.splitlines() if "wandb leet" in line}
    assert words == "wandb leet runs/s/dashboard/wandb"
    assert "(3 runs; h: help, q: quit)" in said
    assert len(list(Path("runs/s/dashboard/wandb").iterdir())) == 3
    assert "[3 items]" in leet(words.split()[-1])
    assert sync.run(["study=s", "dry_run=true"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3


ALL_COMMANDS = """
import json, sys
from experiments.command import main as commands
from experiments.mirror import dashboard, sync
mains = {"lowbit-train": commands.train, "lowbit-sync": sync.main}
for words in json.loads(sys.argv[1]):
    sys.argv = words
    try:
        (mains | {"lowbit-dashboard": dashboard.main})[words[0]]()
    except SystemExit as end:
        assert not end.code, (words, end.code)
"""


@pytest.mark.slow
def test_every_command_of_the_page_does_what_it_says(
    tmp_path: Path, server: WandbServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the order of docs/wandb.md, on less text; what follows each other shares a process."""
    (tmp_path / "text.txt").write_text("the run of a model in few bits costs some loss\n" * 400)
    less = ["data=tokens", f"data.path={tmp_path / 'text.txt'}", "data.max_epochs=100"]
    less += ["data.seq_len=64", "batch_size=4", "tokens=2048"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path))
    blocks = re.findall(r"^```sh\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    asked = [shlex.split(line, comments=True) for block in blocks for line in block.splitlines()]
    ours: list[list[str]] = []
    for words in [*asked, ["end"]]:
        if words[0].startswith("lowbit-"):
            training = words[0] == "lowbit-train"
            kept = [w for w in words if not (training and w.startswith("tokens="))]
            ours.append([*kept, *less] if training else kept)
            continue
        if ours:
            done = subprocess.run(
                [sys.executable, "-c", ALL_COMMANDS, json.dumps(ours)],
                capture_output=True,
                text=True,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
                timeout=1200,
            )
            assert done.returncode == 0, done.stderr
        ours = []
        if words[:3] == ["wandb", "leet", "inspect"]:
            [folder] = Path().glob(words[-1])
            text = subprocess.run([wandb(), *words[1:-1], folder], capture_output=True, text=True)
            assert re.search(r"^  validation/loss +\d\.\d", text.stdout, re.MULTILINE)
            assert re.search(r"^  E +2$", text.stdout, re.MULTILINE)
        elif words[0] == "wandb":
            assert "[3 items]" in leet(words[-1])
    assert {tuple(words[:2]) for words in asked if words[0] == "wandb"} == {("wandb", "leet")}
    assert len(asked) == 8
    assert len(server.runs) == 3
    assert len(server.views) == 2
