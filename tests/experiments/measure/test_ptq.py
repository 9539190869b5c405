"""Post-training quantization: scored as documented, undone to the bit, and fitted with law=ptq."""

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch

from experiments.command import main as commands
from experiments.config.precision import ConfigError
from experiments.config.schema import TrainConfig
from experiments.data.batches import TokenData
from experiments.measure.ptq import PtqConfig, quantized
from experiments.models.build import shape_of
from experiments.quant.block import quantize_plain
from experiments.quant.formats import Precision
from experiments.run.identity import run_id, science
from experiments.run.module import LanguageModel
from experiments.store.curve import METRICS
from experiments.train import train
from fitting.command.main import fit as lowbit_fit
from fitting.command.main import report as lowbit_report
from fitting.laws.catalogue import LAWS
from fitting.laws.published import KUMAR_2024_PTQ
from fitting.page.study import load_study, used_runs
from fitting.results.record import RESULT, RunRecord, read_record, write_exclusive
from fitting.results.table import load
from tests.support.records import RECORD

Compose = Callable[..., TrainConfig]
SMALL = [
    *("model=ladder/a", "data=tokens", "data.seq_len=64", "batch_size=4", f"tokens={24 * 256}"),
    *("tracking=none", "tracking.log_every=8", "optim.lr=0.01"),
]
FORMATS = "ptq.formats=[int2_row,mxfp4,int8_row]"


@pytest.fixture
def small(composed: Compose, text: Path) -> Compose:
    return lambda *overrides: composed(*SMALL, f"data.path={text}", *overrides)


