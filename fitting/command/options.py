"""What is typed after `lowbit-fit` and `lowbit-report`: options, their defaults, their help."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from fitting.entry.errors import UsageError
from fitting.figures import FIGURE_FILES
from fitting.results.swept import is_key

LAW_NAMES = ("chinchilla", "floating_point", "quartet", "precision", "ptq", "qat", "compressed")
"""Of `fitting.laws.catalogue.LAWS`: help must not wait for its import."""
OUR_COLUMNS = (
    "loss params tokens exponent mantissa block_size forward backward bits_w bits_a bits_kv "
    "bits_post gmse run_id status seed cell model recipe granularity scale operands "
    "operand_values corpus compute_dtype format_post operands_post study bits bits_with_scales "
    "params_head params_embedding params_total params_quantized unique_tokens flops train_loss "
    "bits_per_byte wall_seconds tokens_per_second attempts quantize_backend numerics_version reason"
).split()
"""Columns that a law, a page or the noise floor reads, and that another name may stand for."""
EXAMPLES = {"freeze": "E=1.8", "bounds": "E=1..2", "columns": "loss=val_loss"}

FIT_HELP = f"""\
lowbit-fit: fit a scaling law to a table of losses.

  lowbit-fit study=demo law=floating_point
  lowbit-fit results=losses.csv law=chinchilla columns.params=N columns.tokens=D out=fits/mine
  lowbit-fit results=losses.csv law=chinchilla columns.params=N columns.tokens=D \\
      where="forward == 'BF16'" objective=huber objective.delta=1e-4 bootstrap=4000 out=fits/bf16
  lowbit-fit study=demo compare=floating_point,chinchilla freeze.epsilon=1.7

Writes <out>/fit.json and <out>/results.csv and prints the fit and what follows from it.  Options,
as key=value:

  study=NAME           stands for results=runs/NAME out=reports/NAME; runs/NAME/study.json may set
                       defaults for the options below
  results=PATH         a folder of runs, or a table, one row per run: .csv (with commas, semicolons
                       or tabs), .tsv, .jsonl, each also .gz, or .parquet
  out=FOLDER           where fit.json goes
  law=NAME             {", ".join(LAW_NAMES)}
  compare=LAW,LAW      rivals of law, by AIC, BIC and what they predict of runs that they were not
                       fitted to; where no law is given the first of them is fitted
  columns.OURS=THEIRS  which of the table's columns is ours: columns.loss=val_loss
                       (loss in nats per token, params, tokens; floating_point also
                       exponent, mantissa, block_size; quartet forward and backward, names of
                       schemes; precision bits_w, bits_a, bits_kv; ptq bits_post; qat
                       block_size; compressed gmse).  For ptq a folder of runs made with
                       ptq.formats=[...] gives a row for each run and format, with format_post;
                       the run itself has format_post none and the bits of its compute dtype
                       THEIRS may be a formula: columns.params="N*1e9".  Rows are taken for
                       repeats if they agree in all columns but seed and what came out; where a
                       column of yours is an outcome too, columns.cell=THEIRS says what repeats
  where=EXPRESSION     keep the rows for which it holds: comparisons, arithmetic, and, or, not, in;
                       of a folder of runs also by what was swept: where="optim.lr == 0.016"
  objective=huber      of log residuals, summed over rows; or lad, least_squares
  objective.delta=1e-3 Huber's threshold in log loss
  weights=COLUMN       weigh the rows, e.g. by how many seeds each averages
  freeze.NAME=VALUE    hold a parameter: freeze.E=1.8
  bounds.NAME=LO..HI   keep it between two values: bounds.E=1..2, bounds.alpha=.2..inf
  bootstrap=1000       draws for the intervals; 0 for none
  cluster=COLUMN       draw its values instead of runs, each with all its runs: cluster=seed
  starts=64            points the search begins from
  evidence=false       no profile intervals and no held-out predictions, which take longest
  seed=0               of the starts and the bootstrap
  expect=FIT.JSON      fit nothing, but say which intervals the runs of results= (a plan, from
                       lowbit-train -m ... plan_only=true plan_file=plan.csv) can be hoped to give
                       if this fit of a pilot is the truth; writes <out>/expected.json
  noise=0.01           with expect: standard deviation of log loss between seeds; else the pilot's
  tables=100           with expect: how many tables are made up and fitted
  cost.k=0.375         of the cost C = k P N D of a run with P bits; 6/16 is 6 N D at 16 bits
  speedup.forward=2    how much faster an FP4 forward pass is than FP8, for quartet's map of
  speedup.backward=2   which precision pays where; and a backward pass
"""

REPORT_HELP = """\
lowbit-report: make one self-contained HTML page of a study.

  lowbit-report study=demo
  lowbit-report fit=fits/mine
  lowbit-report results=losses.csv fit=fits/mine out=reports/mine
  lowbit-report --compare demo precision_grid

