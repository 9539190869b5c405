"""Runs on images: what is scored, what is planned, and that a resumed run has the same bits."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from experiments.config.precision import ConfigError
from experiments.config.schema import TrainConfig
from experiments.models import convnet
from experiments.models.source import ModelError, make
from experiments.quant.block import quantize
from experiments.quant.formats import Precision
from experiments.quant.linear import QuantizedGemms
from experiments.run.identity import run_folder, run_id
from experiments.run.module import LanguageModel
from experiments.store.weights import read_weights
from experiments.sweep.plan import make_plan
from experiments.tasks.choose import task_of
from experiments.train import train
from fitting.results.record import RunRecord
from fitting.results.table import load, table_of
from fitting.seeds.cells import cell_keys
from tests.support.image_folder import write_folder
from tests.support.memory import most_held
from tests.support.small_runs import Stop, rows
from tests.support.timm import needs_timm

pytest.importorskip("PIL", reason="needs the extra vision")
Compose = Callable[..., TrainConfig]
STEPS = 24
CONVNET = ("model=convnet", "model.config.classes=3", "model.config.widths=[8,16]")
WORDS = (
    *("task=classification", "data=images", "data.image.size=8", "data.image.channels=1"),
    *("batch_size=12", f"tokens={STEPS * 12}", "tracking=none", "tracking.log_every=4"),
    "optim.lr=1e-2",
)


@pytest.fixture
def images(composed: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Compose:
    """A run of seconds on three classes of images."""
    monkeypatch.setenv("LOWBIT_CACHE", str(tmp_path / "cache"))
    place = write_folder(tmp_path / "mine")

    def make(*more: str) -> TrainConfig:
        model = () if any(word.startswith("model=") for word in more) else CONVNET
        return composed(*model, *WORDS, f"data.path={place}", *more)

    return make


def scored(config: TrainConfig, model: nn.Module) -> tuple[float, float]:
    """Loss and accuracy of the validation part, by torch alone."""
    [(inputs, classes)] = task_of(config).open().validation_batches(1_000)
    with torch.no_grad():
        logits = model.eval()(inputs)
    loss = F.cross_entropy(logits.double(), classes).item()
    return loss, (logits.argmax(-1) == classes).double().mean().item()


def trained_net(config: TrainConfig, weights: Path, sha256: str) -> nn.Module:
    """The bare net with a run's weights and batch norms."""
    net = make(config.model, 0)
    state = read_weights(weights, sha256)
    net.load_state_dict({n.removeprefix("model.module."): v for n, v in state.items()})
    return net


def test_it_learns_and_is_scored_as_torch_scores_it(images: Compose) -> None:
    config = images("recipe=none", "keep=last")
    result = train(config)
    record = result.record
    assert record.status == "finished"
    net = trained_net(config, result.folder, record.weights_sha256)
    loss, accuracy = scored(config, net)
    assert record.loss == pytest.approx(loss, rel=1e-5)
    assert record.metrics == {"accuracy": pytest.approx(accuracy)}
    assert accuracy > 0.9
    assert (record.tokens, record.unique_tokens, record.bits_per_byte) == (STEPS * 12, 72, None)
    assert RunRecord.from_json(record.to_json()) == record
    last = rows(result.folder)[-1]
    assert last["validation/accuracy"] == record.metrics["accuracy"]


@pytest.mark.parametrize("recipe", ["none", "stochastic"])
def test_a_resumed_run_is_the_same_to_the_bit(images: Compose, tmp_path: Path, recipe: str) -> None:
    """Batch norms included: a net whose running means began anew would be scored otherwise."""
    words = f"recipe={recipe}", "precision=INT4-row"
    undisturbed = train(images(*words, f"runs={tmp_path / 'undisturbed'}"))
    config = images(*words)
    for step in (8, 16):
        with pytest.raises(KeyboardInterrupt):
            train(config, Stop(step))
        assert list((run_folder(config) / "checkpoints").glob("*.ckpt"))
    resumed = train(config)
    assert resumed.record.attempts == 3
    assert resumed.record.weights_sha256 == undisturbed.record.weights_sha256
    assert (resumed.record.loss, resumed.record.metrics) == (
        undisturbed.record.loss,
        undisturbed.record.metrics,
    )
    assert rows(resumed.folder) == rows(undisturbed.folder)


