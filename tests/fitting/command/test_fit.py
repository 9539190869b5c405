"""`lowbit-fit`: from somebody's table to fit.json, and one line for every mistake."""

from __future__ import annotations

import hashlib
import json
import math
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from fitting.command import main as commands
from fitting.command.describe import describe
from fitting.fit.search import fit
from fitting.laws.published import BESIROGLU_2024, QUARTET_2025, SUN_2025
from fitting.laws.synthetic import make_table, sun_design
from fitting.results import record as results
from fitting.results.study_file import STUDY
from fitting.results.table import load
from tests.support.places import ROOT


@pytest.fixture
def losses(tmp_path: Path) -> Path:
    """42 runs in foreign column names, and 42 of another kind that follow no law."""
    n, d = np.meshgrid(np.geomspace(5e7, 1e10, 7), np.geomspace(1e9, 3e11, 6))
    design = pd.DataFrame({"params": n.ravel(), "tokens": d.ravel()})
    good = make_table("chinchilla", BESIROGLU_2024, design, 2e-3, 0)
    table = pd.concat([good.assign(forward="BF16"), good.assign(forward="FP4", loss=9.0)])
    table = table[["params", "tokens", "loss", "forward"]]
    path = tmp_path / "losses.csv"
    table.set_axis(["N", "D", "val", "forward"], axis=1).to_csv(path, index=False)
    return path


def typed(losses: Path, out: Path, *more: str) -> list[str]:
    columns = ["columns.params=N", "columns.tokens=D", "columns.loss=val"]
    where = "where=forward == 'BF16'"
    return [f"results={losses}", "law=chinchilla", *columns, where, f"out={out}", *more]


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str, command: str = "fit") -> int | str | None:
    """The exit code of the console script, in this process."""
    monkeypatch.setattr(sys, "argv", ["lowbit", *arguments])
    try:
        getattr(commands, command)()
    except SystemExit as stop:
        return stop.code
    return 0


