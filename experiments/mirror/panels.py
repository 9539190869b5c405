"""The workspace and the report of a study in W&B, as specifications in JSON.

Made offline with W&B's own library, from `study.json` and the W&B files of the runs, so that no
panel names anything that no run has.  The same files give the same bytes.

Curves are grouped by everything that tells runs apart but the seed: a line is the mean over seeds,
its band their extremes.
"""

from __future__ import annotations

import colorsys
import hashlib
import json
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from experiments.mirror.files import read_run, run_files
from fitting.entry.errors import one_line
from fitting.results.record import DamagedWarning
from fitting.results.study_file import STUDY, read_study

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # pydantic's, of how its models are written
    import wandb_workspaces.reports.v2 as wr
    import wandb_workspaces.workspaces as ws
    from wandb_workspaces import expr

COLUMNS = ("quantization", "E", "M", "bits", "N", "D")
"""Names of `experiments.run.record.columns`."""
LOSS, TRAIN_LOSS = "validation/loss", "train/loss"
RATE, SPEED = "train/lr", "train/tokens_per_second"
_TABLE = (*(f"config:{name}.value" for name in (*COLUMNS, "seed")), f"summary:{LOSS}")
_MEASURES = {
    "qsnr": "QSNR in dB",
    "crest": "crest factor",
    "clipped": "share of values clipped",
    "underflown": "share of values that became 0",
    "scale_range": "log2 of largest over smallest scale",
    "shrinkage": "<x, Q(x)> / <x, x> - 1",
}
_MODEL = ("gradient_cosine/model", "gradient_norm_ratio/model")
_GROUP_BY = ("quantization", "model.name", "D")
_SCIENCE = re.compile(r"(model|data|optim|recipe)\..*|batch_size|compute_dtype")
_BESIDE = ("data.name", "data.path", "data.max_epochs")
_PARTS = re.compile(r"(\d+)").split
_MAX_LINES = 100
_TITLE_CHARACTERS = 128
"""Most characters that W&B accepts."""


@dataclass
class Logged:
    """The contents of a study in W&B, from its files on this machine."""

    name: str
    title: str
    description: str
    runs: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By run id: the configuration, nested keys joined by dots."""
    metrics: set[str] = field(default_factory=set)
    """Names of the columns of all histories."""
    projects: set[str] = field(default_factory=set)
    files: list[Path] = field(default_factory=list)
    """One for each attempt at a run."""

    @property
    def without_columns(self) -> int:
        """Runs that cannot be grouped, because they were logged before there were `COLUMNS`."""
        return sum(not set(COLUMNS) <= set(run) for run in self.runs.values())

    def values(self, key: str) -> list[Any]:
        """The distinct values of a key of the configuration, sorted."""
        found = {run[key] for run in self.runs.values() if key in run}
        return sorted(found, key=lambda value: (str(type(value)), value))


@dataclass(frozen=True)
class View:
    """A workspace or a report as W&B stores it."""

    kind: str
    """W&B's: project-view for a workspace, runs for a report."""
    name: str
    """Identifies it in its project; always the same for a study."""
    title: str
    description: str
    spec: dict[str, Any]

    def to_json(self) -> str:
        """The arguments of W&B's `upsertView`, except that it takes the specification as text."""
        content = {"type": self.kind, "name": self.name, "displayName": self.title}
        content |= {"description": self.description}
        return json.dumps(content | {"spec": self.spec}, indent=1, ensure_ascii=False) + "\n"

    def panels(self) -> Iterator[dict[str, Any]]:
        """Every panel, wherever it is in the specification."""
        return _panels(self.spec)


def _panels(part: Any) -> Iterator[dict[str, Any]]:
    if isinstance(part, dict) and "viewType" in part:
        yield part
    elif isinstance(part, dict | list):
        for below in part.values() if isinstance(part, dict) else part:
            yield from _panels(below)


