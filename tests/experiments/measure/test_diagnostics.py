"""Diagnostics: the measures are what they are called, and training keeps its bits."""

import functools
import json
import math
import os
import signal
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.flop_counter import FlopCounterMode

from experiments.config.precision import ConfigError
from experiments.config.read import from_dict
from experiments.config.schema import TrainConfig
from experiments.data.batches import TokenData
from experiments.measure.diagnostics import MEASURES, DiagnosticsConfig, measure, summary
from experiments.measure.error import (
    clipped_share,
    crest_factor,
    operand_error,
    qsnr,
    shrinkage,
    underflown_share,
)
from experiments.mirror.files import row_key
from experiments.models.build import shape_of
from experiments.quant.block import quantize
from experiments.quant.formats import Precision
from experiments.quant.hadamard import rotate
from experiments.quant.linear import QuantLinear
from experiments.quant.recipe import GEMMS, SLOTS
from experiments.quant.scale import block_scale
from experiments.run.identity import run_id
from experiments.run.module import LanguageModel, measured_steps
from experiments.run.recorder import Progress
from experiments.store.curve import METRICS, last_row
from experiments.train import train

Compose = Callable[..., TrainConfig]
STEPS = 24
SMALL = [
    *("model=ladder/a", "data=tokens", "data.seq_len=64", "batch_size=4"),
    *(f"tokens={STEPS * 256}", "tracking=none", "tracking.log_every=4"),
]
MEASURED = ["diagnostics.points=4", "diagnostics.apart=2"]
AT = [0, 8, 15, 23]


@pytest.fixture
def small(composed: Compose, text: Path) -> Compose:
    return lambda *overrides: composed(*SMALL, f"data.path={text}", *overrides)


def curve(folder: Path) -> list[dict[str, float]]:
    """The loss curve without what a clock wrote."""
    lines = [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]
    return [{k: v for k, v in row.items() if "per_second" not in k} for row in lines]


def is_measured(row: dict[str, float]) -> bool:
    return "gradient_cosine/model" in row


# --- when ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "steps"),
    [
        (199, ()),
        (200, (199,)),
        (512, (0, 511)),
        (800, (0, 266, 533, 799)),
        (1_600, (0, 228, 457, 685, 914, 1142, 1371, 1599)),
        (10**6, tuple(round(n * 999_999 / 7) for n in range(8))),
    ],
)
def test_points_are_spread_and_cost_at_most_one_step_in_two_hundred_each(
    count: int, steps: tuple[int, ...]
) -> None:
    assert DiagnosticsConfig().steps(count) == steps
    assert DiagnosticsConfig(points=0).steps(count) == ()


def test_only_quantized_steps_are_measured(small: Compose) -> None:
    assert measured_steps(small("recipe=none", *MEASURED)) == frozenset()
    late = small("recipe.high_precision_share=0.5", *MEASURED)
    assert measured_steps(late) == {0, 4, 7, 11}


# --- no bit changes -----------------------------------------------------------------------------