Writes <out>/index.html, its figures as SVG and PDF, its tables as CSV and LaTeX, and prints the
page's path.  Options, as key=value:

  study=NAME    stands for results=runs/NAME fit=reports/NAME out=reports/NAME
  fit=FOLDER    where lowbit-fit wrote fit.json
  results=PATH  a folder of runs, a .csv or a .parquet file; else the results.csv beside fit.json,
                whose columns have our names
  out=FOLDER    where the page goes; else beside fit.json
  figures=svg   which files to write of each figure; else svg,pdf (PDF takes most of the time)
  law=mine.py:MINE  the law of your own that was fitted, if it was one
  compare=A,B   (or --compare A B) two studies side by side, each a study's name or, with a slash in
                it, the folder of its report; goes to out, else to reports/A-vs-B
"""


@dataclass
class FitOptions:
    """Options of `lowbit-fit`; a field's underscore is typed as a dot: objective.delta."""

    study: str = ""
    results: str = ""
    out: str = ""
    law: str = ""
    compare: tuple[str, ...] = ()
    columns: dict[str, str] = field(default_factory=dict)
    where: str = ""
    objective: str = "huber"
    objective_delta: float = 1e-3
    weights: str = ""
    freeze: dict[str, float] = field(default_factory=dict)
    bounds: dict[str, tuple[float, float]] = field(default_factory=dict)
    bootstrap: int = 1000
    cluster: str = ""
    starts: int = 64
    evidence: bool = True
    seed: int = 0
    cost_k: float = 0.375
    speedup_forward: float = 2.0
    speedup_backward: float = 2.0
    expect: str = ""
    noise: float = 0.0
    tables: int = 100


@dataclass
class ReportOptions:
    """Options of `lowbit-report`."""

    study: str = ""
    results: str = ""
    fit: str = ""
    out: str = ""
    figures: tuple[str, ...] = FIGURE_FILES
    compare: tuple[str, ...] = ()
    """Two studies, also typed as --compare A B."""
    law: str = ""
    """A law of the user's own, which fits may be of."""


Options = TypeVar("Options", FitOptions, ReportOptions)


def asks_for_help(arguments: Sequence[str]) -> bool:
    """Whether nothing was typed, or a word for help."""
    return not arguments or any(a in ("-h", "--help", "help") for a in arguments)


def fit_options(arguments: Sequence[str]) -> FitOptions:
    """Options as typed, with a study's own defaults for those that were not.

    Raises:
        UsageError: An unknown option, a value of the wrong kind, or one that is missing.
    """
    typed = _pairs(arguments)
    options = parse(typed, FitOptions())
    if options.study:
        typed.setdefault("results", f"runs/{options.study}")
        typed.setdefault("out", f"reports/{options.study}")
        options = parse(typed, options)
    for key, example in (("results", "results=<path>"), ("out", "out=<folder>")):
        if not getattr(options, key):
            raise UsageError(f"{key}: missing; give study=<name> or {example}")
    options = parse({**_study_defaults(Path(options.results)), **typed}, FitOptions())
    if options.noise < 0 or options.tables < 2:
        raise UsageError(f"noise={options.noise:g} tables={options.tables}: at least 0, and 2")
    if options.expect:
        return options
    options.law = options.law or next(iter(options.compare), "")
    if not options.law:
        raise UsageError(f"law: missing; give law={' or law='.join(LAW_NAMES)}")
    if options.compare and set(options.compare) <= {options.law}:
        raise UsageError(f"compare={','.join(options.compare)}: name a law besides {options.law}")
    for key in ("cost.k", "speedup.forward", "speedup.backward", "objective.delta"):
        value = getattr(options, key.replace(".", "_"))
        if not 0 < value < math.inf:
            raise UsageError(f"{key}={value}: must be a positive number")
    if options.compare and not options.evidence:
        raise UsageError("evidence=false: compare= judges laws by held-out runs; leave out one")
    if options.cluster and not options.bootstrap:
        raise UsageError(f"cluster={options.cluster}: bootstrap=0 draws nothing; leave out one")
    return options


def report_options(arguments: Sequence[str]) -> ReportOptions:
    """Options as typed; what is not is in the study's places, or beside the fit.

    Raises:
        UsageError: An unknown option, neither a study nor a fit, or not two to compare.
    """
    others, compared = _compared(arguments)
    options = parse(_pairs(others), ReportOptions())
    compared = compared or options.compare
    if unknown := [name for name in options.figures if name not in FIGURE_FILES]:
        raise UsageError(f"figures={unknown[0]}: must be {', '.join(FIGURE_FILES)} or both")
    if compared:
        if len(compared) != 2:
            raise UsageError(f"compare={','.join(compared)}: name two studies, compare=A,B")
        options.compare = compared
        for key in ("study", "results", "fit"):
            if getattr(options, key):
                raise UsageError(f"{key}={getattr(options, key)}: compare names its studies")
        options.out = options.out or "reports/" + "-vs-".join(Path(n).name for n in compared)
        return options
    if options.study:
        options.results = options.results or f"runs/{options.study}"
        options.fit = options.fit or f"reports/{options.study}"
        options.out = options.out or f"reports/{options.study}"
    if not options.fit:
        raise UsageError("fit: missing; give study=<name> or fit=<folder>")
    options.results = options.results or f"{options.fit}/results.csv"
    options.out = options.out or options.fit
    return options