def score(module: LanguageModel, config: TrainConfig) -> float:
    """Validation without Lightning."""
    total, count = 0.0, 0
    with torch.no_grad():
        for index, batch in enumerate(TokenData(config.data).validation_batches(4_096 // 64)):
            module.model.clock.counter = 2**40 + index
            total += module.model.loss(batch, reduction="sum").double().item()
            count += batch[:, 1:].numel()
    return total / count


@pytest.mark.parametrize("recipe", ["none", "stochastic"])
def test_losses_are_those_of_a_model_with_rounded_weights(
    small: Compose, monkeypatch: pytest.MonkeyPatch, recipe: str
) -> None:
    """Weights rounded here by the plain definition, scored by a bare loop; kept layers are not."""
    config = small(f"recipe={recipe}", "recipe.keep=[blocks.0.mlp]", FORMATS)
    modules: list[LanguageModel] = []
    scored = LanguageModel.on_validation_epoch_end

    def keep(self: LanguageModel) -> None:
        scored(self)
        modules.append(self)

    monkeypatch.setattr(LanguageModel, "on_validation_epoch_end", keep)
    record = train(config).record
    module = modules[0]
    assert len(modules) == 4, "the run, and three formats"
    weights = {n: w.clone() for n, w in module.state_dict().items()}
    assert score(module, config) == record.loss, "the weights are as they were"
    linears = [name for name in shape_of(config.model).matrices if "blocks.0.mlp" not in name]
    chosen = [f"model.{name}.weight" for name in linears]
    assert list(record.ptq) == ["INT2-row-fp32", "E2M1-block32-e8m0", "INT8-row-fp32"]
    for name, entry in record.ptq.items():
        rounded = {n: quantize_plain(weights[n], Precision.parse(name)) for n in chosen}
        module.load_state_dict(weights | rounded)
        assert entry["loss"] == score(module, config), name
    assert {entry["bits"] for entry in record.ptq.values()} == {2, 4, 8}


def test_weights_come_back_and_fewer_bits_cost_more(small: Compose, tmp_path: Path) -> None:
    plain = train(small("recipe=none")).record
    result = train(small("recipe=none", FORMATS))
    record = result.record
    assert record.weights_sha256 == plain.weights_sha256
    assert record.loss == plain.loss
    assert plain.ptq == {}
    losses = {name: entry["loss"] for name, entry in record.ptq.items()}
    int2, mxfp4, int8 = losses.values()
    assert int2 > mxfp4 > int8
    assert int8 == pytest.approx(record.loss, abs=1e-3)
    last = json.loads((result.folder / METRICS).read_text().splitlines()[-1])
    assert {k: v for k, v in last.items() if "ptq" in k} == {
        f"ptq/{name}": loss for name, loss in losses.items()
    }
    assert RunRecord.from_json((result.folder / RESULT).read_text()) == record


def test_an_error_while_scoring_leaves_the_weights_as_they_were(small: Compose) -> None:
    module = LanguageModel(small("recipe=none"))
    before = {n: w.clone() for n, w in module.state_dict().items()}
    x = torch.randint(256, (2, 65), generator=torch.Generator().manual_seed(0))
    loss = module.model.loss(x)
    for operands in ("weights", "weights_and_inputs"):
        context = quantized(module.model.linears().values(), Precision.parse("int2_row"), operands)
        with pytest.raises(RuntimeError, match="shape"), context:  # noqa: PT012
            state = module.state_dict()
            assert sum(not torch.equal(state[n], w) for n, w in before.items()) == 8
            next(iter(module.model.linears().values()))(torch.ones(2, 64))
        assert all(torch.equal(w, before[n]) for n, w in module.state_dict().items())
        assert module.model.loss(x) == loss, "and no hook is left"


def test_inputs_are_quantized_only_where_asked(small: Compose) -> None:
    """One layer against the product of both rounded operands."""
    [layer, *_] = LanguageModel(small("recipe=none")).model.linears().values()
    int4 = Precision.parse("int4_row")
    x = torch.randn(2, 8, 32, generator=torch.Generator().manual_seed(0))
    weight = quantize_plain(layer.weight.detach(), int4)
    for operands, into in (("weights", x), ("weights_and_inputs", quantize_plain(x, int4))):
        with quantized([layer], int4, operands), torch.no_grad():
            assert torch.equal(layer(x), into @ weight.t())


@pytest.mark.parametrize("operands", ["weights", "weights_and_inputs"])
@pytest.mark.parametrize("recipe", ["none", "sun", "quartet_v4"])
@pytest.mark.parametrize("name", ["int4_row", "nvfp4"])
def test_bfloat16_does_not_round_what_was_quantized(
    small: Compose, name: str, recipe: str, operands: str
) -> None:
    """The product of a layer against float64 of the very operands, rounded to bfloat16 once; a
    recipe that rounds forward does that to the quantized weights, as documented.
    """
    precision = Precision.parse(name)
    module = LanguageModel(small(f"recipe={recipe}", "compute_dtype=bfloat16"))
    [layer, *_] = module.model.linears().values()
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.randn(2, 64, 32, generator=torch.Generator().manual_seed(0)).to(dtype)
        into = quantize_plain(x.float(), precision) if operands != "weights" else x.bfloat16()
        weight = quantize_plain(layer.weight.detach(), precision)
        with quantized([layer], precision, operands), torch.no_grad():
            with torch.autocast("cpu", dtype=torch.bfloat16):
                found = layer(x).double()
            if recipe == "none":
                exact = into.double() @ weight.double().t()
                off = (found - exact).abs()
                assert (found == exact.bfloat16().double()).double().mean() > 0.98
                assert (off <= exact.abs() * 2**-8 + exact.abs().max() * 2**-18).all()
            else:
                rounds_inputs = layer.recipe.output.input is not None
                given = x if rounds_inputs and operands == "weights" else into
                wanted = layer(given.float()).bfloat16().double()
                assert (found == wanted).double().mean() > 0.98


def test_it_is_another_run_only_where_it_is_asked_for(small: Compose) -> None:
    base = small("recipe=none")
    assert run_id(small("recipe=none", "ptq.operands=weights_and_inputs")) == run_id(base)
    assert "ptq" not in science(base)
    asked = [
        small("recipe=none", *more)
        for more in (
            ["ptq.formats=[mxfp4]"],
            ["ptq.formats=[mxfp4,nvfp4]"],
            ["ptq.formats=[mxfp4]", "ptq.operands=weights_and_inputs"],
            ["ptq.formats=[mxfp4]", "recipe.keep_first=1"],
        )
    ]
    assert len({run_id(config) for config in (base, *asked)}) == 5
    same = small("recipe=none", "ptq.formats=[nvfp4,E2M1-block32-e8m0]")
    assert run_id(same) == run_id(asked[1]), "neither order nor spelling counts"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["ptq.formats=[int1]"], r"ptq.formats=int1: precision 'int1': int bits=1: must be 2..8"),
        (["ptq.formats=[mxfp5]"], r"ptq.formats=mxfp5: precision 'mxfp5': .*did you mean mxfp4"),
        (["ptq.formats=[mxfp4,E2M1-block32-e8m0]"], "ptq.formats=E2M1-block32-e8m0: .* already"),
        (["ptq.formats=[int4_block48]"], "block size 48 must divide model.hidden=32"),
        (["ptq.formats=[int4_tile64]", "data.seq_len=96"], "64 must divide data.seq_len=96"),
        (["ptq.operands=all"], "ptq.operands=all: must be one of weights, weights_and_inputs"),
        (["ptq.formats=[mxfp4]", "recipe.keep=[head]"], "recipe.keep=head: no such layer"),
        (["ptq.formats=[mxfp4]", "recipe.keep_last=2"], "no layer is left to quantize"),
    ],
)
def test_wrong_requests_are_one_line_before_any_work(
    small: Compose, overrides: list[str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        small("recipe=none", *overrides)
    assert not PtqConfig(["int4_block32"]).problems({"model.hidden": 32, "data.seq_len": 65})


# --- the law ------------------------------------------------------------------------------------

BITS = {"INT2-row-fp32": 2, "INT3-row-fp32": 3, "INT4-row-fp32": 4, "INT6-row-fp32": 6}


def known_study(folder: Path) -> pd.DataFrame:
    """20 runs on disk whose losses are the published law's; the rows that a fit should see."""
    expected = []
    for params in (3e7, 6e7, 1.1e8, 2.2e8):
        for tokens in (1.5e9, 3e9, 6.5e9, 1.3e10, 2.6e10):
            name = f"n{params:.0f}-d{tokens:.0f}"
            bits = [32, *BITS.values()]
            rows = pd.DataFrame({"params": params, "tokens": tokens, "bits_post": bits})
            losses = LAWS["ptq"].predict(KUMAR_2024_PTQ, rows)
            post = {
                key: {"loss": float(loss), "bits": b, "operands": "weights"}
                for (key, b), loss in zip(BITS.items(), losses[1:], strict=True)
            }
            record = dataclasses.replace(
                RECORD, run_id=name, model=name.split("-")[0], recipe="none", operands="",
                exponent=8, mantissa=23, bits=32, block_size=1.0, granularity="none", scale="none",
                params=int(params), tokens=int(tokens), loss=float(losses[0]), ptq=post,
                config={"compute_dtype": "float32"},
            )  # fmt: skip
            (folder / name).mkdir(parents=True)
            write_exclusive(record, folder / name)
            expected.append(rows.assign(run_id=name, loss=losses))
    return pd.concat(expected)


def command(monkeypatch: pytest.MonkeyPatch, entry: Callable[[], None], *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["command", *arguments])
    entry()


def test_the_published_law_comes_back_from_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without noise: to 1e-4, from the records and again from the fit's own results.csv."""
    expected = known_study(tmp_path / "runs" / "kumar")
    monkeypatch.chdir(tmp_path)
    command(monkeypatch, lowbit_fit, "study=kumar", "law=ptq", "bootstrap=0", "starts=16")
    written = json.loads((tmp_path / "reports" / "kumar" / "fit.json").read_text())
    assert written["parameters"] == pytest.approx(KUMAR_2024_PTQ, rel=1e-4)
    assert written["rows"]["used"] == len(expected) == 100
    assert "rows of one run share its noise: cluster=run_id draws" in str(written["warnings"])
    table = pd.read_csv(tmp_path / "reports" / "kumar" / "results.csv")
    assert table["loss"].tolist() == expected.sort_values("run_id", kind="stable")["loss"].tolist()
    assert set(table["format_post"]) == {"none", *BITS}
    csv = ["results=reports/kumar/results.csv", "law=ptq", "bootstrap=40", "out=again"]
    fewer = [*csv, "where=format_post != 'INT2-row-fp32'", "cluster=run_id"]
    command(monkeypatch, lowbit_fit, *fewer)
    again = json.loads((tmp_path / "again" / "fit.json").read_text())
    assert again["parameters"] == pytest.approx(KUMAR_2024_PTQ, rel=1e-3)
    assert again["rows"]["used"] == 80
    assert "share its noise" not in str(again["warnings"])

    for results in ("runs/kumar", "reports/kumar/results.csv"):
        study = load_study(Path(results), Path("reports/kumar"))
        assert len(study.table) == 20, "the page counts runs"
        assert len(used_runs(study)) == 100, "and draws what was fitted"
    capsys.readouterr()
    command(monkeypatch, lowbit_report, "study=kumar")
    assert Path(capsys.readouterr().out.strip()).is_file()


@pytest.mark.ray
@pytest.mark.slow
def test_a_sweep_is_scored_and_fitted(
    tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four runs and four formats each, of real weights, from the command line to the fit."""
    monkeypatch.chdir(tmp_path)
    run = [word for word in SMALL if not word.startswith(("model", "tokens", "optim"))]
    run += [f"data.path={text}", "recipe=none", "study.name=bits"]
    run += ["model=ladder/a,ladder/b", "tokens=8192,32768", "batch_size=8"]
    run += ["ptq.formats=[int2_row,int3_row,int4_row,int8_row]"]
    command(monkeypatch, commands.train, "-m", *run)
    table = load(tmp_path / "runs" / "bits", ptq=True)
    assert len(table) == 4 * 5
    for _, rows in table.groupby("run_id"):
        losses = rows.set_index("bits_post")["loss"]
        assert losses[2] > losses[3] > losses[4] > losses[8]
        assert losses[8] == pytest.approx(losses[32], abs=0.01)
    command(monkeypatch, lowbit_fit, "study=bits", "law=ptq", "bootstrap=0", "starts=8")
    fit = json.loads((tmp_path / "reports" / "bits" / "fit.json").read_text())
    assert fit["rows"]["used"] == 20
    assert fit["parameters"]["gamma_post"] > 0


def test_other_laws_and_other_studies_see_one_row_a_run(tmp_path: Path) -> None:
    known_study(tmp_path / "with")
    assert len(load(tmp_path / "with")) == 20
    assert "bits_post" not in load(tmp_path / "with")
    folder = tmp_path / "without" / RECORD.run_id
    folder.mkdir(parents=True)
    write_exclusive(RECORD, folder)
    assert "bits_post" not in load(tmp_path / "without", ptq=True), "the law then names the column"


def test_a_run_without_ptq_and_a_loss_that_is_none_stay_rows(tmp_path: Path) -> None:
    lost = {"INT2-row-fp32": {"loss": None, "bits": 2, "operands": "weights"}}
    brain = {"compute_dtype": "bfloat16"}
    for name, post in (("a", lost), ("b", {})):
        (tmp_path / name).mkdir()
        record = dataclasses.replace(RECORD, run_id=name, ptq=post, config=brain)
        write_exclusive(record, tmp_path / name)
        assert read_record(tmp_path / name) == record
    table = load(tmp_path, ptq=True)
    assert table["bits_post"].tolist() == [16, 2, 16]
    assert table["loss"].isna().tolist() == [False, True, False]
    assert table["operands_post"].tolist() == ["none", "weights", "none"]


def test_records_made_before_there_was_any_still_load() -> None:
    old = json.loads(RECORD.to_json())
    del old["ptq"], old["diagnostics"]
    assert RunRecord.from_json(json.dumps(old)) == RECORD