class Stop:
    """Ctrl-C after some step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def __call__(self, progress: Progress) -> None:
        if progress.step >= self.step:
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize(
    "overrides",
    [
        ["recipe=stochastic"],
        ["recipe=quartet_v4"],
        ["recipe=nvidia_nvfp4", "recipe.keep_first=0", "recipe.keep_last=1"],
        ["recipe=quartet2", "model.hidden=128", "model.ffn=128"],
        ["recipe=stochastic", "compute_dtype=bfloat16"],
    ],
    ids=lambda overrides: " ".join(overrides),
)
def test_training_keeps_its_bits_with_and_without_and_across_a_resume(
    small: Compose, tmp_path: Path, overrides: list[str]
) -> None:
    plain = train(small(*overrides, f"runs={tmp_path / 'plain'}"))
    whole = train(small(*overrides, *MEASURED, f"runs={tmp_path / 'whole'}"))
    config = small(*overrides, *MEASURED)
    for step in (8, 12):  # a measurement comes next, and one in the middle of nothing
        with pytest.raises(KeyboardInterrupt):
            train(config, Stop(step))
    resumed = train(config)
    assert resumed.record.attempts == 3
    for result in (whole, resumed):
        assert result.record.weights_sha256 == plain.record.weights_sha256
        assert result.record.loss == plain.record.loss
        assert result.record.run_id == plain.record.run_id
        others = [row for row in curve(result.folder) if not is_measured(row)]
        assert others == curve(plain.folder)
    assert curve(resumed.folder) == curve(whole.folder)
    measured = [row for row in curve(whole.folder) if is_measured(row)]
    assert [row["step"] for row in measured] == measured_at(whole.record.config)
    assert resumed.record.diagnostics == whole.record.diagnostics == summary(measured)
    assert plain.record.diagnostics == {}


def measured_at(config: dict[str, Any]) -> list[int]:
    return sorted(measured_steps(from_dict(config)))


def test_the_key_is_no_part_of_a_runs_identity(small: Compose) -> None:
    assert run_id(small(*MEASURED)) == run_id(small()) == run_id(small("diagnostics.points=0"))


# --- what is measured ---------------------------------------------------------------------------


def one_measurement(config: TrainConfig) -> tuple[LanguageModel, Tensor, dict[str, float]]:
    module = LanguageModel(config)
    batch = TokenData(config.data).batch(0, config.batch_size, config.seed)
    return (
        module,
        batch,
        measure(module.model, module.model.clock, lambda: module.model.loss(batch)),
    )


@pytest.mark.parametrize("recipe", ["hadamard", "quartet_v4", "stochastic"])
def test_measures_are_those_of_the_operands_at_the_gemms(
    small: Compose, monkeypatch: pytest.MonkeyPatch, recipe: str
) -> None:
    """Against operands caught at the GEMMs, and what went into them; to 1e-5, float32 sums."""
    caught: dict[tuple[str, int], tuple[Tensor, Tensor]] = {}
    prepare = QuantLinear.operands

    def catch(self: QuantLinear, gemm: str, left: Any, right: Any, *more: Any) -> Any:
        found = prepare(self, gemm, left, right, *more)
        size, device = left.values.shape[1], left.values.device
        rotation = self.rotation(gemm, size, device, more[0])
        for label, given, rounded in zip(GEMMS[gemm], (left, right), found, strict=True):
            x = given.values
            x = rotate(x, rotation.size, rotation.signs) if rotation else x
            caught[label, self.layer] = (x.contiguous(), rounded.values)
        return found

    config = small(f"recipe={recipe}", "precision=mxfp4")
    monkeypatch.setattr(QuantLinear, "operands", catch)
    module, batch, row = one_measurement(config)
    caught.clear()
    module.model.loss(batch).backward()
    layers = list(shape_of(config.model).matrices)
    assert len(caught) == 6 * len(layers)
    for (label, number), (x, rounded) in caught.items():
        name = layers[number]
        [layer] = [m for n, m in module.model.named_modules() if n == name]
        assert isinstance(layer, QuantLinear)
        precision = layer.precisions[label]
        blocks = x.unflatten(-1, (-1, precision.block_size))
        blocks = blocks[blocks.abs().amax(-1) > 0]
        scale = block_scale(blocks, precision.element, precision.scale)
        wanted = {
            "qsnr": qsnr(x, rounded),
            "crest": crest_factor(blocks).mean().item(),
            "clipped": clipped_share(x, precision),
            "underflown": underflown_share(x, rounded),
            "scale_range": math.log2(scale.max().item() / scale.min().item()),
            "shrinkage": shrinkage(x, rounded),
        }
        for error, value in wanted.items():
            found = row[f"{error}_{label}/{name}"]
            assert found == pytest.approx(value, rel=1e-5, abs=1e-6), f"{error} {label} {name}"
    for error in MEASURES:
        for label in SLOTS:
            each = [row[f"{error}_{label}/{name}"] for name in layers]
            assert row[f"{error}/{label}"] == pytest.approx(sum(each) / len(each))


@pytest.mark.parametrize(
    "name",
    ["mxfp4", "mxfp4_quest", "int4_row", "E4M3-ocp-tensor", "nvfp4_tile", "INT4-asymmetric-row"],
)
def test_the_fast_measures_are_the_plain_ones(name: str) -> None:
    """Also where zeros stand among the data, and under scales that clip; sums to 1e-6."""
    precision = Precision.parse(name)
    x = torch.randn(64, 64, generator=torch.Generator().manual_seed(1)) * 2.0 ** torch.arange(64)
    x[:8], x[:, 40:44] = 0.0, 0.0
    q = quantize(x, precision)
    found = operand_error(x, q, precision)
    assert found.qsnr == pytest.approx(qsnr(x, q), rel=1e-6)
    assert found.clipped == clipped_share(x, precision)
    assert found.underflown == pytest.approx(underflown_share(x, q), abs=1e-6)
    assert found.shrinkage == pytest.approx(shrinkage(x, q), rel=1e-5, abs=1e-9)


def test_what_a_tensor_does_not_have_is_no_number() -> None:
    zeros, mxfp4 = torch.zeros(4, 32), Precision.parse("mxfp4")
    found = operand_error(zeros, zeros, mxfp4)
    assert found.qsnr == math.inf
    assert math.isnan(found.crest)
    assert math.isnan(found.scale_range)
    assert math.isnan(found.underflown)
    assert math.isnan(found.shrinkage)
    assert found.clipped == 0.0
    assert math.isnan(operand_error(zeros, zeros, mxfp4, scales=False).clipped)


def test_gradients_are_compared_with_those_of_the_same_weights_unquantized(
    small: Compose,
) -> None:
    """Both gradients by .backward(), in float64 products: to 1e-12, they are the same."""
    config = small("recipe=quartet_v4")
    module, batch, row = one_measurement(config)
    assert all(p.grad is None for p in module.parameters()), "nothing accumulates"
    gradients = []
    for quantizing in (True, False):
        module.zero_grad()
        module.model.clock.quantizing = quantizing
        module.model.loss(batch).backward()
        gradients.append(
            {n: p.grad.double() for n, p in module.model.named_parameters() if p.grad is not None}
        )
    ours, theirs = gradients
    parts = {name: [f"{name}.weight"] for name in shape_of(config.model).matrices}
    for name, members in (parts | {"model": list(theirs)}).items():
        a = torch.cat([ours[member].flatten() for member in members])
        b = torch.cat([theirs[member].flatten() for member in members])
        cosine = torch.nn.functional.cosine_similarity(a, b, dim=0).item()
        assert row[f"gradient_cosine/{name}"] == pytest.approx(cosine, rel=1e-12)
        ratio = (a.norm() / b.norm()).item()
        assert row[f"gradient_norm_ratio/{name}"] == pytest.approx(ratio, rel=1e-12)
    assert 0.5 < row["gradient_cosine/model"] < 0.99


def test_finer_formats_have_truer_gradients(small: Compose) -> None:
    cosines = []
    for precision in ("e2m1", "e4m3", "E5M10"):
        bits = {"E5M10": ["precision.exponent=5", "precision.mantissa=10"]}
        config = small("recipe=nearest", *bits.get(precision, [f"precision={precision}"]))
        cosines.append(one_measurement(config)[2]["gradient_cosine/model"])
    assert cosines[0] < cosines[1] < cosines[2]
    assert cosines[2] == pytest.approx(1.0, abs=1e-6)


def test_an_operand_that_is_not_rounded_is_not_measured(small: Compose) -> None:
    """Nor what ms_eden does not have: its scales are not the rule's."""
    rows = {
        name: one_measurement(small(f"recipe={name}", *more))[2]
        for name, more in {
            "sun": [],
            "quartet2": ["model.hidden=128", "model.ffn=128"],
        }.items()
    }
    assert {key[5:] for key in rows["sun"] if key.startswith("qsnr/")} == {"P2", "P4", "P6"}
    assert {"qsnr/P3", "crest/P3", "underflown/P3"} <= set(rows["quartet2"])
    assert not {"clipped/P3", "scale_range/P3"} & set(rows["quartet2"])
    assert all(math.isfinite(v) for row in rows.values() for v in row.values())


