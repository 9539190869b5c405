"""The optimizer: what is stored between steps, and what that does to training."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from experiments.config.precision import ConfigError
from experiments.config.schema import TrainConfig
from experiments.models.transformer import Transformer
from experiments.optim import (
    OptimConfig,
    block_matrices,
    make_optimizer,
    storage,
    stored,
    stored_second_moment,
)
from experiments.quant.block import quantize
from experiments.quant.formats import FloatFormat, FormatError, Precision
from experiments.quant.modes import Rounding
from experiments.quant.recipe import RecipeConfig
from experiments.run.identity import run_folder, run_id, science
from experiments.run.module import LanguageModel
from experiments.run.recorder import Progress
from experiments.train import train
from tests.support.small_runs import ladder

Compose = Callable[..., TrainConfig]
SMALL = ["model=ladder/a", "data=tokens", "data.seq_len=64", "batch_size=4", "tokens=4096"]


@pytest.fixture
def small(composed: Compose, text: Path) -> Compose:
    """16 steps of the smallest model."""
    return lambda *overrides: composed(
        *SMALL, "tracking=none", "tracking.log_every=4", f"data.path={text}", *overrides
    )


def model() -> Transformer:
    made = Transformer(ladder("a"), RecipeConfig(), Precision(FloatFormat(2, 1)))
    made.initialize(0)
    return made


def step_with(made: Transformer, optimizer: torch.optim.Optimizer, seed: int) -> None:
    """One step with normal gradients of size 1e-3."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in made.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator) * 1e-3
    optimizer.step()


@pytest.mark.parametrize("seed", [0, 1])
def test_a_step_is_adamws_in_float32_and_then_a_cast(seed: int) -> None:
    """Torch's own casts to bf16, four steps, bit for bit; what is not in a block stays float32."""
    ours, plain = model(), model()
    optim = OptimConfig(weights="bf16", state="bf16")
    optimizer = make_optimizer(ours, optim, seed)
    reference = make_optimizer(plain, OptimConfig(), seed)
    for step in range(4):
        step_with(ours, optimizer, step)
        step_with(plain, reference, step)
        for weight in block_matrices(plain):
            state = reference.state[weight]
            for stored_value in (weight.data, state["exp_avg"], state["exp_avg_sq"]):
                stored_value.copy_(stored_value.bfloat16())
    names = dict(plain.named_parameters())
    for name, parameter in ours.named_parameters():
        assert torch.equal(parameter, names[name]), name
        for moment in ("exp_avg", "exp_avg_sq"):
            expected = reference.state[names[name]][moment]
            assert torch.equal(optimizer.state[parameter][moment], expected), (name, moment)
    off_the_grid = [n for n, p in plain.named_parameters() if not torch.equal(p, p.bfloat16())]
    assert off_the_grid == [n for n in names if not n.startswith("blocks.") or "norm" in n]


def test_moments_may_have_a_format_each() -> None:
    """FP8-LM (2310.18313): the first in E4M3, the second in FP16, one scale per tensor."""
    made = model()
    optimizer = make_optimizer(made, OptimConfig(state="E4M3-ocp-tensor+fp16-tensor"), 0)
    step_with(made, optimizer, 0)
    for weight in block_matrices(made):
        for name, grid in (
            ("exp_avg", torch.float8_e4m3fn),
            ("exp_avg_sq", torch.float16),
        ):
            moment = optimizer.state[weight][name]
            scaled = moment * (torch.finfo(grid).max / moment.abs().max())
            rounded = scaled.to(grid).float()
            assert torch.allclose(scaled, rounded, rtol=2**-20, atol=0), name
            assert moment.unique().numel() > 100


def test_the_draws_depend_on_seed_step_and_matrix() -> None:
    optim = OptimConfig(weights="bf16", weights_rounding="stochastic")

    def after(seed: int, steps: int) -> list[Tensor]:
        made = model()
        optimizer = make_optimizer(made, optim, seed)
        for _ in range(steps):
            for weight in block_matrices(made):
                weight.data.fill_(1.0)
                weight.grad = torch.full_like(weight, 1e-3)
            optimizer.step()
        assert torch.equal(made.norm.weight, torch.ones(32)), "it had no gradient"
        return [w.detach().clone() for w in block_matrices(made)]

    first = after(0, 1)
    assert all(map(torch.equal, first, after(0, 1)))
    for others in (after(1, 1), after(0, 2)):
        assert not any(map(torch.equal, first, others))
    assert not torch.equal(first[0], first[4]), "same shape, same values, other matrix"