def read(out: Path) -> dict[str, Any]:
    """fit.json, refusing the NaN and Infinity that JSON does not have."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} in fit.json")

    parsed: dict[str, Any] = json.loads((out / "fit.json").read_text(), parse_constant=refuse)
    return parsed


def test_a_foreign_table_is_fitted_as_the_python_interface_fits_it(
    losses: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    arguments = typed(losses, out, "objective=huber", "objective.delta=2e-3", "bootstrap=50")
    assert run(monkeypatch, *arguments) == 0
    written = read(out)

    table = load(losses, {"params": "N", "tokens": "D", "loss": "val"})
    fitted = fit(table[table["forward"] == "BF16"], "chinchilla", delta=2e-3)
    assert written["law"] == "chinchilla"
    assert written["parameters"] == fitted.parameters
    assert written["objective"] == {
        "name": "huber",
        "delta": 2e-3,
        "value": fitted.objective.value,
    }
    assert written["status"] == "converged"
    assert written["starts"] == {"tried": 64, "agreeing": 64}
    assert written["rows"] == {"used": 42, "excluded": {}}
    assert written["where"] == "forward == 'BF16'"
    for name, value in fitted.parameters.items():
        low, high = written["intervals"][name]
        assert low < value < high
        assert written["standard_errors"][name] > 0
    assert written["derived"]["identified"] == dict.fromkeys(BESIROGLU_2024, True)
    assert written["noise_floor"]["std_log"] is None
    assert any("noise floor is unknown" in w for w in written["warnings"])

    canonical = table.loc[table["forward"] == "BF16", ["loss", "params", "tokens"]]
    text = canonical.to_csv(index=False, lineterminator="\n")
    assert written["inputs_sha256"] == hashlib.sha256(text.encode()).hexdigest()
    assert len(pd.read_csv(out / "results.csv")) == 84  # all rows, not only the used ones

    printed = capsys.readouterr().out
    assert f"{fitted.parameters['alpha']:.6g}" in printed
    assert "64 of 64 agree" in printed
    assert "42 used" in printed


def test_the_best_run_of_each_size_and_length_is_fitted_and_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Three learning rates, two of which are too small or too large; the best law comes back."""
    design = pd.DataFrame(
        [(n, r * n) for n in (3e7, 5e7, 1e8, 2e8) for r in (25, 50, 100, 400)],
        columns=["params", "tokens"],
    )
    best = make_table("chinchilla", BESIROGLU_2024, design, 0.0, 0)[["params", "tokens", "loss"]]
    rates = {1e-3: 1.05, 3e-3: 1.0, 1e-2: 1.2}
    table = pd.concat([best.assign(lr=lr, loss=best["loss"] * by) for lr, by in rates.items()])
    table.loc[len(table)] = [3e7, 25 * 3e7, math.nan, 1.0]
    table.to_csv(tmp_path / "t.csv", index=False)
    arguments = [f"results={tmp_path / 't.csv'}", "law=chinchilla", f"out={tmp_path}"]
    arguments += ["bootstrap=20", "objective.overestimate=2"]
    assert run(monkeypatch, *arguments, "best_per=params,tokens") == 0
    written = read(tmp_path)
    assert written["parameters"] == pytest.approx(BESIROGLU_2024, rel=1e-5)
    assert written["rows"] == {"used": 16, "excluded": {"loss not finite": 1}}
    assert written["best_per"] == ["params", "tokens"]
    assert written["objective"]["overestimate"] == 2
    said = "best_per=params,tokens: 16 of 48 runs were fitted, the best of each"
    assert any(warning.startswith(said) for warning in written["warnings"])
    assert "runs below the law 2 times" in capsys.readouterr().out
    assert [row["params"] for row in written["held_out"]["growing"]] == [2e8]
    assert written["held_out"]["growing_rms"] < 1e-4

    assert run(monkeypatch, *arguments, "best_per=tokens") == 2
    error = capsys.readouterr().err
    assert "best_per=tokens: rows of one group differ in params, which law=chinchilla" in error
    assert "give best_per=tokens,params" in error
    assert run(monkeypatch, *arguments, "best_per=size") == 2
    assert "best_per=size needs column size" in capsys.readouterr().err
    assert run(monkeypatch, *arguments, f"predict={tmp_path / 't.csv'}") == 2
    assert "objective.overestimate=2: the law does not go" in capsys.readouterr().err
    assert run(monkeypatch, *arguments[:-1], "objective.overestimate=0") == 2
    assert "objective.overestimate=0: must be a positive number" in capsys.readouterr().err


def test_efficiencies_by_scheme_are_in_the_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ("forward", "backward")
    pairs = [("BF16", "BF16"), ("FP4", "BF16"), ("BF16", "int4"), ("FP4", "int4")]
    sizes = [(n, r * n) for n in (3e7, 5e7, 1e8, 2e8) for r in (25, 100, 400, 800)]
    design = pd.DataFrame(
        [(n, d, *pair) for n, d in sizes for pair in pairs], columns=["params", "tokens", *names]
    )
    truth = {n: v for n, v in QUARTET_2025.items() if not n.startswith("eff")}
    truth |= {"eff_N[FP4]": 0.6, "eff_D[int4]": 0.9}
    table = make_table("quartet", truth, design, 1e-4, 0)
    table = table[["params", "tokens", "loss", *names]]
    table.set_axis(["N", "D", "loss", "fwd", "bwd"], axis=1).to_csv(tmp_path / "t.csv", index=False)
    columns = ["columns.params=N", "columns.tokens=D", "columns.forward=fwd"]
    arguments = [f"results={tmp_path / 't.csv'}", "law=quartet", *columns, f"out={tmp_path}"]
    assert run(monkeypatch, *arguments) == 2
    assert "needs column backward" in capsys.readouterr().err
    assert run(monkeypatch, *arguments, "columns.backward=bwd", "bootstrap=100") == 0
    written = read(tmp_path)
    assert "eff_D[int4]" in capsys.readouterr().out  # not taken for a colour
    for name, value in (("eff_N[FP4]", 0.6), ("eff_D[int4]", 0.9)):
        assert written["parameters"][name] == pytest.approx(value, rel=0.01)
        low, high = written["intervals"][name]
        assert low < written["parameters"][name] < high
        assert written["derived"]["identified"][name]
    held = [f"freeze.{name}={value}" for name, value in truth.items() if "FP4" not in name]
    assert run(monkeypatch, *arguments, "columns.backward=bwd", *held, "bootstrap=0") == 0
    written = read(tmp_path)
    assert "eff_N[FP4]" not in written["frozen"]
    assert len(written["frozen"]) == 7
    assert written["parameters"]["eff_N[FP4]"] == pytest.approx(0.6, rel=1e-3)


