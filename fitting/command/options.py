"""Command lines of `lowbit-fit` and `lowbit-report`: options, their defaults, their help."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from fitting.entry.errors import UsageError
from fitting.entry.options import entries, listed, number, option, pairs, parse, positive, read
from fitting.figures import FIGURE_FILES
from fitting.results.swept import is_key

if TYPE_CHECKING:  # help does not wait for it
    from fitting.law.terms import Law

LAW_NAMES = (
    *("chinchilla", "floating_point", "unified", "quartet", "precision", "ptq", "qat"),
    *("compressed", "qat_switch", "fixed_ratio", "fine_tuning"),
)
"""The names of `fitting.laws.catalogue.LAWS`, whose import takes longer than help may take."""
OUR_COLUMNS = (
    "loss params tokens exponent mantissa block_size forward backward bits_w bits_a bits_kv "
    "bits_post gmse err_input err_weight err_grad_input_grad_output err_grad_input_weight "
    "err_grad_weight_grad_output err_grad_weight_input format_input format_weight "
    "format_grad_input_grad_output format_grad_input_weight format_grad_weight_grad_output "
    "format_grad_weight_input format_gmse run_id status seed cell model recipe granularity "
    "scale operands operand_values corpus compute_dtype format_post operands_post study bits "
    "scheme bits_with_scales params_head params_embedding params_total params_quantized "
    "unique_tokens flops train_loss bits_per_byte wall_seconds tokens_per_second attempts "
    "merged_loss quantize_backend numerics_version reason rank adapter_format "
    "err_trained"
).split()
"""Columns that a law, a page or the noise floor reads, and that another name may stand for."""


def _bounds(_: str, text: str) -> tuple[float, float]:
    low, _, high = text.partition("..")
    try:
        return float(low), float(high)
    except ValueError:
        raise ValueError("must be two numbers, LO..HI") from None


def refuse_unknown(columns: Mapping[str, str], laws: Iterable[Law]) -> None:
    """Refuse names that neither we nor the laws have for a column.

    Args:
        columns: Our names by which columns of a table are to be known, and theirs.
        laws: The laws that read them; one of a user's own may read any.

    Raises:
        UsageError: Names the first of them.
    """
    of_laws = (name for law in laws for name in (*law.columns, *law.schemes))
    known = list(dict.fromkeys([*OUR_COLUMNS, *of_laws]))
    for ours, theirs in columns.items():
        if ours not in known and not is_key(ours):
            close = difflib.get_close_matches(ours, known, n=1)
            hint = f"did you mean columns.{close[0]}?" if close else f"ours are {', '.join(known)}"
            raise UsageError(f"columns.{ours}={theirs}: not a column of ours; {hint}")


@dataclass(frozen=True)
class FitOptions:
    """Options of `lowbit-fit`."""

    study: str = option(
        "",
        "stands for results=runs/NAME out=reports/NAME; runs/NAME/study.json may set defaults for "
        "the options below",
        "NAME",
    )
    results: str = option(
        "",
        "a folder of runs, or a table of one row per run: .csv (with commas, semicolons or tabs), "
        ".tsv, .jsonl, .json, each also .gz, or .parquet",
        "PATH",
    )
    out: str = option("", "where fit.json goes", "FOLDER")
    law: str = option("", f"{', '.join(LAW_NAMES)}; or one of your own: law=mine.py:MINE", "NAME")
    compare: tuple[str, ...] = option(
        (),
        "rivals of law, judged by AIC, BIC and their predictions for runs that they were not "
        "fitted to; where no law is given, the first of them is fitted",
        "LAW,LAW",
    )
    columns: dict[str, str] = field(
        default_factory=dict,
        metadata=entries(
            "which column of the table stands for ours: columns.loss=val_loss (all laws need loss"
            " in nats per token, params, tokens; floating_point also exponent, mantissa, "
            "block_size; quartet forward and backward, names of schemes; precision bits_w, "
            "bits_a, bits_kv; ptq bits_post; qat block_size; compressed gmse; qat_switch bits, "
            "and as loss the best share of quantized tokens; fixed_ratio scheme, and no tokens; "
            "unified err_input and err_weight, or format_input and format_weight, formats' names:"
            " a column of them, one name, a text with columns in braces, "
            "'E{exponent}M{mantissa}-block{group}', or what a column's words stand for, 'scheme: "
            "QuEST=mxfp4_quest, RTN=mxfp4').  For ptq, a folder of runs made with "
            "ptq.formats=[...] gives one row per run and format, with format_post; the run itself"
            " has format_post none (its weights as trained) and the bits of its compute dtype.  "
            "THEIRS may be a formula: columns.params='N*1e9'.  Rows are repeats if they agree in "
            "all columns but the seed and the outcomes; where a column of your own is an outcome "
            "too, columns.cell=THEIRS says which rows are repeats",
            "OURS=THEIRS",
            lambda _, text: text,
        ),
    )
    where: str = option(
        "",
        "keep the rows for which it holds: comparisons, arithmetic, and, or, not, in; for a folder "
        'of runs also by any swept key: where="optim.lr == 0.016"',
        "EXPRESSION",
    )
    best_per: tuple[str, ...] = option(
        (),
        "fit only the run of least loss of each combination of these columns, such as the best "
        "learning rate of each size and length: best_per=params,tokens",
        "COLUMN,COLUMN",
    )
    objective: str = option(
        "huber", "function of the log residuals whose sum is minimised; or lad, least_squares"
    )
    objective_delta: float = option(
        1e-3, "Huber's threshold in log loss", "1e-3", key="objective.delta", read=positive
    )
    objective_overestimate: float = option(
        1.0,
        "how many times a run counts that lies below the law, so that runs that were not tuned "
        "well, which lie above, do not lift it",
        "10",
        key="objective.overestimate",
        read=positive,
    )
    weights: str = option("", "weight the rows, e.g. by how many seeds each averages", "COLUMN")
    freeze: dict[str, float] = field(
        default_factory=dict,
        metadata=entries(
            "hold a parameter fixed: freeze.E=1.8", "NAME=VALUE", lambda _, text: number(text)
        ),
    )
    bounds: dict[str, tuple[float, float]] = field(
        default_factory=dict,
        metadata=entries(
            "keep a parameter between two values: bounds.E=1..2, bounds.alpha=.2..inf",
            "NAME=LO..HI",
            _bounds,
        ),
    )
    bootstrap: int = option(1000, "draws for the intervals; 0 for none")
    cluster: str = option(
        "", "resample its values, each with all its runs, instead of runs: cluster=seed", "COLUMN"
    )
    predict: str = option(
        "",
        "runs that the fit is not to see, trained or planned (from lowbit-train -m ... "
        "plan_only=true plan_file=plan.csv): their losses, each with the 95 % interval in which a "
        "run should fall; a folder of runs or a table, as results=",
        "PATH",
    )
    starts: int = option(64, "points from which the search begins")
    evidence: bool = option(
        True,
        "no profile intervals and no held-out predictions, which take the longest",
        "false",
    )
    seed: int = option(0, "seed of the random starts and of the bootstrap")
    expect: str = option(
        "",
        "fit nothing, but predict which intervals the runs of results= (a plan, from lowbit-train "
        "-m ... plan_only=true plan_file=plan.csv) will give if this fit of a pilot is the truth; "
        "writes <out>/expected.json",
        "FIT.JSON",
    )
    noise: float = option(
        0.0, "with expect: standard deviation of log loss between seeds; else the pilot's", "0.01"
    )
    tables: int = option(100, "with expect: how many made-up tables are fitted")
    cost_k: float = option(
        0.375,
        "k of the cost C = k P N D of a run with P bits; 6/16 is 6 N D at 16 bits",
        key="cost.k",
        read=positive,
    )
    speedup_forward: float = option(
        2.0,
        "how much faster an FP4 forward pass is than FP8, for quartet's map of which precision "
        "pays where",
        key="speedup.forward",
        read=positive,
    )
    speedup_backward: float = option(
        2.0, "the same for a backward pass", key="speedup.backward", read=positive
    )
    speedup_measured: str = option(
        "nvfp4",
        "measured speeds of training over FP8:FP8 that the map sets beside these: "
        "FP4:FP4=1.16,FP4:FP8=1.05,FP8:FP4=1.1 (the last two where they are known), or nvfp4 "
        "(1.16), nvfp4_deepseek (.945), mxfp4_mi355x (1.095), whose sources the page names; or "
        "none",
        key="speedup.measured",
    )


@dataclass(frozen=True)
class ReportOptions:
    """Options of `lowbit-report`."""

    study: str = option(
        "", "stands for results=runs/NAME fit=reports/NAME out=reports/NAME", "NAME"
    )
    fit: str = option("", "where lowbit-fit wrote fit.json", "FOLDER")
    results: str = option(
        "",
        "a folder of runs, a .csv or a .parquet file; else the results.csv beside fit.json, whose "
        "columns have our names",
        "PATH",
    )
    out: str = option("", "where the page goes; else beside fit.json", "FOLDER")
    figures: tuple[str, ...] = option(
        FIGURE_FILES,
        "which files to write for each figure; else svg,pdf (PDF takes most of the time)",
        "svg",
    )
    law: str = option(
        "", "the law that was fitted, if it is your own; its file is run", "FILE.py:NAME"
    )
    compare: tuple[str, ...] = option(
        (),
        "(or --compare A B) two studies side by side, each a study's name or, with a slash in it, "
        "the folder of its report; goes to out, else to reports/A-vs-B",
        "A,B",
    )


FIT_HELP = """\
lowbit-fit: fit a scaling law to a table of losses.

  lowbit-fit study=demo law=floating_point
  lowbit-fit results=losses.csv law=chinchilla columns.params=N columns.tokens=D out=fits/mine
  lowbit-fit results=losses.csv law=chinchilla columns.params=N columns.tokens=D \\
      where="forward == 'BF16'" objective=huber objective.delta=1e-4 bootstrap=4000 out=fits/bf16
  lowbit-fit study=demo compare=floating_point,chinchilla freeze.epsilon=1.7

  lowbit-fit study=demo law=unified predict=plan.csv