def _compared(arguments: Sequence[str]) -> tuple[list[str], tuple[str, ...]]:
    """The arguments without `--compare A B`, and A and B."""
    others = list(arguments)
    if "--compare" not in others:
        return others, ()
    start = others.index("--compare")
    names = others[start + 1 : start + 3]
    if len(names) < 2 or any("=" in name or name.startswith("-") for name in names):
        raise UsageError("--compare: name two studies or folders of reports, e.g. demo grid")
    return others[:start] + others[start + 3 :], tuple(names)


def place(name: str) -> tuple[Path, Path]:
    """Where the results and the fit of a study to compare are: a name, or with a slash a folder."""
    folder = Path(name) if "/" in name else Path("reports", name)
    runs = Path("runs", name)
    return (runs if "/" not in name and runs.is_dir() else folder / "results.csv"), folder


def _pairs(arguments: Sequence[str]) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if "[" in key:  # a scheme's name may hold anything: freeze.eff_N[a=b]=1
            key, equals, value = argument.rpartition("=")
        if not equals:
            raise UsageError(f"{argument}: options are key=value; try --help")
        if key in pairs:
            raise UsageError(f"{argument}: {key} is given twice")
        pairs[key] = value
    return pairs


def _study_defaults(folder: Path) -> dict[str, str]:
    """The "fit" object of a study's study.json, as if typed.

    It may not set `where` nor name a law's file: what is read from a file is never evaluated.
    """
    from fitting.files.own_json import ResultsError
    from fitting.results.study_file import STUDY, read_about

    path = folder / STUDY
    try:
        pairs = read_about(folder).get("fit", {})
    except FileNotFoundError:
        return {}
    except ResultsError as error:
        raise UsageError(str(error)) from error
    for key in ("where", "study", "results", "out"):
        if key in pairs:
            raise UsageError(f"{path}: fit.{key}: a study cannot set it; type it")
    for key in ("law", "compare"):
        if ":" in str(pairs.get(key, "")):  # it would be run
            raise UsageError(
                f"{path}: fit.{key}={pairs[key]}: a study cannot name a law's file; type it"
            )
    flat: dict[str, str] = {}
    for key, value in pairs.items():
        if isinstance(value, dict):
            flat |= {f"{key}.{name}": str(v) for name, v in value.items()}
        else:
            flat[key] = str(value)
    return flat


def parse(pairs: Mapping[str, str], options: Options) -> Options:
    """A copy of `options` with `pairs` (key -> text) put in.

    A dot in a key is a field's second word (objective.delta) or a dictionary's key (freeze.E).

    Raises:
        UsageError: No such option, or the text is not of its kind.
    """
    known = {f.name: getattr(options, f.name) for f in fields(options)}
    values: dict[str, Any] = {k: dict(v) if isinstance(v, dict) else v for k, v in known.items()}
    for key, text in pairs.items():
        name = key.replace(".", "_")
        head, _, tail = key.partition(".")
        if name in known and not isinstance(known[name], dict) and "_" not in key:
            values[name] = _convert(key, text, type(known[name]))
        elif isinstance(known.get(head), dict) and (tail or "." in key):
            if not tail.strip():
                example = EXAMPLES[head]
                raise UsageError(f"{key}={text}: names nothing; e.g. {head}.{example}")
            values[head][tail] = _entry(head, key, text)
        else:
            names = [
                f"{k}.<name>" if isinstance(v, dict) else k.replace("_", ".")
                for k, v in known.items()
            ]
            close = difflib.get_close_matches(key, names, n=1, cutoff=0.5)
            hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(names)}"
            raise UsageError(f"{key}={text}: no such option; {hint}")
    return type(options)(**values)


def _entry(head: str, key: str, text: str) -> Any:
    """What stands for `text` in the dictionary `head`."""
    if head == "columns":
        return _column(key, text)
    if head != "bounds":
        return _convert(key, text, float)
    low, _, high = text.partition("..")
    try:
        return float(low), float(high)
    except ValueError:
        raise UsageError(f"{key}={text}: must be two numbers, LO..HI") from None


def _column(key: str, text: str) -> str:
    """The name of a column of theirs, if `key` names one of ours."""
    ours = key.partition(".")[2]
    if ours not in OUR_COLUMNS and not is_key(ours):
        close = difflib.get_close_matches(ours, OUR_COLUMNS, n=1)
        hint = (
            f"did you mean columns.{close[0]}?" if close else f"ours are {', '.join(OUR_COLUMNS)}"
        )
        raise UsageError(f"{key}={text}: no column of ours; {hint}")
    return text


def _convert(key: str, text: str, kind: type) -> Any:
    if kind is tuple:
        return tuple(dict.fromkeys(text.split(",")))
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise UsageError(f"{key}={text}: must be true or false")
        return text.lower() == "true"
    try:
        return kind(text)
    except ValueError:
        what = {int: "a whole number", float: "a number"}[kind]
        raise UsageError(f"{key}={text}: must be {what}") from None