def test_the_same_inputs_give_the_same_bytes(
    losses: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("one", "two"):
        assert run(monkeypatch, *typed(losses, tmp_path / name, "bootstrap=20")) == 0
    assert run(monkeypatch, *typed(losses, tmp_path / "other", "bootstrap=20", "seed=1")) == 0
    one, two, other = ((tmp_path / n / "fit.json").read_bytes() for n in ("one", "two", "other"))
    assert one == two
    assert one != other


def study(tmp_path: Path, settings: dict[str, Any], noise: float = 2e-3) -> pd.DataFrame:
    """runs/demo as a sweep leaves it: one folder a run, with study.json."""
    design = sun_design().iloc[::3].assign(compute_dtype="float32")
    table = make_table("floating_point", SUN_2025, design, noise, 0)
    folder = tmp_path / "runs" / "demo"
    for values in table.to_dict("records"):
        record = results.RunRecord(
            **{k: values[k] for k in ("run_id", "status", "model", "recipe", "granularity")},
            **{k: values[k] for k in ("exponent", "mantissa", "bits", "block_size", "scale")},
            **{k: values[k] for k in ("operands", "params", "tokens", "seed", "loss")},
            study="demo",
            bits_with_scales=4.25,
            params_head=0,
            params_embedding=0,
            params_total=values["params"],
            params_quantized=values["params"],
            unique_tokens=values["tokens"],
            flops=1.0,
            train_loss=None,
            bits_per_byte=None,
            wall_seconds=1.0,
            tokens_per_second=1.0,
            attempts=1,
            corpus="c",
            quantize_backend="plain",
            numerics_version=1,
        )
        run_folder = folder / values["run_id"]
        run_folder.mkdir(parents=True)
        results.write_exclusive(record, run_folder)
    (folder / STUDY).write_text(json.dumps({"name": "demo", "fit": settings}))
    return table


def test_a_study_is_found_by_name_and_brings_its_own_defaults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"law": "floating_point", "bootstrap": 30, "objective.delta": 5e-3, "starts": 8}
    table = study(tmp_path, settings)
    monkeypatch.chdir(tmp_path)
    assert run(monkeypatch, "study=demo", "starts=4") == 0
    written = read(tmp_path / "reports" / "demo")
    assert written["law"] == "floating_point"
    assert written["bootstrap"] == {"draws": 30, "converged": 30}
    assert written["objective"]["delta"] == 5e-3
    assert written["starts"]["tried"] == 4  # what is typed wins
    assert written["run_ids"] == list(table["run_id"])
    assert written["parameters"]["beta"] == pytest.approx(SUN_2025["beta"], rel=0.1)
    assert [e["bits"] for e in written["derived"]["layouts"]] == list(range(2, 17))


