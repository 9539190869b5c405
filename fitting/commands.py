"""The console scripts `lowbit-fit` and `lowbit-report`."""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fitting import results
from fitting.analysis import derived
from fitting.fit import Fit, FitError, select_rows
from fitting.fit import fit as fit_law
from fitting.laws import LAWS
from fitting.results import ResultsError
from fitting.uncertainty import bootstrap, intervals, noise_floor, standard_errors, vague

FIT_HELP = """\
lowbit-fit: fit a scaling law to a table of losses.

  lowbit-fit study=demo law=floating_point
  lowbit-fit results=losses.csv law=chinchilla columns.params=N columns.tokens=D out=fits/mine
  lowbit-fit results=losses.csv law=chinchilla columns.params=N columns.tokens=D \\
      where="forward == 'BF16'" objective=huber objective.delta=1e-4 bootstrap=4000 out=fits/bf16

Writes <out>/fit.json and <out>/results.csv and prints the fit.  Options, as key=value:

  study=NAME           stands for results=runs/NAME out=reports/NAME; runs/NAME/study.json may set
                       defaults for the options below
  results=PATH         a folder of runs, a .csv or a .parquet file: one row a run
  out=FOLDER           where fit.json goes
  law=NAME             {laws}
  columns.OURS=THEIRS  which of the table's columns is ours: columns.loss=val_loss
                       (loss in nats per token, params, tokens; floating_point also
                       exponent, mantissa, block_size; quartet forward and backward, names of
                       schemes; precision bits_w, bits_a, bits_kv; ptq bits_post; qat
                       block_size; compressed gmse)
  where=EXPRESSION     keep the rows for which it holds (a pandas query)
  objective=huber      of log residuals, summed over rows; or lad, least_squares
  objective.delta=1e-3 Huber's threshold in log loss
  freeze.NAME=VALUE    hold a parameter: freeze.E=1.8
  bootstrap=1000       draws for the intervals; 0 for none
  starts=64            points the search begins from
  seed=0               of the starts and the bootstrap
"""

REPORT_HELP = """\
lowbit-report: make one self-contained HTML page of a study.

  lowbit-report study=demo
  lowbit-report results=losses.csv fit=fits/mine out=reports/mine

Writes <out>/index.html and prints its path.  Options, as key=value:

  study=NAME    stands for results=runs/NAME fit=reports/NAME out=reports/NAME
  results=PATH  a folder of runs, a .csv or a .parquet file
  fit=FOLDER    where lowbit-fit wrote fit.json
  out=FOLDER    where the page goes
"""

ENOUGH_DRAWS = 0.95


class UsageError(ValueError):
    """An option that cannot be meant as typed."""


@dataclass
class FitOptions:
    """Options of `lowbit-fit`; `objective_delta` is typed objective.delta."""

    study: str = ""
    results: str = ""
    out: str = ""
    law: str = ""
    columns: dict[str, str] = field(default_factory=dict)
    where: str = ""
    objective: str = "huber"
    objective_delta: float = 1e-3
    freeze: dict[str, float] = field(default_factory=dict)
    bootstrap: int = 1000
    starts: int = 64
    seed: int = 0


@dataclass
class ReportOptions:
    """Options of `lowbit-report`."""

    study: str = ""
    results: str = ""
    fit: str = ""
    out: str = ""


Options = TypeVar("Options", FitOptions, ReportOptions)


def fit() -> None:
    """Entry point of `lowbit-fit`."""
    _main("lowbit-fit", _fit_command)


def report() -> None:
    """Entry point of `lowbit-report`."""
    _main("lowbit-report", _report_command)


def _main(name: str, command: Callable[[Sequence[str]], None]) -> None:
    """Run a command; a user's mistake is one line on stderr and exit code 2."""
    try:
        command(sys.argv[1:])
    except (UsageError, ResultsError, FitError) as error:
        sys.stderr.write(f"{name}: {error}\n")
        sys.exit(2)


def _report_command(arguments: Sequence[str]) -> None:
    if _asks_for_help(arguments):
        sys.stdout.write(REPORT_HELP)
        return
    options = parse(_pairs(arguments), ReportOptions())
    if options.study:
        options.results = options.results or f"runs/{options.study}"
        options.fit = options.fit or f"reports/{options.study}"
        options.out = options.out or f"reports/{options.study}"
    for key in ("results", "fit", "out"):
        if not getattr(options, key):
            raise UsageError(f"{key}: missing; give study=<name> or {key}=<path>")
    from fitting.report import write_report  # matplotlib is slow to import

    page = write_report(Path(options.results), Path(options.fit), Path(options.out))
    sys.stdout.write(f"{page}\n")


def _fit_command(arguments: Sequence[str]) -> None:
    if _asks_for_help(arguments):
        sys.stdout.write(FIT_HELP.format(laws=" or ".join(LAWS)))
        return
    options = fit_options(arguments)
    _show(run_fit(options), Path(options.out))