def test_measuring_a_step_is_not_seen_by_batch_norms(images: Compose, tmp_path: Path) -> None:
    """Diagnostics run the net twice more; its weights and running means must not know."""
    measured = train(images("diagnostics.points=4", "diagnostics.apart=4", "precision=INT4-row"))
    plain = train(images("diagnostics.points=0", "precision=INT4-row", f"runs={tmp_path / 'b'}"))
    assert measured.record.diagnostics
    assert not plain.record.diagnostics
    assert measured.record.weights_sha256 == plain.record.weights_sha256
    assert measured.record.run_id == plain.record.run_id


def test_sizes_and_flops_are_those_of_the_net(images: Compose) -> None:
    config = images("recipe=none")
    net, counter = convnet.build(1, 3, [8, 16], 1), FlopCounterMode(display=False)
    with counter:
        net(torch.randn(5, 1, 8, 8)).logsumexp(-1).sum().backward()
    [planned] = make_plan([config]).runs
    assert planned.flops == counter.get_total_flops() / 5 * STEPS * 12
    record = train(config).record
    assert record.flops == planned.flops
    kinds = [m for m in net.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    assert record.params == sum(m.weight.numel() for m in kinds)
    assert record.params_total == sum(p.numel() for p in net.parameters())


def test_rows_that_share_a_scale_are_those_of_each_layer(images: Compose) -> None:
    """Per tensor: the weight's size for P2, positions x batch x inputs for P1."""
    config = images("recipe=nearest", "precision=INT8-tensor")
    sharers = []
    for into, out, positions in (  # stem, 2 x block 0, block 1, its skip, head
        *((9, 8, 64), (72, 8, 64), (72, 8, 64), (72, 16, 16), (144, 16, 16), (8, 16, 16)),
        (16, 3, 1),
    ):
        n = 12 * positions
        sharers += [n * into, out * into, n * out, into * out, out * n, into * n]
    mean = sum(map(math.log2, sharers)) / len(sharers)
    assert math.log2(train(config).record.block_size) == pytest.approx(mean)


@pytest.mark.parametrize("name", ["INT4-row-fp32", "INT4-tensor-fp32"])
def test_weights_quantized_after_training_are_those_of_the_grid(images: Compose, name: str) -> None:
    """Scored once more by torch with each matrix rounded by hand: [out, taps x channels]."""
    config = images("recipe=none", "keep=last", f"ptq.formats=[{name}]")
    result = train(config)
    net = trained_net(config, result.folder, result.record.weights_sha256)
    precision = Precision.parse(name)
    with torch.no_grad():
        for layer in net.modules():
            if isinstance(layer, nn.Conv2d):
                out, into, high, wide = layer.weight.shape
                matrix = layer.weight.permute(0, 2, 3, 1).reshape(out, -1)
                rounded = quantize(matrix, precision).view(out, high, wide, into)
                layer.weight.copy_(rounded.permute(0, 3, 1, 2))
                per = matrix.abs().amax(1) if "row" in name else matrix.abs().max()[None]
                levels = layer.weight.permute(0, 2, 3, 1).reshape(out, -1) / per[:, None] * 7
                assert torch.allclose(levels, levels.round(), atol=1e-4)
            elif isinstance(layer, nn.Linear):
                layer.weight.copy_(quantize(layer.weight, precision))
    loss, accuracy = scored(config, net)
    after = result.record.ptq[name]
    assert after["loss"] == pytest.approx(loss, rel=1e-5)
    assert after["metrics"] == {"accuracy": pytest.approx(accuracy)}
    assert after["loss"] != result.record.loss


def test_accuracy_is_a_column_and_separates_no_runs(images: Compose, tmp_path: Path) -> None:
    runs = [train(images("recipe=none", f"seed={n}", "ptq.formats=[INT2-row]")) for n in (0, 1)]
    table = load(runs[0].folder.parent)
    assert table["validation_accuracy"].tolist() == [r.record.metrics["accuracy"] for r in runs]
    assert "validation_accuracy" not in cell_keys(table)
    after = table_of([r.record for r in runs], ptq=True)
    found = [r.record.ptq["INT2-row-fp32"]["metrics"]["accuracy"] for r in runs]
    assert after.loc[after.bits_post == 2, "validation_accuracy"].tolist() == found


def test_no_image_run_takes_more_than_is_planned(images: Compose) -> None:
    """What torch allocates at once in two steps, by its own events."""
    from torch.profiler import ProfilerActivity, profile

    for recipe in ("none", "nearest"):
        config = images(
            f"recipe={recipe}", "precision=INT4-row", "batch_size=24",
            "model.config.widths=[32,64]", "model.config.depth=2",
        )  # fmt: skip
        module = LanguageModel(config)
        optimizer = module.configure_optimizers()["optimizer"]
        data = task_of(config).open()
        held = sum(p.untyped_storage().nbytes() for p in module.parameters())
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as measured:
            for step in range(2):
                torch.autograd.backward(module.task.loss(module.model, data.batch(step, 24, 0)))
                optimizer.step()
                optimizer.zero_grad()
        peak = held + most_held(measured)
        planned = task_of(config).training_bytes(config.rows, config.recipe)
        assert peak <= planned < 6 * peak, recipe


def test_convolutions_are_quantized_in_a_run(images: Compose) -> None:
    module = LanguageModel(images("precision=INT4-row"))
    layers = [m for m in module.model.modules() if isinstance(m, QuantizedGemms)]
    assert len(layers) == 7


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("task=other", "task=other: no such choice; there are: classification custom"),
        ("task.name=other", "task.name=other: must be one of language_model, classification"),
        ("task=language_model", "data.name=images: is of images; task=classification learns"),
        ("data.seq_len=2", "data.seq_len=2: must be 1 for task=classification"),
        ("data.image.std=[0]", "data.image.std=[0.0]: must be positive numbers"),
        ("data.image.mean=[0,0]", "data.image.mean=[0.0, 0.0]: must be one number, or one for"),
        ("data.image.channels=2", "data.image.channels=2: must be 1 (grey) or 3 (colour)"),
        ("task.factory=a:b", "task.factory=a:b: belongs to task=custom; this is task=class"),
        ("model=ladder/a", "model.name=ladder-a: is a language model; task=classification takes"),
        ("model.config.depth=0", "must be 1 or more, and there must be a stage"),
        ("ptq.formats=[mxfp4] ptq.operands=weights_and_inputs", "ptq.operands=weights_and_inputs: "
         "with ptq.formats is there for nn.Linear alone, and the model's stem is another layer"),
        ("ptq.formats=[INT4-row] compute_dtype=bfloat16", "compute_dtype=bfloat16: with ptq.form"),
        ("optim.state=bf16", "optim.state=bf16: is there for nn.Linear alone"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_one_line(images: Compose, words: str, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        images(*words.split())
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_text_takes_no_keys_of_images(composed: Compose) -> None:
    with pytest.raises(ConfigError, match="data.name=techdocs: task=classification needs data=dig"):
        composed("task=classification")
    with pytest.raises(ConfigError, match="data.seq_len=1: must be 2 or more"):
        composed("data.seq_len=1")


def deaf(classes: int = 3) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, classes))


def no_logits() -> nn.Module:
    return nn.Conv2d(1, 3, 3)


def test_models_of_other_sizes_are_refused(images: Compose) -> None:
    def of(name: str, *more: str) -> TrainConfig:
        return images("model=module", f"model.factory={__name__}:{name}", *more)

    with pytest.raises(ModelError, match="returns 5 logits for an image; mine-.* has 3 classes"):
        make_plan([of("deaf", "model.config.classes=5")])
    with pytest.raises(ModelError, match=r"returns \[2, 3, 6, 6\] for images \[2, 1, 8, 8\]"):
        make_plan([of("no_logits")])
    with pytest.raises(ModelError, match="on images .2, 1, 16, 16. its forward .* RuntimeError"):
        make_plan([of("deaf", "data.image.size=16")])
    make_plan([of("deaf")])


def test_normalisation_and_pixels_are_part_of_the_address(images: Compose) -> None:
    changes = ("seed=0", "data.image.mean=[0.4]", "data.image.std=[0.4]", "data.image.size=16")
    assert len({run_id(images(change)) for change in changes}) == 4


@pytest.mark.parametrize("model", ["vit", "metaformer"])
def test_models_of_timm_are_trained(images: Compose, model: str) -> None:
    needs_timm()
    size = {"vit": 8, "metaformer": 16}[model]
    words = (f"model={model}", "model.config.num_classes=3", f"data.image.size={size}")
    config = images(*words, "precision=INT4-row")
    config_again = images(*words, "precision=INT4-row", f"runs={config.runs}2")
    bare, counter = make(config.model, 0), FlopCounterMode(display=False)
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with counter, sdpa_kernel(SDPBackend.MATH):
        bare(torch.randn(4, 1, size, size)).logsumexp(-1).sum().backward()
    [planned] = make_plan([config]).runs
    assert planned.flops == counter.get_total_flops() / 4 * STEPS * 12
    with pytest.raises(KeyboardInterrupt):
        train(config, Stop(8))
    resumed, whole = train(config), train(config_again)
    assert resumed.record.weights_sha256 == whole.record.weights_sha256
    assert resumed.record.metrics["accuracy"] > 0.4