# --- where it goes ------------------------------------------------------------------------------


def test_the_record_holds_a_summary_below_four_kilobytes(small: Compose) -> None:
    config = small("recipe=quartet_v4", *MEASURED)
    result = train(config)
    found, names = result.record.diagnostics, list(shape_of(config.model).matrices)
    rows = [row for row in curve(result.folder) if is_measured(row)]
    assert len(json.dumps(found, indent=1)) < 4_000
    assert list(found) == [*SLOTS, "gradient"]
    for label in SLOTS:
        for error in MEASURES:
            each = {
                (row["step"], name): row[f"{error}_{label}/{name}"]
                for row in rows
                for name in names
            }
            said = found[label][error]
            worst = (min if error in ("qsnr", "shrinkage") else max)(each.values())
            assert said["mean"] == pytest.approx(sum(each.values()) / len(each), rel=1e-3)
            assert said["worst"] == pytest.approx(worst, rel=1e-3)
            assert worst in [v for (_, name), v in each.items() if name == said["layer"]]
    assert [found["gradient"][when]["step"] for when in ("start", "middle", "end")] == [0, 15, 23]
    end = rows[-1]["gradient_cosine/model"]
    assert found["gradient"]["end"]["cosine"] == pytest.approx(end, rel=1e-3)


def test_few_measurements_are_summarised_by_what_there_is() -> None:
    row = {"gradient_cosine/model": 0.5, "gradient_norm_ratio/model": 2.0, "tokens": 0}
    rows = [row | {"step": step} for step in (0, 9)]
    assert summary([]) == summary([{"step": 1, "train/loss": 2.0}]) == {}
    assert list(summary(rows)["gradient"]) == ["start", "end"]
    assert summary(rows[1:]) == {"gradient": {"end": {"step": 9, "cosine": 0.5, "norm_ratio": 2.0}}}