def read_logged(folder: Path) -> Logged:
    """Read what the runs of the study in `folder` have logged to W&B so far.

    A run whose files cannot be used is left out, with a `DamagedWarning` of one line.

    Raises:
        FileNotFoundError: There is no study, or no run of it has a W&B file.
        ResultsError: study.json cannot be used.
    """
    if not (folder / STUDY).is_file():
        raise FileNotFoundError(f"study={folder.name}: there is no {folder / STUDY}")
    about = read_study(folder)
    found = Logged(about["name"], about["title"], about["description"])
    damaged = ""
    for run_id in sorted(about["planned"]):
        files = run_files(folder / run_id)
        if not files:
            continue
        try:
            run = read_run(folder / run_id, run_id)
            config = _checked(dict(_flat(run.config)), folder / run_id)
        except (OSError, ValueError, RecursionError) as error:
            damaged = damaged or one_line(error)
            warnings.warn(f"left out: {one_line(error)}", DamagedWarning, stacklevel=2)
            continue
        if not config:
            continue
        found.runs[run_id] = config
        found.metrics |= {name for row in run.history for name in row if name[0] != "_"}
        found.projects.add(run.project)
        found.files += files
    if not found.runs:
        raise FileNotFoundError(
            damaged
            or f"study={folder.name}: no run of it has W&B files; was it trained with "
            "tracking=none?"
        )
    return found