def test_to_nearest_a_weight_sticks_and_stochastically_it_moves_on_average() -> None:
    """The first step of AdamW is lr, here 2^-11 down from 1, where bf16's next number is 1 - 2^-8:
    it goes there with probability 1/8.  n = 26,624; five standard deviations of the binomial,
    one false alarm in 1.7 million.
    """
    moved = {}
    for rounding in ("nearest_even", "stochastic"):
        made = model()
        optim = OptimConfig(
            lr=2**-11, weight_decay=0.0, eps=1e-20, weights="bf16", weights_rounding=rounding
        )
        optimizer = make_optimizer(made, optim, 0)
        for weight in block_matrices(made):
            weight.data.fill_(1.0)
            weight.grad = torch.ones_like(weight)
        optimizer.step()
        after = torch.cat([w.detach().flatten() for w in block_matrices(made)])
        assert set(after.tolist()) <= {1.0, 1 - 2**-8}
        moved[rounding] = int((after < 1).sum())
    n, p = 26_624, 1 / 8
    assert moved["nearest_even"] == 0
    assert abs(moved["stochastic"] - n * p) < 5 * (n * p * (1 - p)) ** 0.5


def test_a_second_moment_decays_on_average_and_sticks_to_nearest() -> None:
    """Without gradients v falls by beta2 a step; from 1.125 down E4M3's half step is 0.0625 and a
    step 0.056.  Stochastically, 20 steps with a standard deviation of at most half a grid step,
    1/16 of v, each: sqrt(20) / 16 for one v, a 163rd of that for the mean of 26,624; five of those.
    """
    means = {}
    for rounding in ("nearest_even", "stochastic"):
        made = model()
        optimizer = make_optimizer(made, OptimConfig(state="E4M3", state_rounding=rounding), 0)
        step_with(made, optimizer, 0)
        for weight in block_matrices(made):
            optimizer.state[weight]["exp_avg_sq"].fill_(1.125)
        for _ in range(20):
            for weight in block_matrices(made):
                weight.grad = torch.zeros_like(weight)
            optimizer.step()
        moments = [optimizer.state[w]["exp_avg_sq"].flatten() for w in block_matrices(made)]
        means[rounding] = torch.cat(moments).double().mean().item()
    assert means["nearest_even"] == 1.125
    expected = 1.125 * 0.95**20
    assert means["stochastic"] == pytest.approx(expected, rel=5 * 20**0.5 / 16 / 163)


@pytest.mark.parametrize("name", ["bf16", "fp16", "E4M3-block2048", "INT8-block2048", "mxfp4"])
@pytest.mark.parametrize("rounding", ["nearest_even", "stochastic"])
def test_a_second_moment_above_zero_is_never_stored_as_zero(name: str, rounding: str) -> None:
    generator = torch.Generator().manual_seed(2)
    v = (torch.randn(64, 96, generator=generator) * 3).exp() * 1e-9
    v[0, :5] = 0.0
    kept = stored_second_moment(v, storage(name), Rounding.parse(rounding), 1)
    assert torch.equal(kept == 0, v == 0)
    plain = stored(v, storage(name), Rounding.parse(rounding), 1)
    assert torch.equal(kept[plain > 0], plain[plain > 0])
    if name != "bf16":
        assert ((plain == 0) & (v > 0)).any(), "or this shows nothing"


def test_blocks_are_of_consecutive_values_and_the_last_may_be_short() -> None:
    """8-bit optimizers (2110.02861, section 2.1): the tensor as one sequence."""
    x = torch.randn(3, 50, generator=torch.Generator().manual_seed(0))
    to = storage("E4M3-block64")
    assert isinstance(to, Precision)
    flat = x.flatten()
    whole = quantize(flat[:128].view(2, 64), to).flatten()
    rest = quantize(flat[128:].view(1, 22), Precision.parse("E4M3-row")).flatten()
    assert torch.equal(stored(x, to, Rounding(), 0).flatten(), torch.cat((whole, rest)))