Writes <out>/fit.json and <out>/results.csv and prints the fit and what follows from it.  Options,
as key=value:

""" + listed(FitOptions)

REPORT_HELP = """\
lowbit-report: make one self-contained HTML page from a study.

  lowbit-report study=demo
  lowbit-report fit=fits/mine
  lowbit-report results=losses.csv fit=fits/mine out=reports/mine
  lowbit-report --compare demo precision_grid

Writes <out>/index.html, its figures as SVG and PDF, its tables as CSV and LaTeX, and prints the
page's path.  Options, as key=value:

""" + listed(ReportOptions)


def fit_options(arguments: Sequence[str]) -> FitOptions:
    """Options as typed, with a study's own defaults for those that were not typed.

    Raises:
        UsageError: An unknown option, a value of the wrong kind, or one that is missing.
    """
    typed = pairs(FitOptions, arguments)
    options = read(FitOptions, typed)
    if options.study:
        typed = {"results": f"runs/{options.study}", "out": f"reports/{options.study}"} | typed
        options = read(FitOptions, typed)
    for key, example in (("results", "results=<path>"), ("out", "out=<folder>")):
        if not getattr(options, key):
            raise UsageError(f"{key}: missing; give study=<name> or {example}")
    options = read(FitOptions, _study_defaults(Path(options.results)) | typed)
    if not 0 <= options.noise < math.inf or options.tables < 2:
        raise UsageError(f"noise={options.noise:g} tables={options.tables}: at least 0, and 2")
    if options.expect:
        return options
    options = replace(options, law=options.law or next(iter(options.compare), ""))
    if not options.law:
        raise UsageError(f"law: missing; give law={' or law='.join(LAW_NAMES)}")
    if options.compare and set(options.compare) <= {options.law}:
        raise UsageError(f"compare={','.join(options.compare)}: name a law besides {options.law}")
    if options.compare and not options.evidence:
        raise UsageError("evidence=false: compare= judges laws by held-out runs; leave out one")
    if options.predict and not options.bootstrap:
        raise UsageError(f"predict={options.predict}: bootstrap=0 has no intervals; leave out one")
    if options.predict and options.objective_overestimate != 1:
        raise UsageError(
            f"objective.overestimate={options.objective_overestimate:g}: the law does not go "
            "through the middle of the runs, so that predict= has no interval for one; leave out "
            "one"
        )
    if options.cluster and not options.bootstrap:
        raise UsageError(f"cluster={options.cluster}: bootstrap=0 draws nothing; leave out one")
    return options


def report_options(arguments: Sequence[str]) -> ReportOptions:
    """Options as typed; paths that are not typed are the study's, or beside the fit.

    Raises:
        UsageError: An unknown option, neither a study nor a fit, or not two studies to compare.
    """
    options = parse(ReportOptions, _compared(arguments))
    if unknown := [name for name in options.figures if name not in FIGURE_FILES]:
        raise UsageError(f"figures={unknown[0]}: must be {', '.join(FIGURE_FILES)} or both")
    if compared := options.compare:
        if len(compared) != 2:
            raise UsageError(f"compare={','.join(compared)}: name two studies, compare=A,B")
        for key in ("study", "results", "fit"):
            if getattr(options, key):
                raise UsageError(f"{key}={getattr(options, key)}: compare names its studies")
        beside = "reports/" + "-vs-".join(Path(name).name for name in compared)
        return replace(options, out=options.out or beside)
    study = options.study
    fit = options.fit or (f"reports/{study}" if study else "")
    if not fit:
        raise UsageError("fit: missing; give study=<name> or fit=<folder>")
    results = options.results or (f"runs/{study}" if study else f"{fit}/results.csv")
    out = options.out or (f"reports/{study}" if study else fit)
    return replace(options, fit=fit, results=results, out=out)


def _compared(arguments: Sequence[str]) -> list[str]:
    """The arguments with `--compare A B` as compare=A,B."""
    words = list(arguments)
    if "--compare" not in words:
        return words
    start = words.index("--compare")
    names = words[start + 1 : start + 3]
    if len(names) < 2 or any("=" in name or name.startswith("-") for name in names):
        raise UsageError("--compare: name two studies or folders of reports, e.g. demo grid")
    return [*words[:start], "compare=" + ",".join(names), *words[start + 3 :]]


def place(name: str) -> tuple[Path, Path]:
    """Paths of a study's results and fit; it is given by name or, with a slash, by folder."""
    folder = Path(name) if "/" in name else Path("reports", name)
    runs = Path("runs", name)
    return (runs if "/" not in name and runs.is_dir() else folder / "results.csv"), folder


def _study_defaults(folder: Path) -> dict[str, str]:
    """The "fit" object of a study's study.json, as if typed.

    It may neither set `where` nor name a law's file: nothing read from a file is ever evaluated.
    """
    from fitting.files.own_json import ResultsError
    from fitting.results.study_file import STUDY, read_about

    path = folder / STUDY
    try:
        said = read_about(folder).get("fit", {})
    except FileNotFoundError:
        return {}
    except ResultsError as error:
        raise UsageError(str(error)) from error
    for key in ("where", "study", "results", "out"):
        if key in said:
            raise UsageError(f"{path}: fit.{key}: a study cannot set it; type it")
    for key in ("law", "compare"):
        if ":" in str(said.get(key, "")):  # it would be run
            raise UsageError(
                f"{path}: fit.{key}={said[key]}: a study cannot name a law's file; type it"
            )
    flat: dict[str, str] = {}
    for key, value in said.items():
        if isinstance(value, dict):
            flat |= {f"{key}.{name}": str(v) for name, v in value.items()}
        else:
            flat[key] = str(value)
    return flat
