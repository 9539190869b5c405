"""Two things followed from one end to the other: a format to the GEMMs, a loss to the page."""

import csv
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from experiments.command import main as commands
from experiments.config.schema import TrainConfig
from experiments.quant.formats import FloatFormat
from experiments.quant.linear import QuantLinear
from experiments.quant.recipe import GEMMS
from experiments.run.module import LanguageModel
from fitting.command.main import fit as lowbit_fit
from fitting.command.main import report as lowbit_report
from fitting.results.table import load

SMALL = ["model=ladder/a", "data=tokens", "data.seq_len=64", "batch_size=4", "tracking=none"]


def command(monkeypatch: pytest.MonkeyPatch, entry: Any, name: str, *arguments: str) -> int:
    """A console script in this process; its exit code."""
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    try:
        entry()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def on_grid(values: Tensor, element: FloatFormat) -> bool:
    """Whether every block of 32 along the last axis is its amax times a number of the format."""
    blocks = values.reshape(-1, 32)
    amax = blocks.abs().amax(-1, keepdim=True)
    ratio = (blocks.abs() / amax.clamp_min(1e-30)) * element.max
    distance = (ratio.unsqueeze(-1) - torch.tensor(element.grid())).abs().amin(-1)
    return bool((distance < 1e-4).all())


def test_a_mantissa_bit_reaches_the_six_tensors_at_the_gemms(
    tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    seen: dict[str, list[Tensor]] = {}
    prepare = QuantLinear.operands

    def watch(self: QuantLinear, gemm: str, left: Any, right: Any, *more: Any) -> Any:
        operands = prepare(self, gemm, left, right, *more)
        for label, operand in zip(GEMMS[gemm], operands, strict=True):
            seen.setdefault(label, []).append(operand.values)
        return operands

    monkeypatch.setattr(QuantLinear, "operands", watch)
    arguments = [*SMALL, f"data.path={text}", "tokens=512", "recipe=nearest"]
    arguments += ["precision=e2m1", "precision.mantissa=2"]
    assert command(monkeypatch, commands.train, "lowbit-train", *arguments) == 0

    assert set(seen) == {"P1", "P2", "P3", "P4", "P5", "P6"}
    for label, tensors in seen.items():
        assert all(on_grid(t, FloatFormat(2, 2)) for t in tensors), label
        assert not all(on_grid(t, FloatFormat(2, 1)) for t in tensors), f"{label} uses the new bit"
    [record] = load(tmp_path / "runs" / "scratch").to_dict("records")
    assert (record["exponent"], record["mantissa"], record["bits"]) == (2, 2, 5)


@pytest.mark.ray
def test_a_loss_goes_from_the_trainer_to_the_report(
    tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The smoke study on a small text: sweep on Ray, fit, page; one loss computed beside it."""
    monkeypatch.chdir(tmp_path)
    arguments = ["-m", "study=smoke", *SMALL, f"data.path={text}", "tokens=8192"]
    arguments += ["data.validation_windows=0"]
    assert command(monkeypatch, commands.train, "lowbit-train", *arguments) == 0
    assert command(monkeypatch, lowbit_fit, "lowbit-fit", "study=smoke") == 0
    capsys.readouterr()
    assert command(monkeypatch, lowbit_report, "lowbit-report", "study=smoke") == 0
    page = Path(capsys.readouterr().out.strip().splitlines()[-1])
    assert page.resolve() == (tmp_path / "reports" / "smoke" / "index.html").resolve()

    table = load(tmp_path / "runs" / "smoke").set_index("run_id")
    assert len(table) == 10
    chosen = next(i for i in table.index if i.startswith("nearest-E1M1") and "-s1-" in i)
    losses = []
    validated = LanguageModel.on_validation_epoch_end

    def listen(self: LanguageModel) -> None:
        validated(self)
        losses.append(self.validation_loss)

    monkeypatch.setattr(LanguageModel, "on_validation_epoch_end", listen)
    config = json.loads((tmp_path / "runs" / "smoke" / chosen / "config.json").read_text())
    again = [f"{key}={config[key]}" for key in ("tokens", "seed", "batch_size")]
    arguments = ["model=ladder/a", "recipe=nearest", "precision=e1m1", *SMALL, *again]
    arguments += [f"data.path={text}", "study.name=again"]
    assert command(monkeypatch, commands.train, "lowbit-train", *arguments) == 0

    [loss] = losses
    assert table.loc[chosen, "loss"] == loss, "the record holds what the trainer computed"
    with open(tmp_path / "reports" / "smoke" / "results.csv", newline="") as file:
        row = next(row for row in csv.DictReader(file) if row["run_id"] == chosen)
    assert float(row["loss"]) == loss, "so does the fit's table"
    html = page.read_text()
    assert re.search(rf"{chosen}.{{0,2000}}?{loss:.4f}", html, re.DOTALL), "and the page prints it"
    fit = json.loads((tmp_path / "reports" / "smoke" / "fit.json").read_text())
    assert fit["rows"]["used"] == 10
    assert chosen in fit["run_ids"]


def test_the_config_of_a_record_is_a_whole_configuration(
    tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a record says is enough to run it again."""
    from experiments.config.read import from_dict
    from experiments.run.identity import run_id
    from fitting.results.record import read_record

    monkeypatch.chdir(tmp_path)
    arguments = [*SMALL, f"data.path={text}", "tokens=512", "recipe=hadamard", "precision=mxfp4"]
    assert command(monkeypatch, commands.train, "lowbit-train", *arguments) == 0
    [folder] = [p for p in (tmp_path / "runs" / "scratch").iterdir() if p.is_dir()]
    record = read_record(folder)
    assert record is not None
    config = from_dict(record.config)
    assert isinstance(config, TrainConfig)
    assert run_id(config) == record.run_id