def _asks_for_help(arguments: Sequence[str]) -> bool:
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
    if not options.law:
        raise UsageError(f"law: missing; give law={' or law='.join(LAWS)}")
    return options


def _pairs(arguments: Sequence[str]) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals:
            raise UsageError(f"{argument}: options are key=value; try --help")
        if key in pairs:
            raise UsageError(f"{argument}: {key} is given twice")
        pairs[key] = value
    return pairs


def _study_defaults(folder: Path) -> dict[str, str]:
    """The "fit" object of a study's study.json, as if typed.

    It may not set `where`: an expression is evaluated, and nothing read from a file is.
    """
    path = folder / results.STUDY
    if not path.is_file():
        return {}
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
        pairs = dict(settings.get("fit", {}))
    except (json.JSONDecodeError, AttributeError, TypeError, ValueError) as error:
        raise UsageError(f"{path}: cannot be read ({error})") from error
    for key in ("where", "study", "results", "out"):
        if key in pairs:
            raise UsageError(f"{path}: fit.{key}: a study cannot set it; type it")
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
        elif tail and isinstance(known.get(head), dict):
            values[head][tail] = text if head == "columns" else _convert(key, text, float)
        else:
            names = [
                f"{k}.<name>" if isinstance(v, dict) else k.replace("_", ".")
                for k, v in known.items()
            ]
            close = difflib.get_close_matches(key, names, n=1, cutoff=0.5)
            hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(names)}"
            raise UsageError(f"{key}={text}: no such option; {hint}")
    return type(options)(**values)


def _convert(key: str, text: str, kind: type) -> Any:
    try:
        return kind(text)
    except ValueError:
        what = {int: "a whole number", float: "a number"}[kind]
        raise UsageError(f"{key}={text}: must be {what}") from None


def run_fit(options: FitOptions) -> dict[str, Any]:
    """Load, select, fit, bootstrap; write `<out>/fit.json` and `<out>/results.csv`.

    Args:
        options: `study` does not count here, `results`, `law` and `out` must be set.

    Returns:
        What fit.json holds: the same inputs give the same bytes.

    Raises:
        UsageError: `where` cannot be evaluated or keeps no row.
        ResultsError: The results cannot be read, or a column is missing.
        FitError: See `fitting.fit.fit`.
    """
    table = results.load(options.results, options.columns)
    kept = _where(table, options.where)
    fitted = fit_law(
        kept,
        options.law,
        objective=options.objective,
        delta=options.objective_delta,
        freeze=options.freeze,
        starts=options.starts,
        seed=options.seed,
    )
    if options.bootstrap < 0:
        raise FitError(f"bootstrap={options.bootstrap}: must be 0 (none) or at least 2")
    draws = bootstrap(kept, fitted, options.bootstrap, options.seed) if options.bootstrap else None
    report = describe(fitted, draws, kept)
    report |= {"where": options.where or None, "seed": options.seed}

    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    results.write_atomic(table.to_csv(index=False, lineterminator="\n"), out / "results.csv")
    text = json.dumps(report, indent=1, sort_keys=True, allow_nan=False)
    results.write_atomic(text + "\n", out / "fit.json")
    return report