def test_a_study_cannot_make_the_command_evaluate_an_expression(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    study(tmp_path, {"law": "floating_point", "where": "loss.to_csv('/tmp/x')"})
    monkeypatch.chdir(tmp_path)
    assert run(monkeypatch, "study=demo") == 2
    assert "fit.where: a study cannot set it; type it" in capsys.readouterr().err


def test_frozen_parameters_have_no_interval_and_flat_ones_neither(
    losses: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    arguments = [
        a for a in typed(losses, out, "freeze.A=482.0", "bootstrap=20") if "where" not in a
    ]
    one_size = "where=forward == 'BF16' and N < 6e7"
    assert run(monkeypatch, *arguments, one_size) == 0
    written = read(out)
    assert written["parameters"]["A"] == 482.0
    assert written["frozen"] == ["A"]
    assert written["intervals"]["A"] == [None, None]
    assert written["intervals"]["E"] == [None, None]  # A/N^alpha + E is one number here
    assert written["standard_errors"]["E"] is None
    assert not written["derived"]["identified"]["E"]
    assert written["intervals"]["beta"][0] is not None


def test_a_weight_of_two_is_a_row_twice(
    losses: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = pd.read_csv(losses)
    table["seeds"] = np.where(table["N"] < 1e9, 2, 1)
    table.to_csv(losses, index=False)
    twice = tmp_path / "twice.csv"
    pd.concat([table, table[table["seeds"] == 2]]).to_csv(twice, index=False)
    weighted = typed(losses, tmp_path / "a", "weights=seeds", "bootstrap=0")
    assert run(monkeypatch, *weighted) == 0
    assert run(monkeypatch, *typed(twice, tmp_path / "b", "bootstrap=0")) == 0
    one, two = read(tmp_path / "a"), read(tmp_path / "b")
    assert one["weights"] == "seeds"
    assert one["parameters"] == pytest.approx(two["parameters"], rel=1e-5)
    assert one["information"] == pytest.approx(two["information"], rel=1e-9)
    unweighted = typed(losses, tmp_path / "c", "bootstrap=0")
    assert run(monkeypatch, *unweighted) == 0
    assert read(tmp_path / "c")["inputs_sha256"] != one["inputs_sha256"]


def test_a_bound_holds_and_is_said(
    losses: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The truth is E = 1.8172."""
    out = tmp_path / "out"
    assert run(monkeypatch, *typed(losses, out, "bounds.E=.5..1.5", "bootstrap=20")) == 0
    written = read(out)
    assert written["parameters"]["E"] == pytest.approx(1.5)
    assert written["status"] == "at_bound: [E]"
    assert written["bounds"] == {"E": [0.5, 1.5]}
    printed = capsys.readouterr().out
    assert "0.5 to 1.5" in printed
    assert "E is at a bound" in printed
    open_end = typed(losses, out, "bounds.E=.5..inf", "bootstrap=0")
    assert run(monkeypatch, *open_end) == 0
    assert read(out)["bounds"] == {"E": [0.5, None]}
    assert run(monkeypatch, f"fit={out}", command="report") == 0
    page = (out / "index.html").read_text()
    assert "bounds.E=0.5..inf" in page, "the command that makes the page again"


def test_seeds_are_drawn_whole(
    losses: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Noise that all runs of a seed share: drawing runs overlooks it, drawing seeds does not."""
    base = pd.read_csv(losses)
    shifts = np.random.default_rng(0).normal(0, 0.01, 12)
    seeds = [base.assign(seed=s, val=base["val"] * np.exp(z)) for s, z in enumerate(shifts)]
    pd.concat(seeds).to_csv(losses, index=False)
    widths = {}
    how = ["objective=least_squares", "bootstrap=400", "freeze.alpha=.3478", "freeze.beta=.3658"]
    for cluster in ("", "seed"):
        more = [f"cluster={cluster}"] if cluster else []
        assert run(monkeypatch, *typed(losses, tmp_path / "o", *how, *more)) == 0
        written = read(tmp_path / "o")
        assert written["cluster"] == (cluster or None)
        assert not any("too narrow" in w for w in written["warnings"])
        low, high = written["intervals"]["E"]
        widths[cluster] = (high - low) / written["parameters"]["E"]
    # A, B and E are all multiplied by the mean shift's exponential.  The width of a percentile
    # interval of 400 draws is known to 7 %, and twelve shifts are no normal distribution.
    assert widths["seed"] == pytest.approx(2 * 1.96 * shifts.std() / math.sqrt(12), rel=0.25)
    assert widths[""] < 0.7 * widths["seed"]
    few = tmp_path / "few.csv"
    pd.concat(seeds[:3]).to_csv(few, index=False)
    assert run(monkeypatch, *typed(few, tmp_path / "o", "bootstrap=20", "cluster=seed")) == 0
    assert any(w.startswith("seed has 3 values") for w in read(tmp_path / "o")["warnings"])


def test_rival_laws_are_compared_beside_the_fit(
    losses: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = [a for a in typed(losses, tmp_path / "o", "bootstrap=0") if "law=" not in a]
    table = pd.read_csv(losses)
    table["backward"] = "BF16"
    table.to_csv(losses, index=False)
    assert run(monkeypatch, *arguments, "compare=chinchilla,quartet") == 0
    written = read(tmp_path / "o")
    assert written["law"] == "chinchilla"
    rivals = {row["law"]: row for row in written["comparison"]}
    assert set(rivals) == {"chinchilla", "quartet"}
    sizes = written["held_out"]
    assert rivals["chinchilla"]["rms_sizes"] == pytest.approx(sizes["sizes_rms"], rel=1e-6)
    assert rivals["chinchilla"]["bic"] == written["information"]["bic"]
    printed = capsys.readouterr().out
    assert "Laws compared" in printed
    assert "Held-out predictions" in printed
    assert run(monkeypatch, f"fit={tmp_path / 'o'}", command="report") == 0
    page = (tmp_path / "o" / "index.html").read_text()
    assert "compare=" in page
    for name in ("held_out", "comparison"):
        assert f'id="{name}"' in page
        assert (tmp_path / "o" / "tables" / f"{name}.csv").exists()


def test_without_a_bootstrap_there_are_no_intervals(
    losses: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(monkeypatch, *typed(losses, tmp_path / "out", "bootstrap=0")) == 0
    written = read(tmp_path / "out")
    assert written["bootstrap"] == {"draws": 0, "converged": None}
    assert written["intervals"]["A"] == [None, None]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["boostrap=10"], "boostrap=10: no such option; did you mean bootstrap?"),
        (["objective.dleta=1"], "objective.dleta=1: no such option; did you mean objective.delta?"),
        (["objective_delta=1"], "objective_delta=1: no such option; did you mean objective.delta?"),
        (["column.params=N"], "column.params=N: no such option; did you mean columns.<name>?"),
        (["law"], "law: must be key=value; see --help"),
        (["law=chinchilla", "law=chinchilla"], "law=chinchilla: law is given twice"),
        (["law=chinchilla"], "results: missing; give study=<name> or results=<path>"),
        (["results={losses}", "law=chinchilla"], "out: missing; give study=<name> or out=<folder>"),
        (["results={losses}", "out={out}"], "law: missing; give law=chinchilla or law=floating"),
        (["results=nowhere", "law=chinchilla", "out={out}"], "results=nowhere: no such file or fo"),
        (["study=nowhere", "law=chinchilla"], "results=runs/nowhere: no such file or folder"),
        (["results={losses}", "law=kaplan", "out={out}"], "law=kaplan: no such law; there are ch"),
        (
            ["results={losses}", "law=chinchilla", "out={out}"],
            "law=chinchilla needs columns loss, pa",
        ),
        (["{all}", "bootstrap=many"], "bootstrap=many: must be a whole number"),
        (["{all}", "bootstrap=1"], "bootstrap=1: must be at least 2"),
        (["{all}", "bootstrap=-3"], "bootstrap=-3: must be 0 (none) or at least 2"),
        (["{all}", "freeze.A=big"], "freeze.A=big: must be a number"),
        (["{all}", "freeze.Z=1"], "freeze.Z=1.0: law=chinchilla has no such parameter; it"),
        (["{all}", "bounds.Z=0..1"], "bounds.Z=1.0: law=chinchilla has no such parameter; it"),
        (["{all}", "bounds.E=2..1"], "bounds.E=2..1: the lower bound must be below the upper one"),
        (["{all}", "weights=w"], "weights=w needs column w; the table has N, D, val"),
        (["{all}", "weights=forward"], "weights=forward: must be a number that is not negative"),
        (["{all}", "cluster=seed"], "cluster=seed needs column seed; the table has N, D, val"),
        (["{all}", "cluster=status"], "cluster=status: has fewer than two values, nothing to r"),
        (["{all}", "compare=kaplan"], "law=kaplan: no such law; there are chinchilla, floating_p"),
        (["{all}", "compare=quartet"], "compare=quartet needs column backward; the table has N, "),
        (["{all}", "cost.k=0"], "cost.k=0: must be a positive number"),
        (["{all}", "objective=l2"], "objective=l2: must be one of huber, lad, least_squares"),
        (["{all}", "objective.delta=0"], "objective.delta=0: must be a positive number"),
        (["{all}", "where=colour == 1"], "where=colour == 1: cannot be evaluated (name 'colour'"),
        (["{all}", "where=N >"], "where=N >: cannot be evaluated (invalid syntax"),
        (["{all}", "where=N"], "where=N: must be true or false for each row"),
        (["{all}", "where=N < 0"], "where=N < 0: keeps none of 84 rows"),
        (["{all}", "where=N < 6e7 and D < 2e9"], "law=chinchilla: 2 usable rows, but 5 free para"),
        (["{all}", "columns.tokens=T"], "columns.tokens=T: no such column; the table has N, D, va"),
        (["{all}", "columns.loss=forward"], "column 'loss' of"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_every_mistake_is_one_line(
    arguments: list[str],
    message: str,
    losses: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    if arguments[0] == "{all}":
        key = arguments[1].partition("=")[0]
        given = [a for a in typed(losses, tmp_path / "out") if a.partition("=")[0] != key]
        if "where" not in key:
            given = [a for a in given if not a.startswith("where=")]
        arguments = [*given, arguments[1]]
    arguments = [a.format(losses=losses, out=tmp_path / "out") for a in arguments]
    assert run(monkeypatch, *arguments) == 2
    streams = capsys.readouterr()
    assert streams.err.startswith(f"lowbit-fit: {message}")
    assert streams.err.count("\n") == 1
    assert streams.out == ""
    assert not (tmp_path / "out" / "fit.json").exists()


@pytest.mark.parametrize(
    ("loss", "message"),
    [("", "5 loss not finite"), ("-1", "5 loss not positive"), ("inf", "5 loss not finite")],
)
def test_bad_losses_are_excluded_and_counted(
    losses: Path,
    loss: str,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    table = pd.read_csv(losses, dtype=str)
    table.loc[:4, "val"] = loss
    table.to_csv(losses, index=False)
    assert run(monkeypatch, *typed(losses, tmp_path / "out", "bootstrap=0")) == 0
    assert f"37 used, {message}" in capsys.readouterr().out
    assert sum(read(tmp_path / "out")["rows"]["excluded"].values()) == 5


def test_help_teaches_by_example_in_a_fresh_process() -> None:
    code = "from fitting.command.main import {0}; {0}()"
    for command, example in (
        ("fit", "lowbit-fit study=demo law=floating_point"),
        ("report", "lowbit-report study=demo"),
    ):
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", code.format(command), "--help"],
            capture_output=True,
            text=True,
            check=True,
            cwd=ROOT,
        )
        assert example in done.stdout
        assert done.stderr == ""


@pytest.mark.parametrize("command", ["fit", "report"])
def test_help_is_there_within_a_second_and_a_half(command: str) -> None:
    """Processor seconds, the best of three: somebody else may be busy on this machine."""
    code = f"from fitting.command.main import {command}; {command}()"
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        arguments = [sys.executable, "-c", code, "--help"]
        subprocess.run(arguments, capture_output=True, check=True, cwd=ROOT)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(seconds) < 1.5


def test_report_options_are_checked_like_fits(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "stduy=demo", command="report") == 2
    assert run(monkeypatch, "results=x.csv", command="report") == 2
    assert capsys.readouterr().err == (
        "lowbit-report: stduy=demo: no such option; did you mean study?\n"
        "lowbit-report: fit: missing; give study=<name> or fit=<folder>\n"
    )


def test_what_json_cannot_say_becomes_null() -> None:
    table = make_table("floating_point", SUN_2025, sun_design().iloc[::7], 1e-3, 0)
    fitted = fit(table, "floating_point", starts=4)
    described = describe(fitted, None, table)
    json.dumps(described, allow_nan=False)
    assert described["noise_floor"] == {"std_log": None, "std_loss": None, "dof": 0, "cells": 0}
