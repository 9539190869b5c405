"""Workspace and report name what runs log and nothing else, and a push makes each of them once."""

import json
import os
import pty
import re
import select
import shlex
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from experiments import dashboard, panels, sync
from experiments.config import TrainConfig
from experiments.diagnostics import MEASURES
from experiments.sync import UsageError
from experiments.train import train
from experiments.wandb_files import read_run
from tests.wandb_server import KEY, WandbServer

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "wandb.md").read_text()
SMALL = ("data=tokens", "data.seq_len=64", "batch_size=4", "tokens=4096", "tracking.log_every=2")
SMALL += ("diagnostics.points=2", "diagnostics.apart=2", "study.name=s")
RUNS = (
    ("recipe=none", "model=ladder/a"),
    ("recipe=none", "model=ladder/a", "seed=1"),
    ("recipe=nearest", "model=ladder/b", "precision=e2m1", "ptq.formats=[int4_row]"),
)


def write_study(folder: Path, planned: list[str], **about: str) -> None:
    content = {"name": folder.name, "title": "How few bits?", "description": "Three runs."}
    (folder / "study.json").write_text(json.dumps(content | about | {"planned": planned}))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with runs/s: three runs as lowbit-train does them, offline, in little time."""
    from hydra import compose, initialize_config_dir
    from omegaconf import open_dict

    from experiments.config import from_hydra
    from experiments.paths import conf_dir

    folder = tmp_path_factory.mktemp("study")
    (folder / "text.txt").write_text("the run of a model in few bits costs some loss\n" * 2000)
    planned = []
    for overrides in RUNS:
        given = [*overrides, *SMALL, f"data.path={folder / 'text.txt'}", f"runs={folder / 'runs'}"]
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            cfg = compose("train", overrides=given)
        with open_dict(cfg):
            cfg.pop("hydra", None)
        result = train(from_hydra(cfg))
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


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, study: Path) -> Iterator[WandbServer]:
    with WandbServer() as running:
        monkeypatch.setenv("WANDB_BASE_URL", running.url)
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        yield running


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
    sizes = [r.name for b in blocks if isinstance(b, internal.PanelGrid) for r in b.metadata.run_sets]
    assert sizes[:2] == ["ladder-a", "ladder-b"]


def test_same_runs_same_bytes(study: Path) -> None:
    """Also in another process, with another seed of Python's hashes."""
    program = "from experiments.dashboard import run; run(['study=s'])"
    written = []
    for seed in ("1", "2"):
        subprocess.run(
            [sys.executable, "-c", program],
            env=os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)},
            check=True,
            capture_output=True,
        )
        written.append([(study / "dashboard" / f).read_bytes() for f in dashboard.FILES.values()])
    assert written[0] == written[1]
    for content in written[0]:
        assert str(study).encode() not in content, "nothing of this machine"


def test_a_pushed_dashboard_is_made_once_and_then_kept_up_to_date(
    study: Path, server: WandbServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sync.run(["study=s"]) == 0
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


def command(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    program = "from experiments.dashboard import main; main()"
    return subprocess.run(
        [sys.executable, "-c", program, *words],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=60,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)} | environment,
    )


def test_a_dead_server_and_a_missing_key_end_the_command(study: Path, tmp_path: Path) -> None:
    dead = "http://127.0.0.1:9"
    words = ("push", "study=s", "timeout=3")
    done = command(*words, WANDB_BASE_URL=dead, WANDB_API_KEY=KEY)
    assert done.returncode == 1
    said = f"lowbit-dashboard: {dead} does not answer; nothing was lost, try again\n"
    assert done.stderr == said
    keyless = command(*words, WANDB_BASE_URL=dead, HOME=str(tmp_path), NETRC=str(tmp_path / "n"))
    assert keyless.returncode == 2
    assert keyless.stderr.startswith("lowbit-dashboard: no W&B key: log in with `wandb login`")
    assert keyless.stderr.count("\n") == 1