def test_a_row_is_no_point_of_the_loss_curve(small: Compose, tmp_path: Path) -> None:
    """Its keys are another row's for W&B, and progress looks past it, however long it is."""
    folder = train(small("recipe=nearest", *MEASURED)).folder
    rows = curve(folder)
    assert [row["step"] for row in rows if is_measured(row)] == AT
    assert all(math.isfinite(value) for row in rows for value in row.values())
    assert len({row_key(row) for row in rows}) == len(rows)
    lines = (folder / METRICS).read_text().splitlines(keepends=True)
    first = next(n for n, line in enumerate(lines) if '"step": 8,' in line and "cosine" in line)
    assert len(lines[first]) > 1024
    torn = tmp_path / "torn"
    torn.mkdir()
    (torn / METRICS).write_text("".join(lines[: first + 1]) + lines[first][:5_000])
    assert last_row(torn)["step"] == 8
    assert "train/loss" in last_row(torn)
    (torn / METRICS).write_text(lines[0])
    assert last_row(torn) == {}, "measured before the first step, and nothing trained yet"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("diagnostics.points=-1", r"diagnostics.points=-1: must be 0 .none. or more"),
        ("diagnostics.apart=0", r"diagnostics.apart=0: must be 1 or more steps"),
        ("diagnostics.every=5", r"diagnostics.every"),
    ],
)
def test_wrong_values_are_one_line(small: Compose, override: str, message: str) -> None:
    if "every" in override:
        with pytest.raises(Exception, match=message):
            small(override)
        return
    with pytest.raises(ConfigError, match=message):
        small(override)


# --- several processes, and the cost ------------------------------------------------------------


def one_of_two(rank: int, config: dict[str, Any], folder: Path) -> None:
    """Three data-parallel steps, twice: the second time the first process measures before each."""
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    torch.set_num_threads(1)
    checked = from_dict(config)
    data, weights = TokenData(checked.data), []
    for measuring in (False, rank == 0):
        module = LanguageModel(checked)
        module.forward = module.model.loss  # type: ignore[method-assign]
        together = DistributedDataParallel(module)
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        for step in range(3):
            batch = data.batch(step, checked.batch_size, 0, rank, 2)
            module.model.clock.counter = step
            if measuring:
                loss = functools.partial(module.model.loss, batch)
                assert is_measured(measure(module.model, module.model.clock, loss))
            optimizer.zero_grad()
            together(batch).backward()
            optimizer.step()
        weights.append(module.state_dict())
    torch.save(weights, folder / f"{rank}.pt")
    dist.barrier()
    os._exit(0)  # where a group of Gloo is taken down torch may wait for itself for ever


def test_of_two_processes_the_first_measures_and_none_waits(small: Compose, tmp_path: Path) -> None:
    config = asdict(small("recipe=stochastic"))
    torch.multiprocessing.spawn(one_of_two, (config, tmp_path), nprocs=2)
    for rank in (0, 1):
        without, measured = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert all(torch.equal(without[name], measured[name]) for name in without)


def test_a_measurement_multiplies_what_two_steps_do(small: Compose) -> None:
    """How long that takes is benchmarks/bench_train.py's to say."""
    module = LanguageModel(small("recipe=quartet_v4"))
    batch = torch.randint(256, (4, 65), generator=torch.Generator().manual_seed(0))
    losses = []

    def loss() -> torch.Tensor:
        losses.append(module.model.loss(batch))
        return losses[-1]

    with FlopCounterMode(display=False) as step:
        loss().backward()  # type: ignore[no-untyped-call]
    with FlopCounterMode(display=False) as measurement:
        measure(module.model, module.model.clock, loss)
    assert len(losses) == 3
    assert step.get_total_flops() > 0
    assert measurement.get_total_flops() <= 2.5 * step.get_total_flops()