def _flat(config: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{above}{key}.")
        else:
            yield above + key, json.dumps(value) if isinstance(value, list) else value


def _checked(run: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A run's configuration, checked to have columns of the types that panels expect.

    Raises:
        ValueError: A column has another type.
    """
    for key in (*COLUMNS, "model.name"):
        value = run.get(key)
        if key in ("quantization", "model.name"):
            right = isinstance(value, str)
        else:
            right = type(value) is int or (type(value) is float and abs(value) < 1e300)
        if key in run and not right:
            said = one_line(repr(value))[:60]
            raise ValueError(f"{folder}: what it logged cannot be used ({key} is {said})")
    return run


def grouping(logged: Logged) -> list[str]:
    """Keys of the configuration such that runs which agree in them differ in their seed only.

    The quantization, then other keys in a fixed order if they tell runs apart that the previous
    ones do not.
    """
    keys: list[str] = []
    cells = 0
    others = sorted(
        {key for run in logged.runs.values() for key in run if _SCIENCE.fullmatch(key)}
        - {*_GROUP_BY, *_BESIDE}
    )
    for key in (*_GROUP_BY, *others):
        count = len({tuple(run.get(k) for k in (*keys, key)) for run in logged.runs.values()})
        if not keys or count > cells:
            keys.append(key)
            cells = count
    return keys


def workspace(logged: Logged) -> View:
    """The page for looking around: all runs of the study, a section for each question."""
    keys = grouping(logged)
    sections = [
        ws.Section(
            name=name,
            panels=panels,
            is_open=number == 0,
            panel_settings=ws.SectionPanelSettings(x_axis="tokens"),
        )
        for number, (name, panels) in enumerate(_sections(logged))
    ]
    made = ws.Workspace(
        entity="",
        project="",
        name=_text(logged.name),
        sections=sections,
        settings=ws.WorkspaceSettings(x_axis="tokens", max_runs=_MAX_LINES),
        runset_settings=ws.RunsetSettings(
            filters=expr.And(expr.Metric("Group") == logged.name),
            groupby=[expr.Config(key) for key in keys],
            order=[expr.Ordering(expr.Summary(LOSS), ascending=True)],
            group_colors=_colours(logged, keys),
            pinned_columns=list(_TABLE),
        ),
    )
    made._internal_runset_id = "runs"
    _number(panel for section in sections for panel in section.panels)
    spec = made._to_model().spec.model_dump(by_alias=True, exclude_none=True)
    # W&B finds a workspace by a name of this form, from 11 letters and digits in its address.
    name = f"nw-{hashlib.sha256(logged.name.encode()).hexdigest()[:11]}-v"
    return View("project-view", name, made.name, "", spec)


def report(logged: Logged) -> View:
    """The page for reading: the study from its question to the table of its runs."""
    keys = grouping(logged)
    everything = _runset(logged, "all runs", keys)
    blocks: list[Any] = [
        *([wr.P(logged.description)] if logged.description else []),
        wr.H1("Design"),
        wr.P(
            f"{len(logged.runs)} runs. The table counts them; runs of one cell differ only in what "
            "is not named, and in their seeds."
        ),
        wr.MarkdownBlock(_design(logged)),
        wr.H1("Loss on tokens"),
        wr.P(
            "A line is the mean over seeds, its band their extremes. Look at where the lines part: "
            "a gap that is there from the start is a floor of the format, one that opens late is "
            "the limit of its precision. A gap smaller than the bands is noise."
        ),
    ]
    for model in logged.values("model.name"):
        sizes = {r["N"] for r in logged.runs.values() if r.get("model.name") == model and "N" in r}
        size = f": N = {' or '.join(f'{n:,}' for n in sorted(sizes))}" if sizes else ""
        curves = [_line(TRAIN_LOSS, "Training loss", w=16, h=12), _bars(LOSS, w=8, h=12)]
        blocks += [wr.H2(f"{model}{size}"), _grid([_runset(logged, model, keys, model)], curves)]
    blocks += [
        wr.H1("Loss against bits, size and data"),
        wr.P(
            "A point is a run. With enough bits, points of one N and D coincide: the loss no "
            "longer depends on the format. For a fit to them see the page of lowbit-report."
        ),
        _grid([everything], _scatters()),
    ]
    rounding = [*_qsnr(logged), *(name for name in _MODEL if name in logged.metrics)]
    if rounding:
        blocks += [
            wr.H1("What rounding does"),
            wr.P(
                "QSNR of each rounded operand, P1 to P6, mean over layers; 6 dB are one bit. Then "
                "the gradient against the unquantized one of the same weights and batch: a cosine "
                "of 1 is the same direction. Look at which operand is lowest, and whether the "
                "cosine falls while training goes on."
            ),
            _grid([everything], [_line(name) for name in rounding]),
        ]
    blocks += [
        wr.H1("Speed"),
        wr.P("Tokens per second of one run. Runs that shared a machine slowed each other down."),
        _grid([everything], [_line(SPEED, w=24)]),
        wr.H1("Runs"),
        wr.P("Best first. N: parameters of the blocks' matrices, D: training tokens."),
        _grid([_runset(logged, "table", [])], [_coordinates(w=24, h=8)]),
    ]
    grids = [block for block in blocks if isinstance(block, wr.PanelGrid)]
    _number(panel for grid in grids for panel in grid.panels)
    for number, runset in enumerate(runset for grid in grids for runset in grid.runsets):
        runset._id = f"runs{number}"
    title = _text(logged.title)[:_TITLE_CHARACTERS]
    made = wr.Report(entity="", project="", title=title, blocks=blocks, width="fluid")
    spec = made._to_model().spec.model_dump(by_alias=True, exclude_none=True)
    name = f"lowbit-{hashlib.sha256(logged.name.encode()).hexdigest()[:11]}"
    return View("runs", name, title, f"Study {logged.name}, made by lowbit-dashboard.", spec)


def _sections(logged: Logged) -> list[tuple[str, list[Any]]]:
    """Sections of the workspace, name and panels, without those for which nothing was logged."""
    curves = [_line(TRAIN_LOSS, "Training loss"), _bars(LOSS), *_scatters(), _coordinates()]
    found = [("Loss", curves), ("Speed and learning rate", [_line(SPEED), _line(RATE)])]
    found += [("Rounded after training", [_bars(n) for n in _below(logged, "ptq")])]
    found += [("Adapter merged", [_bars(n) for n in _below(logged, "merged")])]
    found += [("Gradient against the unquantized", [_line(n) for n in _MODEL])]
    means = _means(logged)
    for measure in sorted({name.partition("/")[0] for name in means}, key=_rank):
        names = [name for name in means if name.startswith(f"{measure}/")]
        title = f"{_MEASURES.get(measure, measure)}: mean over layers"
        found += [(title, [_line(name) for name in names])]
    # A section for every measure, operand and layer would be too many to find one.
    by_layer = ["gradient_cosine", *(name.replace("/", "_") for name in _qsnr(logged))]
    for section in by_layer:
        names = [name for name in _below(logged, section) if name not in _MODEL]
        found += [(f"By layer: {section}", [_line(name) for name in names])]
    kept = [(name, [p for p in panels if _is_logged(p, logged)]) for name, panels in found]
    return [(name, panels) for name, panels in kept if panels]


def _is_logged(panel: Any, logged: Logged) -> bool:
    """Whether a curve has rows in some run; in a study that has just begun, the loss is to come."""
    curve = isinstance(panel, wr.LinePlot)
    return not curve or panel.y[0] in logged.metrics or panel.y[0].startswith("train/")


def _qsnr(logged: Logged) -> list[str]:
    return [name for name in _means(logged) if name.startswith("qsnr/")]


def _means(logged: Logged) -> list[str]:
    """Measures of operands that are means over layers, as qsnr/P1, most telling measure first."""
    found = [name for name in logged.metrics if re.fullmatch(r"\w+/P[1-6]", name)]
    return sorted(found, key=lambda name: (*_rank(name.partition("/")[0]), name))


def _rank(measure: str) -> tuple[int, str]:
    known = list(_MEASURES)
    return (known.index(measure) if measure in known else len(known), measure)


def _below(logged: Logged, section: str) -> list[str]:
    """Metrics of a section, layer 2 before layer 10."""
    found = [name for name in logged.metrics if name.startswith(f"{section}/")]
    return sorted(found, key=lambda name: [int(p) if p.isdigit() else p for p in _PARTS(name)])


def _line(metric: str, title: str = "", **layout: int) -> Any:
    panel = wr.LinePlot(x="tokens", y=[metric], title=title or metric, title_x="tokens")
    panel.layout = wr.Layout(**layout)
    return panel


def _bars(metric: str, **layout: int) -> Any:
    panel = wr.BarPlot(metrics=[metric], title=metric, max_bars_to_show=_MAX_LINES)
    panel.layout = wr.Layout(**layout)
    return panel


def _scatters() -> list[Any]:
    loss = wr.SummaryMetric(LOSS)
    return [
        wr.ScatterPlot(x=wr.Config("bits"), y=loss, z=wr.Config("N"), title="Loss and bits"),
        wr.ScatterPlot(
            x=wr.Config("N"), y=loss, z=wr.Config("bits"), log_x=True, title="Loss and size N"
        ),
        wr.ScatterPlot(
            x=wr.Config("D"), y=loss, z=wr.Config("bits"), log_x=True, title="Loss and tokens D"
        ),
    ]


def _coordinates(**layout: int) -> Any:
    columns = [
        wr.ParallelCoordinatesPlotColumn(metric=wr.Config(name), log=name in "ND" or None)
        for name in COLUMNS[1:]
    ]
    columns.append(wr.ParallelCoordinatesPlotColumn(metric=wr.SummaryMetric(LOSS)))
    panel = wr.ParallelCoordinatesPlot(columns=columns, title="E, M, bits, N, D and the loss")
    panel.layout = wr.Layout(**layout)
    return panel


def _runset(logged: Logged, name: str, keys: Sequence[str], model: str = "") -> Any:
    chosen = [expr.Metric("Group") == logged.name]
    if model:
        chosen.append(expr.Tags().isin([model]))
    return wr.Runset(
        name=name,
        filters=expr.And(*chosen),
        groupby=[f"config.{key}" for key in keys],
        order=[wr.OrderBy(wr.SummaryMetric(LOSS), ascending=True)],
        pinned_columns=["run:displayName", *_TABLE],
    )


def _grid(runsets: list[Any], panels: list[Any]) -> Any:
    return wr.PanelGrid(runsets=runsets, panels=panels)


def _number(panels: Iterator[Any]) -> None:
    """Replace the library's random names, so that the same study gives the same bytes."""
    for number, panel in enumerate(panels):
        panel._id = f"panel{number}"


def _colours(logged: Logged, keys: Sequence[str]) -> dict[object, object]:
    """A hue for each quantization, its groups included; grey for none."""
    quantized = [name for name in logged.values("quantization") if name != "none"]
    hues = {
        name: "#" + "".join(f"{round(255 * c):02x}" for c in colorsys.hls_to_rgb(h, 0.45, 0.7))
        for n, name in enumerate(quantized)
        for h in [n / len(quantized)]
    }
    found: dict[object, object] = {}
    for run in logged.runs.values():
        path = [str(run.get(key)) for key in keys]
        for depth in range(1, len(path) + 1):
            group = path[0] if depth == 1 else ws.GroupPath(*path[:depth])
            found[group] = hues.get(path[0], "#808080")
    return dict(sorted(found.items(), key=lambda item: str(item[0])))


def _design(logged: Logged) -> str:
    """The number of runs by quantization and by size and tokens, as a table in Markdown."""
    cells = Counter(
        (str(r.get("quantization")), (str(r.get("model.name")), int(r.get("D", 0))))
        for r in logged.runs.values()
    )
    rows = sorted({row for row, _ in cells})
    columns = sorted({column for _, column in cells})
    lines = ["quantization", *(f"{model}, {tokens:,} tokens" for model, tokens in columns)]
    table = [lines, ["---"] * len(lines)]
    table += [[row, *(str(cells[row, column] or "") for column in columns)] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in table)


def _text(title: str) -> str:
    """The text without symbols, which W&B refuses in names."""
    return re.sub(r"[^\w\s.,:;?!()/&%'\"-]", " ", title).strip() or "study"