def test_help_teaches_and_a_wrong_request_exits_with_2() -> None:
    helped = command("--help")
    assert (helped.returncode, helped.stderr) == (0, "")
    assert "lowbit-dashboard push study=demo" in helped.stdout
    wrong = command("study=nowhere")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr.startswith("lowbit-dashboard: study=nowhere: there is no runs/nowhere")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["pull", "study=s"], "pull: must be push, study=NAME"),
        (["study=s", "colour=red"], "colour=red: must be push, study=NAME"),
        (["push"], "study=: which study"),
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


def test_runs_that_cannot_be_grouped_are_counted(
    study: Path, logged: panels.Logged, capsys: pytest.CaptureFixture[str]
) -> None:
    dashboard.run(["study=s"])
    assert "older version" not in capsys.readouterr().out
    for run in logged.runs.values():
        del run["bits"]
    assert logged.without_columns == len(RUNS)


def test_a_study_of_any_name_and_title_can_be_shown(logged: panels.Logged) -> None:
    """W&B refuses symbols in names, and titles of more than 128 characters."""
    odd = replace(logged, name="x>1 + α", title="Δ > 0.5 " * 40, description="")
    space, text = panels.workspace(odd), panels.report(odd)
    assert (space.title, len(text.title)) == ("x 1   α", 128)
    assert space.name != panels.workspace(logged).name


def leet(folder: str) -> str:
    """What `wandb leet` draws first on a terminal of 160 x 40, until it names its runs."""
    main, theirs = pty.openpty()
    wandb = Path(sys.executable).with_name("wandb")
    process = subprocess.Popen(
        [wandb, "leet", folder],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=os.environ | {"TERM": "xterm-256color", "COLUMNS": "160", "LINES": "40"},
        start_new_session=True,
    )
    drawn, deadline = "", time.monotonic() + 30
    try:
        import fcntl
        import struct
        import termios

        fcntl.ioctl(main, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 160, 0, 0))
        while time.monotonic() < deadline and "[3 items]" not in drawn and process.poll() is None:
            if select.select([main], [], [], 0.2)[0]:
                drawn += os.read(main, 65536).decode(errors="replace")
        os.write(main, b"q")
        process.wait(10)
    finally:
        process.kill()
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


def test_every_command_of_the_page_does_what_it_says(
    tmp_path: Path,
    server: WandbServer,
    monkeypatch: pytest.MonkeyPatch,
    composed: Callable[..., TrainConfig],
) -> None:
    """In the order of docs/wandb.md; models and text smaller than the page's."""
    folder = tmp_path / "page"
    folder.mkdir()
    (folder / "text.txt").write_text("the run of a model in few bits costs some loss\n" * 400)
    smaller = ["data=tokens", f"data.path={folder / 'text.txt'}", "data.max_epochs=100"]
    smaller += ["data.seq_len=64", "batch_size=4"]
    blocks = re.findall(r"^```sh\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    asked = [shlex.split(line, comments=True) for block in blocks for line in block.splitlines()]
    assert len(asked) >= 7
    modules = {
        "lowbit-train": "experiments.commands import train as main",
        "lowbit-sync": "experiments.sync import main",
        "lowbit-dashboard": "experiments.dashboard import main",
    }
    monkeypatch.chdir(folder)
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    seen = set()
    for words in asked:
        seen.add(" ".join(words[:2]) if words[0] == "wandb" else words[0])
        if words[0] == "lowbit-train":
            words = [*(w for w in words if not w.startswith("tokens=")), *smaller, "tokens=2048"]
        if words[:2] == ["wandb", "leet"] and words[2] != "inspect":
            assert Path(words[2]).is_dir()
            assert "[3 items]" in leet(words[2])
            continue
        where = [str(p) for word in words for p in (sorted(Path().glob(word)) if "*" in word else [word])]
        if words[0] == "wandb":
            full = [str(Path(sys.executable).with_name("wandb")), *where[1:]]
        else:
            full = [sys.executable, "-c", f"from {modules[words[0]]}; main()", *where[1:]]
        done = subprocess.run(
            full, capture_output=True, text=True, env=environment, timeout=120, check=False
        )
        assert done.returncode == 0, (words, done.stdout, done.stderr)
    assert seen == {*modules, "wandb leet"}
    assert len(server.runs) == 3
    assert len(server.views) == 2