@pytest.mark.parametrize(
    ("name", "means"),
    [
        ("bf16", "E8M7-ieee"),
        ("E0M7", "E0M7"),
        ("E4M3-ocp", "E4M3-ocp"),
        ("fp8_e4m3", "E4M3-ocp-tensor-fp32"),
        ("E4M3-block2048", "E4M3-block2048-fp32"),
        ("INT8-row", "INT8-row-fp32"),
        ("mxfp4", "E2M1-block32-e8m0"),
    ],
)
def test_an_element_alone_has_no_scale_and_a_published_name_has_its_own(
    name: str, means: str
) -> None:
    assert str(storage(name)) == means


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("weights=bf17", "optim.weights=bf17: precision 'bf17': format 'bf17': write it as E4M3"),
        ("weights=INT8", "optim.weights=INT8: INT8 without a scale has no fractions; write INT8-r"),
        ("weights=nvfp4_tile", "optim.weights=nvfp4_tile: E2M1-tile16-e4m3: what is stored is sca"),
        ("weights_rounding=up", "optim.weights_rounding=up: must be one of nearest_even, stochast"),
        ("state=bf16+fp16+bf16", "optim.state=bf16.fp16.bf16: must be one format, or two as first"),
        ("state=bf16+", "optim.state=bf16.: precision '': "),
        ("state_rounding=none", "optim.state_rounding=none: must be one of nearest_even, stochas"),
        ("loss_scale=3", "optim.loss_scale=3: must be a power of two from 1 to 2.126, or dynamic"),
        ("loss_scale=0.5", "optim.loss_scale=0.5: must be a power of two from 1 to 2.126, or dyn"),
        ("loss_scale=auto", "optim.loss_scale=auto: must be a power of two from 1 to 2.126, or d"),
        ("loss_scale_interval=0", "optim.loss_scale_interval=0: must be 1 or more"),
    ],
)
def test_wrong_options_are_refused_in_one_line(
    composed: Compose, override: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        composed(f"optim.{override}")
    assert re.fullmatch(r"optim\.\w+=\S*: .+", str(error.value))


def test_an_option_changes_the_address_only_off_its_default_and_with_an_effect(
    composed: Compose,
) -> None:
    base = composed()
    without_effect = ("weights_rounding=stochastic", "state_rounding=stochastic")
    for same in (*without_effect, "loss_scale=1", "loss_scale_interval=5", "weights=''"):
        assert science(composed(f"optim.{same}")) == science(base), same
    changes = [
        ["optim.weights=bf16"],
        ["optim.weights=bf16", "optim.weights_rounding=stochastic"],
        ["optim.state=bf16"],
        ["optim.state=bf16", "optim.state_rounding=stochastic"],
        ["optim.loss_scale=1024"],
        ["optim.loss_scale=dynamic"],
        ["optim.loss_scale=dynamic", "optim.loss_scale_interval=5"],
    ]
    assert len({run_id(composed(*change)) for change in changes} | {run_id(base)}) == 8


def test_no_step_sees_a_weight_off_the_grid(small: Compose) -> None:
    """Not even the first one, nor the validation after the last."""
    module = LanguageModel(small("optim.weights=bf16"))
    for weight in block_matrices(module.model):
        assert torch.equal(weight, weight.bfloat16().float())
    assert not torch.equal(module.model.embedding.weight, module.model.embedding.weight.bfloat16())


OPTIONS = {
    "bf16": ["optim.weights=bf16", "optim.weights_rounding=stochastic", "optim.state=bf16"],
    "fp8": [
        "optim.weights=E4M3-row",
        "optim.weights_rounding=stochastic",
        "optim.state=E4M3-block2048+fp16-tensor",
        "optim.state_rounding=stochastic",
        "optim.loss_scale=dynamic",
        "optim.loss_scale_interval=3",
        "recipe=stochastic",
    ],
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_a_run_stopped_and_resumed_gives_the_same_bits(
    small: Compose, tmp_path: Path, options: list[str]
) -> None:
    def stop(progress: Progress) -> None:
        if progress.step == 8:
            os.kill(os.getpid(), signal.SIGINT)

    undisturbed = train(small(*options, f"runs={tmp_path / 'undisturbed'}")).record
    config = small(*options)
    with pytest.raises(KeyboardInterrupt):
        train(config, stop)
    [checkpoint] = run_folder(config).glob("checkpoints/*.ckpt")
    held = torch.load(checkpoint, weights_only=True)
    if config.optim.loss_scale == "dynamic":
        assert held["loss_scale"] == {"value": 2.0**18, "since_change": 2}, "8 steps, doubled twice"
    resumed = train(config).record
    assert resumed.attempts == 2
    assert resumed.weights_sha256 == undisturbed.weights_sha256
    assert resumed.loss == undisturbed.loss


def test_bfloat16_storage_trains_nearly_as_well(small: Compose) -> None:
    """Eight bits, stochastically: to 2 % of the loss after 16 steps, for a model that learns."""
    exact, brain = (
        train(small("recipe=none", *options)).record.loss for options in ([], OPTIONS["bf16"])
    )
    assert exact is not None
    assert brain is not None
    assert brain != exact
    assert brain == pytest.approx(exact, rel=0.02)


def test_names_are_those_of_formats() -> None:
    with pytest.raises(FormatError, match="did you mean mxfp4"):
        storage("mxfp44")