def _where(table: pd.DataFrame, expression: str) -> pd.DataFrame:
    if not expression:
        return table
    try:
        mask = table.eval(expression, engine="python")
    except Exception as error:  # whatever the expression does wrong is the user's to see
        raise UsageError(f"where={expression}: cannot be evaluated ({_line(error)})") from error
    if not isinstance(mask, pd.Series) or mask.dtype != bool:
        raise UsageError(f"where={expression}: must be true or false for each row")
    kept: pd.DataFrame = table[mask]
    if kept.empty:
        raise UsageError(f"where={expression}: keeps none of {len(table)} rows")
    return kept


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def describe(fitted: Fit, draws: pd.DataFrame | None, table: pd.DataFrame) -> dict[str, Any]:
    """A fit as strict JSON, without NaN: None stands for what the data do not say.

    Args:
        fitted: The fit.
        draws: Its bootstrap, or None.
        table: The table that was fitted.
    """
    warnings = list(fitted.warnings)
    low_high: dict[str, list[float | None]] = {n: [None, None] for n in fitted.parameters}
    errors: dict[str, float | None] = dict.fromkeys(fitted.parameters)
    converged = None
    if draws is not None:
        converged = int(draws["converged"].sum())
        if converged < ENOUGH_DRAWS * len(draws):
            warnings.append(
                f"only {converged} of {len(draws)} bootstrap draws converged: "
                "the intervals are rough"
            )
        wide = [n for n in vague(draws) if fitted.identified[n] and n not in fitted.frozen]
        if wide:
            warnings.append(
                f"{', '.join(wide)}: hardly identified, the 95 % interval spans a factor 50 or zero"
            )
        unknown = {*fitted.flat, *fitted.frozen}  # no data behind them, so no interval
        low_high |= {n: list(v) for n, v in intervals(draws).items() if n not in unknown}
        errors |= {n: v for n, v in standard_errors(draws).items() if n not in unknown}
    conclusions = derived(fitted, draws, table)
    doubtful = [n for n in ("delta", "nu") if not conclusions["identified"].get(n, True)]
    if conclusions.get("layouts") and doubtful:
        warnings.append(f"{', '.join(doubtful)} not identified: the best layouts are not known")
    rows, _ = select_rows(table)
    floor = noise_floor(rows)
    if not floor.dof:
        warnings.append("no cell was run with two seeds: the noise floor is unknown")
    used = [c for c in ("run_id", "loss", *fitted.law.columns, *fitted.law.schemes) if c in rows]
    canonical = rows[used].to_csv(index=False, lineterminator="\n").encode()
    report: dict[str, Any] = _strict(
        {
            "law": fitted.law.name,
            "source": fitted.law.source,
            "objective": asdict(fitted.objective),
            "parameters": fitted.parameters,
            "intervals": low_high,
            "standard_errors": errors,
            "status": fitted.status,
            "starts": asdict(fitted.starts),
            "rows": asdict(fitted.rows),
            "frozen": list(fitted.frozen),
            "bootstrap": {"draws": 0 if draws is None else len(draws), "converged": converged},
            "derived": conclusions,
            "noise_floor": asdict(floor),
            "warnings": warnings,
            "inputs_sha256": hashlib.sha256(canonical).hexdigest(),
            "run_ids": [str(r) for r in rows["run_id"]] if "run_id" in rows else None,
        }
    )
    return report


def _strict(value: Any) -> Any:
    """JSON has no NaN and no infinity: None instead."""
    if isinstance(value, dict):
        return {key: _strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _show(report: Mapping[str, Any], out: Path) -> None:
    """Print a fit as tables."""
    console = Console(highlight=False)
    objective = report["objective"]
    delta = f", delta {objective['delta']:g}" if objective["delta"] is not None else ""
    console.print(f"[bold]{report['law']}[/] ({report['source']})")
    parameters = Table(box=SIMPLE_HEAD)
    for header in ("parameter", "value", "95 % interval", "standard error", "identified"):
        left = header == "parameter"  # its names are never cut: schemes may differ at the end
        parameters.add_column(header, justify="left" if left else "right", overflow="fold")
    for name, value in report["parameters"].items():
        identified = "yes" if report["derived"]["identified"][name] else "NO"
        parameters.add_row(
            escape(name),
            f"{value:.6g}",
            _span(report["intervals"][name]),
            _figure(report["standard_errors"][name]),
            "frozen" if name in report["frozen"] else identified,
        )
    console.print(parameters)
    starts, rows = report["starts"], report["rows"]
    excluded = "".join(f", {count} {reason}" for reason, count in rows["excluded"].items())
    floor = report["noise_floor"]["std_log"]
    summary = {
        "status": report["status"],
        "objective": f"{objective['value']:.9g} ({objective['name']}{delta}, sum over rows)",
        "starts": f"{starts['agreeing']} of {starts['tried']} agree",
        "rows": f"{rows['used']} used{excluded}",
        "noise floor": "unknown" if floor is None else f"{100 * floor:.3g} % of loss",
    }
    for key, text in summary.items():
        console.print(f"  {key:12s}{text}", markup=False)
    identified = report["derived"]["identified"]
    layouts = [e for e in report["derived"].get("layouts", []) if not e["extrapolated"]]
    if layouts and identified["delta"] and identified["nu"]:
        console.print(_layouts(layouts))
    for warning in report["warnings"]:
        console.print(f"warning: {warning}", style="yellow", markup=False)
    console.print(f"wrote {out / 'fit.json'}", markup=False, soft_wrap=True)


def _layouts(entries: Sequence[Mapping[str, Any]]) -> Table:
    """Layouts as a table; fit.json has those beyond the data's bits as well."""
    table = Table(title="best exponent/mantissa split", title_justify="left", box=SIMPLE_HEAD)
    for header in ("bits", "layout", "exponent", "95 % interval", "E:M", "wins of draws"):
        table.add_column(header, justify="right")
    for entry in entries:
        shares = [f"{name} {share:.0%}" for name, share in list(entry["shares"].items())[:2]]
        table.add_row(
            str(entry["bits"]),
            entry["layout"],
            _figure(entry["exponent_opt"]),
            _span(entry["exponent_interval"]),
            _figure(entry["ratio"]),
            ", ".join(shares),
        )
    return table


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _span(bounds: Sequence[float | None]) -> str:
    low, high = bounds
    return "-" if low is None and high is None else f"{_figure(low)} .. {_figure(high)}"
